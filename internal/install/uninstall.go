package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	corev1alpha2 "orlop.dev/orlop/api/core/v1alpha2"
	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
	"orlop.dev/orlop/internal/settings"
)

// handlerSigner is the signer of the handlers' certificate requests.
const handlerSigner = "virtualization.deckhouse.io/handler"

// UninstallOptions of a removal.
type UninstallOptions struct {
	Getter genericclioptions.RESTClientGetter
	Out    io.Writer
	Clock  clock.Clock
	// DeleteUserObjects deletes machines, disks, images and addresses with all their
	// data; without it their existence is a refusal.
	DeleteUserObjects bool
	Timeout           time.Duration
}

// userKinds are what belongs to people, in the order in which it can go: users of a
// thing before the thing.
func userKinds() []client.ObjectList {
	return []client.ObjectList{
		&corev1alpha2.VirtualMachineList{}, &corev1alpha2.VirtualDiskList{}, &corev1alpha2.VirtualImageList{},
		&corev1alpha2.ClusterVirtualImageList{}, &corev1alpha2.VirtualMachineIPAddressList{},
		&corev1alpha2.VirtualMachineMACAddressList{},
	}
}

// ownKinds are what the platform made and nobody misses.
func ownKinds() []client.ObjectList {
	return []client.ObjectList{
		&corev1alpha2.VirtualMachineOperationList{}, &corev1alpha2.VirtualMachineIPAddressLeaseList{},
		&corev1alpha2.VirtualMachineMACAddressLeaseList{}, &corev1alpha2.VirtualMachineClassList{},
	}
}

// Uninstall takes the platform away. It refuses while people's objects exist, unless told.
func Uninstall(ctx context.Context, options UninstallOptions) error {
	ctx, cancel := context.WithTimeout(ctx, options.Timeout)
	defer cancel()
	i, err := newInstaller(Options{Getter: options.Getter, Out: options.Out, Clock: options.Clock})
	if err != nil {
		return err
	}
	if err := i.removeUserObjects(ctx, options.DeleteUserObjects); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{
		i.removeCalls, i.removeOwnObjects, i.removeWorkloads, i.removeNamespace, i.removeDefinitions, i.removeTraces,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	i.progress.note("The platform is gone.")
	return nil
}

// removeUserObjects deletes kind after kind, with the controllers still at work, or refuses.
func (i *installer) removeUserObjects(ctx context.Context, allowed bool) error {
	if !allowed {
		return i.refuseUserObjects(ctx)
	}
	for _, list := range userKinds() {
		if err := i.drain(ctx, list, false); err != nil {
			return err
		}
	}
	return nil
}

func (i *installer) refuseUserObjects(ctx context.Context) error {
	var present []string
	for _, list := range userKinds() {
		count, err := i.count(ctx, list)
		if err != nil {
			return err
		}
		if count > 0 {
			present = append(present, fmt.Sprintf("%d %s", count, kindOf(list)))
		}
	}
	if len(present) > 0 {
		return fmt.Errorf("there are still objects of users: %s; delete them first, or let them be deleted with all data by --delete-user-objects", strings.Join(present, ", "))
	}
	return nil
}

// count returns how many objects of a kind exist; a kind that is not defined has none.
func (i *installer) count(ctx context.Context, list client.ObjectList) (int, error) {
	err := i.client.List(ctx, list)
	if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("list %s: %w", kindOf(list), err)
	}
	return meta.LenList(list), nil
}

// drain deletes all objects of a kind and waits until they are gone. With release,
// finalizers are taken off: nobody is left whom they could wait for.
func (i *installer) drain(ctx context.Context, list client.ObjectList, release bool) error {
	count, err := i.count(ctx, list)
	if err != nil || count == 0 {
		return err
	}
	return i.progress.wait(ctx, kindOf(list)+" objects", func() (string, error) {
		if count, err := i.count(ctx, list); err != nil || count == 0 {
			return "", err
		}
		items, err := meta.ExtractList(list)
		if err != nil {
			return "", fmt.Errorf("bug: read list: %w", err)
		}
		var left []string
		for _, item := range items {
			object, ok := item.(client.Object)
			if !ok {
				return "", fmt.Errorf("bug: %T is no object", item)
			}
			left = append(left, client.ObjectKeyFromObject(object).String())
			if err := i.deleteOne(ctx, object, release); err != nil {
				return "", err
			}
		}
		return strings.Join(left, ", "), nil
	})
}

func (i *installer) deleteOne(ctx context.Context, object client.Object, release bool) error {
	if release && len(object.GetFinalizers()) > 0 {
		patch := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))
		if err := i.client.Patch(ctx, object, patch); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("release %s: %w", object.GetName(), err)
		}
	}
	if object.GetDeletionTimestamp() != nil {
		return nil
	}
	if err := i.client.Delete(ctx, object); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete %s: %w", object.GetName(), err)
	}
	return nil
}

// removeCalls removes what makes the API server call us, while there still is somebody to answer.
func (i *installer) removeCalls(ctx context.Context) error {
	done := i.progress.step("admission and aggregated API")
	named := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }
	objects := []client.Object{
		&admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: named(webhookName)},
		&admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: named(webhookName)},
		&apiregistrationv1.APIService{ObjectMeta: named(apiService)},
	}
	for _, policy := range []string{"virtualization-restricted-access-policy", "virtualization-handler-node-policy", "virtualization-pod-address-policy", "virtualization-session-policy"} {
		objects = append(objects,
			&admissionregistrationv1.ValidatingAdmissionPolicyBinding{ObjectMeta: named(policy)},
			&admissionregistrationv1.ValidatingAdmissionPolicy{ObjectMeta: named(policy)})
	}
	for _, object := range objects {
		if err := i.client.Delete(ctx, object); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("delete %T %s: %w", object, object.GetName(), err)
		}
	}
	done("removed")
	return nil
}

// removeOwnObjects deletes what the platform itself made.
func (i *installer) removeOwnObjects(ctx context.Context) error {
	for _, list := range ownKinds() {
		if err := i.drain(ctx, list, true); err != nil {
			return err
		}
	}
	return nil
}

func (i *installer) removeWorkloads(_ context.Context) error {
	done := i.progress.step("workloads")
	chart, err := newChart(i.Getter, "")
	if err != nil {
		return err
	}
	if err := chart.unlock(); err != nil {
		return err
	}
	if err := chart.remove(); err != nil {
		return err
	}
	done("removed")
	return nil
}

// removeNamespace takes certificates, keys and the registry's volume with it; no image is left in it.
func (i *installer) removeNamespace(ctx context.Context) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: settings.Namespace}}
	if err := i.client.Delete(ctx, namespace); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete namespace %s: %w", settings.Namespace, err)
	}
	return i.progress.wait(ctx, "namespace "+settings.Namespace, func() (string, error) {
		err := i.client.Get(ctx, client.ObjectKeyFromObject(namespace), namespace)
		if apierrors.IsNotFound(err) {
			return "", nil
		}
		if err != nil {
			return "", fmt.Errorf("get namespace: %w", err)
		}
		for _, condition := range namespace.Status.Conditions {
			if condition.Status == corev1.ConditionTrue && condition.Type == corev1.NamespaceContentRemaining {
				return condition.Message, nil
			}
		}
		return "its deletion", nil
	})
}

// removeDefinitions deletes the ModuleConfig and our CRDs; that of ModuleConfig stays
// if it is not ours or other modules use it.
func (i *installer) removeDefinitions(ctx context.Context) error {
	done := i.progress.step("resource definitions")
	config := &deckhousev1alpha1.ModuleConfig{ObjectMeta: metav1.ObjectMeta{Name: settings.Name}}
	if err := i.client.Delete(ctx, config); err != nil && !apierrors.IsNotFound(err) && !meta.IsNoMatchError(err) {
		return fmt.Errorf("delete ModuleConfig: %w", err)
	}
	crds, err := definitions()
	if err != nil {
		return err
	}
	var leaving []string
	for _, crd := range crds {
		if crd.Name == moduleConfigDefinition {
			foreign, err := i.belongsToOthers(ctx, crd.Name)
			if err != nil {
				return err
			}
			others, err := i.count(ctx, &deckhousev1alpha1.ModuleConfigList{})
			if err != nil {
				return err
			}
			if foreign || others > 0 {
				continue
			}
		}
		if err := i.client.Delete(ctx, &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: crd.Name}}); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("delete CRD %s: %w", crd.Name, err)
		}
		leaving = append(leaving, crd.Name)
	}
	done("removed")
	return i.definitionsGone(ctx, leaving)
}

// definitionsGone waits for the API server, which finalizes a definition moments
// after its deletion: an installation that follows at once must not meet the old one.
func (i *installer) definitionsGone(ctx context.Context, names []string) error {
	return i.progress.wait(ctx, "removal of resource definitions", func() (string, error) {
		for _, name := range names {
			err := i.client.Get(ctx, client.ObjectKey{Name: name}, &apiextensionsv1.CustomResourceDefinition{})
			if err == nil {
				return name, nil
			}
			if !apierrors.IsNotFound(err) {
				return "", fmt.Errorf("get CRD %s: %w", name, err)
			}
		}
		return "", nil
	})
}

// removeTraces cleans what is ours on objects that are not: labels of nodes, requests for certificates.
func (i *installer) removeTraces(ctx context.Context) error {
	var nodes corev1.NodeList
	if err := i.client.List(ctx, &nodes); err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	for _, node := range nodes.Items {
		before := node.DeepCopy()
		for key := range node.Labels {
			if prefix, _, _ := strings.Cut(key, "/"); prefix == domain || strings.HasSuffix(prefix, "."+domain) {
				delete(node.Labels, key)
			}
		}
		if len(before.Labels) == len(node.Labels) {
			continue
		}
		if err := i.client.Patch(ctx, &node, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("remove labels of node %s: %w", node.Name, err)
		}
	}
	var requests certificatesv1.CertificateSigningRequestList
	if err := i.client.List(ctx, &requests, client.MatchingFields{"spec.signerName": handlerSigner}); err != nil {
		return fmt.Errorf("list certificate requests: %w", err)
	}
	var errs []error
	for _, request := range requests.Items {
		errs = append(errs, client.IgnoreNotFound(i.client.Delete(ctx, &request)))
	}
	return errors.Join(errs...)
}

// domain is the suffix of our label prefixes.
const domain = "virtualization.deckhouse.io"

// kindOf is the kind of a list's items.
func kindOf(list client.ObjectList) string {
	name := fmt.Sprintf("%T", list)
	name = name[strings.LastIndex(name, ".")+1:]
	return strings.TrimSuffix(name, "List")
}
