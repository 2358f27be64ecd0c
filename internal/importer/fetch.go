package importer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

const (
	redirectLimit = 10
	dialTimeout   = 15 * time.Second
)

// source is an open download.
type source struct {
	body io.ReadCloser
	// size in bytes; 0 if the server does not say.
	size int64
}

// open asks the server for the image. The watchdog is fed by each byte.
func open(ctx context.Context, s HTTPSource, dog *watchdog) (*source, error) {
	u, err := url.Parse(s.URL)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fail(ReasonInvalidConfig, err, "The URL %q is not a valid http or https address", s.URL)
	}
	client, err := newClient(s.CABundle)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fail(ReasonInvalidConfig, err, "The URL %q is not valid", s.URL)
	}
	r.Header.Set("User-Agent", "orlop-importer")
	resp, err := client.Do(r)
	if err != nil {
		return nil, unreachable(ctx, u, err)
	}
	if err := checkStatus(u, resp); err != nil {
		resp.Body.Close()
		return nil, err
	}
	body := &counting{Reader: resp.Body, count: func(int64) { dog.feed() }}
	return &source{body: readCloser{body, resp.Body}, size: max(0, resp.ContentLength)}, nil
}

type readCloser struct {
	io.Reader
	io.Closer
}

func newClient(bundle []byte) (*http.Client, error) {
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if len(bundle) > 0 && !roots.AppendCertsFromPEM(bundle) {
		return nil, fail(ReasonInvalidConfig, nil, "The CA bundle holds no PEM certificate")
	}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout: dialTimeout,
			// The bytes are wanted as they are: checksums are of the file.
			DisableCompression: true,
		},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) >= redirectLimit {
				return fmt.Errorf("more than %d redirects", redirectLimit)
			}
			if r.URL.Scheme != "http" && r.URL.Scheme != "https" {
				return fmt.Errorf("redirect to scheme %q", r.URL.Scheme)
			}
			return nil
		},
	}, nil
}

// unreachable says why there is no answer. The error of the client repeats method
// and address, which the message has already.
func unreachable(ctx context.Context, u *url.URL, err error) error {
	if stalled(ctx) {
		return fail(ReasonUnreachable, err, "The server %s does not answer", u.Host)
	}
	if ue, ok := errors.AsType[*url.Error](err); ok {
		err = ue.Err
	}
	return fail(ReasonUnreachable, err, "The server %s cannot be reached: %v", u.Host, err)
}

func checkStatus(u *url.URL, resp *http.Response) error {
	switch code := resp.StatusCode; {
	case code == http.StatusOK:
		return nil
	case code == http.StatusNotFound, code == http.StatusGone:
		return fail(ReasonNotFound, nil, "The server %s has no such file: %s (status %s)", u.Host, u.Redacted(), resp.Status)
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return fail(ReasonRefused, nil, "The server %s refuses access to %s (status %s)", u.Host, u.Redacted(), resp.Status)
	default:
		return fail(ReasonRefused, nil, "The server %s answers with status %s", u.Host, resp.Status)
	}
}

// interrupted says why a transfer ended before its end.
func interrupted(ctx context.Context, err error, done, total int64) error {
	if stalled(ctx) {
		return fail(ReasonUnreachable, err, "The transfer stalled after %d bytes", done)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		if total > 0 {
			return fail(ReasonTruncated, err, "The transfer ended after %d of %d bytes", done, total)
		}
		return fail(ReasonTruncated, err, "The transfer ended early, after %d bytes", done)
	}
	return fail(ReasonTruncated, err, "The transfer broke off after %d bytes: %v", done, err)
}
