package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"orlop.dev/orlop/internal/pki"
)

// Server times. Uploads and downloads are long; what is bounded is silence.
const (
	headerTimeout = 30 * time.Second
	idleTimeout   = 2 * time.Minute
	// grace is how long transfers may go on after the end was asked for.
	grace = 20 * time.Second
)

// Serve serves the handler over TLS until the context ends, then lets transfers
// finish for a while. Node agents may show a certificate of their authority, handlers,
// instead of a token.
func Serve(ctx context.Context, address string, identity pki.Identity, handlers pki.Trust, h http.Handler) error {
	s := &http.Server{Addr: address, Handler: h, TLSConfig: tlsConfig(identity, handlers), ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout}
	return serve(ctx, s, func() error { return s.ListenAndServeTLS("", "") })
}

// tlsConfig asks clients for a certificate and goes on without one.
func tlsConfig(identity pki.Identity, handlers pki.Trust) *tls.Config {
	config := pki.ServerConfig(identity, orNobody{handlers})
	config.ClientAuth = tls.VerifyClientCertIfGiven
	return config
}

// orNobody trusts nobody for as long as it is not known whom to trust: those who bring
// a token do not have to wait for that.
type orNobody struct{ pki.Trust }

// Roots implements pki.Trust.
func (o orNobody) Roots() (*x509.CertPool, error) {
	roots, err := o.Trust.Roots()
	if err != nil {
		return x509.NewCertPool(), nil
	}
	return roots, nil
}

// ServeHealth serves /healthz (the process) and /readyz (the volume) over plain
// HTTP until the context ends.
func ServeHealth(ctx context.Context, address, dir string) error {
	s := &http.Server{Addr: address, Handler: health(dir), ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout}
	return serve(ctx, s, s.ListenAndServe)
}

func serve(ctx context.Context, s *http.Server, listen func() error) error {
	s.BaseContext = func(net.Listener) context.Context { return context.WithoutCancel(ctx) }
	ended := make(chan error, 1)
	go func() { ended <- listen() }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve on %s: %w", s.Addr, err)
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if err := s.Shutdown(last); err != nil {
		return errors.Join(fmt.Errorf("shut down: %w", err), s.Close())
	}
	return nil
}

func health(dir string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := writable(dir); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}

// writable tells whether the volume takes a file.
func writable(dir string) error {
	path := filepath.Join(dir, ".ready")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return fmt.Errorf("write to volume: %w", err)
	}
	return os.Remove(path)
}
