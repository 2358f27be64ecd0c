//go:build integration

package disk

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/testkit"
)

// filling makes a disk whose populating pod runs, and cuts the pod's node off.
func (c *cluster) filling(name string) (*v1alpha2.VirtualDisk, *corev1.Pod) {
	c.t.Helper()
	c.hold.Store(true)
	disk := testkit.Disk(name).Namespace(c.namespace).Size("1Gi").StorageClass("apart").Fresh()
	c.create(disk)
	got := c.phase(disk, v1alpha2.DiskProvisioning)
	pod := &corev1.Pod{}
	testkit.Eventually(c.t, patience, "the pod runs", func() error {
		if err := c.api.Get(c.t.Context(), client.ObjectKey{Namespace: c.namespace, Name: plan.DataPodName("vd", got.UID, 1)}, pod); err != nil {
			return err
		}
		if pod.Status.Phase != corev1.PodRunning {
			return errors.New(string(pod.Status.Phase))
		}
		return nil
	})
	c.cut.Store(true)
	c.hold.Store(false)
	return got, pod
}

// waits sees that the disk says what it waits for, and that no pod was made beside
// the one that may still write.
func (c *cluster) waits(disk *v1alpha2.VirtualDisk, pod *corev1.Pod) {
	c.t.Helper()
	testkit.Eventually(c.t, patience, "the disk waits for proof", func() error {
		got := &v1alpha2.VirtualDisk{}
		if err := c.api.Get(c.t.Context(), client.ObjectKeyFromObject(disk), got); err != nil {
			return err
		}
		for _, condition := range got.Status.Conditions {
			if strings.Contains(condition.Message, "Waiting until pod "+pod.Name+" has stopped on node node-1") {
				return nil
			}
		}
		return fmt.Errorf("%+v", got.Status.Conditions)
	})
	testkit.Never(c.t, time.Second, "the pod is let go, or gets company", func() error {
		pods := &corev1.PodList{}
		if err := c.api.List(c.t.Context(), pods, client.InNamespace(c.namespace)); err != nil {
			c.t.Fatal(err)
		}
		if len(pods.Items) != 1 || pods.Items[0].UID != pod.UID {
			return fmt.Errorf("%d pods", len(pods.Items))
		}
		return nil
	})
}

func (c *cluster) forceDelete(pod *corev1.Pod) {
	c.t.Helper()
	if err := c.api.Delete(c.t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) gone(object client.Object) {
	c.t.Helper()
	testkit.Eventually(c.t, patience, fmt.Sprintf("%s is gone", object.GetName()), func() error {
		err := c.api.Get(c.t.Context(), client.ObjectKeyFromObject(object), object)
		if apierrors.IsNotFound(err) {
			return nil
		}
		return errors.Join(errors.New("still there"), err)
	})
}

// TestPartition: a populating pod that nobody saw stop can still rename its file into a
// shared volume, so nothing else may write that volume, or be given it, meanwhile.
func TestPartition(t *testing.T) {
	c := newCluster(t)
	c.class("apart", false)
	c.controller(-1)
	at := []string{"claim vd-DISK-UID Bound", "volume of vd-DISK-UID true"}

	t.Run("force-deleted: its node comes back", func(t *testing.T) {
		disk, pod := c.filling("returns")
		c.forceDelete(pod)
		c.waits(disk, pod)
		c.cut.Store(false)
		disk = c.phase(disk, v1alpha2.DiskReady)
		c.settles(disk, at)
		if err := c.api.Delete(t.Context(), disk); err != nil {
			t.Fatal(err)
		}
		c.gone(disk)
	})
	t.Run("called failed by garbage collection: the next attempt waits", func(t *testing.T) {
		disk, pod := c.filling("collected")
		pod.Status.Phase = corev1.PodFailed
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.DisruptionTarget,
			Status: corev1.ConditionTrue, Reason: "DeletionByPodGC", LastTransitionTime: metav1.Now()})
		if err := c.api.Status().Update(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
		c.forceDelete(pod)
		c.waits(disk, pod)
		c.fence(t)
		c.gone(pod)
		c.cut.Store(false)
		disk = c.phase(disk, v1alpha2.DiskReady)
		if err := c.api.Delete(t.Context(), disk); err != nil {
			t.Fatal(err)
		}
		c.gone(disk)
	})
	t.Run("a disk that is deleted waits too, until its node is fenced", func(t *testing.T) {
		disk, pod := c.filling("doomed")
		if err := c.api.Delete(t.Context(), disk); err != nil {
			t.Fatal(err)
		}
		c.waits(disk, pod)
		c.fence(t)
		c.gone(disk)
		c.settles(disk, nil)
		c.cut.Store(false)
	})
	t.Run("deleted before it had a node: nobody is waited for", func(t *testing.T) {
		c.cut.Store(true)
		disk := testkit.Disk("unscheduled").Namespace(c.namespace).Size("1Gi").StorageClass("apart").Fresh()
		c.create(disk)
		got := c.phase(disk, v1alpha2.DiskProvisioning)
		pod := &corev1.Pod{}
		testkit.Eventually(t, patience, "the pod exists", func() error {
			return c.api.Get(t.Context(), client.ObjectKey{Namespace: c.namespace, Name: plan.DataPodName("vd", got.UID, 1)}, pod)
		})
		if err := c.api.Delete(t.Context(), got); err != nil {
			t.Fatal(err)
		}
		c.gone(got)
		c.cut.Store(false)
	})
}

// fence says that the node is powered off, for the rest of the test.
func (c *cluster) fence(t *testing.T) {
	t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"},
		Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: corev1.TaintNodeOutOfService, Effect: corev1.TaintEffectNoExecute}}}}
	if err := c.api.Create(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.api.Delete(context.Background(), node); err != nil {
			t.Error(err)
		}
	})
}
