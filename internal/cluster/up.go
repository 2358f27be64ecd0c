package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/internal/cluster/box"
)

// UpOptions are what a repeated Up may change.
type UpOptions struct {
	// Nodes is the number of nodes wanted; 0 leaves it, or makes one.
	Nodes int
	// NodeCPUs is how many CPUs each node offers; 0 leaves it.
	NodeCPUs int
	// Kubeconfig is the file that gets the context; empty means the user's.
	Kubeconfig string
}

// Up makes the cluster be there and work: it creates what is missing, restarts what
// died, brings what is outdated up to date, and waits until the nodes are ready. Doing
// it again changes nothing.
func (c *Cluster) Up(ctx context.Context, o UpOptions) error {
	err := c.up(ctx, o)
	if e, ok := errors.AsType[*explainedError](err); ok {
		c.explain(e)
	}
	return err
}

func (c *Cluster) up(ctx context.Context, o UpOptions) error {
	if err := c.inspect(); err != nil {
		return err
	}
	if o.Nodes > maxNodes {
		return fmt.Errorf("%d nodes are too many: at most %d", o.Nodes, maxNodes)
	}
	unlock, err := c.create(o.Nodes, o.NodeCPUs)
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.prepareHost(ctx); err != nil {
		return err
	}
	if err := c.startBoxes(ctx); err != nil {
		return err
	}
	connection, err := c.restConfig()
	if err != nil {
		return err
	}
	if err := c.awaitAPI(ctx, connection); err != nil {
		return err
	}
	kube, err := newClient(connection)
	if err != nil {
		return err
	}
	if err := c.registerNodes(ctx, kube); err != nil {
		return explained(err, controlBox(c.name), "kube-apiserver", "etcd")
	}
	if err := c.LoadImages(ctx); err != nil {
		return err
	}
	done := c.progress.step("basic objects")
	count, err := c.applyManifests(ctx, kube)
	if err != nil {
		return explained(err, controlBox(c.name), "kube-apiserver")
	}
	done("%d applied", count)
	if err := c.awaitNodes(ctx, kube); err != nil {
		return err
	}
	if err := c.awaitNames(ctx); err != nil {
		return err
	}
	file, err := c.mergeKubeconfig(o.Kubeconfig)
	if err != nil {
		return err
	}
	c.progress.note("Cluster %s is up. Context %s in %s is current", c.name, contextName(c.name), file)
	return nil
}

// prepareHost makes what is outside of the boxes.
func (c *Cluster) prepareHost(ctx context.Context) error {
	done := c.progress.step("host")
	if err := checkStateDir(c.dir); err != nil {
		return err
	}
	if err := c.installBinaries(); err != nil {
		return err
	}
	if err := c.findReferences(); err != nil {
		return err
	}
	loadModules(ctx)
	if err := hostSettings.use(c.dir); err != nil {
		return err
	}
	if _, err := ensureBridge(c.name, c.state.Addresses, c.mtu); err != nil {
		return err
	}
	if err := ensureFirewall(ctx, c.name, c.state.Addresses); err != nil {
		return err
	}
	done("bridge %s, nodes %s, pods %s, services %s, virtual machines %s", bridgeName(c.name),
		c.state.Addresses.Nodes, c.state.Addresses.Pods, c.state.Addresses.Services, c.state.Addresses.VMs)
	return nil
}

// checkStateDir refuses a directory that containers cannot live in.
func checkStateDir(dir string) error {
	var info unix.Statfs_t
	if err := unix.Statfs(dir, &info); err != nil {
		return fmt.Errorf("look at state directory: %w", err)
	}
	if info.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return fmt.Errorf("%s is on an overlay file system, on which containers cannot be stacked; choose a directory on a disk with --state-dir", dir)
	}
	return nil
}

// loadModules asks for the kernel modules a node uses. A kernel may have them built
// in, or load them by itself, so that a failure here means nothing.
func loadModules(ctx context.Context) {
	if _, err := exec.LookPath("modprobe"); err != nil {
		return
	}
	modules := []string{"overlay", "bridge", "veth", "nf_tables", "nf_nat", "nft_masq", "nft_fib_inet", "loop", "tun", "xfs"}
	_ = exec.CommandContext(ctx, "modprobe", append([]string{"--all", "--quiet"}, modules...)...).Run()
}

// startBoxes starts the boxes that do not run and tells the others what changed.
func (c *Cluster) startBoxes(ctx context.Context) error {
	bridge, err := netlink.LinkByName(bridgeName(c.name))
	if err != nil {
		return fmt.Errorf("find bridge: %w", err)
	}
	for _, name := range c.state.boxNames() {
		if err := c.startBox(ctx, name, bridge); err != nil {
			return explained(fmt.Errorf("start box %s: %w", name, err), name, "init")
		}
	}
	// The host's own routes lead through boxes that are there by now.
	handle, err := netlink.NewHandle()
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer handle.Close()
	return setRoutes(handle, bridge, hostRoutes(c.state.Addresses, c.state.Nodes))
}

func (c *Cluster) startBox(ctx context.Context, name string, bridge netlink.Link) error {
	n := c.boxNumber(name)
	var spec *box.Spec
	var err error
	if n == 0 {
		spec, err = c.prepareControl()
	} else {
		spec, err = c.prepareNode(n)
	}
	if err != nil {
		return err
	}
	if err := spec.Write(); err != nil {
		return err
	}
	ref := c.state.Boxes[name]
	link := boxLink{cluster: c.name, number: n, pid: ref.PID, mtu: c.mtu, plan: c.state.Addresses, nodes: c.state.Nodes}
	if ref.alive() {
		if err := link.connect(bridge); err != nil {
			return err
		}
		return box.Reload(ctx, spec.Dir)
	}
	done := c.progress.step("box %s", name)
	// What a power cut left: groups in which nothing runs any more.
	if err := c.cgroups.remove(boxCgroup(c.name, name)); err != nil {
		return err
	}
	if err := c.cgroups.create(initCgroup(c.name, name)); err != nil {
		return err
	}
	c.started[name] = c.now()
	started, err := c.clone(spec)
	if err != nil {
		return err
	}
	defer started.gate.Close()
	c.state.Boxes[name] = started.ref
	if err := c.state.write(c.dir); err != nil {
		return err
	}
	if err := c.cgroups.join(initCgroup(c.name, name), started.ref.PID); err != nil {
		return err
	}
	link.pid = started.ref.PID
	if err := link.connect(bridge); err != nil {
		return err
	}
	if _, err := started.gate.Write([]byte{1}); err != nil {
		return fmt.Errorf("let box go: %w", err)
	}
	err = poll(ctx, 15*time.Second, func(ctx context.Context) error {
		_, err := box.GetStatus(ctx, spec.Dir)
		return err
	}, func(error) bool { return started.ref.alive() })
	if err != nil {
		return err
	}
	done("%s", link.address())
	return nil
}

// startedBox is a box whose init waits for its gate to open.
type startedBox struct {
	ref  processRef
	gate *os.File
}

// clone starts an init in new namespaces. It has no terminal, no parent it depends on
// and no open file of ours.
func (c *Cluster) clone(spec *box.Spec) (*startedBox, error) {
	logFile := box.LogFile(spec.Dir, "init")
	if err := os.MkdirAll(filepath.Dir(logFile), 0o755); err != nil {
		return nil, fmt.Errorf("create log directory: %w", err)
	}
	output, err := os.OpenFile(logFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	defer output.Close()
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make gate: %w", err)
	}
	defer reader.Close()
	command := &exec.Cmd{
		Path:       filepath.Join(c.binDir(), initBinary),
		Args:       []string{"orlop-box " + spec.Name, "cluster", "box-init", box.SpecFile(spec.Dir)},
		Dir:        "/",
		Env:        []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"},
		Stdout:     output,
		Stderr:     output,
		ExtraFiles: []*os.File{reader},
		SysProcAttr: &unix.SysProcAttr{
			Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET,
			Setsid:     true,
		},
	}
	if err := command.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("clone: %w", err), writer.Close())
	}
	ref, err := refer(command.Process.Pid)
	if err != nil {
		return nil, errors.Join(err, writer.Close())
	}
	go func() { _ = command.Wait() }() // else it would stay a zombie as long as we live
	return &startedBox{ref: ref, gate: writer}, nil
}

// kill is a power cut.
func (r processRef) kill() {
	if r.alive() {
		_ = unix.Kill(r.PID, unix.SIGKILL)
	}
}

// awaitSocket waits for a unix socket inside a box.
func (c *Cluster) awaitSocket(ctx context.Context, pid int, path string) error {
	return poll(ctx, time.Minute, func(ctx context.Context) error {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "unix", fmt.Sprintf("/proc/%d/root%s", pid, path))
		if err != nil {
			return fmt.Errorf("wait for %s: %w", path, err)
		}
		return conn.Close()
	}, nil)
}

// awaitAPI waits for the API server.
func (c *Cluster) awaitAPI(ctx context.Context, connection *rest.Config) error {
	done := c.progress.step("API server")
	quick := rest.CopyConfig(connection)
	quick.Timeout = 5 * time.Second
	httpClient, err := rest.HTTPClientFor(quick)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	quick.GroupVersion = &corev1.SchemeGroupVersion
	quick.NegotiatedSerializer = clientgoscheme.Codecs.WithoutConversion()
	api, err := rest.UnversionedRESTClientForConfigAndClient(quick, httpClient)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	control := controlBox(c.name)
	err = poll(ctx, 2*time.Minute, func(ctx context.Context) error {
		return api.Get().AbsPath("/readyz").Do(ctx).Error()
	}, func(error) bool { return !c.failing(ctx, control, "kube-apiserver", "etcd") })
	if err != nil {
		return explained(fmt.Errorf("wait for the API server: %w", err), control, "kube-apiserver", "etcd")
	}
	done("ready at %s", c.server())
	return nil
}

// failing says whether one of the components keeps ending, so that there is no point
// in waiting for it: after this many starts its own words are more useful.
func (c *Cluster) failing(ctx context.Context, boxName string, components ...string) bool {
	const enough = 5
	status, err := box.GetStatus(ctx, c.boxDir(boxName))
	if err != nil {
		return false
	}
	return slices.ContainsFunc(status.Components, func(s box.ComponentStatus) bool {
		return slices.Contains(components, s.Name) && s.PID == 0 && s.Restarts >= enough
	})
}

func newClient(connection *rest.Config) (client.Client, error) {
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	kube, err := client.New(connection, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	return kube, nil
}

// registerNodes gives every node its pod range, and the first one its role. Kubelet
// may not set either; it completes an object that is already there.
func (c *Cluster) registerNodes(ctx context.Context, kube client.Client) error {
	for n := 1; n <= c.state.Nodes; n++ {
		pods := c.state.Addresses.podsOf(n).String()
		node := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "v1", "kind": "Node",
			"metadata": map[string]any{"name": nodeBox(c.name, n)},
			"spec":     map[string]any{"podCIDR": pods, "podCIDRs": []any{pods}},
		}}
		if n == 1 {
			node.SetLabels(map[string]string{"node-role.kubernetes.io/control-plane": ""})
		}
		err := poll(ctx, 30*time.Second, func(ctx context.Context) error {
			return kube.Apply(ctx, client.ApplyConfigurationFromUnstructured(node.DeepCopy()), fieldOwner, client.ForceOwnership)
		}, func(err error) bool { return !apierrors.IsInvalid(err) })
		if err != nil {
			return fmt.Errorf("register node %s: %w", node.GetName(), err)
		}
	}
	return nil
}

// awaitNodes waits until every node is ready, and has said so since its box was
// switched on: what was reported before a power cut stands for a while longer.
func (c *Cluster) awaitNodes(ctx context.Context, kube client.Client) error {
	done := c.progress.step("nodes")
	for n := 1; n <= c.state.Nodes; n++ {
		name := nodeBox(c.name, n)
		err := poll(ctx, 2*time.Minute, func(ctx context.Context) error {
			node := &corev1.Node{}
			if err := kube.Get(ctx, client.ObjectKey{Name: name}, node); err != nil {
				return err
			}
			lease := &coordinationv1.Lease{}
			if err := kube.Get(ctx, client.ObjectKey{Namespace: corev1.NamespaceNodeLease, Name: name}, lease); err != nil {
				return err
			}
			return readiness(node, lease, c.started[name])
		}, func(error) bool { return !c.failing(ctx, name, "kubelet", "containerd") })
		if err != nil {
			return explained(fmt.Errorf("wait for node %s: %w", name, err), name, "kubelet", "containerd")
		}
	}
	done("%d ready", c.state.Nodes)
	return nil
}

// readiness says why a node is not ready. Its lease must be younger than since.
func readiness(node *corev1.Node, lease *coordinationv1.Lease, since time.Time) error {
	if lease.Spec.RenewTime == nil || lease.Spec.RenewTime.Time.Before(since) {
		return errors.New("kubelet has not reported yet")
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type != corev1.NodeReady {
			continue
		}
		if condition.Status == corev1.ConditionTrue {
			return nil
		}
		return fmt.Errorf("not ready: %s", condition.Message)
	}
	return errors.New("kubelet has not reported yet")
}

// awaitNames waits until the cluster's DNS answers the host, which proves more than
// any condition: the pod, the service and the routes to both.
func (c *Cluster) awaitNames(ctx context.Context) error {
	if c.references["coredns"] == "" {
		c.progress.note("cluster DNS is not started: there is no image in %s", filepath.Join(c.images, "coredns"))
		return nil
	}
	done := c.progress.step("cluster DNS")
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", netip.AddrPortFrom(c.state.Addresses.DNS, 53).String())
	}}
	err := poll(ctx, 2*time.Minute, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, err := resolver.LookupHost(ctx, "kubernetes.default.svc."+clusterDomain+".")
		return err
	}, nil)
	if err != nil {
		return explained(fmt.Errorf("wait for cluster DNS: %w", err), nodeBox(c.name, 1), "kubelet", "kube-proxy")
	}
	done("answers at %s", c.state.Addresses.DNS)
	return nil
}
