package handler

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/handler/network"
	"orlop.dev/orlop/internal/handler/podfs"
	"orlop.dev/orlop/internal/qemu"
	"orlop.dev/orlop/internal/wire"
)

// parcel is a start message with its descriptors.
type parcel struct {
	start wire.Start
	files []*os.File
}

// add puts a descriptor into the parcel and returns its index.
func (p *parcel) add(f *os.File) int {
	p.files = append(p.files, f)
	return len(p.files) - 1
}

func (p *parcel) close() { wire.CloseFiles(p.files) }

// start opens everything the machine needs and hands it to the launcher. The
// handler's own descriptors are closed in any case: one left behind would let the
// kubelet unmount a volume under a living QEMU after a restart, and hold it busy
// after QEMU's end.
func (w *worker) start(ctx context.Context) error {
	in := w.memory.instance
	began := w.node.Now()
	if err := w.wire(); err != nil {
		return err
	}
	p, err := w.node.pack(ctx, in)
	if p != nil {
		defer p.close()
	}
	if err != nil {
		return err
	}
	if err := w.packInterfaces(p); err != nil {
		return err
	}
	err = w.link.client.Start(ctx, p.start, p.files)
	w.refresh(ctx)
	if err != nil && !(errors.Is(err, wire.ErrAlreadyStarted) && w.memory.started()) {
		return err // a launcher whose pod is being deleted starts nothing either
	}
	starts.Observe(w.node.Now().Sub(began).Seconds())
	w.log.Info("launcher was told to start QEMU", "podUID", string(in.Spec.PodUID))
	return nil
}

// refresh asks for the state after an act whose outcome may have been lost.
func (w *worker) refresh(ctx context.Context) {
	if hello, err := w.link.client.Hello(ctx); err == nil {
		w.memory.hear(w.node.Now(), hello.State)
	}
}

// pack opens disks and accelerator.
func (n *Node) pack(ctx context.Context, in *v1alpha1.Instance) (*parcel, error) {
	machine := *in.Spec.Machine.DeepCopy()
	if machine.Accelerator == "" {
		machine.Accelerator = n.Accelerator
	}
	if machine.Accelerator == v1alpha1.AcceleratorKVM && n.Accelerator != v1alpha1.AcceleratorKVM {
		return nil, errors.New("the machine needs KVM, which this node does not have")
	}
	p := &parcel{start: wire.Start{
		InstanceUID:        in.UID,
		Machine:            machine,
		RebootAction:       rebootAction(in.Spec.RebootAction),
		GracePeriodSeconds: in.Spec.GracePeriodSeconds,
		FirstBoot:          in.Spec.FirstBoot,
		Incoming:           arriving(in),
	}}
	for i := range machine.Disks {
		if err := n.packDisk(ctx, p, in, &machine.Disks[i]); err != nil {
			return p, fmt.Errorf("disk %s: %w", machine.Disks[i].ID, err)
		}
	}
	if machine.Accelerator == v1alpha1.AcceleratorKVM {
		kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
		if err != nil {
			return p, fmt.Errorf("open KVM: %w", err)
		}
		index := p.add(kvm)
		p.start.KVM = &index
	}
	return p, nil
}

func (n *Node) packDisk(ctx context.Context, p *parcel, in *v1alpha1.Instance, d *v1alpha1.Disk) error {
	switch {
	case d.Source.FirstBoot != nil:
		return nil // the launcher makes it
	case d.Source.PersistentVolumeClaim != nil:
		disk, err := n.openVolume(ctx, in, d, qemu.ReadOnly(*d))
		if err != nil {
			return err
		}
		p.start.Disks = append(p.start.Disks, wire.StartDisk{ID: d.ID, FDs: []int{p.add(disk.File)}})
		if disk.Buffered && !qemu.ReadOnly(*d) {
			return errors.New("its file system has no direct I/O, which a writable disk needs")
		}
		return nil
	case d.Source.Image != nil:
		disk, err := n.openImage(in, d)
		if err != nil {
			return err
		}
		p.start.Disks = append(p.start.Disks, wire.StartDisk{ID: d.ID, FDs: []int{p.add(disk.File)}})
		return nil
	default:
		return errors.New("its source is not known to this release")
	}
}

// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims,verbs=get

// openVolume finds the claim's volume in the pod that holds it, the launcher's or an
// attachment pod, and opens it. The claim is read from the API server itself: it is
// asked once per start and not worth a cache.
func (n *Node) openVolume(ctx context.Context, in *v1alpha1.Instance, d *v1alpha1.Disk, readOnly bool) (podfs.Disk, error) {
	source := d.Source.PersistentVolumeClaim
	var claim corev1.PersistentVolumeClaim
	if err := n.Reader.Get(ctx, client.ObjectKey{Namespace: in.Namespace, Name: source.ClaimName}, &claim); err != nil {
		return podfs.Disk{}, fmt.Errorf("read claim: %w", err)
	}
	if claim.Spec.VolumeName == "" {
		return podfs.Disk{}, fmt.Errorf("claim %s is not bound", source.ClaimName)
	}
	pod := in.Spec.PodUID
	if source.Pod != nil {
		pod = source.Pod.UID
	}
	if source.Mode == "Block" {
		// The source of a migration holds the device, on this very kernel if the nodes
		// share one; the hand-over decides who writes.
		return n.FS.BlockDevice(pod, claim.Spec.VolumeName, readOnly, arriving(in))
	}
	return n.FS.DiskFile(pod, claim.Spec.VolumeName, readOnly)
}

// packInterfaces makes the guest's taps. There is one interface so far.
func (w *worker) packInterfaces(p *parcel) error {
	interfaces := w.memory.instance.Spec.Machine.Interfaces
	if len(interfaces) == 0 {
		return nil
	}
	if len(interfaces) > 1 {
		return errors.New("more than one network interface is not supported by this release")
	}
	if w.memory.instance.Spec.Network == nil {
		return errors.New("the interface has no address plan")
	}
	w.mu.Lock()
	plan := w.plan
	w.mu.Unlock()
	tap, err := w.link.net.OpenTap(plan)
	if err != nil {
		return err
	}
	p.start.Interfaces = append(p.start.Interfaces, wire.StartInterface{ID: interfaces[0].ID, FD: p.add(tap), MTU: int32(min(plan.MTU, 0xffff))})
	return nil
}

// networkRequest is the Instance's address plan in the network's terms.
func networkRequest(in *v1alpha1.Instance) (network.Request, error) {
	n := in.Spec.Network
	var r network.Request
	var err error
	if len(in.Spec.Machine.Interfaces) > 0 {
		if r.MAC, err = net.ParseMAC(in.Spec.Machine.Interfaces[0].MAC); err != nil {
			return r, fmt.Errorf("read the interface's hardware address: %w", err)
		}
	}
	if n.AddressSource == v1alpha1.AddressFromPod {
		return r, nil
	}
	if r.Address, err = netip.ParseAddr(n.Address); err != nil {
		return r, fmt.Errorf("read the guest's address: %w", err)
	}
	if r.CIDR, err = netip.ParsePrefix(n.CIDR); err != nil {
		return r, fmt.Errorf("read the address range: %w", err)
	}
	return r, nil
}

// leaseOf is what DHCP tells the guest. Nameservers that are no addresses are left
// out: the guest would choke on them, and a machine without names beats none.
func leaseOf(in *v1alpha1.Instance, plan network.Plan) network.Lease {
	l := network.Lease{Plan: plan, Hostname: in.Spec.Machine.Hostname, SearchDomains: in.Spec.Network.SearchDomains}
	for _, s := range in.Spec.Network.Nameservers {
		if a, err := netip.ParseAddr(s); err == nil && a.Is4() {
			l.Nameservers = append(l.Nameservers, a)
		}
	}
	return l
}
