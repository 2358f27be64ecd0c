package tunnel_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"orlop.dev/orlop/internal/handler/tunnel"
	"orlop.dev/orlop/internal/pki"
	"orlop.dev/orlop/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// node has a certificate of an authority, and trusts it.
func node(t *testing.T, ca *pki.Authority, name string) *pki.Held {
	t.Helper()
	pair, err := ca.Issue(pki.Leaf{CommonName: name, DNSNames: []string{strings.TrimPrefix(name, "virt-handler:")}, Server: true, Client: true}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	held := &pki.Held{}
	if err := errors.Join(held.SetPair(pair), held.SetRoots(ca.CertificatePEM())); err != nil {
		t.Fatal(err)
	}
	return held
}

func authority(t *testing.T) *pki.Authority {
	t.Helper()
	ca, err := pki.NewAuthority("handlers", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// serve runs a server of node-b until the test ends.
func serve(t *testing.T, identity *pki.Held, admit func(node string, h tunnel.Header) (func(net.Conn), error)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &tunnel.Server{
		Config:  pki.ServerConfig(identity, identity),
		Admit:   func(_ context.Context, node string, h tunnel.Header) (func(net.Conn), error) { return admit(node, h) },
		Refused: func(node string, h tunnel.Header, err error) { t.Logf("refused %q %+v: %v", node, h, err) },
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { _ = s.Serve(ctx, l) })
	t.Cleanup(func() { cancel(); group.Wait() })
	return l.Addr().String()
}

func dial(t *testing.T, address, to string, identity *pki.Held, h tunnel.Header) (net.Conn, error) {
	t.Helper()
	config, err := pki.ClientConfig(identity, identity, to)
	if err != nil {
		t.Fatal(err)
	}
	c, err := tunnel.Dial(t.Context(), address, to, config, h)
	if err == nil {
		t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

var memory = tunnel.Header{Namespace: "ns", Target: "vm-2", ID: "id", Channel: tunnel.Memory}

func TestChannelCarriesBytesBothWays(t *testing.T) {
	ca := authority(t)
	asked := make(chan tunnel.Header, 1)
	address := serve(t, node(t, ca, "virt-handler:node-b"), func(from string, h tunnel.Header) (func(net.Conn), error) {
		if from != "node-a" {
			t.Errorf("the peer is %q", from)
		}
		asked <- h
		near, far := net.Pipe()
		go func() { // an echo that ends when its input does
			_, _ = io.Copy(far, far)
			_ = far.Close()
		}()
		return func(c net.Conn) { _ = tunnel.Relay(c, near) }, nil
	})
	c, err := dial(t, address, "node-b", node(t, ca, "virt-handler:node-a"), memory)
	if err != nil {
		t.Fatal(err)
	}
	want := memory
	want.Version = 1
	if got := <-asked; got != want {
		t.Errorf("got header %+v", got)
	}
	data := make([]byte, 3<<20)
	_, _ = rand.Read(data)
	go func() { _, _ = c.Write(data) }()
	back := make([]byte, len(data))
	if _, err := io.ReadFull(c, back); err != nil {
		t.Fatal(err)
	}
	if sha256.Sum256(back) != sha256.Sum256(data) {
		t.Error("the bytes came back changed")
	}
}

// Who is at the other end is the tunnel's whole security: a node may open only what an
// Instance names it for.
func TestStrangers(t *testing.T) {
	ca, foreign := authority(t), authority(t)
	address := serve(t, node(t, ca, "virt-handler:node-b"), func(string, tunnel.Header) (func(net.Conn), error) {
		return nil, errors.New("no such migration is expected here")
	})
	t.Run("a refusal comes with its reason", func(t *testing.T) {
		_, err := dial(t, address, "node-b", node(t, ca, "virt-handler:node-a"), memory)
		if r, ok := errors.AsType[*tunnel.Refusal](err); !ok || r.Reason != "no such migration is expected here" {
			t.Errorf("got %v", err)
		}
	})
	for name, test := range map[string]struct {
		to       string
		identity *pki.Held
	}{
		"a certificate of another authority":          {"node-b", node(t, foreign, "virt-handler:node-a")},
		"a certificate that is not a handler's":       {"node-b", node(t, ca, "virtualization-api")},
		"an address where another node listens":       {"node-c", node(t, ca, "virt-handler:node-a")},
		"a name that only begins like another node's": {"node", node(t, ca, "virt-handler:node-a")},
	} {
		t.Run(name, func(t *testing.T) {
			if c, err := dial(t, address, test.to, test.identity, memory); err == nil {
				t.Errorf("got a channel to %s", c.RemoteAddr())
			} else {
				t.Log(err)
			}
		})
	}
	t.Run("a header without end", func(t *testing.T) {
		config, err := pki.ClientConfig(node(t, ca, "virt-handler:node-a"), node(t, ca, "virt-handler:node-a"), "node-b")
		if err != nil {
			t.Fatal(err)
		}
		c, err := tls.Dial("tcp", address, config)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		go func() { _, _ = c.Write([]byte(strings.Repeat("x", 1<<20))) }()
		if rest, err := io.ReadAll(c); err == nil && len(rest) > 0 {
			t.Errorf("got an answer: %s", rest)
		}
	})
}
