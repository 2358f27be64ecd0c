package importer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// How an image is written in the registry.
const (
	// ArtifactType of the manifest.
	ArtifactType = "application/vnd.orlop.image.v1"
	// MediaTypeQCOW2 and MediaTypeISO are those of the only layer.
	MediaTypeQCOW2 types.MediaType = "application/vnd.orlop.disk.qcow2"
	MediaTypeISO   types.MediaType = "application/vnd.orlop.disk.iso"
	// Annotations of the manifest; sizes are in bytes.
	AnnotationVirtualSize  = "orlop.dev/virtual-size"
	AnnotationSourceFormat = "orlop.dev/source-format"
	AnnotationFormat       = "orlop.dev/format"
	AnnotationSourceSize   = "orlop.dev/source-size"

	mediaTypeEmpty types.MediaType = "application/vnd.oci.empty.v1+json"
	manifestLimit                  = 1 << 20
)

// emptyConfig is what the OCI image specification prescribes where there is no
// configuration.
var emptyConfig = []byte("{}")

// connect returns what is needed to talk to a registry: a client that trusts the
// bundle alone and sends the token.
func (r Repository) connect() (name.Reference, []remote.Option, error) {
	ref, err := name.ParseReference(r.Reference, name.StrictValidation)
	if err != nil {
		return nil, nil, fail(ReasonInvalidConfig, err, "The registry reference %q is not valid", r.Reference)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(r.CABundle) {
		return nil, nil, fail(ReasonInvalidConfig, nil, "The registry's CA bundle holds no PEM certificate")
	}
	return ref, []remote.Option{
		remote.WithAuth(authn.FromConfig(authn.AuthConfig{RegistryToken: r.Token})),
		remote.WithTransport(&http.Transport{
			DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout: dialTimeout,
		}),
		remote.WithUserAgent("orlop-importer"),
	}, nil
}

// fileLayer is a file as the layer of an image.
type fileLayer struct {
	path   string
	digest v1.Hash
	size   int64
	kind   types.MediaType
	read   func(n int64)
}

// newFileLayer reads the file once for its digest; read is called with what is
// read from it later.
func newFileLayer(path string, kind types.MediaType, read func(n int64)) (*fileLayer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	size, err := io.Copy(h, f)
	if err != nil {
		return nil, fmt.Errorf("read image: %w", err)
	}
	return &fileLayer{
		path: path, size: size, kind: kind, read: read,
		digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))},
	}, nil
}

// Digest, DiffID, Size, MediaType, Compressed and Uncompressed implement v1.Layer.
func (l *fileLayer) Digest() (v1.Hash, error)             { return l.digest, nil }
func (l *fileLayer) DiffID() (v1.Hash, error)             { return l.digest, nil }
func (l *fileLayer) Size() (int64, error)                 { return l.size, nil }
func (l *fileLayer) MediaType() (types.MediaType, error)  { return l.kind, nil }
func (l *fileLayer) Uncompressed() (io.ReadCloser, error) { return l.Compressed() }
func (l *fileLayer) Compressed() (io.ReadCloser, error) {
	f, err := os.Open(l.path)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	return readCloser{&counting{Reader: f, count: l.read}, f}, nil
}

// rawManifest is a manifest as the bytes that are pushed.
type rawManifest []byte

// RawManifest and MediaType implement remote.Taggable.
func (m rawManifest) RawManifest() ([]byte, error)        { return m, nil }
func (m rawManifest) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

// manifestOf describes an image with one layer.
func manifestOf(layer *fileLayer, annotations map[string]string) (rawManifest, error) {
	configHash, configSize, err := v1.SHA256(bytes.NewReader(emptyConfig))
	if err != nil {
		return nil, fmt.Errorf("digest configuration: %w", err)
	}
	raw, err := json.Marshal(v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		ArtifactType:  ArtifactType,
		Config:        v1.Descriptor{MediaType: mediaTypeEmpty, Digest: configHash, Size: configSize},
		Layers:        []v1.Descriptor{{MediaType: layer.kind, Digest: layer.digest, Size: layer.size}},
		Annotations:   annotations,
	})
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	return raw, nil
}

// push writes an image under its tag, blobs first, and returns the digest of the
// manifest.
func push(ctx context.Context, to Repository, layer *fileLayer, annotations map[string]string) (string, error) {
	ref, options, err := to.connect()
	if err != nil {
		return "", err
	}
	p, err := remote.NewPusher(options...)
	if err != nil {
		return "", fmt.Errorf("prepare push: %w", err)
	}
	for _, l := range []v1.Layer{layer, static.NewLayer(emptyConfig, mediaTypeEmpty)} {
		if err := p.Upload(ctx, ref.Context(), l); err != nil {
			return "", registryFailure(ctx, err)
		}
	}
	m, err := manifestOf(layer, annotations)
	if err != nil {
		return "", err
	}
	if err := p.Push(ctx, ref, m); err != nil {
		return "", registryFailure(ctx, err)
	}
	sum := sha256.Sum256(m)
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}

// stored is an image in the registry.
type stored struct {
	digest       string
	layer        v1.Descriptor
	sourceFormat string
	virtualSize  int64
	ref          name.Reference
	options      []remote.Option
}

// find looks an image up and checks that it is one of ours.
func find(ctx context.Context, from Repository) (*stored, error) {
	ref, options, err := from.connect()
	if err != nil {
		return nil, err
	}
	d, err := remote.Get(ref, append(options, remote.WithContext(ctx))...)
	if err != nil {
		return nil, registryFailure(ctx, err)
	}
	var m v1.Manifest
	if len(d.Manifest) > manifestLimit || json.Unmarshal(d.Manifest, &m) != nil {
		return nil, fail(ReasonNotAnImage, nil, "%s is no image manifest", from.Reference)
	}
	if m.ArtifactType != ArtifactType || len(m.Layers) != 1 {
		return nil, fail(ReasonNotAnImage, nil, "%s is no disk image: artifact type %q, %d layers", from.Reference, m.ArtifactType, len(m.Layers))
	}
	s := &stored{digest: d.Digest.String(), layer: m.Layers[0], sourceFormat: m.Annotations[AnnotationSourceFormat], ref: ref, options: options}
	// Only for information: the blob itself is asked again once it is here.
	s.virtualSize, _ = strconv.ParseInt(m.Annotations[AnnotationVirtualSize], 10, 64)
	return s, nil
}

// open returns the layer's bytes; reading to the end verifies size and digest.
func (s *stored) open(ctx context.Context) (io.ReadCloser, error) {
	l, err := remote.Layer(s.ref.Context().Digest(s.layer.Digest.String()), append(s.options, remote.WithContext(ctx))...)
	if err != nil {
		return nil, registryFailure(ctx, err)
	}
	rc, err := l.Compressed()
	if err != nil {
		return nil, registryFailure(ctx, err)
	}
	return rc, nil
}

// registryFailure turns an error of the registry into a reason.
func registryFailure(ctx context.Context, err error) error {
	var te *transport.Error
	switch {
	case stalled(ctx):
		return fail(ReasonRegistryUnavailable, err, "The transfer to or from the registry stalled")
	case !errors.As(err, &te):
		return fail(ReasonRegistryUnavailable, err, "The registry cannot be reached: %v", err)
	}
	switch te.StatusCode {
	case http.StatusInsufficientStorage:
		return fail(ReasonRegistryFull, err, "The registry has no room left for the image: remove images that are not needed or enlarge its storage")
	case http.StatusRequestEntityTooLarge:
		return fail(ReasonTooLarge, err, "The image is larger than the registry takes")
	case http.StatusNotFound:
		return fail(ReasonNotFound, err, "The registry has no such image")
	case http.StatusUnauthorized, http.StatusForbidden:
		return fail(ReasonRegistryUnavailable, err, "The registry refuses the token")
	}
	return fail(ReasonRegistryUnavailable, err, "The registry answers with status %d: %v", te.StatusCode, err)
}
