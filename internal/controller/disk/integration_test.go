//go:build integration

package disk

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/importer"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const patience = 20 * time.Second

// grants stands in for the registry's token key.
type grants struct{}

func (grants) Grant(_ context.Context, repository, suffix string, actions ...string) (importer.Repository, error) {
	return importer.Repository{Reference: "dvcr/" + repository + suffix, Token: strings.Join(actions, ","), CABundle: []byte("ca")}, nil
}

type silence struct{}

func (silence) Progress(context.Context, string) (*importer.Progress, error) {
	return nil, errors.New("nobody answers")
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

// cluster is what the tests of this package share: a namespace with a real API
// server, and a stand-in for provisioner, binder and kubelet.
type cluster struct {
	t         *testing.T
	api       client.Client
	server    *testkit.Server
	namespace string
	// hold keeps the stand-in from finishing pods, cut is a kubelet that hears and says nothing.
	hold, cut atomic.Bool
}

func newCluster(t *testing.T) *cluster {
	s := testkit.API(t)
	c := &cluster{t: t, api: s.Client(t), server: s, namespace: s.Namespace(t)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := c.kube(ctx); err != nil && ctx.Err() == nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
				t.Errorf("stand-in for Kubernetes: %v", err)
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return c
}

// controller runs the controller until stop is called. After limit writes it
// behaves like a process that was killed: nothing is written any more; killed tells
// that this has happened. A negative limit means none.
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
	errDead := errors.New("killed")
	alive := func() error {
		if n := writes.Add(1); limit >= 0 && n > limit {
			return errDead
		}
		return nil
	}
	wrapped := mortal{Client: m.GetClient(), alive: alive}
	o := Options{Client: wrapped, Clock: clock.RealClock{}, Registry: grants{}, Prober: silence{}, Host: "dvcr", ImporterImage: "importer:1"}
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
			c.t.Errorf("run the controller: %v", err)
		}
	}
	c.t.Cleanup(stop)
	return stop, func() bool { return limit >= 0 && writes.Load() > limit }
}

// kube does one round of what Kubernetes would do.
func (c *cluster) kube(ctx context.Context) error {
	claims := &corev1.PersistentVolumeClaimList{}
	if err := c.api.List(ctx, claims, client.InNamespace(c.namespace)); err != nil {
		return err
	}
	for i := range claims.Items {
		if err := c.claim(ctx, &claims.Items[i]); err != nil {
			return err
		}
	}
	volumes := &corev1.PersistentVolumeList{}
	if err := c.api.List(ctx, volumes); err != nil {
		return err
	}
	for i := range volumes.Items {
		if err := c.bind(ctx, &volumes.Items[i]); err != nil {
			return err
		}
	}
	pods := &corev1.PodList{}
	if err := c.api.List(ctx, pods, client.InNamespace(c.namespace)); err != nil {
		return err
	}
	for i := range pods.Items {
		if err := c.pod(ctx, &pods.Items[i]); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) claim(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	if claim.DeletionTimestamp != nil {
		claim.Finalizers = nil
		return c.api.Update(ctx, claim)
	}
	if claim.Spec.DataSourceRef != nil || claim.Spec.VolumeName != "" {
		return nil
	}
	class := &storagev1.StorageClass{}
	if err := c.api.Get(ctx, client.ObjectKey{Name: *claim.Spec.StorageClassName}, class); err != nil {
		return err
	}
	if class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer && claim.Annotations[plan.SelectedNodeAnnotation] == "" {
		return nil
	}
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pvc-" + string(claim.UID)},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: claim.Spec.Resources.Requests, AccessModes: claim.Spec.AccessModes, StorageClassName: class.Name, VolumeMode: claim.Spec.VolumeMode,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			ClaimRef:                      &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID},
			PersistentVolumeSource:        corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "local.orlop", VolumeHandle: string(claim.UID)}},
		},
	}
	if err := c.api.Create(ctx, volume); err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	return nil
}

// bind completes the bond of a volume with the claim it names, and calls a claim
// lost whose volume went to another one, as the volume binder does.
func (c *cluster) bind(ctx context.Context, volume *corev1.PersistentVolume) error {
	ref := volume.Spec.ClaimRef
	if ref == nil || ref.Namespace != c.namespace {
		return nil
	}
	claim := &corev1.PersistentVolumeClaim{}
	err := c.api.Get(ctx, client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}, claim)
	if apierrors.IsNotFound(err) || err == nil && claim.UID != ref.UID {
		volume.Finalizers = nil
		if err := c.api.Update(ctx, volume); err != nil {
			return err
		}
		return c.api.Delete(ctx, volume)
	}
	if err != nil || claim.Status.Phase == corev1.ClaimBound {
		return err
	}
	if claim.Spec.VolumeName == "" {
		claim.Spec.VolumeName = volume.Name
		if err := c.api.Update(ctx, claim); err != nil {
			return err
		}
	}
	claim.Status.Phase = corev1.ClaimBound
	claim.Status.Capacity = volume.Spec.Capacity
	return c.api.Status().Update(ctx, claim)
}

func (c *cluster) pod(ctx context.Context, pod *corev1.Pod) error {
	switch {
	case c.cut.Load():
		return nil
	case pod.DeletionTimestamp != nil:
		return c.end(ctx, pod)
	case pod.Spec.NodeName == "":
		return c.api.SubResource("binding").Create(ctx, pod, &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: "node-1"}})
	}
	secret := &corev1.Secret{}
	if err := c.api.Get(ctx, client.ObjectKeyFromObject(pod), secret); err != nil {
		return client.IgnoreNotFound(err)
	}
	switch {
	case pod.Status.Phase == corev1.PodPending:
		pod.Status.Phase = corev1.PodRunning
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "importer", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	case pod.Status.Phase == corev1.PodRunning && !c.hold.Load():
		pod.Status.Phase = corev1.PodSucceeded
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "importer", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			Message: `{"format":"qcow2","virtualSize":1073741824,"storedSize":1}`, FinishedAt: metav1.Now(), ContainerID: "containerd://1"}}}}
	default:
		return nil
	}
	return c.api.Status().Update(ctx, pod)
}

// end is what a kubelet does about a pod that is being deleted: it kills, says so, and
// takes its own hand off.
func (c *cluster) end(ctx context.Context, pod *corev1.Pod) error {
	if pod.Status.Phase != corev1.PodFailed && pod.Status.Phase != corev1.PodSucceeded {
		pod.Status.Phase = corev1.PodFailed
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "importer", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: 137, Reason: "Error", FinishedAt: metav1.Now(), ContainerID: "containerd://1"}}}}
		if err := c.api.Status().Update(ctx, pod); err != nil {
			return err
		}
	}
	if *pod.DeletionGracePeriodSeconds == 0 {
		return nil
	}
	return c.api.Delete(ctx, pod, client.GracePeriodSeconds(0), client.Preconditions{UID: &pod.UID})
}

func (c *cluster) class(name string, late bool) {
	c.t.Helper()
	class := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: "local.orlop"}
	if late {
		class.VolumeBindingMode = new(storagev1.VolumeBindingWaitForFirstConsumer)
	}
	if err := c.api.Create(c.t.Context(), class); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if err := c.api.Delete(context.Background(), class); err != nil {
			c.t.Error(err)
		}
	})
}

func (c *cluster) create(obj client.Object) {
	c.t.Helper()
	if err := c.api.Create(c.t.Context(), obj); err != nil {
		c.t.Fatal(err)
	}
}

// phase waits until a disk is in a phase and returns it.
func (c *cluster) phase(disk *v1alpha2.VirtualDisk, want v1alpha2.DiskPhase) *v1alpha2.VirtualDisk {
	c.t.Helper()
	got := &v1alpha2.VirtualDisk{}
	testkit.Eventually(c.t, patience, fmt.Sprintf("disk %s is %s", disk.Name, want), func() error {
		if err := c.api.Get(c.t.Context(), client.ObjectKeyFromObject(disk), got); err != nil {
			return err
		}
		if got.Status.Phase != want {
			return fmt.Errorf("phase %s, conditions %+v", got.Status.Phase, got.Status.Conditions)
		}
		return nil
	})
	return got
}

// rest is the world after the work: which claims, pods and volumes there are.
func (c *cluster) rest(disk *v1alpha2.VirtualDisk) []string {
	var found []string
	claims, pods, volumes := &corev1.PersistentVolumeClaimList{}, &corev1.PodList{}, &corev1.PersistentVolumeList{}
	for _, list := range []client.ObjectList{claims, pods, volumes} {
		if err := c.api.List(c.t.Context(), list); err != nil {
			c.t.Fatal(err)
		}
	}
	names := strings.NewReplacer(disk.Name, "DISK", strings.ReplaceAll(string(disk.UID), "-", "")[:8], "UID")
	for _, claim := range claims.Items {
		if claim.Namespace == c.namespace {
			found = append(found, names.Replace("claim "+claim.Name+" "+string(claim.Status.Phase)))
		}
	}
	for _, pod := range pods.Items {
		if pod.Namespace == c.namespace {
			found = append(found, names.Replace("pod "+pod.Name))
		}
	}
	for _, v := range volumes.Items {
		if v.Spec.ClaimRef.Namespace == c.namespace {
			found = append(found, names.Replace("volume of "+v.Spec.ClaimRef.Name+" "+fmt.Sprint(v.Annotations[plan.PopulatedForAnnotation] == string(disk.UID))))
		}
	}
	return found
}

func (c *cluster) settles(disk *v1alpha2.VirtualDisk, want []string) {
	c.t.Helper()
	testkit.Eventually(c.t, patience, "the cluster comes to rest", func() error {
		if diff := cmp.Diff(want, c.rest(disk)); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
}

// TestCrash kills the controller after each of its writes in turn.
func TestCrash(t *testing.T) {
	c := newCluster(t)
	c.class("crash", false)
	want := []string{"claim vd-DISK-UID Bound", "volume of vd-DISK-UID true"}
	for limit := int64(0); ; limit++ {
		disk := testkit.Disk(fmt.Sprintf("disk%d", limit)).Namespace(c.namespace).Size("1Gi").StorageClass("crash").Fresh()
		c.create(disk)
		stop, killed := c.controller(limit)
		// Let it run into the wall, or to the end.
		survived := false
		testkit.Eventually(t, patience, "the controller is killed or done", func() error {
			got := &v1alpha2.VirtualDisk{}
			if err := c.api.Get(t.Context(), client.ObjectKeyFromObject(disk), got); err != nil {
				return err
			}
			if got.Status.Phase == v1alpha2.DiskReady && cmp.Equal(want, c.rest(got)) {
				survived = true
				return nil
			}
			if killed() {
				return nil
			}
			return errors.New("neither")
		})
		stop()
		again, _ := c.controller(-1)
		got := c.phase(disk, v1alpha2.DiskReady)
		c.settles(got, want)
		if err := c.api.Delete(t.Context(), got); err != nil {
			t.Fatal(err)
		}
		c.settles(got, nil)
		testkit.Eventually(t, patience, "the disk is gone", func() error {
			err := c.api.Get(t.Context(), client.ObjectKeyFromObject(disk), &v1alpha2.VirtualDisk{})
			if apierrors.IsNotFound(err) {
				return nil
			}
			return errors.Join(errors.New("still there"), err)
		})
		again()
		if survived {
			t.Logf("%d writes from nothing to a ready disk", limit)
			return
		}
	}
}

func TestLateBinding(t *testing.T) {
	c := newCluster(t)
	c.class("late", true)
	c.controller(-1)
	disk := testkit.Disk("late").Namespace(c.namespace).Size("1Gi").StorageClass("late").Fresh()
	c.create(disk)
	got := c.phase(disk, v1alpha2.DiskWaitForFirstConsumer)
	c.settles(got, []string{"claim vd-DISK-UID Pending"})
	claim := &corev1.PersistentVolumeClaim{}
	if err := c.api.Get(t.Context(), client.ObjectKey{Namespace: c.namespace, Name: got.Status.Target.PersistentVolumeClaimName}, claim); err != nil {
		t.Fatal(err)
	}
	claim.Annotations[plan.SelectedNodeAnnotation] = "node-1"
	if err := c.api.Update(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	got = c.phase(disk, v1alpha2.DiskReady)
	c.settles(got, []string{"claim vd-DISK-UID Bound", "volume of vd-DISK-UID true"})
}

// TestRecovers: every obstacle, once removed, is noticed without anybody touching the disk.
func TestRecovers(t *testing.T) {
	c := newCluster(t)
	c.controller(-1)
	image := func(name string, bytes int64) {
		c.t.Helper()
		i := testkit.Image(name).Namespace(c.namespace).Fresh()
		c.create(i)
		i.Status.Phase = v1alpha2.ImageReady
		i.Status.Target.RegistryURL = "dvcr/vi/" + c.namespace + "/" + name + "@sha256:1"
		i.Status.Size.UnpackedBytes = fmt.Sprint(bytes)
		if err := c.api.Status().Update(t.Context(), i); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("an unknown class appears", func(t *testing.T) {
		disk := testkit.Disk("noclass").Namespace(c.namespace).Size("1Gi").StorageClass("later").Fresh()
		c.create(disk)
		c.phase(disk, v1alpha2.DiskPending)
		c.class("later", false)
		c.phase(disk, v1alpha2.DiskReady)
	})
	t.Run("a missing image appears and becomes ready", func(t *testing.T) {
		disk := testkit.Disk("noimage").Namespace(c.namespace).FromImage("debian").StorageClass("later").Fresh()
		c.create(disk)
		c.phase(disk, v1alpha2.DiskPending)
		image("debian", 1<<30)
		c.phase(disk, v1alpha2.DiskReady)
	})
	t.Run("a size too small is raised", func(t *testing.T) {
		image("big", 2<<30)
		disk := testkit.Disk("small").Namespace(c.namespace).FromImage("big").Size("1Gi").StorageClass("later").Fresh()
		c.create(disk)
		got := c.phase(disk, v1alpha2.DiskFailed)
		got.Spec.PersistentVolumeClaim.Size = new(resource.MustParse("3Gi"))
		if err := c.api.Update(t.Context(), got); err != nil {
			t.Fatal(err)
		}
		c.phase(disk, v1alpha2.DiskReady)
	})
	t.Run("a size raised while the disk is being filled starts over", func(t *testing.T) {
		c.hold.Store(true)
		disk := testkit.Disk("grown").Namespace(c.namespace).Size("1Gi").StorageClass("later").Fresh()
		c.create(disk)
		got := c.phase(disk, v1alpha2.DiskProvisioning)
		testkit.Eventually(t, patience, "the pod runs", func() error {
			pod := &corev1.Pod{}
			if err := c.api.Get(t.Context(), client.ObjectKey{Namespace: c.namespace, Name: plan.DataPodName("vd", got.UID, 1)}, pod); err != nil {
				return err
			}
			if pod.Status.Phase != corev1.PodRunning {
				return errors.New(string(pod.Status.Phase))
			}
			return nil
		})
		patch := client.MergeFrom(got.DeepCopy())
		got.Spec.PersistentVolumeClaim.Size = new(resource.MustParse("5Gi"))
		if err := c.api.Patch(t.Context(), got, patch); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, patience, "the claim is made anew", func() error {
			claim := &corev1.PersistentVolumeClaim{}
			if err := c.api.Get(t.Context(), client.ObjectKey{Namespace: c.namespace, Name: plan.DiskClaimName(got.Name, got.UID)}, claim); err != nil {
				return err
			}
			if claim.Annotations[plan.VirtualSizeAnnotation] != fmt.Sprint(int64(5)<<30) {
				return errors.New(claim.Annotations[plan.VirtualSizeAnnotation])
			}
			return nil
		})
		c.hold.Store(false)
		c.phase(disk, v1alpha2.DiskReady)
	})
}

func TestQuota(t *testing.T) {
	c := newCluster(t)
	c.class("quota", false)
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: "none"},
		Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"persistentvolumeclaims": resource.MustParse("0")}}}
	c.create(quota)
	quota.Status = corev1.ResourceQuotaStatus{Hard: quota.Spec.Hard, Used: corev1.ResourceList{"persistentvolumeclaims": resource.MustParse("0")}}
	if err := c.api.Status().Update(t.Context(), quota); err != nil {
		t.Fatal(err)
	}
	c.controller(-1)
	disk := testkit.Disk("data").Namespace(c.namespace).Size("1Gi").StorageClass("quota").Fresh()
	c.create(disk)
	testkit.Eventually(t, patience, "the quota is named", func() error {
		got := &v1alpha2.VirtualDisk{}
		if err := c.api.Get(t.Context(), client.ObjectKeyFromObject(disk), got); err != nil {
			return err
		}
		for _, condition := range got.Status.Conditions {
			if condition.Type == v1alpha2.DiskConditionReady && condition.Reason == v1alpha2.DiskReasonQuotaExceeded.String() {
				return nil
			}
		}
		return fmt.Errorf("%+v", got.Status.Conditions)
	})
}
