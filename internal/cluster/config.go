package cluster

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"text/template"
)

const (
	clusterDomain = "cluster.local"
	apiPort       = 6443
	// kubeDir and pkiDir are where a box finds its configuration.
	kubeDir = "/etc/kubernetes"
	pkiDir  = kubeDir + "/pki"
	// containerdSocket is the same in every node box.
	containerdSocket = "/run/containerd/containerd.sock"
)

// reserve is what a node must not offer to pods, because other boxes use it.
type reserve struct {
	milliCPU int64
	memory   int64 // bytes
}

// machine is what the host has.
type machine struct {
	cpus   int
	memory int64 // bytes
}

const (
	// controlMemory and nodeMemory are what a control box and the daemons of one node
	// were measured to need at rest, with some room, in bytes.
	controlMemory = 768 << 20
	nodeMemory    = 400 << 20
	// daemonCPU is kept for the daemons of each box, in thousandths.
	daemonCPU = 100
)

// share divides the machine: all nodes together offer no more memory than is left
// beside the boxes' daemons. nodeCPUs overrides the division of CPUs, which can be
// shared, unlike memory.
func share(m machine, nodes, nodeCPUs int) reserve {
	memory := (m.memory-controlMemory)/int64(nodes) - nodeMemory
	milli := int64(m.cpus) * 1000 / int64(nodes)
	if nodeCPUs > 0 {
		milli = int64(min(nodeCPUs, m.cpus)) * 1000
	}
	milli -= daemonCPU
	const leastMemory = 256 << 20
	return reserve{milliCPU: int64(m.cpus)*1000 - max(milli, daemonCPU), memory: m.memory - max(memory, leastMemory)}
}

// nodeConfig is everything the files of a node depend on.
type nodeConfig struct {
	Name     string
	Address  netip.Addr
	Pods     netip.Prefix
	Plan     Addresses
	MTU      int
	Cgroup   string
	Server   string
	Pause    string
	Reserved reserve
	// RestrictOOM is set where root may not lower oom_score_adj (no CAP_SYS_RESOURCE).
	RestrictOOM bool
	// Leased is set when vm-ipam is installed; without it pods get only node addresses.
	Leased bool
}

var kubeletTemplate = template.Must(template.New("kubelet").Parse(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: /etc/kubernetes/pki/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: /etc/kubernetes/pki/kubelet-server.crt
tlsPrivateKeyFile: /etc/kubernetes/pki/kubelet-server.key
rotateCertificates: false
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: {{.Cgroup}}
cgroupsPerQOS: true
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: [pods]
systemReserved:
  cpu: {{.Reserved.MilliCPU}}m
  memory: "{{.Reserved.Bytes}}"
# Small and absolute: the disk is the host's, and a large disk that is mostly full
# has room for a cluster all the same.
evictionHard:
  memory.available: 100Mi
  nodefs.available: 1Gi
  nodefs.inodesFree: 1%
  imagefs.available: 1Gi
# Images were loaded, not pulled, and could not be pulled again.
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
clusterDNS: [{{.Plan.DNS}}]
clusterDomain: cluster.local
resolvConf: /etc/resolv.conf
maxPods: 110
serializeImagePulls: false
makeIPTablesUtilChains: false
volumePluginDir: /var/lib/kubelet/volumeplugins
staticPodPath: ""
`))

var proxyTemplate = template.Must(template.New("kube-proxy").Parse(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: /etc/kubernetes/kube-proxy.conf}
hostnameOverride: {{.Name}}
clusterCIDR: {{.Plan.Pods}}
# By interface, not by range: virtual machines have addresses of a range of their own.
detectLocalMode: InterfaceNamePrefix
detectLocal: {interfaceNamePrefix: veth}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`))

var containerdTemplate = template.Must(template.New("containerd").Parse(`version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.btrfs"]

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "{{.Pause}}"
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = "/etc/containerd/certs.d"

[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = {{.RestrictOOM}}
  # Profiles are of the whole machine and would stay after the cluster is gone.
  disable_apparmor = true
  tolerate_missing_hugetlb_controller = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "/etc/cni/net.d"
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "runc"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        BinaryName = "/orlop/bin/runc"
        SystemdCgroup = false
`))

// MilliCPU and Bytes are for the templates.
func (r reserve) MilliCPU() int64 { return r.milliCPU }

// Bytes is the reserved memory.
func (r reserve) Bytes() int64 { return r.memory }

func render(t *template.Template, data any) ([]byte, error) {
	var text strings.Builder
	if err := t.Execute(&text, data); err != nil {
		return nil, fmt.Errorf("write configuration of %s: %w", t.Name(), err)
	}
	return []byte(text.String()), nil
}

// cniConfig is the network of pods on one node: a routed veth pair for each. What
// the plugins remember is in /run, because a pod does not outlive its box either.
func cniConfig(c nodeConfig) ([]byte, error) {
	ipam := map[string]any{
		"type":    "host-local",
		"ranges":  [][]map[string]string{{{"subnet": c.Pods.String()}}},
		"routes":  []map[string]string{{"dst": "0.0.0.0/0"}},
		"dataDir": "/run/cni/networks",
	}
	if c.Leased {
		ipam = map[string]any{"type": "vm-ipam", "dataDir": "/run/cni/vm-ipam", "delegate": ipam}
	}
	text, err := json.MarshalIndent(map[string]any{
		"cniVersion": "1.0.0",
		"name":       "orlop",
		"plugins": []map[string]any{
			{
				"type": "ptp", "mtu": c.MTU, "ipMasq": false, "ipam": ipam,
				// vm-ipam reads the leased address from the pod's annotations.
				"capabilities": map[string]bool{"io.kubernetes.cri.pod-annotations": true},
			},
			{"type": "portmap", "backend": "nftables", "capabilities": map[string]bool{"portMappings": true}},
		},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode network configuration: %w", err)
	}
	return append(text, '\n'), nil
}

// kubeconfigFile is a configuration for a component, with its certificate beside it.
func kubeconfigFile(server, base string) []byte {
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters:
- name: cluster
  cluster: {server: %q, certificate-authority: %s/ca.crt}
users:
- name: user
  user: {client-certificate: %[2]s/%[3]s.crt, client-key: %[2]s/%[3]s.key}
contexts:
- name: context
  context: {cluster: cluster, user: user}
current-context: context
`, server, pkiDir, base)
}
