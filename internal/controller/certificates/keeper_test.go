package certificates

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/internal/pki"
	"orlop.dev/orlop/internal/settings"
	"orlop.dev/orlop/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// setup returns a Keeper in a namespace of its own, with a clock that stands still.
func setup(t *testing.T) (*Keeper, interface{ Step(time.Duration) }) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs the embedded Kubernetes")
	}
	server := testkit.API(t)
	clock := testkit.Clock()
	return newKeeper(server.Client(t), settings.Platform{Namespace: server.Namespace(t)}, clock), clock
}

func secret(t *testing.T, k *Keeper, name string) *corev1.Secret {
	t.Helper()
	object := &corev1.Secret{}
	if err := k.client.Get(t.Context(), k.key(name), object); err != nil {
		t.Fatal(err)
	}
	return object
}

func ensure(t *testing.T, k *Keeper) time.Time {
	t.Helper()
	next, err := k.ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func TestEverythingIsMadeOnceAndThenLeftAlone(t *testing.T) {
	k, _ := setup(t)
	next := ensure(t, k)
	if until := next.Sub(k.clock.Now()); until <= 0 || until > pki.LeafLife/2 {
		t.Errorf("next pass in %s", until)
	}
	versions := map[string]string{}
	for _, s := range leaves(k.platform.Namespace) {
		object := secret(t, k, s.secret)
		if object.Type != corev1.SecretTypeTLS || len(object.Data[KeyBundle]) == 0 {
			t.Errorf("Secret %s is incomplete", s.secret)
		}
		versions[s.secret] = object.ResourceVersion
	}
	ensure(t, k)
	for name, version := range versions {
		if got := secret(t, k, name).ResourceVersion; got != version {
			t.Errorf("Secret %s was written again", name)
		}
	}
	if err := k.loadWebhook(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := k.Tokens(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestReplicasAgreeOnOneAuthority(t *testing.T) {
	k, _ := setup(t)
	var group sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		group.Go(func() {
			_, errs[i] = newKeeper(k.client, k.platform, k.clock).ensure(context.Background())
		})
	}
	group.Wait()
	for _, err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	ensure(t, k)
	authority, err := pki.LoadAuthority(pairOf(secret(t, k, AuthoritySecret)))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range leaves(k.platform.Namespace)[:3] {
		if err := authority.Check(pairOf(secret(t, k, s.secret)), s.leaf, k.clock.Now()); err != nil {
			t.Errorf("%s: %v", s.secret, err)
		}
	}
}

func TestLeavesAreRenewedAtHalfLifeAndRepaired(t *testing.T) {
	k, clock := setup(t)
	ensure(t, k)
	before := secret(t, k, RegistrySecret).Data[KeyCertificate]
	clock.Step(13 * time.Hour)
	ensure(t, k)
	renewed := secret(t, k, RegistrySecret)
	if bytes.Equal(before, renewed.Data[KeyCertificate]) {
		t.Error("a certificate past half of its life was kept")
	}
	renewed.Data[KeyPrivate] = []byte("nonsense")
	if err := k.client.Update(t.Context(), renewed); err != nil {
		t.Fatal(err)
	}
	if err := k.client.Delete(t.Context(), secret(t, k, APISecret)); err != nil {
		t.Fatal(err)
	}
	ensure(t, k)
	secret(t, k, APISecret)
	if string(secret(t, k, RegistrySecret).Data[KeyPrivate]) == "nonsense" {
		t.Error("a spoilt key was kept")
	}
}

func TestAuthorityIsAnnouncedBeforeItSigns(t *testing.T) {
	k, clock := setup(t)
	ensure(t, k)
	first := secret(t, k, AuthoritySecret).Data[KeyCertificate]

	clock.Step(pki.AuthorityLife / 2)
	ensure(t, k)
	announced := secret(t, k, AuthoritySecret)
	if !bytes.Equal(announced.Data[KeyCertificate], first) {
		t.Fatal("a new authority signs before anybody has heard of it")
	}
	next := announced.Data[keyNextCertificate]
	if trust := secret(t, k, ControllerSecret).Data[KeyBundle]; !bytes.Contains(trust, next) || !bytes.Contains(trust, first) {
		t.Error("the bundle does not hold both authorities")
	}

	clock.Step(announcement + time.Hour)
	ensure(t, k)
	taken := secret(t, k, AuthoritySecret)
	if !bytes.Equal(taken.Data[KeyCertificate], next) || !bytes.Contains(taken.Data[KeyBundle], first) {
		t.Error("the announced authority did not take over, or the former one is forgotten too early")
	}
	authority, err := pki.LoadAuthority(pairOf(taken))
	if err != nil {
		t.Fatal(err)
	}
	s := leaves(k.platform.Namespace)[0]
	if err := authority.Check(pairOf(secret(t, k, s.secret)), s.leaf, k.clock.Now()); err != nil {
		t.Errorf("leaf is not of the new authority: %v", err)
	}

	clock.Step(pki.AuthorityLife / 2)
	ensure(t, k)
	if bytes.Contains(secret(t, k, AuthoritySecret).Data[KeyBundle], first) {
		t.Error("an expired authority is still in the bundle")
	}
}

func TestHandlerRequests(t *testing.T) {
	k, _ := setup(t)
	ensure(t, k)
	server := testkit.API(t)
	node := "node-of-" + k.platform.Namespace
	if err := k.client.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}); err != nil {
		t.Fatal(err)
	}
	account := "system:serviceaccount:" + k.platform.Namespace + ":virt-handler"
	bound := map[string][]string{nodeClaim: {node}}
	tests := map[string]struct {
		user   string
		extra  map[string][]string
		leaf   pki.Leaf
		usages []certificatesv1.KeyUsage
		want   certificatesv1.RequestConditionType
	}{
		"the handler of the node gets its certificate": {account, bound, pki.Leaf{CommonName: "virt-handler:" + node, DNSNames: []string{"anything.else"}}, nil, certificatesv1.CertificateApproved},
		"another node's name is denied":                {account, bound, pki.Leaf{CommonName: "virt-handler:other"}, nil, certificatesv1.CertificateDenied},
		"a token without a node is denied":             {account, nil, pki.Leaf{CommonName: "virt-handler:" + node}, nil, certificatesv1.CertificateDenied},
		"another account is denied":                    {"system:serviceaccount:" + k.platform.Namespace + ":dvcr", bound, pki.Leaf{CommonName: "virt-handler:" + node}, nil, certificatesv1.CertificateDenied},
		"a use beyond server and client is denied":     {account, bound, pki.Leaf{CommonName: "virt-handler:" + node}, []certificatesv1.KeyUsage{certificatesv1.UsageCodeSigning}, certificatesv1.CertificateDenied},
		"another subject is denied":                    {account, bound, pki.Leaf{CommonName: "virtualization-api"}, nil, certificatesv1.CertificateDenied},
	}
	i := 0
	for name, test := range tests {
		i++
		csrName := fmt.Sprintf("%s-%d", k.platform.Namespace, i)
		t.Run(name, func(t *testing.T) {
			request, _, err := pki.NewRequest(test.leaf)
			if err != nil {
				t.Fatal(err)
			}
			if test.usages == nil {
				test.usages = []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth}
			}
			// system:masters lets the impersonated account create the request without a role.
			asHandler := server.ClientFor(t, server.As(test.user, []string{"system:masters"}, test.extra))
			csr := &certificatesv1.CertificateSigningRequest{
				ObjectMeta: metav1.ObjectMeta{Name: csrName},
				Spec:       certificatesv1.CertificateSigningRequestSpec{Request: request, SignerName: HandlerSigner, Usages: test.usages},
			}
			if err := asHandler.Create(t.Context(), csr); err != nil {
				t.Fatal(err)
			}
			r := &requests{keeper: k}
			for range 2 { // a second pass changes nothing
				if _, err := r.Reconcile(t.Context(), ctrl.Request{NamespacedName: client.ObjectKeyFromObject(csr)}); err != nil {
					t.Fatal(err)
				}
			}
			if err := k.client.Get(t.Context(), client.ObjectKeyFromObject(csr), csr); err != nil {
				t.Fatal(err)
			}
			if len(csr.Status.Conditions) != 1 || csr.Status.Conditions[0].Type != test.want {
				t.Fatalf("conditions are %+v, want %s", csr.Status.Conditions, test.want)
			}
			if (len(csr.Status.Certificate) > 0) != (test.want == certificatesv1.CertificateApproved) {
				t.Fatal("certificate and approval do not agree")
			}
			if test.want != certificatesv1.CertificateApproved {
				return
			}
			certificate, err := pki.ParseCertificate(csr.Status.Certificate)
			if err != nil {
				t.Fatal(err)
			}
			if len(certificate.DNSNames) != 1 || certificate.DNSNames[0] != node {
				t.Errorf("names are %v", certificate.DNSNames)
			}
		})
	}
}
