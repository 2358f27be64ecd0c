package certificates

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	corev1alpha2 "orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/pki"
	"orlop.dev/orlop/internal/registry/token"
	"orlop.dev/orlop/internal/settings"
)

// announcement is how long a new authority is in the bundles before it signs. It is
// one life of a leaf: by then every component has read the bundle again.
const announcement = pki.LeafLife

// attempts is how often a write is tried when another replica was faster.
const attempts = 5

// minimumPause is the shortest time between two passes that nothing but a deadline asked for.
const minimumPause = time.Minute

// Keeper makes and renews certificates and keys. Its client must not read from a
// cache: what it reads decides what it overwrites.
type Keeper struct {
	// Webhook is the certificate of the controller's own webhook server; it follows renewals.
	Webhook *pki.Held

	client   client.Client
	platform settings.Platform
	clock    clock.PassiveClock
}

// Bootstrap makes whatever is missing and returns a Keeper whose Webhook can serve
// at once. Call it before the manager starts, with a client that has no cache.
func Bootstrap(ctx context.Context, c client.Client, platform settings.Platform) (*Keeper, error) {
	keeper := newKeeper(c, platform, clock.RealClock{})
	if _, err := keeper.ensure(ctx); err != nil {
		return nil, err
	}
	return keeper, keeper.loadWebhook(ctx)
}

func newKeeper(c client.Client, platform settings.Platform, clock clock.PassiveClock) *Keeper {
	return &Keeper{Webhook: &pki.Held{}, client: c, platform: platform, clock: clock}
}

// Tokens returns the key that signs registry tokens.
func (k *Keeper) Tokens(ctx context.Context) (*token.Authority, error) {
	secret := &corev1.Secret{}
	if err := k.client.Get(ctx, k.key(TokenSecret), secret); err != nil {
		return nil, fmt.Errorf("get Secret %s: %w", TokenSecret, err)
	}
	return token.LoadAuthority(secret.Data[KeyToken])
}

// loadWebhook takes over the webhook certificate that is in the cluster.
func (k *Keeper) loadWebhook(ctx context.Context) error {
	secret := &corev1.Secret{}
	if err := k.client.Get(ctx, k.key(ControllerSecret), secret); err != nil {
		return fmt.Errorf("get Secret %s: %w", ControllerSecret, err)
	}
	return k.Webhook.SetPair(pairOf(secret))
}

// ensure makes and renews everything, and returns when it has to be called again.
func (k *Keeper) ensure(ctx context.Context) (time.Time, error) {
	now := k.clock.Now()
	next := now.Add(pki.LeafLife / 2)
	authorities := map[string]*pki.Authority{}
	bundles := map[string][]byte{}
	for _, name := range []string{AuthoritySecret, APIClientAuthority, HandlerAuthority} {
		authority, bundle, err := k.authority(ctx, name, now)
		if err != nil {
			return next, err
		}
		authorities[name], bundles[name] = authority, bundle
	}
	for _, s := range leaves(k.platform.Namespace) {
		due, err := k.leaf(ctx, s, authorities[s.authority], bundles[s.authority], now)
		if err != nil {
			return next, err
		}
		if due.Before(next) {
			next = due
		}
	}
	if err := k.tokens(ctx); err != nil {
		return next, err
	}
	return next, k.publish(ctx, bundles)
}

// authority keeps one authority and returns it with the bundle that peers trust.
func (k *Keeper) authority(ctx context.Context, name string, now time.Time) (authority *pki.Authority, bundle []byte, err error) {
	err = k.keepSecret(ctx, name, corev1.SecretTypeTLS, func(data map[string][]byte) (bool, error) {
		var changed bool
		authority, changed, err = rotate(name, data, now)
		if err != nil {
			return false, err
		}
		bundle = pki.Bundle(now, data[KeyCertificate], data[keyNextCertificate], data[KeyBundle])
		if !bytes.Equal(bundle, data[KeyBundle]) {
			data[KeyBundle], changed = bundle, true
		}
		return changed, nil
	})
	return authority, bundle, err
}

// rotate makes the first authority, announces the next one at half life, and lets it
// take over after the announcement. It works on the data of the authority's Secret.
func rotate(name string, data map[string][]byte, now time.Time) (*pki.Authority, bool, error) {
	common := name[:len(name)-len("-ca")]
	current, err := pki.LoadAuthority(pki.Pair{Certificate: data[KeyCertificate], Key: data[KeyPrivate]})
	if err != nil || !now.Before(current.NotAfter()) {
		current, err = pki.NewAuthority(common, now)
		if err != nil {
			return nil, false, err
		}
		data[KeyCertificate], data[KeyPrivate] = current.Pair().Certificate, current.Pair().Key
		return current, true, nil
	}
	if now.Before(current.RenewAt()) {
		return current, false, nil
	}
	next, err := pki.LoadAuthority(pki.Pair{Certificate: data[keyNextCertificate], Key: data[keyNextPrivate]})
	if err != nil {
		next, err = pki.NewAuthority(common, now)
		if err != nil {
			return nil, false, err
		}
		data[keyNextCertificate], data[keyNextPrivate] = next.Pair().Certificate, next.Pair().Key
		return current, true, nil
	}
	if now.Before(next.NotBefore().Add(announcement)) {
		return current, false, nil
	}
	data[KeyCertificate], data[KeyPrivate] = next.Pair().Certificate, next.Pair().Key
	delete(data, keyNextCertificate)
	delete(data, keyNextPrivate)
	return next, true, nil
}

// leaf keeps one leaf and returns when it is renewed.
func (k *Keeper) leaf(ctx context.Context, s serving, authority *pki.Authority, bundle []byte, now time.Time) (time.Time, error) {
	var due time.Time
	err := k.keepSecret(ctx, s.secret, corev1.SecretTypeTLS, func(data map[string][]byte) (bool, error) {
		changed := false
		pair := pki.Pair{Certificate: data[KeyCertificate], Key: data[KeyPrivate]}
		if authority.Check(pair, s.leaf, now) != nil {
			var err error
			if pair, err = authority.Issue(s.leaf, now); err != nil {
				return false, err
			}
			data[KeyCertificate], data[KeyPrivate] = pair.Certificate, pair.Key
			changed = true
		}
		if !bytes.Equal(data[KeyBundle], bundle) {
			data[KeyBundle], changed = bundle, true
		}
		certificate, err := pki.ParseCertificate(pair.Certificate)
		if err != nil {
			return false, err
		}
		due = pki.RenewAt(certificate)
		return changed, nil
	})
	return due, err
}

// tokens keeps the key that signs registry tokens, and its public half.
func (k *Keeper) tokens(ctx context.Context) error {
	var keys []byte
	err := k.keepSecret(ctx, TokenSecret, corev1.SecretTypeOpaque, func(data map[string][]byte) (bool, error) {
		changed := false
		authority, err := token.LoadAuthority(data[KeyToken])
		if err != nil {
			if authority, err = token.NewAuthority(); err != nil {
				return false, err
			}
			if data[KeyToken], err = authority.KeyPEM(); err != nil {
				return false, err
			}
			changed = true
		}
		keys, err = authority.JWKS()
		return changed, err
	})
	if err != nil {
		return err
	}
	return k.keepConfigMap(ctx, TokenKeysConfigMap, map[string]string{KeyTokenKeys: string(keys)})
}

// publish writes the bundles for those who read them from ConfigMaps.
func (k *Keeper) publish(ctx context.Context, bundles map[string][]byte) error {
	if err := k.keepConfigMap(ctx, RegistryTrustConfigMap, map[string]string{KeyBundle: string(bundles[AuthoritySecret])}); err != nil {
		return err
	}
	return k.keepConfigMap(ctx, HandlerTrustConfigMap, map[string]string{
		KeyAPITrust:     string(bundles[APIClientAuthority]),
		KeyHandlerTrust: string(bundles[HandlerAuthority]),
	})
}

// errChanged means that somebody else wrote the object at the same time.
var errChanged = errors.New("object was changed by another replica")

// keepSecret creates a Secret or changes what is wrong with it. The function gets
// the present data, changes it, and says whether it did; it may be called again if
// another replica was faster.
func (k *Keeper) keepSecret(ctx context.Context, name string, kind corev1.SecretType, change func(map[string][]byte) (bool, error)) error {
	for range attempts {
		err := k.trySecret(ctx, name, kind, change)
		if !errors.Is(err, errChanged) {
			return err
		}
	}
	return fmt.Errorf("write Secret %s: %w", name, errChanged)
}

func (k *Keeper) trySecret(ctx context.Context, name string, kind corev1.SecretType, change func(map[string][]byte) (bool, error)) error {
	secret := &corev1.Secret{}
	err := k.client.Get(ctx, k.key(name), secret)
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return fmt.Errorf("get Secret %s: %w", name, err)
	}
	if secret.Data == nil {
		secret.Data = map[string][]byte{}
	}
	changed, err := change(secret.Data)
	if err != nil {
		return fmt.Errorf("renew Secret %s: %w", name, err)
	}
	switch {
	case missing:
		secret.ObjectMeta, secret.Type = k.meta(name), kind
		err = k.client.Create(ctx, secret)
	case changed:
		err = k.client.Update(ctx, secret)
	default:
		return nil
	}
	return written("Secret "+name, err)
}

// keepConfigMap creates a ConfigMap or corrects its data.
func (k *Keeper) keepConfigMap(ctx context.Context, name string, data map[string]string) error {
	for range attempts {
		err := k.tryConfigMap(ctx, name, data)
		if !errors.Is(err, errChanged) {
			return err
		}
	}
	return fmt.Errorf("write ConfigMap %s: %w", name, errChanged)
}

func (k *Keeper) tryConfigMap(ctx context.Context, name string, data map[string]string) error {
	object := &corev1.ConfigMap{}
	err := k.client.Get(ctx, k.key(name), object)
	if apierrors.IsNotFound(err) {
		object.ObjectMeta, object.Data = k.meta(name), data
		return written("ConfigMap "+name, k.client.Create(ctx, object))
	}
	if err != nil {
		return fmt.Errorf("get ConfigMap %s: %w", name, err)
	}
	changed := false
	for key, value := range data {
		if object.Data[key] != value {
			changed = true
		}
	}
	if !changed {
		return nil
	}
	object.Data = data
	return written("ConfigMap "+name, k.client.Update(ctx, object))
}

// written tells a lost race from other errors of a write.
func written(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case apierrors.IsAlreadyExists(err), apierrors.IsConflict(err):
		return errChanged
	}
	return fmt.Errorf("write %s: %w", what, err)
}

func (k *Keeper) key(name string) client.ObjectKey {
	return client.ObjectKey{Namespace: k.platform.Namespace, Name: name}
}

func (k *Keeper) meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: k.platform.Namespace, Name: name,
		Labels: map[string]string{
			corev1alpha2.LabelHeritage: corev1alpha2.HeritageValue,
			corev1alpha2.LabelModule:   corev1alpha2.ModuleValue,
		},
	}
}

func pairOf(secret *corev1.Secret) pki.Pair {
	return pki.Pair{Certificate: secret.Data[KeyCertificate], Key: secret.Data[KeyPrivate]}
}
