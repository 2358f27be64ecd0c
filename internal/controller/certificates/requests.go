package certificates

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"orlop.dev/orlop/internal/pki"
)

// nodeClaim is the attribute of a bound service account token that names the node
// of the pod it was made for.
const nodeClaim = "authentication.kubernetes.io/node-name"

// refusal is why a request is denied for good.
type refusal string

// Error implements error.
func (r refusal) Error() string { return string(r) }

// requests approves and signs certificate requests of handlers.
type requests struct {
	keeper *Keeper
}

// +kubebuilder:rbac:groups=certificates.k8s.io,resources=certificatesigningrequests,verbs=get;list;watch
// +kubebuilder:rbac:groups=certificates.k8s.io,resources=certificatesigningrequests/approval,verbs=update
// +kubebuilder:rbac:groups=certificates.k8s.io,resources=certificatesigningrequests/status,verbs=update
// +kubebuilder:rbac:groups=certificates.k8s.io,resources=signers,resourceNames=virtualization.deckhouse.io/handler,verbs=approve;sign
// +kubebuilder:rbac:groups="",resources=nodes,verbs=get

// Reconcile brings one certificate request to its end.
func (r *requests) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	csr := &certificatesv1.CertificateSigningRequest{}
	// Not from the cache: it may not know of the approval or certificate of the last pass.
	if err := r.keeper.client.Get(ctx, request.NamespacedName, csr); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if csr.Spec.SignerName != HandlerSigner || len(csr.Status.Certificate) > 0 || has(csr, certificatesv1.CertificateDenied) || has(csr, certificatesv1.CertificateFailed) {
		return ctrl.Result{}, nil
	}
	node, parsed, err := r.check(csr)
	if err != nil {
		log.FromContext(ctx).Info("certificate request denied", "request", csr.Name, "reason", err.Error())
		return ctrl.Result{}, r.condition(ctx, csr, certificatesv1.CertificateDenied, "NotTheHandlerOfThisNode", err.Error())
	}
	if !has(csr, certificatesv1.CertificateApproved) {
		if err := r.condition(ctx, csr, certificatesv1.CertificateApproved, "HandlerOfThisNode", "The token of the request is bound to the node"); err != nil {
			return ctrl.Result{}, err
		}
	}
	return ctrl.Result{}, r.sign(ctx, csr, node, parsed)
}

// check decides from the identity of the requester, which the API server vouches
// for, whether the node's name in the request is the requester's own.
func (r *requests) check(csr *certificatesv1.CertificateSigningRequest) (node string, request *x509.CertificateRequest, err error) {
	account := "system:serviceaccount:" + r.keeper.platform.Namespace + ":" + HandlerServiceAccount
	if csr.Spec.Username != account {
		return "", nil, refusal(fmt.Sprintf("%s may not ask this signer", csr.Spec.Username))
	}
	claim := csr.Spec.Extra[nodeClaim]
	if len(claim) != 1 || claim[0] == "" {
		return "", nil, refusal("the token of the request is not bound to a node")
	}
	request, err = pki.ParseRequest(csr.Spec.Request)
	if err != nil {
		return "", nil, refusal(err.Error())
	}
	node, isHandler := strings.CutPrefix(request.Subject.CommonName, HandlerCommonName(""))
	if !isHandler || node != claim[0] {
		return "", nil, refusal(fmt.Sprintf("the token is bound to node %s, the request is for %q", claim[0], request.Subject.CommonName))
	}
	for _, usage := range csr.Spec.Usages {
		if !slices.Contains([]certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth, certificatesv1.UsageClientAuth}, usage) {
			return "", nil, refusal(fmt.Sprintf("usage %q is not possible", usage))
		}
	}
	return node, request, nil
}

// sign writes the certificate. Its names are those of the Node object, not those in the request.
func (r *requests) sign(ctx context.Context, csr *certificatesv1.CertificateSigningRequest, name string, request *x509.CertificateRequest) error {
	node := &corev1.Node{}
	err := r.keeper.client.Get(ctx, client.ObjectKey{Name: name}, node)
	if apierrors.IsNotFound(err) {
		return r.condition(ctx, csr, certificatesv1.CertificateFailed, "NodeNotFound", fmt.Sprintf("Node %s does not exist", name))
	}
	if err != nil {
		return fmt.Errorf("get node %s: %w", name, err)
	}
	authority, _, err := r.keeper.authority(ctx, HandlerAuthority, r.keeper.clock.Now())
	if err != nil {
		return err
	}
	leaf := pki.Leaf{CommonName: HandlerCommonName(name), DNSNames: []string{name}, Server: true, Client: true}
	for _, address := range node.Status.Addresses {
		if ip := net.ParseIP(address.Address); ip != nil {
			leaf.IPs = append(leaf.IPs, ip)
		}
	}
	certificate, err := authority.SignRequest(request, leaf, r.keeper.clock.Now())
	if err != nil {
		return r.condition(ctx, csr, certificatesv1.CertificateFailed, "RequestNotUsable", err.Error())
	}
	csr.Status.Certificate = certificate
	if err := r.keeper.client.Status().Update(ctx, csr); err != nil {
		return fmt.Errorf("write certificate of %s: %w", csr.Name, err)
	}
	return nil
}

// condition adds a condition; approval and denial go through a subresource of their own.
func (r *requests) condition(ctx context.Context, csr *certificatesv1.CertificateSigningRequest, kind certificatesv1.RequestConditionType, reason, message string) error {
	now := metav1.NewTime(r.keeper.clock.Now())
	csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: kind, Status: corev1.ConditionTrue, Reason: reason, Message: message, LastUpdateTime: now, LastTransitionTime: now,
	})
	var err error
	if kind == certificatesv1.CertificateFailed {
		err = r.keeper.client.Status().Update(ctx, csr)
	} else {
		err = r.keeper.client.SubResource("approval").Update(ctx, csr)
	}
	if err != nil {
		return fmt.Errorf("write condition %s of %s: %w", kind, csr.Name, err)
	}
	return nil
}

func has(csr *certificatesv1.CertificateSigningRequest, kind certificatesv1.RequestConditionType) bool {
	return slices.ContainsFunc(csr.Status.Conditions, func(c certificatesv1.CertificateSigningRequestCondition) bool { return c.Type == kind })
}
