package certificates

import (
	"context"
	"fmt"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/source"

	corev1alpha2 "orlop.dev/orlop/api/core/v1alpha2"
)

// Scheme knows the kinds this package reads and writes, for the client of Bootstrap.
func Scheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, apiregistrationv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("bug: build scheme: %w", err)
		}
	}
	return scheme, nil
}

// Add registers the controllers with a manager: renewal and signing on the leader,
// and on every replica the one that follows the webhook certificate. They watch
// through a small cache of their own, so that the manager's cache need not hold the
// Secrets of the cluster.
func (k *Keeper) Add(m manager.Manager) error {
	scheme, err := Scheme()
	if err != nil {
		return err
	}
	watched, err := cluster.New(m.GetConfig(), func(o *cluster.Options) {
		o.Scheme = scheme
		o.Cache.ByObject = k.watchedObjects()
		o.Logger = m.GetLogger()
	})
	if err != nil {
		return fmt.Errorf("make cache of certificates: %w", err)
	}
	if err := m.Add(watched); err != nil {
		return fmt.Errorf("add cache of certificates: %w", err)
	}
	for _, add := range []func(manager.Manager, cache.Cache) error{k.addRenewal, k.addWebhookFollower, k.addRequests} {
		if err := add(m, watched.GetCache()); err != nil {
			return err
		}
	}
	return nil
}

// watchedObjects limits the cache to what is ours.
func (k *Keeper) watchedObjects() map[client.Object]cache.ByObject {
	ours := cache.ByObject{
		Namespaces: map[string]cache.Config{k.platform.Namespace: {}},
		Label:      labels.SelectorFromSet(labels.Set{corev1alpha2.LabelModule: corev1alpha2.ModuleValue}),
	}
	named := func(name string) cache.ByObject {
		return cache.ByObject{Field: fields.OneTermEqualSelector("metadata.name", name)}
	}
	return map[client.Object]cache.ByObject{
		&corev1.Secret{}:    ours,
		&corev1.ConfigMap{}: ours,
		&admissionregistrationv1.ValidatingWebhookConfiguration{}: named(WebhookConfiguration),
		&admissionregistrationv1.MutatingWebhookConfiguration{}:   named(WebhookConfiguration),
		&apiregistrationv1.APIService{}:                           named(APIService),
		&certificatesv1.CertificateSigningRequest{}:               {Field: fields.OneTermEqualSelector("spec.signerName", HandlerSigner)},
	}
}

// everything is the one request of the renewal controller.
var everything = ctrl.Request{NamespacedName: types.NamespacedName{Name: "everything"}}

// +kubebuilder:rbac:groups="",resources=configmaps,namespace=d8-virtualization,verbs=create;get;list;update;watch
// +kubebuilder:rbac:groups="",resources=secrets,namespace=d8-virtualization,verbs=create;get;list;update;watch
// +kubebuilder:rbac:groups=admissionregistration.k8s.io,resources=mutatingwebhookconfigurations,verbs=list;watch
// +kubebuilder:rbac:groups=admissionregistration.k8s.io,resources=mutatingwebhookconfigurations,resourceNames=virtualization-controller,verbs=get;update
// +kubebuilder:rbac:groups=admissionregistration.k8s.io,resources=validatingwebhookconfigurations,verbs=list;watch
// +kubebuilder:rbac:groups=admissionregistration.k8s.io,resources=validatingwebhookconfigurations,resourceNames=virtualization-controller,verbs=get;update
// +kubebuilder:rbac:groups=apiregistration.k8s.io,resources=apiservices,verbs=list;watch
// +kubebuilder:rbac:groups=apiregistration.k8s.io,resources=apiservices,resourceNames=v1alpha2.subresources.virtualization.deckhouse.io,verbs=get;update

// renewal is the pass that makes and renews everything.
func (k *Keeper) renewal(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	next, err := k.ensure(ctx)
	if err != nil {
		return ctrl.Result{}, err
	}
	if err := k.inject(ctx); err != nil {
		return ctrl.Result{}, err
	}
	// Half of a certificate's life is a deadline nobody else announces.
	return ctrl.Result{RequeueAfter: max(next.Sub(k.clock.Now()), minimumPause)}, nil
}

func (k *Keeper) addRenewal(m manager.Manager, watched cache.Cache) error {
	c, err := controller.New("certificates", m, controller.Options{Reconciler: reconcilerFunc(k.renewal)})
	if err != nil {
		return fmt.Errorf("make controller: %w", err)
	}
	for _, object := range []client.Object{
		&corev1.Secret{}, &corev1.ConfigMap{}, &apiregistrationv1.APIService{},
		&admissionregistrationv1.ValidatingWebhookConfiguration{}, &admissionregistrationv1.MutatingWebhookConfiguration{},
	} {
		toEverything := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []ctrl.Request { return []ctrl.Request{everything} })
		if err := c.Watch(source.Kind(watched, object, toEverything)); err != nil {
			return fmt.Errorf("watch %T: %w", object, err)
		}
	}
	return nil
}

func (k *Keeper) addWebhookFollower(m manager.Manager, watched cache.Cache) error {
	everywhere := false
	c, err := controller.New("webhook-certificate", m, controller.Options{
		NeedLeaderElection: &everywhere,
		Reconciler: reconcilerFunc(func(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
			secret := &corev1.Secret{}
			if request.Name != ControllerSecret {
				return ctrl.Result{}, nil
			}
			if err := watched.Get(ctx, request.NamespacedName, secret); err != nil {
				return ctrl.Result{}, client.IgnoreNotFound(err)
			}
			return ctrl.Result{}, k.Webhook.SetPair(pairOf(secret))
		}),
	})
	if err != nil {
		return fmt.Errorf("make controller: %w", err)
	}
	if err := c.Watch(source.Kind[client.Object](watched, &corev1.Secret{}, &handler.EnqueueRequestForObject{})); err != nil {
		return fmt.Errorf("watch Secrets: %w", err)
	}
	return nil
}

func (k *Keeper) addRequests(m manager.Manager, watched cache.Cache) error {
	c, err := controller.New("handler-certificates", m, controller.Options{Reconciler: &requests{keeper: k}})
	if err != nil {
		return fmt.Errorf("make controller: %w", err)
	}
	if err := c.Watch(source.Kind[client.Object](watched, &certificatesv1.CertificateSigningRequest{}, &handler.EnqueueRequestForObject{})); err != nil {
		return fmt.Errorf("watch certificate requests: %w", err)
	}
	return nil
}

// reconcilerFunc makes a reconciler of a function.
type reconcilerFunc func(context.Context, ctrl.Request) (ctrl.Result, error)

// Reconcile implements reconcile.Reconciler.
func (f reconcilerFunc) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	return f(ctx, request)
}
