//go:build integration

package vm

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/cluster"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/settings"
	"orlop.dev/orlop/internal/testkit"
)

var errDead = errors.New("the process is dead")

// mortal is a client that dies after some writes.
func mortal(c client.WithWatch, writes *atomic.Int64) client.Client {
	strike := func() error {
		if writes.Add(-1) < 0 {
			return errDead
		}
		return nil
	}
	return interceptor.NewClient(c, interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			return errors.Join(strike(), guard(writes, func() error { return c.Create(ctx, o, opts...) }))
		},
		Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			return errors.Join(strike(), guard(writes, func() error { return c.Delete(ctx, o, opts...) }))
		},
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			return errors.Join(strike(), guard(writes, func() error { return c.Patch(ctx, o, p, opts...) }))
		},
		Apply: func(ctx context.Context, c client.WithWatch, o runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
			return errors.Join(strike(), guard(writes, func() error { return c.Apply(ctx, o, opts...) }))
		},
		SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
			return errors.Join(strike(), guard(writes, func() error { return c.SubResource(sub).Patch(ctx, o, p, opts...) }))
		},
	})
}

func guard(writes *atomic.Int64, do func() error) error {
	if writes.Load() < 0 {
		return nil
	}
	return do()
}

// theatre runs the machine's controller by hand, pass by pass, against a real API
// server, and plays everybody else around it.
type theatre struct {
	*stage
	cached client.Reader
	direct client.WithWatch
	writes atomic.Int64
	r      *Reconciler
	live   int // instances seen alive at once, at most
	// hands plays everybody else, by default play.
	hands func(guest func(*v1alpha1.Instance))
}

func newTheatre(t *testing.T, index int, cached client.Reader) *theatre {
	api := testkit.API(t)
	config := api.Config()
	config.QPS = -1 // this test is nothing but requests
	direct := api.ClientFor(t, config)
	s := &stage{t: t, client: direct, namespace: api.Namespace(t), node: fmt.Sprintf("crash-%d", index)}
	s.create(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: s.node, Labels: map[string]string{
		v1alpha2.LabelNodeSchedulable: "true", v1alpha2.LabelNodeAccelerator: "tcg"}}})
	t.Cleanup(func() {
		_ = s.client.Delete(context.Background(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: s.node}})
	})
	s.disk("root")
	return &theatre{stage: s, cached: cached, direct: direct}
}

// restart forgets everything; the new process may make n writes.
func (s *theatre) restart(n int64) {
	s.writes.Store(n)
	writer := mortal(s.direct, &s.writes)
	s.r = New(Options{Client: split{Client: writer, reader: s.cached}, Reader: s.direct, Recorder: events.NewFakeRecorder(1000),
		Clock: clock.RealClock{}, Platform: settings.Platform{LauncherImage: "launcher"}})
}

// split reads from the cache and writes through a mortal client, as a manager's client does.
type split struct {
	client.Client
	reader client.Reader
}

func (s split) Get(ctx context.Context, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	return s.reader.Get(ctx, key, o, opts...)
}

func (s split) List(ctx context.Context, l client.ObjectList, opts ...client.ListOption) error {
	return s.reader.List(ctx, l, opts...)
}

// until makes passes and plays scheduler, kubelet, handler and address controller
// between them, until done is true.
func (s *theatre) until(what string, guest func(*v1alpha1.Instance), done func(vm *v1alpha2.VirtualMachine) bool) {
	s.t.Helper()
	testkit.Eventually(s.t, 30*time.Second, what, func() error {
		_, err := s.r.Reconcile(s.t.Context(), ctrl.Request{NamespacedName: client.ObjectKey{Namespace: s.namespace, Name: "m"}})
		if err != nil && !errors.Is(err, errDead) {
			s.t.Errorf("reconcile: %v", err)
		}
		if s.writes.Load() < 0 {
			s.restart(1 << 40)
		}
		if s.hands != nil {
			s.hands(guest)
		} else {
			s.play(guest)
		}
		vm, err := s.vm("m")
		if apierrors.IsNotFound(err) {
			vm = nil
		} else if err != nil {
			return err
		}
		if !done(vm) {
			return fmt.Errorf("not yet: %+v", vm)
		}
		return nil
	})
}

func (s *theatre) play(guest func(*v1alpha1.Instance)) {
	ctx := s.t.Context()
	pods, instances, addresses := &corev1.PodList{}, &v1alpha1.InstanceList{}, &v1alpha2.VirtualMachineIPAddressList{}
	for _, l := range []client.ObjectList{pods, instances, addresses} {
		if err := s.client.List(ctx, l, client.InNamespace(s.namespace)); err != nil {
			s.t.Fatal(err)
		}
	}
	for i := range addresses.Items {
		if a := &addresses.Items[i]; a.Status.Address == "" {
			a.Status = v1alpha2.VirtualMachineIPAddressStatus{Phase: v1alpha2.VirtualMachineIPAddressAttached, Address: "10.66.10.2", VirtualMachineName: "m"}
			_ = s.client.Status().Update(ctx, a)
		}
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		if p.Spec.NodeName == "" && p.DeletionTimestamp == nil {
			_ = s.client.SubResource("binding").Create(ctx, p, &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: s.node}})
		}
		if p.DeletionTimestamp != nil && ptr.Deref(p.DeletionGracePeriodSeconds, 0) > 0 {
			_ = s.client.Delete(ctx, p, client.GracePeriodSeconds(0))
		}
	}
	live := 0
	for i := range instances.Items {
		in := &instances.Items[i]
		if in.Status.PodUID != "" && in.Status.Exit == nil {
			live++
		}
		if in.Spec.NodeName == "" || in.Status.Exit != nil {
			continue
		}
		switch {
		case in.Spec.Power != v1alpha1.PowerOn && in.Status.PodUID != "":
			ends(v1alpha1.ExitHostShutdown)(&in.Status)
		case in.Spec.Power == v1alpha1.PowerOn:
			in.Status.PodUID = in.Spec.PodUID
			guest(in)
		}
		_ = s.client.Status().Update(ctx, in)
	}
	s.live = max(s.live, live)
}

// TestCrash kills the controller after every single write of a machine's life, from
// its creation to the last trace of it, and expects the same life each time.
func TestCrash(t *testing.T) {
	cached := crashCache(t)
	var survivors atomic.Int64
	t.Run("life", func(t *testing.T) {
		for n := range int64(lifeWrites) {
			t.Run(fmt.Sprintf("after %d writes", n), func(t *testing.T) {
				t.Parallel()
				if crash(t, int(n), cached) {
					survivors.Add(1)
				}
			})
		}
	})
	if survivors.Load() == 0 {
		t.Errorf("a life has more than %d writes", lifeWrites)
	}
}

// crashCache makes what all lives share, and the cache they read from.
func crashCache(t *testing.T) client.Reader {
	t.Helper()
	api := testkit.API(t)
	furnished := &stage{t: t, client: api.Client(t)}
	furnished.furnish()
	class := &v1alpha2.VirtualMachineClass{}
	if err := furnished.get("generic", class); err != nil {
		t.Fatal(err)
	}
	class.Status = v1alpha2.VirtualMachineClassStatus{Phase: v1alpha2.VirtualMachineClassReady}
	if err := furnished.client.Status().Update(t.Context(), class); err != nil {
		t.Fatal(err)
	}
	c, err := cluster.New(api.Config(), func(o *cluster.Options) { o.Scheme = testkit.Scheme() })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := Index(ctx, c.GetFieldIndexer()); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- c.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run cache: %v", err)
		}
	})
	if !c.GetCache().WaitForCacheSync(ctx) {
		t.Fatal("cache does not sync")
	}
	return c.GetCache()
}

// lifeWrites is more than a life has.
const lifeWrites = 50

// crash lives one life in which the controller dies after n writes; it returns
// whether it never did.
func crash(t *testing.T, n int, cached client.Reader) bool {
	t.Helper()
	s := newTheatre(t, n, cached)
	s.restart(int64(n))
	s.machine("m", nil)
	vm := &v1alpha2.VirtualMachine{}
	run := func(in *v1alpha1.Instance) { runs(&in.Status) }
	s.until("the guest runs", run, func(now *v1alpha2.VirtualMachine) bool {
		vm = now
		return now != nil && now.Status.Phase == v1alpha2.MachineRunning
	})
	s.until("a guest reset is followed by the next process", func(in *v1alpha1.Instance) {
		if in.Name == "virt-launcher-m-1" {
			ends(v1alpha1.ExitGuestReset)(&in.Status)
		} else {
			runs(&in.Status)
		}
	}, func(now *v1alpha2.VirtualMachine) bool {
		return now != nil && now.Status.Instance.Counter == 2 && now.Status.Phase == v1alpha2.MachineRunning
	})
	s.until("a power-off stays off", func(in *v1alpha1.Instance) { ends(v1alpha1.ExitGuestShutdown)(&in.Status) }, func(now *v1alpha2.VirtualMachine) bool {
		return now != nil && now.Status.Phase == v1alpha2.MachineStopped
	})
	if err := s.client.Delete(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	s.until("the machine is gone", run, func(now *v1alpha2.VirtualMachine) bool { return now == nil })
	if s.live > 1 {
		t.Errorf("%d processes were alive at once", s.live)
	}
	return s.writes.Load() < 1<<39
}
