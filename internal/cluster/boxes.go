package cluster

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"orlop.dev/orlop/internal/cluster/box"
)

// controlBox and nodeBox are the names of boxes; a node's name is its box's.
func controlBox(cluster string) string       { return cluster + "-control" }
func nodeBox(cluster string, n int) string   { return cluster + "-" + strconv.Itoa(n) }
func (c *Cluster) boxDir(name string) string { return filepath.Join(c.dir, "boxes", name) }

// boxNumber is 0 for the control box, n for node n, -1 for a name that is no box.
func (c *Cluster) boxNumber(name string) int {
	if name == controlBox(c.name) {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimPrefix(name, c.name+"-"))
	if err != nil || n < 1 || nodeBox(c.name, n) != name {
		return -1
	}
	return n
}

// boxNames lists the boxes of a cluster, the control box first.
func (s *state) boxNames() []string {
	names := []string{controlBox(s.Name)}
	for n := 1; n <= s.Nodes; n++ {
		names = append(names, nodeBox(s.Name, n))
	}
	return names
}

// isolation are settings of a box's own network namespace. A box forwards for its
// pods, and must believe nobody who claims to know a shorter way.
var isolation = map[string]string{
	"net/ipv4/ip_forward":                    "1",
	"net/ipv4/conf/all/accept_redirects":     "0",
	"net/ipv4/conf/default/accept_redirects": "0",
	"net/ipv4/conf/all/send_redirects":       "0",
	"net/ipv4/conf/default/send_redirects":   "0",
}

// newSpec is what all boxes have in common.
func (c *Cluster) newSpec(name string, address netip.Addr) *box.Spec {
	return &box.Spec{
		Name: name, Dir: c.boxDir(name), Bin: c.binDir(), Shared: filepath.Join(c.dir, "shared"),
		ResolvConf: resolvers(),
		Hosts:      fmt.Sprintf("127.0.0.1 localhost\n::1 localhost ip6-localhost\n%s %s\n", address, name),
		Sysctls:    isolation,
	}
}

// server is the API server's address for everybody.
func (c *Cluster) server() string {
	return fmt.Sprintf("https://%s:%d", c.state.Addresses.control(), apiPort)
}

// prepareControl writes the files of the control box and returns its specification.
func (c *Cluster) prepareControl() (*box.Spec, error) {
	plan, name := c.state.Addresses, controlBox(c.name)
	spec := c.newSpec(name, plan.control())
	files := newFileSet(filepath.Join(spec.Dir, "etc/kubernetes"))
	pki, err := c.openPKI()
	if err != nil {
		return nil, err
	}
	leaves := map[string]subject{
		"apiserver": {
			name: "kube-apiserver", server: true,
			dns:       []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + clusterDomain, "localhost", name},
			addresses: []netip.Addr{plan.control(), plan.apiService(), netip.AddrFrom4([4]byte{127, 0, 0, 1})},
		},
		"apiserver-kubelet-client": {name: "kube-apiserver-kubelet-client", client: true},
		"controller-manager":       {name: "system:kube-controller-manager", client: true},
		"scheduler":                {name: "system:kube-scheduler", client: true},
	}
	for leaf, subject := range leaves {
		if err := pki.cluster.issue(files.path("pki/"+leaf), subject, c.now()); err != nil {
			return nil, err
		}
	}
	if err := pki.proxy.issue(files.path("pki/front-proxy-client"), subject{name: "front-proxy-client", client: true}, c.now()); err != nil {
		return nil, err
	}
	for _, file := range []string{"ca.crt", "ca.key", "front-proxy-ca.crt", "sa.key", "sa.pub"} {
		text, err := os.ReadFile(filepath.Join(c.dir, "pki", file))
		if err != nil {
			return nil, fmt.Errorf("copy %s: %w", file, err)
		}
		files.add("pki/"+file, text)
	}
	files.add("controller-manager.conf", kubeconfigFile(c.server(), "controller-manager"))
	files.add("scheduler.conf", kubeconfigFile(c.server(), "scheduler"))
	if err := files.write(); err != nil {
		return nil, err
	}
	api := "https:" + netip.AddrPortFrom(plan.control(), apiPort).String() + "/readyz"
	spec.Components = []box.Component{
		{Name: "etcd", Argv: etcdArgs(name)},
		{Name: "kube-apiserver", Argv: apiserverArgs(plan), After: "tcp:127.0.0.1:2379"},
		{Name: "kube-controller-manager", Argv: controllerManagerArgs(), After: api},
		{Name: "kube-scheduler", Argv: schedulerArgs(), After: api},
	}
	return spec, c.setRevisions(spec, files)
}

// prepareNode writes the files of node n and returns its specification.
func (c *Cluster) prepareNode(n int) (*box.Spec, error) {
	plan, name := c.state.Addresses, nodeBox(c.name, n)
	address := plan.node(n)
	spec := c.newSpec(name, address)
	files := newFileSet(filepath.Join(spec.Dir, "etc"))
	pki, err := c.openPKI()
	if err != nil {
		return nil, err
	}
	leaves := map[string]subject{
		"kubelet":        {name: "system:node:" + name, groups: []string{"system:nodes"}, client: true},
		"kubelet-server": {name: "system:node:" + name, groups: []string{"system:nodes"}, server: true, dns: []string{name}, addresses: []netip.Addr{address}},
		"kube-proxy":     {name: "system:kube-proxy", client: true},
	}
	for leaf, subject := range leaves {
		if err := pki.cluster.issue(files.path("kubernetes/pki/"+leaf), subject, c.now()); err != nil {
			return nil, err
		}
	}
	plugins, err := c.cniPlugins()
	if err != nil {
		return nil, err
	}
	config := nodeConfig{
		Name: name, Address: address, Pods: plan.podsOf(n), Plan: plan, MTU: c.mtu, Cgroup: boxCgroup(c.name, name), Server: c.server(),
		Pause: c.imageRef("pause"), Reserved: share(c.machine, c.state.Nodes, c.state.NodeCPUs),
		RestrictOOM: !mayLowerOOMScore(), Leased: slices.Contains(plugins, "vm-ipam"),
	}
	if err := addNodeFiles(files, config, pki.cluster.pem); err != nil {
		return nil, err
	}
	if err := files.write(); err != nil {
		return nil, err
	}
	spec.Links = map[string]string{}
	for _, plugin := range plugins {
		spec.Links["/opt/cni/bin/"+plugin] = box.BinDir + "/cni.d/" + plugin
	}
	spec.Components = []box.Component{
		{Name: "containerd", Argv: []string{box.BinDir + "/containerd", "--config", "/etc/containerd/config.toml"}},
		{Name: "kubelet", Argv: kubeletArgs(config), After: "unix:" + containerdSocket},
		{Name: "kube-proxy", Argv: []string{box.BinDir + "/kube-proxy", "--config", kubeDir + "/kube-proxy.yaml"}},
	}
	return spec, c.setRevisions(spec, files)
}

// addNodeFiles adds the configuration of a node's daemons.
func addNodeFiles(files *fileSet, config nodeConfig, ca []byte) error {
	kubelet, err := render(kubeletTemplate, config)
	if err != nil {
		return err
	}
	proxy, err := render(proxyTemplate, config)
	if err != nil {
		return err
	}
	containerd, err := render(containerdTemplate, config)
	if err != nil {
		return err
	}
	network, err := cniConfig(config)
	if err != nil {
		return err
	}
	files.add("kubernetes/pki/ca.crt", ca)
	files.add("kubernetes/kubelet.conf", kubeconfigFile(config.Server, "kubelet"))
	files.add("kubernetes/kube-proxy.conf", kubeconfigFile(config.Server, "kube-proxy"))
	files.add("kubernetes/kubelet.yaml", kubelet)
	files.add("kubernetes/kube-proxy.yaml", proxy)
	files.add("containerd/config.toml", containerd)
	files.add("cni/net.d/10-orlop.conflist", network)
	return nil
}

func etcdArgs(name string) []string {
	// Only the control box's own loopback interface is served: nothing else runs there,
	// so etcd needs no certificates.
	return []string{
		box.BinDir + "/etcd", "--name", name, "--data-dir", "/var/lib/etcd",
		"--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379",
		"--listen-peer-urls", "http://127.0.0.1:2380", "--initial-advertise-peer-urls", "http://127.0.0.1:2380",
		"--initial-cluster", name + "=http://127.0.0.1:2380",
		"--auto-compaction-retention", "1h", "--quota-backend-bytes", strconv.Itoa(4 << 30),
	}
}

func apiserverArgs(plan Addresses) []string {
	return []string{
		box.BinDir + "/kube-apiserver",
		"--advertise-address=" + plan.control().String(),
		"--secure-port=" + strconv.Itoa(apiPort),
		"--etcd-servers=http://127.0.0.1:2379",
		"--service-cluster-ip-range=" + plan.Services.String(),
		"--allow-privileged=true",
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--client-ca-file=" + pkiDir + "/ca.crt",
		"--tls-cert-file=" + pkiDir + "/apiserver.crt",
		"--tls-private-key-file=" + pkiDir + "/apiserver.key",
		"--kubelet-certificate-authority=" + pkiDir + "/ca.crt",
		"--kubelet-client-certificate=" + pkiDir + "/apiserver-kubelet-client.crt",
		"--kubelet-client-key=" + pkiDir + "/apiserver-kubelet-client.key",
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc." + clusterDomain,
		"--service-account-key-file=" + pkiDir + "/sa.pub",
		"--service-account-signing-key-file=" + pkiDir + "/sa.key",
		"--requestheader-client-ca-file=" + pkiDir + "/front-proxy-ca.crt",
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file=" + pkiDir + "/front-proxy-client.crt",
		"--proxy-client-key-file=" + pkiDir + "/front-proxy-client.key",
		// No kube-proxy runs in the control box: services are reached by their endpoints.
		"--enable-aggregator-routing=true",
	}
}

func controllerManagerArgs() []string {
	config := kubeDir + "/controller-manager.conf"
	return []string{
		box.BinDir + "/kube-controller-manager",
		"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
		"--root-ca-file=" + pkiDir + "/ca.crt",
		"--cluster-signing-cert-file=" + pkiDir + "/ca.crt", "--cluster-signing-key-file=" + pkiDir + "/ca.key",
		"--service-account-private-key-file=" + pkiDir + "/sa.key",
		"--use-service-account-credentials=true",
		// Pod ranges belong to boxes, see Addresses.Pods.
		"--allocate-node-cidrs=false",
		// There is one; an election would only delay it after a crash.
		"--leader-elect=false",
	}
}

func schedulerArgs() []string {
	config := kubeDir + "/scheduler.conf"
	return []string{
		box.BinDir + "/kube-scheduler",
		"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
		"--leader-elect=false",
	}
}

func kubeletArgs(c nodeConfig) []string {
	return []string{
		box.BinDir + "/kubelet",
		"--config=" + kubeDir + "/kubelet.yaml",
		"--kubeconfig=" + kubeDir + "/kubelet.conf",
		"--hostname-override=" + c.Name,
		"--node-ip=" + c.Address.String(),
		"--root-dir=/var/lib/kubelet",
	}
}

// setRevisions gives every component a revision made of all it depends on. What one
// component's revision need not contain is not worth telling apart: restarting a
// daemon of a node disturbs no pod.
func (c *Cluster) setRevisions(spec *box.Spec, files *fileSet) error {
	for i := range spec.Components {
		component := &spec.Components[i]
		sum := sha256.New()
		fmt.Fprintln(sum, strings.Join(component.Argv, "\x00"))
		binary, err := filepath.EvalSymlinks(filepath.Join(c.binDir(), filepath.Base(component.Argv[0])))
		if err != nil {
			return fmt.Errorf("find program of %s: %w", component.Name, err)
		}
		digest, known := c.digests[binary]
		if !known {
			if digest, err = fileDigest(binary); err != nil {
				return err
			}
			c.digests[binary] = digest
		}
		fmt.Fprintln(sum, digest)
		if err := files.sumFor(component.Name, sum); err != nil {
			return err
		}
		component.Revision = hex.EncodeToString(sum.Sum(nil))
	}
	return nil
}

// fileSet is the set of files in one directory of a box.
type fileSet struct {
	dir   string
	files map[string][]byte
}

func newFileSet(dir string) *fileSet { return &fileSet{dir: dir, files: map[string][]byte{}} }

func (f *fileSet) path(name string) string { return filepath.Join(f.dir, name) }

func (f *fileSet) add(name string, text []byte) { f.files[name] = text }

// write stores the files that differ.
func (f *fileSet) write() error {
	for name, text := range f.files {
		path := f.path(name)
		if now, err := os.ReadFile(path); err == nil && string(now) == string(text) {
			continue
		}
		if err := writeFile(path, text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// sumFor adds the files that a component reads: those of its directory (cni and
// containerd for containerd), and certificates.
func (f *fileSet) sumFor(component string, sum io.Writer) error {
	var names []string
	for name := range f.files {
		names = append(names, name)
	}
	pairs, err := filepath.Glob(f.path("*/*.crt"))
	if err != nil {
		return err
	}
	nested, err := filepath.Glob(f.path("*/*/*.crt"))
	if err != nil {
		return err
	}
	for _, pair := range append(pairs, nested...) {
		relative, err := filepath.Rel(f.dir, pair)
		if err != nil {
			return err
		}
		names = append(names, relative)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if !reads(component, name) {
			continue
		}
		text, err := os.ReadFile(f.path(name))
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		fmt.Fprintf(sum, "%s %x\n", name, sha256.Sum256(text))
	}
	return nil
}

// reads says whether a component must be restarted when that file changes.
// containerd watches its network configuration; etcd reads no file.
func reads(component, file string) bool {
	switch component {
	case "etcd":
		return false
	case "containerd":
		return strings.HasPrefix(file, "containerd/")
	case "kubelet":
		return strings.HasPrefix(file, "kubernetes/kubelet") || strings.HasPrefix(file, "kubernetes/pki/kubelet") || strings.HasSuffix(file, "pki/ca.crt")
	case "kube-proxy":
		return strings.HasPrefix(file, "kubernetes/kube-proxy") || strings.HasPrefix(file, "kubernetes/pki/kube-proxy") || strings.HasSuffix(file, "pki/ca.crt")
	default:
		return strings.HasPrefix(file, "pki/") || strings.HasSuffix(file, ".conf")
	}
}

// pki is the two authorities.
type pki struct{ cluster, proxy *authority }

// openPKI reads the authorities, or makes them.
func (c *Cluster) openPKI() (*pki, error) {
	dir := filepath.Join(c.dir, "pki")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create directory of keys: %w", err)
	}
	ca, err := openAuthority(dir, "ca", c.now())
	if err != nil {
		return nil, err
	}
	proxy, err := openAuthority(dir, "front-proxy-ca", c.now())
	if err != nil {
		return nil, err
	}
	if err := ensureSigningKey(dir); err != nil {
		return nil, err
	}
	return &pki{cluster: ca, proxy: proxy}, nil
}
