//go:build integration

package address

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/cluster"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/testkit"
)

var errDead = errors.New("the process is dead")

// mortal is a client that dies after some writes: those that follow do nothing. One
// that fails, by a conflict, is none.
func mortal(c client.WithWatch, writes *atomic.Int64) client.Client {
	living := func(do func() error) error {
		if writes.Load() <= 0 {
			writes.Store(-1)
			return errDead
		}
		err := do()
		if err == nil {
			writes.Add(-1)
		}
		return err
	}
	return interceptor.NewClient(c, interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			return living(func() error { return c.Create(ctx, o, opts...) })
		},
		Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			return living(func() error { return c.Delete(ctx, o, opts...) })
		},
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			return living(func() error { return c.Patch(ctx, o, p, opts...) })
		},
		Apply: func(ctx context.Context, c client.WithWatch, o runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
			return living(func() error { return c.Apply(ctx, o, opts...) })
		},
		SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
			return living(func() error { return c.SubResource(sub).Patch(ctx, o, p, opts...) })
		},
	})
}

// split reads from the cache and writes through a mortal client, as a manager's
// client does.
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

// theatre runs both controllers by hand, pass by pass, against a real API server.
type theatre struct {
	t         *testing.T
	direct    client.WithWatch
	cached    client.Reader
	clock     *clocktesting.FakePassiveClock
	writes    atomic.Int64
	namespace string
	elsewhere string
	claims    *Claims
	leases    *Leases
}

// restart forgets everything; the new process may make n writes.
func (s *theatre) restart(n int64) {
	s.writes.Store(n)
	o := Options{Client: split{Client: mortal(s.direct, &s.writes), reader: s.cached}, Reader: s.direct,
		Recorder: events.NewFakeRecorder(1000), Clock: s.clock, Pool: NewPool(), Retention: Retention}
	s.claims, s.leases = &Claims{o}, &Leases{o}
}

// until makes passes over everything of this theatre until done returns nil. At every
// moment no address may be in two hands.
func (s *theatre) until(what string, done func() error) {
	s.t.Helper()
	testkit.Eventually(s.t, time.Minute, what, func() error {
		claims, theirs, leases := &v1alpha2.VirtualMachineIPAddressList{}, &v1alpha2.VirtualMachineIPAddressList{}, &v1alpha2.VirtualMachineIPAddressLeaseList{}
		if err := errors.Join(s.direct.List(s.t.Context(), claims, client.InNamespace(s.namespace)),
			s.direct.List(s.t.Context(), theirs, client.InNamespace(s.elsewhere)), s.cached.List(s.t.Context(), leases)); err != nil {
			return err
		}
		claims.Items = append(claims.Items, theirs.Items...)
		holders := map[string]string{}
		for i := range claims.Items {
			c := &claims.Items[i]
			if settled(c) && c.DeletionTimestamp == nil {
				if other := holders[c.Status.Address]; other != "" {
					s.t.Errorf("%s is held by %s and by %s", c.Status.Address, other, c.Name)
				}
				holders[c.Status.Address] = c.Name
			}
			s.pass(s.claims.Reconcile(s.t.Context(), ctrl.Request{NamespacedName: client.ObjectKeyFromObject(c)}))
		}
		for i := range leases.Items {
			l := &leases.Items[i]
			if ref := l.Spec.VirtualMachineIPAddressRef; ref != nil && (ref.Namespace == s.namespace || ref.Namespace == s.elsewhere) {
				s.pass(s.leases.Reconcile(s.t.Context(), ctrl.Request{NamespacedName: client.ObjectKeyFromObject(l)}))
			}
		}
		return done()
	})
}

func (s *theatre) pass(_ ctrl.Result, err error) {
	if err != nil && !errors.Is(err, errDead) {
		s.t.Errorf("reconcile: %v", err)
	}
	if s.writes.Load() < 0 {
		s.restart(1 << 40)
	}
}

// holds checks that a claim has an address, in status and by lease.
func (s *theatre) holds(namespace, name, address string, phase v1alpha2.VirtualMachineIPAddressPhase) func() error {
	return func() error {
		claim, lease := &v1alpha2.VirtualMachineIPAddress{}, &v1alpha2.VirtualMachineIPAddressLease{}
		if err := s.direct.Get(s.t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, claim); err != nil {
			return err
		}
		if claim.Status.Phase != phase || address != "" && claim.Status.Address != address {
			return fmt.Errorf("%+v", claim.Status)
		}
		name := leaseName(claim.Status.Address)
		if err := s.direct.Get(s.t.Context(), client.ObjectKey{Name: name}, lease); err != nil {
			return err
		}
		if !heldBy(lease, claim) || lease.DeletionTimestamp != nil || lease.Status.Phase != v1alpha2.VirtualMachineIPAddressLeaseBound ||
			lease.Labels[v1alpha2.LabelVirtualMachineIPAddressUID] != string(claim.UID) {
			return fmt.Errorf("lease %+v", lease)
		}
		return nil
	}
}

// TestCrash kills the controllers after every single write of an address's life and
// expects the same life each time, while a claim of another namespace waits for the
// address and must not get it before its time.
func TestCrash(t *testing.T) {
	api := testkit.API(t)
	configure(t, api.Client(t))
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
	var survivors atomic.Int64
	t.Run("life", func(t *testing.T) {
		for n := range int64(lifeWrites) {
			t.Run(fmt.Sprintf("after %d writes", n), func(t *testing.T) {
				t.Parallel()
				if crash(t, n, c.GetCache()) {
					survivors.Add(1)
				}
			})
		}
	})
	if survivors.Load() == 0 {
		t.Errorf("a life has more than %d writes", lifeWrites)
	}
}

// lifeWrites is more than a life has.
const lifeWrites = 50

// crash lives one life in which the controllers die after n writes; it returns
// whether they never did.
func crash(t *testing.T, n int64, cached client.Reader) bool {
	t.Helper()
	api := testkit.API(t)
	config := api.Config()
	config.QPS = -1 // this test is nothing but requests
	s := &theatre{t: t, direct: api.ClientFor(t, config), cached: cached, namespace: api.Namespace(t), elsewhere: api.Namespace(t),
		clock: clocktesting.NewFakePassiveClock(time.Now())}
	s.restart(n)

	vm := testkit.VM("m").Namespace(s.namespace).Disk("root").Fresh()
	if err := s.direct.Create(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	own := s.claimOf(vm)
	s.until("the machine's claim is attached", s.holds(s.namespace, own.Name, "", v1alpha2.VirtualMachineIPAddressAttached))
	address := s.addressOf(own)
	claim(t, s.direct, s.elsewhere, "thief", address)

	if err := s.direct.Delete(t.Context(), &v1alpha2.VirtualMachineIPAddressLease{ObjectMeta: metav1.ObjectMeta{Name: leaseName(address)}}); err != nil {
		t.Fatal(err)
	}
	s.until("the lease is made again", s.holds(s.namespace, own.Name, address, v1alpha2.VirtualMachineIPAddressAttached))

	for _, o := range []client.Object{vm, own} { // as garbage collection does
		if err := s.direct.Delete(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	s.until("the claim is gone", func() error { return gone(s.direct.Get(t.Context(), client.ObjectKeyFromObject(own), own)) })

	again := testkit.VM("m").Namespace(s.namespace).Disk("root").Fresh()
	if err := s.direct.Create(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	next := s.claimOf(again)
	s.until("the next machine of that name has the address", s.holds(s.namespace, next.Name, address, v1alpha2.VirtualMachineIPAddressAttached))

	for _, o := range []client.Object{again, next} {
		if err := s.direct.Delete(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	s.until("the next claim is gone", func() error { return gone(s.direct.Get(t.Context(), client.ObjectKeyFromObject(next), next)) })
	s.clock.SetTime(s.clock.Now().Add(Retention + time.Minute))
	// That may be the one who waits, or somebody of another test.
	s.until("after the retention everybody may have it", func() error {
		lease := &v1alpha2.VirtualMachineIPAddressLease{}
		if err := s.direct.Get(t.Context(), client.ObjectKey{Name: leaseName(address)}, lease); err != nil {
			return client.IgnoreNotFound(err)
		}
		if ref := lease.Spec.VirtualMachineIPAddressRef; ref.Namespace == s.namespace {
			return fmt.Errorf("lease %+v", lease)
		}
		return nil
	})
	return s.writes.Load() < 1<<39
}

// claimOf makes the claim of a machine, as its controller does.
func (s *theatre) claimOf(vm *v1alpha2.VirtualMachine) *v1alpha2.VirtualMachineIPAddress {
	s.t.Helper()
	a := &v1alpha2.VirtualMachineIPAddress{
		ObjectMeta: metav1.ObjectMeta{Name: plan.AddressName(vm.Name, vm.UID), Namespace: vm.Namespace,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(vm, v1alpha2.GroupVersion.WithKind(v1alpha2.VirtualMachineKind))}},
		Spec: v1alpha2.VirtualMachineIPAddressSpec{Type: v1alpha2.VirtualMachineIPAddressAuto}}
	if err := s.direct.Create(s.t.Context(), a); err != nil {
		s.t.Fatal(err)
	}
	return a
}

func (s *theatre) addressOf(claim *v1alpha2.VirtualMachineIPAddress) string {
	s.t.Helper()
	if err := s.direct.Get(s.t.Context(), client.ObjectKeyFromObject(claim), claim); err != nil {
		s.t.Fatal(err)
	}
	return claim.Status.Address
}

func gone(err error) error {
	if err == nil {
		return errors.New("it is still there")
	}
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func leaseName(address string) string {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return "none"
	}
	return policy.LeaseName(a)
}
