package image

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/core/v1alpha2"
)

// view is what the core sees of an image of either kind.
type view struct {
	client.Object
	kind kind
	// podNamespace is where importer pods run: the user's own namespace, so that its
	// quota and network policies hold, or the module's for cluster-wide images.
	podNamespace string
	sourceType   v1alpha2.DataSourceType
	http         *v1alpha2.DataSourceHTTPSource
	// onVolume: the user wants the image on a PVC.
	onVolume bool
	status   status
}

// status is what both kinds show.
type status struct {
	Phase              v1alpha2.ImagePhase
	Progress           string
	CDROM              bool
	Format             string
	Size               v1alpha2.ImageStatusSize
	DownloadSpeed      *v1alpha2.StatusSpeed
	RegistryURL        string
	UsedInNamespaces   []string
	Conditions         []metav1.Condition
	ObservedGeneration int64
}

// kind is what differs between the two kinds.
type kind interface {
	// Name is the API kind, Short the abbreviation used in names of pods.
	Name() string
	Short() string
	Finalizer() string
	// New returns an empty object to read into.
	New() client.Object
	// View presents an object; moduleNamespace is where cluster-wide images are imported.
	View(obj client.Object, moduleNamespace string) view
	// Store returns a copy of an object with the given status.
	Store(obj client.Object, s status) client.Object
}

type virtualImage struct{}

func (virtualImage) Name() string       { return v1alpha2.VirtualImageKind }
func (virtualImage) Short() string      { return "vi" }
func (virtualImage) Finalizer() string  { return v1alpha2.FinalizerVirtualImageCleanup }
func (virtualImage) New() client.Object { return &v1alpha2.VirtualImage{} }

func (k virtualImage) View(obj client.Object, _ string) view {
	i := obj.(*v1alpha2.VirtualImage)
	s := i.Status
	return view{
		Object: i, kind: k, podNamespace: i.Namespace,
		sourceType: i.Spec.DataSource.Type,
		http:       i.Spec.DataSource.HTTP,
		onVolume:   i.Spec.Storage != v1alpha2.StorageContainerRegistry && i.Spec.Storage != "",
		status: status{Phase: s.Phase, Progress: s.Progress, CDROM: s.CDROM, Format: s.Format, Size: s.Size,
			DownloadSpeed: s.DownloadSpeed, RegistryURL: s.Target.RegistryURL,
			Conditions: s.Conditions, ObservedGeneration: s.ObservedGeneration},
	}
}

func (virtualImage) Store(obj client.Object, s status) client.Object {
	i := obj.DeepCopyObject().(*v1alpha2.VirtualImage)
	t := &i.Status
	t.Phase, t.Progress, t.CDROM, t.Format, t.Size = s.Phase, s.Progress, s.CDROM, s.Format, s.Size
	t.DownloadSpeed, t.Target.RegistryURL = s.DownloadSpeed, s.RegistryURL
	t.Conditions, t.ObservedGeneration = s.Conditions, s.ObservedGeneration
	return i
}

type clusterVirtualImage struct{}

func (clusterVirtualImage) Name() string       { return v1alpha2.ClusterVirtualImageKind }
func (clusterVirtualImage) Short() string      { return "cvi" }
func (clusterVirtualImage) Finalizer() string  { return v1alpha2.FinalizerClusterVirtualImageCleanup }
func (clusterVirtualImage) New() client.Object { return &v1alpha2.ClusterVirtualImage{} }

func (k clusterVirtualImage) View(obj client.Object, moduleNamespace string) view {
	i := obj.(*v1alpha2.ClusterVirtualImage)
	s := i.Status
	return view{
		Object: i, kind: k, podNamespace: moduleNamespace,
		sourceType: i.Spec.DataSource.Type,
		http:       i.Spec.DataSource.HTTP,
		status: status{Phase: s.Phase, Progress: s.Progress, CDROM: s.CDROM, Format: s.Format, Size: s.Size,
			DownloadSpeed: s.DownloadSpeed, RegistryURL: s.Target.RegistryURL, UsedInNamespaces: s.UsedInNamespaces,
			Conditions: s.Conditions, ObservedGeneration: s.ObservedGeneration},
	}
}

func (clusterVirtualImage) Store(obj client.Object, s status) client.Object {
	i := obj.DeepCopyObject().(*v1alpha2.ClusterVirtualImage)
	t := &i.Status
	t.Phase, t.Progress, t.CDROM, t.Format, t.Size = s.Phase, s.Progress, s.CDROM, s.Format, s.Size
	t.DownloadSpeed, t.Target.RegistryURL, t.UsedInNamespaces = s.DownloadSpeed, s.RegistryURL, s.UsedInNamespaces
	t.Conditions, t.ObservedGeneration = s.Conditions, s.ObservedGeneration
	return i
}
