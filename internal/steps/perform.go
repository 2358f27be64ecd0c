package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
)

// Act is one write to something other than the reconciled object's status: Create,
// Apply, Delete, Release or Call. It is a value, so that tests compare it.
type Act interface{ act() }

// Create makes an object that must be made at most once under its name; one that
// exists already is left as it is. Use it where re-applying would undo what was
// added later.
type Create struct{ Object client.Object }

// Apply makes or changes an object by server-side apply. An object that carries a
// UID is only ever changed, and one with a resourceVersion only if it is unchanged.
type Apply struct{ Object client.Object }

// Delete drops our finalizer, if one is named, and deletes the object as it was
// observed; if it has changed since, the act ends in a conflict.
type Delete struct {
	Object    client.Object
	Finalizer string
	// Now skips the grace period, for objects nobody is left to terminate.
	Now bool
}

// Release drops a finalizer and nothing else.
type Release struct {
	Object    client.Object
	Finalizer string
}

// Call is a named write that is none of the above.
type Call struct {
	Name string
	Args any
	Do   func(context.Context) error `json:"-"`
}

func (Create) act()  {}
func (Apply) act()   {}
func (Delete) act()  {}
func (Release) act() {}
func (Call) act()    {}

// Errors are the failures of acts by the index of their finding.
type Errors map[int]error

// Perform executes the acts of a decision, each on its own: one that fails does not
// stop the others. owner is the field owner of the controller.
func Perform(ctx context.Context, c client.Client, owner string, d Decision) Errors {
	errs := Errors{}
	for i, f := range d {
		if err := perform(ctx, c, owner, f.Act); err != nil {
			errs[i] = err
		}
	}
	return errs
}

func perform(ctx context.Context, c client.Client, owner string, act Act) error {
	switch a := act.(type) {
	case nil:
		return nil
	case Create:
		err := c.Create(ctx, a.Object.DeepCopyObject().(client.Object), client.FieldOwner(owner))
		return wrap("create", a.Object, ignore(err, settled))
	case Apply:
		return wrap("apply", a.Object, apply(ctx, c, owner, a.Object))
	case Release:
		return wrap("release", a.Object, ignore(release(ctx, c, a.Object, a.Finalizer), apierrors.IsNotFound))
	case Delete:
		return wrap("delete", a.Object, ignore(remove(ctx, c, a), apierrors.IsNotFound))
	case Call:
		if err := a.Do(ctx); err != nil {
			return fmt.Errorf("%s: %w", a.Name, err)
		}
		return nil
	}
	return fmt.Errorf("bug: unknown act %T", act)
}

// settled tells a creation that need not be tried again: the object exists, or its
// namespace is being deleted, and then so is whatever wants it.
func settled(err error) bool {
	return apierrors.IsAlreadyExists(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}

func apply(ctx context.Context, c client.Client, owner string, obj client.Object) error {
	gvk, err := apiutil.GVKForObject(obj, c.Scheme())
	if err != nil {
		return err
	}
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	if err != nil {
		return err
	}
	u := &unstructured.Unstructured{Object: fields}
	u.SetGroupVersionKind(gvk)
	u.SetManagedFields(nil)
	unstructured.RemoveNestedField(u.Object, "status")
	unstructured.RemoveNestedField(u.Object, "metadata", "creationTimestamp")
	return c.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(owner), client.ForceOwnership)
}

func release(ctx context.Context, c client.Client, obj client.Object, finalizer string) error {
	after := obj.DeepCopyObject().(client.Object)
	if !controllerutil.RemoveFinalizer(after, finalizer) {
		return nil
	}
	return c.Patch(ctx, after, client.MergeFromWithOptions(obj, client.MergeFromWithOptimisticLock{}))
}

// remove deletes first: an object without finalizer and not yet deleted would be
// an unprotected one if we died in between.
func remove(ctx context.Context, c client.Client, a Delete) error {
	if a.Object.GetDeletionTimestamp() == nil || (a.Now && graceLeft(a.Object)) {
		uid, version := a.Object.GetUID(), a.Object.GetResourceVersion()
		options := []client.DeleteOption{client.Preconditions{UID: &uid, ResourceVersion: &version},
			client.PropagationPolicy(metav1.DeletePropagationBackground)}
		if a.Now {
			options = append(options, client.GracePeriodSeconds(0))
		}
		return c.Delete(ctx, a.Object.DeepCopyObject().(client.Object), options...)
	}
	return release(ctx, c, a.Object, a.Finalizer)
}

func graceLeft(obj client.Object) bool {
	grace := obj.GetDeletionGracePeriodSeconds()
	return grace != nil && *grace > 0
}

func wrap(verb string, obj client.Object, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", verb, client.ObjectKeyFromObject(obj), err)
}

func ignore(err error, is func(error) bool) error {
	if err != nil && is(err) {
		return nil
	}
	return err
}

// transient tells cache lag from trouble: such errors are never shown to users.
func transient(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err)
}

// retryConflict is how soon a pass follows one that met a conflict, when the watch
// event of the winning write is already on its way.
const retryConflict = 200 * time.Millisecond

// Result closes a pass: real errors go to backoff, conflicts lead to a quiet second
// pass, and otherwise the earliest deadline of the decision counts.
func Result(d Decision, errs Errors, patch error) (ctrl.Result, error) {
	all := []error{patch}
	for i := range d {
		all = append(all, errs[i])
	}
	conflict := slices.ContainsFunc(all, func(err error) bool { return err != nil && transient(err) })
	all = slices.DeleteFunc(all, func(err error) bool { return err == nil || transient(err) })
	if err := errors.Join(all...); err != nil {
		return ctrl.Result{}, err
	}
	if conflict {
		return ctrl.Result{RequeueAfter: retryConflict}, nil
	}
	return ctrl.Result{RequeueAfter: d.After()}, nil
}
