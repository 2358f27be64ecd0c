//go:build integration

package macaddress

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/testkit"
)

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	testkit.Main(m)
}

const patience = 60 * time.Second

// run starts both controllers, writing through wrap, until stop is called.
func run(t *testing.T, wrap func(client.Client) client.Client) (stop func()) {
	t.Helper()
	m, err := ctrl.NewManager(testkit.API(t).Config(), ctrl.Options{Scheme: testkit.Scheme(), Metrics: server.Options{BindAddress: "0"},
		Controller: ctrlconfig.Controller{SkipNameValidation: new(true)},
		NewClient: func(config *rest.Config, o client.Options) (client.Client, error) {
			c, err := client.New(config, o)
			if err != nil {
				return nil, err
			}
			return wrap(c), nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := Setup(ctx, m); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- m.Start(ctx) }()
	var once atomic.Bool
	stop = func() {
		if once.Swap(true) {
			return
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func immortal(c client.Client) client.Client { return c }

func claim(t *testing.T, c client.Client, namespace, name, address string) *v1alpha2.VirtualMachineMACAddress {
	t.Helper()
	a := &v1alpha2.VirtualMachineMACAddress{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Spec: v1alpha2.VirtualMachineMACAddressSpec{Address: address}}
	if err := c.Create(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	return a
}

// becomes waits for a claim's phase and reason; a bound one must hold its lease.
func becomes(t *testing.T, c client.Client, a *v1alpha2.VirtualMachineMACAddress, phase v1alpha2.VirtualMachineMACAddressPhase, reason string) {
	t.Helper()
	testkit.Eventually(t, patience, fmt.Sprintf("claim %s is %s with %s", a.Name, phase, reason), func() error {
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(a), a); err != nil {
			return err
		}
		has := slices.ContainsFunc(a.Status.Conditions, func(c metav1.Condition) bool {
			return c.Type == v1alpha2.MACAddressConditionBound && c.Reason == reason
		})
		if a.Status.Phase != phase || !has {
			return fmt.Errorf("%+v", a.Status)
		}
		if reason != "Bound" {
			return nil
		}
		lease := &v1alpha2.VirtualMachineMACAddressLease{}
		if err := c.Get(t.Context(), client.ObjectKey{Name: policy.MACLeaseName(a.Status.Address)}, lease); err != nil {
			return err
		}
		if !heldBy(lease, a) || lease.DeletionTimestamp != nil || lease.Status.Phase != v1alpha2.VirtualMachineMACAddressLeaseBound ||
			lease.Labels[v1alpha2.LabelVirtualMachineMACAddressUID] != string(a.UID) {
			return fmt.Errorf("lease %+v", lease)
		}
		return nil
	})
}

func gone(t *testing.T, c client.Client, o client.Object) {
	t.Helper()
	testkit.Eventually(t, patience, o.GetName()+" is gone", func() error {
		err := c.Get(t.Context(), client.ObjectKeyFromObject(o), o)
		if err == nil {
			return errors.New("it is still there")
		}
		return client.IgnoreNotFound(err)
	})
}

func TestClaims(t *testing.T) {
	run(t, immortal)
	c, namespace := testkit.API(t).Client(t), testkit.API(t).Namespace(t)
	const bound, pending = v1alpha2.VirtualMachineMACAddressBound, v1alpha2.VirtualMachineMACAddressPending
	one, two := claim(t, c, namespace, "one", ""), claim(t, c, namespace, "two", "")
	becomes(t, c, one, bound, "Bound")
	becomes(t, c, two, bound, "Bound")
	if one.Status.Address == two.Status.Address || one.Status.Address[:8] != two.Status.Address[:8] || !strings.ContainsRune("26ae", rune(one.Status.Address[1])) {
		t.Errorf("addresses %s and %s", one.Status.Address, two.Status.Address)
	}
	chosen := claim(t, c, namespace, "chosen", "5E-E6-19-22-0F-D8")
	becomes(t, c, chosen, bound, "Bound")
	if chosen.Status.Address != mac {
		t.Errorf("address %s", chosen.Status.Address)
	}
	taken := claim(t, c, testkit.API(t).Namespace(t), "taken", mac)
	becomes(t, c, taken, pending, "VirtualMachineMACAddressLeaseAlreadyExists")

	lease := &v1alpha2.VirtualMachineMACAddressLease{ObjectMeta: metav1.ObjectMeta{Name: policy.MACLeaseName(mac)}}
	if err := c.Delete(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	becomes(t, c, chosen, bound, "Bound")
	becomes(t, c, taken, pending, "VirtualMachineMACAddressLeaseAlreadyExists")

	vm := testkit.VM("user").Namespace(namespace).Disk("root").With(func(vm *v1alpha2.VirtualMachine) {
		vm.Spec.Networks = []v1alpha2.NetworksSpec{{Type: v1alpha2.NetworkMain}, {Type: "Network", Name: "n", VirtualMachineMACAddressName: "chosen"}}
	}).Fresh()
	if err := c.Create(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	becomes(t, c, chosen, v1alpha2.VirtualMachineMACAddressAttached, "Bound")
	if err := c.Delete(t.Context(), chosen); err != nil {
		t.Fatal(err)
	}
	becomes(t, c, chosen, v1alpha2.VirtualMachineMACAddressAttached, "Bound")
	if err := c.Delete(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	gone(t, c, chosen)
	becomes(t, c, taken, bound, "Bound")
	for _, a := range []*v1alpha2.VirtualMachineMACAddress{one, two, taken} {
		if err := c.Delete(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		gone(t, c, &v1alpha2.VirtualMachineMACAddressLease{ObjectMeta: metav1.ObjectMeta{Name: policy.MACLeaseName(a.Status.Address)}})
	}
}

// TestCrash ends the controllers after every single write of an address's life; the
// next ones, which know nothing of them, must bring it to the same end.
func TestCrash(t *testing.T) {
	c := testkit.API(t).Client(t)
	for n := range int64(14) {
		t.Run(fmt.Sprintf("after %d writes", n), func(t *testing.T) {
			namespace := testkit.API(t).Namespace(t)
			dead := make(chan struct{})
			died := dead
			stop := run(t, func(c client.Client) client.Client { return mortal(c, n, died) })
			a := claim(t, c, namespace, "a", "")
			leases := func() (held []string) {
				list := &v1alpha2.VirtualMachineMACAddressLeaseList{}
				if err := c.List(t.Context(), list); err != nil {
					t.Fatal(err)
				}
				for _, l := range list.Items {
					if ref := l.Spec.VirtualMachineMACAddressRef; ref != nil && ref.Namespace == namespace {
						held = append(held, l.Name)
					}
				}
				return held
			}
			revive := func() {
				select {
				case <-dead:
					dead = nil // another one lives from here on
					stop()
					stop = run(t, immortal)
				default:
				}
			}
			for range 2 { // life, then death
				testkit.Eventually(t, patience, "the claim is bound, or gone for good", func() error {
					revive()
					err := c.Get(t.Context(), client.ObjectKeyFromObject(a), a)
					held := leases()
					if len(held) > 1 {
						t.Errorf("one claim holds %q", held)
					}
					switch {
					case apierrors.IsNotFound(err) && len(held) == 0:
						return nil
					case err == nil && a.DeletionTimestamp == nil && settled(a) && slices.Equal(held, []string{policy.MACLeaseName(a.Status.Address)}):
						return nil
					}
					return fmt.Errorf("%v: %+v, leases %q", err, a.Status, held)
				})
				if err := client.IgnoreNotFound(c.Delete(t.Context(), a)); err != nil {
					t.Fatal(err)
				}
			}
			testkit.Eventually(t, patience, "nothing is left", func() error {
				revive()
				if held := leases(); len(held) > 0 {
					return fmt.Errorf("leases %q", held)
				}
				if err := c.Get(t.Context(), client.ObjectKeyFromObject(a), a); !apierrors.IsNotFound(err) {
					return fmt.Errorf("claim: %v", err)
				}
				return nil
			})
			stop()
		})
	}
}

var errDead = errors.New("the process is dead")

// unwatched is a manager's client, which watches through its cache alone.
type unwatched struct{ client.Client }

func (unwatched) Watch(context.Context, client.ObjectList, ...client.ListOption) (watch.Interface, error) {
	return nil, errors.New("bug: a controller watches past its cache")
}

// mortal is a client that dies after n writes; dead is closed then.
func mortal(c client.Client, n int64, dead chan struct{}) client.Client {
	var writes atomic.Int64
	living := func(do func() error) error {
		switch left := n - writes.Add(1); {
		case left == -1:
			close(dead)
			return errDead
		case left < 0:
			return errDead
		}
		return do()
	}
	return interceptor.NewClient(unwatched{c}, interceptor.Funcs{
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
