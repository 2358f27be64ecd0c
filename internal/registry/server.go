package registry

import (
	"context"
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
// finish for a while.
func Serve(ctx context.Context, address string, identity pki.Identity, h http.Handler) error {
	s := &http.Server{Addr: address, Handler: h, TLSConfig: pki.ServerConfig(identity, nil), ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout}
	return serve(ctx, s, func() error { return s.ListenAndServeTLS("", "") })
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
