// Package registry is DVCR, the registry in the cluster that keeps images: the
// protocol engine of the distribution project behind our own token check and our
// own limits, on a folder of a volume.
//
// It is not a general registry: no anonymous access, no catalogue, no proxying, no
// web hooks, no telemetry. A token is good for one repository (package token), and
// tokens are made elsewhere.
//
// Invariants: bytes are stored as they came, for a digest is of bytes; an upload
// never takes the volume's last space, so that deleting stays possible; a process
// that is killed loses no stored blob and no upload session.
package registry

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // the storage driver in use

	"orlop.dev/orlop/internal/registry/token"
)

const (
	// DefaultReserve is what uploads leave free on the volume, in bytes.
	DefaultReserve = 256 << 20
	// DefaultMaxBlob is the largest blob taken, in bytes.
	DefaultMaxBlob = 2 << 40

	secretFile = ".upload-secret"
)

// Config of a registry.
type Config struct {
	// Dir is the folder of the blobs; it exists.
	Dir string
	// Keys check tokens.
	Keys *token.Keys
	// MaxBlob and Reserve in bytes; 0 means the default.
	MaxBlob, Reserve int64
	Log              *slog.Logger
}

// New returns the registry as a handler. The context ends its background work,
// which is the removal of uploads that were given up a week ago.
func New(ctx context.Context, c Config) (http.Handler, error) {
	secret, err := uploadSecret(filepath.Join(c.Dir, secretFile))
	if err != nil {
		return nil, err
	}
	d := &configuration.Configuration{
		Storage: configuration.Storage{
			"filesystem": configuration.Parameters{"rootdirectory": c.Dir},
			"delete":     configuration.Parameters{"enabled": true},
			"redirect":   configuration.Parameters{"disable": true},
		},
		Auth: configuration.Auth{authName: configuration.Parameters{authKeys: c.Keys}},
	}
	d.HTTP.Secret = secret
	// Links in answers are relative, so that they are right behind any Service.
	d.HTTP.RelativeURLs = true
	d.Log.AccessLog.Disabled = true
	app, err := newApp(ctx, d)
	if err != nil {
		return nil, err
	}
	l := limits{dir: c.Dir, maxBlob: orDefault(c.MaxBlob, DefaultMaxBlob), reserve: orDefault(c.Reserve, DefaultReserve), log: c.Log}
	return l.guard(app), nil
}

func orDefault(n, otherwise int64) int64 {
	if n <= 0 {
		return otherwise
	}
	return n
}

// newApp makes the protocol engine, which panics where others return an error.
func newApp(ctx context.Context, d *configuration.Configuration) (app http.Handler, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("start registry: %v", r)
		}
	}()
	if err := setUp(); err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}
	return handlers.NewApp(ctx, d), nil
}

// uploadSecret reads the key that protects the state of an upload session, which
// the client carries; it is kept, so that sessions outlive a restart.
func uploadSecret(path string) (string, error) {
	raw, err := os.ReadFile(path)
	if err == nil && len(raw) > 0 {
		return string(raw), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read upload secret: %w", err)
	}
	fresh := make([]byte, 32)
	_, _ = rand.Read(fresh) // never fails
	secret := hex.EncodeToString(fresh)
	if err := os.WriteFile(path, []byte(secret), 0o600); err != nil {
		return "", fmt.Errorf("write upload secret: %w", err)
	}
	return secret, nil
}
