package image

import (
	"context"
	"errors"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/attempt"
	"orlop.dev/orlop/internal/dvcr"
	"orlop.dev/orlop/internal/importer"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/settings"
	"orlop.dev/orlop/internal/steps"
)

// scratchLimit is the size of an importer's emptyDir, in bytes: what an import may
// write, and some room for what it forgets to count.
const scratchLimit = importer.DefaultScratchLimit + 1<<30

// runner makes the acts of one pass. Its methods return values; nothing happens
// before they are performed.
type runner struct {
	r *Reconciler
	w *world
}

// remember patches the attempt record.
func (x runner) remember(record attempt.Record) steps.Act {
	return steps.Call{Name: "remember attempt", Args: record, Do: func(ctx context.Context) error {
		before := x.w.image.Object
		after := before.DeepCopyObject().(client.Object)
		annotations := after.GetAnnotations()
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[attempt.Annotation] = record.String()
		after.SetAnnotations(annotations)
		return x.r.Client.Patch(ctx, after, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	}}
}

// create makes the pod of the current attempt.
func (x runner) create() steps.Act { return steps.Create{Object: x.data(nil).Pod()} }

// configure makes the Secret of a pod. The token is minted as late as possible and
// never is part of a value that could be compared or logged.
func (x runner) configure(pod *corev1.Pod) steps.Act {
	return steps.Call{Name: "create configuration", Args: pod.Name, Do: func(ctx context.Context) error {
		destination, err := x.r.Registry.Grant(ctx, x.w.repository(), ":"+plan.ImageTag(x.w.image.GetUID()), dvcr.Pull, dvcr.Push)
		if err != nil {
			return err
		}
		patience, err := x.r.stallTimeout(ctx)
		if err != nil {
			return err
		}
		source := x.w.image.http
		config := importer.Config{Import: &importer.Import{
			Source:              importer.HTTPSource{URL: source.URL, CABundle: source.CABundle, Checksums: checksums(source.Checksum)},
			Destination:         destination,
			StallTimeoutSeconds: int64(patience.Seconds()),
		}}
		raw, err := config.Marshal()
		if err != nil {
			return err
		}
		err = x.r.Client.Create(ctx, x.data(raw).Secret(pod), client.FieldOwner(fieldOwner))
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	}}
}

// stallTimeout is what the ModuleConfig says about servers that send nothing; 0 leaves
// it to the importer.
func (r *Reconciler) stallTimeout(ctx context.Context) (time.Duration, error) {
	config, err := settings.Load(ctx, r.Client)
	if errors.Is(err, settings.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return config.ImportStallTimeout, nil
}

// discard removes the image from the registry, if anything was ever put there, and
// drops the finalizer.
func (x runner) discard(stored bool) steps.Act {
	return steps.Call{Name: "remove image from registry", Args: stored, Do: func(ctx context.Context) error {
		if stored {
			if err := x.r.Registry.Remove(ctx, x.w.repository(), plan.ImageTag(x.w.image.GetUID())); err != nil {
				return err
			}
		}
		before := x.w.image.Object
		after := before.DeepCopyObject().(client.Object)
		if !controllerutil.RemoveFinalizer(after, x.w.image.kind.Finalizer()) {
			return nil
		}
		patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
		return client.IgnoreNotFound(x.r.Client.Patch(ctx, after, patch))
	}}
}

func (x runner) data(config []byte) plan.DataPod {
	image := x.w.image
	return plan.DataPod{
		Namespace: image.podNamespace,
		Name:      x.w.podName(),
		Owner: metav1.OwnerReference{APIVersion: v1alpha2.GroupVersion.String(), Kind: image.kind.Name(),
			Name: image.GetName(), UID: image.GetUID(), Controller: new(true)},
		Image:  x.w.importerImage,
		Config: config, ConfigKey: importer.ConfigKey, ConfigDir: importer.ConfigDir,
		ScratchDir: importer.ScratchDir, ScratchLimit: scratchLimit,
	}
}

func checksums(c *v1alpha2.Checksum) importer.Checksums {
	if c == nil {
		return importer.Checksums{}
	}
	return importer.Checksums{
		MD5: strings.ToLower(c.MD5), SHA1: strings.ToLower(c.SHA1),
		SHA256: strings.ToLower(c.SHA256), SHA512: strings.ToLower(c.SHA512),
		Streebog256: strings.ToLower(c.Streebog256), Streebog512: strings.ToLower(c.Streebog512),
	}
}
