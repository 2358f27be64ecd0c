package images

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"time"
)

const (
	// manifestLimit bounds a manifest, in bytes.
	manifestLimit = 1 << 20
	// silence is how long the registry may keep us waiting for an answer's head.
	silence = time.Minute

	mediaTypeManifest = "application/vnd.oci.image.manifest.v1+json"
)

// ErrCorrupt says that bytes do not have the digest they were asked for by.
var ErrCorrupt = errors.New("content does not match its digest")

// Registry reads images from DVCR.
type Registry struct {
	// TLS is the configuration for one connection to a host: whom to trust, and what to
	// show.
	TLS func(ctx context.Context, host string) (*tls.Config, error)
}

// Blob is the single file of an image.
type Blob struct {
	// Size in bytes.
	Size int64

	digest string
	url    string
	client *http.Client
}

var sha256Digest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// Resolve reads an image's manifest. The caller closes the blob.
func (r Registry) Resolve(ctx context.Context, ref Reference) (*Blob, error) {
	host, _, err := net.SplitHostPort(ref.Host)
	if err != nil {
		host = ref.Host
	}
	config, err := r.TLS(ctx, host)
	if err != nil {
		return nil, err
	}
	client := &http.Client{
		Transport: &http.Transport{TLSClientConfig: config, TLSHandshakeTimeout: silence, ResponseHeaderTimeout: silence},
		// Everything is in the registry itself; elsewhere our certificate has no business.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	base := "https://" + ref.Host + "/v2/" + ref.Repository
	body, err := get(ctx, client, base+"/manifests/sha256:"+ref.Digest)
	if err != nil {
		client.CloseIdleConnections()
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	defer body.Close()
	b, err := parseManifest(body, ref.Digest)
	if err != nil {
		client.CloseIdleConnections()
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	b.client, b.url = client, base+"/blobs/"+b.digest
	return b, nil
}

func parseManifest(r io.Reader, digest string) (*Blob, error) {
	raw, err := io.ReadAll(io.LimitReader(r, manifestLimit))
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(raw); hex.EncodeToString(sum[:]) != digest {
		return nil, ErrCorrupt
	}
	var manifest struct {
		Layers []struct {
			Digest string `json:"digest"`
			Size   int64  `json:"size"`
		} `json:"layers"`
	}
	if err := json.Unmarshal(raw, &manifest); err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	if len(manifest.Layers) != 1 || !sha256Digest.MatchString(manifest.Layers[0].Digest) || manifest.Layers[0].Size <= 0 {
		return nil, errors.New("it is not that of an image with one file")
	}
	return &Blob{Size: manifest.Layers[0].Size, digest: manifest.Layers[0].Digest}, nil
}

// Close ends the connection.
func (b *Blob) Close() { b.client.CloseIdleConnections() }

// Copy copies the file and checks it on the way; after an error what was written is
// worth nothing.
func (b *Blob) Copy(ctx context.Context, w io.Writer) error {
	body, err := get(ctx, b.client, b.url)
	if err != nil {
		return fmt.Errorf("read file of image: %w", err)
	}
	defer body.Close()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, sum), io.LimitReader(body, b.Size+1))
	if err != nil {
		return fmt.Errorf("read file of image: %w", err)
	}
	if n != b.Size || "sha256:"+hex.EncodeToString(sum.Sum(nil)) != b.digest {
		return fmt.Errorf("read file of image: %w", ErrCorrupt)
	}
	return nil
}

func get(ctx context.Context, client *http.Client, url string) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", mediaTypeManifest)
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(response.Body, 512)) // only for the message
		_ = response.Body.Close()
		return nil, fmt.Errorf("the registry answers %s: %s", response.Status, strings.TrimSpace(string(said)))
	}
	return response.Body, nil
}
