package certificates

import (
	"bytes"
	"context"
	"fmt"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// inject writes the bundle into those objects by which the API server calls us.
// They belong to the installation; here only the bundle in them does.
func (k *Keeper) inject(ctx context.Context) error {
	secret := &corev1.Secret{}
	if err := k.client.Get(ctx, k.key(AuthoritySecret), secret); err != nil {
		return fmt.Errorf("get Secret %s: %w", AuthoritySecret, err)
	}
	bundle := secret.Data[KeyBundle]
	validating := &admissionregistrationv1.ValidatingWebhookConfiguration{}
	mutating := &admissionregistrationv1.MutatingWebhookConfiguration{}
	service := &apiregistrationv1.APIService{}
	targets := []struct {
		name    string
		object  client.Object
		replace func() bool
	}{
		{WebhookConfiguration, validating, func() bool {
			changed := false
			for i := range validating.Webhooks {
				changed = replaceBundle(&validating.Webhooks[i].ClientConfig.CABundle, bundle) || changed
			}
			return changed
		}},
		{WebhookConfiguration, mutating, func() bool {
			changed := false
			for i := range mutating.Webhooks {
				changed = replaceBundle(&mutating.Webhooks[i].ClientConfig.CABundle, bundle) || changed
			}
			return changed
		}},
		{APIService, service, func() bool { return replaceBundle(&service.Spec.CABundle, bundle) }},
	}
	for _, target := range targets {
		err := k.client.Get(ctx, client.ObjectKey{Name: target.name}, target.object)
		if apierrors.IsNotFound(err) { // not installed yet; its creation brings us back
			continue
		}
		if err != nil {
			return fmt.Errorf("get %T %s: %w", target.object, target.name, err)
		}
		if !target.replace() {
			continue
		}
		if err := k.client.Update(ctx, target.object); err != nil {
			return fmt.Errorf("write bundle into %T %s: %w", target.object, target.name, err)
		}
	}
	return nil
}

func replaceBundle(field *[]byte, bundle []byte) bool {
	if bytes.Equal(*field, bundle) {
		return false
	}
	*field = bundle
	return true
}
