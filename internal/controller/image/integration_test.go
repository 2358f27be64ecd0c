//go:build integration

package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/importer"
	"orlop.dev/orlop/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const (
	patience = 20 * time.Second
	success  = `{"format":"qcow2","sourceFormat":"qcow2","virtualSize":1073741824,"storedSize":1000,"digest":"sha256:1"}`
	missing  = `{"reason":"NotFound","message":"The server has no such file","retry":true}`
	damaged  = `{"reason":"NotAnImage","message":"It is no image"}`
)

// registry stands in for DVCR: it remembers which tags were removed.
type registry struct {
	mutex   sync.Mutex
	removed []string
}

func (*registry) Grant(_ context.Context, repository, suffix string, actions ...string) (importer.Repository, error) {
	return importer.Repository{Reference: "dvcr/" + repository + suffix, Token: strings.Join(actions, ","), CABundle: []byte("ca")}, nil
}

func (r *registry) Remove(_ context.Context, repository, tag string) error {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.removed = append(r.removed, repository+":"+tag)
	return nil
}

func (r *registry) has(tag string) bool {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return !slices.Contains(r.removed, tag)
}

type silence struct{}

func (silence) Progress(context.Context, string) (*importer.Progress, error) {
	return nil, errors.New("nobody answers")
}

// cluster is a namespace with a real API server and a stand-in for the kubelet.
type cluster struct {
	t         *testing.T
	api       client.Client
	server    *testkit.Server
	namespace string
	registry  *registry
	// outcome is how pods end.
	outcome atomic.Value
	// pods is how many pods were ever run.
	pods sync.Map
}

func newCluster(t *testing.T) *cluster {
	s := testkit.API(t)
	c := &cluster{t: t, api: s.Client(t), server: s, namespace: s.Namespace(t), registry: &registry{}}
	c.outcome.Store(success)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := c.kubelet(ctx); err != nil && ctx.Err() == nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
				t.Errorf("stand-in for the kubelet: %v", err)
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return c
}

func (c *cluster) kubelet(ctx context.Context) error {
	pods := &corev1.PodList{}
	if err := c.api.List(ctx, pods, client.InNamespace(c.namespace)); err != nil {
		return err
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		c.pods.Store(pod.Name, true)
		secret := &corev1.Secret{}
		if err := c.api.Get(ctx, client.ObjectKeyFromObject(pod), secret); apierrors.IsNotFound(err) {
			continue // as the real one: no Secret, no start
		} else if err != nil {
			return err
		}
		status := corev1.ContainerStatus{Name: "importer"}
		switch pod.Status.Phase {
		case corev1.PodPending:
			pod.Status.Phase = corev1.PodRunning
			status.State.Running = &corev1.ContainerStateRunning{}
		case corev1.PodRunning:
			message := c.outcome.Load().(string)
			if message == "" {
				continue
			}
			pod.Status.Phase = corev1.PodSucceeded
			status.State.Terminated = &corev1.ContainerStateTerminated{Message: message, FinishedAt: metav1.Now()}
			if message != success {
				pod.Status.Phase, status.State.Terminated.ExitCode = corev1.PodFailed, 1
			}
		default:
			continue
		}
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{status}
		if err := c.api.Status().Update(ctx, pod); err != nil {
			return err
		}
	}
	return nil
}

// mortal is a client that can be killed: then it writes nothing any more.
type mortal struct {
	client.Client
	alive func() error
}

func (m mortal) Create(ctx context.Context, obj client.Object, o ...client.CreateOption) error {
	if err := m.alive(); err != nil {
		return err
	}
	return m.Client.Create(ctx, obj, o...)
}

func (m mortal) Delete(ctx context.Context, obj client.Object, o ...client.DeleteOption) error {
	if err := m.alive(); err != nil {
		return err
	}
	return m.Client.Delete(ctx, obj, o...)
}

func (m mortal) Patch(ctx context.Context, obj client.Object, p client.Patch, o ...client.PatchOption) error {
	if err := m.alive(); err != nil {
		return err
	}
	return m.Client.Patch(ctx, obj, p, o...)
}

func (m mortal) Status() client.SubResourceWriter { return mortalStatus{m.Client.Status(), m.alive} }

type mortalStatus struct {
	client.SubResourceWriter
	alive func() error
}

func (m mortalStatus) Patch(ctx context.Context, obj client.Object, p client.Patch, o ...client.SubResourcePatchOption) error {
	if err := m.alive(); err != nil {
		return err
	}
	return m.SubResourceWriter.Patch(ctx, obj, p, o...)
}

// controller runs the controllers until stop is called. After limit writes they
// behave like a process that was killed; a negative limit means none.
func (c *cluster) controller(limit int64) (stop func(), killed func() bool) {
	c.t.Helper()
	m, err := ctrl.NewManager(c.server.Config(), ctrl.Options{
		Scheme: testkit.Scheme(), Metrics: server.Options{BindAddress: "0"},
		Controller: ctrlconfig.Controller{SkipNameValidation: new(true)},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	var writes atomic.Int64
	alive := func() error {
		if n := writes.Add(1); limit >= 0 && n > limit {
			return errors.New("killed")
		}
		return nil
	}
	o := Options{Client: mortal{m.GetClient(), alive}, Clock: clock.RealClock{}, Registry: c.registry, Prober: silence{},
		Namespace: c.namespace, Host: "dvcr", ImporterImage: "importer:1"}
	if err := setup(c.t.Context(), m, o); err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Start(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("run the controllers: %v", err)
		}
	}
	c.t.Cleanup(stop)
	return stop, func() bool { return limit >= 0 && writes.Load() > limit }
}

// until waits for a phase and for the pods to be gone or not.
func (c *cluster) until(k kind, obj client.Object, phase v1alpha2.ImagePhase, pods int) view {
	c.t.Helper()
	var v view
	testkit.Eventually(c.t, patience, fmt.Sprintf("%s %s is %s", k.Name(), obj.GetName(), phase), func() error {
		got := k.New()
		if err := c.api.Get(c.t.Context(), client.ObjectKeyFromObject(obj), got); err != nil {
			return err
		}
		v = k.View(got, c.namespace)
		if v.status.Phase != phase {
			return fmt.Errorf("phase %s, conditions %+v", v.status.Phase, v.status.Conditions)
		}
		list := &corev1.PodList{}
		if err := c.api.List(c.t.Context(), list, client.InNamespace(c.namespace)); err != nil {
			return err
		}
		if len(list.Items) != pods {
			return fmt.Errorf("%d pods", len(list.Items))
		}
		return nil
	})
	return v
}

func (c *cluster) delete(obj client.Object) {
	c.t.Helper()
	if err := c.api.Delete(c.t.Context(), obj); err != nil {
		c.t.Fatal(err)
	}
	testkit.Eventually(c.t, patience, obj.GetName()+" is gone", func() error {
		err := c.api.Get(c.t.Context(), client.ObjectKeyFromObject(obj), obj)
		if apierrors.IsNotFound(err) {
			return nil
		}
		return errors.Join(errors.New("still there"), err)
	})
}

// TestCrash kills the controllers after each of their writes in turn.
func TestCrash(t *testing.T) {
	c := newCluster(t)
	for limit := int64(0); ; limit++ {
		image := testkit.Image(fmt.Sprintf("image%d", limit)).Namespace(c.namespace).Fresh()
		if err := c.api.Create(t.Context(), image); err != nil {
			t.Fatal(err)
		}
		stop, killed := c.controller(limit)
		survived := false
		testkit.Eventually(t, patience, "the controller is killed or done", func() error {
			got := &v1alpha2.VirtualImage{}
			if err := c.api.Get(t.Context(), client.ObjectKeyFromObject(image), got); err != nil {
				return err
			}
			list := &corev1.PodList{}
			if err := c.api.List(t.Context(), list, client.InNamespace(c.namespace)); err != nil {
				return err
			}
			survived = got.Status.Phase == v1alpha2.ImageReady && len(list.Items) == 0
			if survived || killed() {
				return nil
			}
			return errors.New("neither")
		})
		stop()
		again, _ := c.controller(-1)
		got := c.until(virtualImage{}, image, v1alpha2.ImageReady, 0)
		if want := "dvcr/vi/" + c.namespace + "/" + image.Name + "@sha256:1"; got.status.RegistryURL != want {
			t.Errorf("registry URL %q, want %q", got.status.RegistryURL, want)
		}
		tag := "vi/" + c.namespace + "/" + image.Name + ":" + string(image.UID)
		if !c.registry.has(tag) {
			t.Errorf("image %s was removed too early", tag)
		}
		c.delete(image)
		if c.registry.has(tag) {
			t.Errorf("image %s was not removed", tag)
		}
		again()
		if survived {
			t.Logf("%d writes from nothing to a ready image", limit)
			break
		}
	}
	c.pods.Range(func(name, _ any) bool {
		if !strings.HasSuffix(name.(string), "-1") {
			t.Errorf("pod %s: a crash must not lead to another attempt", name)
		}
		return true
	})
}

func TestClusterImage(t *testing.T) {
	c := newCluster(t)
	c.controller(-1)
	image := testkit.ClusterImage("shared-" + c.namespace).Fresh()
	if err := c.api.Create(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	got := c.until(clusterVirtualImage{}, image, v1alpha2.ImageReady, 0)
	if want := "dvcr/cvi/" + image.Name + "@sha256:1"; got.status.RegistryURL != want {
		t.Errorf("registry URL %q, want %q", got.status.RegistryURL, want)
	}
	c.delete(image)
}

// TestFailures: the cause is named, the importer goes, and a new URL is a new chance.
func TestFailures(t *testing.T) {
	c := newCluster(t)
	c.controller(-1)
	ready := func(v view) metav1.Condition {
		for _, condition := range v.status.Conditions {
			if condition.Type == v1alpha2.ImageConditionReady {
				return condition
			}
		}
		return metav1.Condition{}
	}
	t.Run("a server without the file is asked again", func(t *testing.T) {
		c.outcome.Store(missing)
		image := testkit.Image("later").Namespace(c.namespace).Fresh()
		if err := c.api.Create(t.Context(), image); err != nil {
			t.Fatal(err)
		}
		got := ready(c.until(virtualImage{}, image, v1alpha2.ImageFailed, 0))
		if got.Reason != "ProvisioningFailed" || !strings.HasPrefix(got.Message, "The server has no such file; attempt ") {
			t.Errorf("Ready: %s %q", got.Reason, got.Message)
		}
		c.outcome.Store(success)
		c.until(virtualImage{}, image, v1alpha2.ImageReady, 0)
		c.delete(image)
	})
	t.Run("what is no image is not, until the URL is changed", func(t *testing.T) {
		c.outcome.Store(damaged)
		image := testkit.Image("html").Namespace(c.namespace).Fresh()
		if err := c.api.Create(t.Context(), image); err != nil {
			t.Fatal(err)
		}
		got := ready(c.until(virtualImage{}, image, v1alpha2.ImageFailed, 0))
		if got.Reason != "ProvisioningFailedTerminally" || got.Message != "It is no image" {
			t.Errorf("Ready: %s %q", got.Reason, got.Message)
		}
		c.outcome.Store(success)
		if err := c.api.Get(t.Context(), client.ObjectKeyFromObject(image), image); err != nil {
			t.Fatal(err)
		}
		patch := client.MergeFrom(image.DeepCopy())
		image.Spec.DataSource.HTTP.URL = "http://images.example/better.qcow2"
		if err := c.api.Patch(t.Context(), image, patch); err != nil {
			t.Fatal(err)
		}
		c.until(virtualImage{}, image, v1alpha2.ImageReady, 0)
	})
	t.Run("deletion stops a running import", func(t *testing.T) {
		c.outcome.Store("")
		image := testkit.Image("slow").Namespace(c.namespace).Fresh()
		if err := c.api.Create(t.Context(), image); err != nil {
			t.Fatal(err)
		}
		c.until(virtualImage{}, image, v1alpha2.ImageProvisioning, 1)
		c.delete(image)
	})
}
