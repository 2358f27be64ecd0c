package handler

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/handler/images"
	"orlop.dev/orlop/internal/handler/podfs"
	"orlop.dev/orlop/internal/pki"
)

// Where the authority of DVCR's certificate is found; the Role of the chart lets the
// handler read it.
const (
	registryTrustConfigMap = "dvcr-ca"
	keyRegistryTrust       = "ca.crt"
)

// Images is the node's cache of images.
type Images interface {
	// Open opens an image for reading. While it is being fetched the error is
	// *images.Fetching, and ready is called when it is worth asking again.
	Open(reference string, ready func()) (podfs.Disk, error)
}

// openImage opens the image behind a disk of an Instance.
func (n *Node) openImage(in *v1alpha1.Instance, d *v1alpha1.Disk) (podfs.Disk, error) {
	if n.Images == nil {
		return podfs.Disk{}, errors.New("this node keeps no images")
	}
	uid := in.UID
	return n.Images.Open(d.Source.Image.Reference, func() { n.poke(uid) })
}

// poke makes the worker of an Instance look again at what its disks wait for.
func (n *Node) poke(uid types.UID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if w := n.workers[uid]; w != nil {
		w.poke()
	}
}

// ImagesInUse are the references of all images that Instances of this node name and
// whose machine has not ended.
func (n *Node) ImagesInUse() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []string
	for _, w := range n.workers {
		all = append(all, *w.images.Load()...)
	}
	return all
}

// imagesOf are the references of the images of an Instance.
func imagesOf(in *v1alpha1.Instance) *[]string {
	var all []string
	if in.Status.Phase != v1alpha1.InstanceStopped {
		for _, d := range in.Spec.Machine.Disks {
			if d.Source.Image != nil {
				all = append(all, d.Source.Image.Reference)
			}
		}
	}
	return &all
}

// RegistryClient returns how to speak to DVCR: with this node's certificate, and
// trusting the authority that namespace has for it at that moment.
func (c *Certificate) RegistryClient(reader client.Reader, namespace string) func(context.Context, string) (*tls.Config, error) {
	return func(ctx context.Context, host string) (*tls.Config, error) {
		var bundle corev1.ConfigMap
		if err := reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: registryTrustConfigMap}, &bundle); err != nil {
			return nil, fmt.Errorf("read authority of the registry: %w", err)
		}
		var trust pki.Held
		if err := trust.SetRoots([]byte(bundle.Data[keyRegistryTrust])); err != nil {
			return nil, fmt.Errorf("read authority of the registry: %w", err)
		}
		return pki.ClientConfig(&c.held, &trust, host)
	}
}

var _ Images = (*images.Cache)(nil)
