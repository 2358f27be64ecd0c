package pki

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var start = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func newAuthority(t *testing.T, name string, now time.Time) *Authority {
	t.Helper()
	authority, err := NewAuthority(name, now)
	if err != nil {
		t.Fatal(err)
	}
	return authority
}

func TestCheck(t *testing.T) {
	authority := newAuthority(t, "ours", start)
	other := newAuthority(t, "theirs", start)
	leaf := Leaf{CommonName: "server", DNSNames: []string{"server.example"}, Server: true}
	issue := func(a *Authority) Pair {
		pair, err := a.Issue(leaf, start)
		if err != nil {
			t.Fatal(err)
		}
		return pair
	}
	good, foreign := issue(authority), issue(other)
	tests := map[string]struct {
		pair Pair
		leaf Leaf
		now  time.Time
		want bool
	}{
		"a fresh certificate is good":                     {good, leaf, start, true},
		"it is good until half of its life":               {good, leaf, start.Add(11 * time.Hour), true},
		"it is renewed long before it expires":            {good, leaf, start.Add(13 * time.Hour), false},
		"another authority's certificate is replaced":     {foreign, leaf, start, false},
		"a key that does not fit is replaced":             {Pair{good.Certificate, foreign.Key}, leaf, start, false},
		"a certificate without the wanted name is not ok": {good, Leaf{CommonName: "server", DNSNames: []string{"other.example"}}, start, false},
		"another subject is replaced":                     {good, Leaf{CommonName: "other"}, start, false},
		"nothing at all is replaced":                      {Pair{}, leaf, start, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if err := authority.Check(test.pair, test.leaf, test.now); (err == nil) != test.want {
				t.Errorf("Check() = %v, want good = %v", err, test.want)
			}
		})
	}
}

func TestRequestsDecideNothingButTheKey(t *testing.T) {
	authority := newAuthority(t, "ours", start)
	data, _, err := NewRequest(Leaf{CommonName: "admin", Organization: []string{"system:masters"}, DNSNames: []string{"everything"}})
	if err != nil {
		t.Fatal(err)
	}
	request, err := ParseRequest(data)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := authority.SignRequest(request, Leaf{CommonName: "virt-handler:a", DNSNames: []string{"a"}, Server: true}, start)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := ParseCertificate(signed)
	if err != nil {
		t.Fatal(err)
	}
	if certificate.Subject.CommonName != "virt-handler:a" || len(certificate.Subject.Organization) != 0 || len(certificate.DNSNames) != 1 || certificate.DNSNames[0] != "a" {
		t.Errorf("certificate took over the request's wishes: %v %v", certificate.Subject, certificate.DNSNames)
	}
	if certificate.IsCA {
		t.Error("a leaf is an authority")
	}
}

func TestBundleKeepsOldAuthoritiesUntilTheyExpire(t *testing.T) {
	old, young := newAuthority(t, "old", start), newAuthority(t, "young", start.Add(AuthorityLife/2))
	both := Bundle(start.Add(AuthorityLife/2), young.CertificatePEM(), old.CertificatePEM(), young.CertificatePEM())
	if want := string(young.CertificatePEM()) + string(old.CertificatePEM()); string(both) != want {
		t.Errorf("bundle is\n%s\nwant\n%s", both, want)
	}
	late := Bundle(start.Add(AuthorityLife+time.Hour), young.CertificatePEM(), old.CertificatePEM())
	if string(late) != string(young.CertificatePEM()) {
		t.Error("an expired authority is still trusted")
	}
}

func TestMutualTLSFollowsRenewal(t *testing.T) {
	now := time.Now() // TLS checks against the real clock.
	first, second, clients := newAuthority(t, "first", now), newAuthority(t, "second", now), newAuthority(t, "clients", now)
	dir := t.TempDir()
	write := func(name string, data []byte, age time.Duration) {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, now.Add(-age), now.Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	serve := func(a *Authority, age time.Duration) {
		pair, err := a.Issue(Leaf{CommonName: "server", DNSNames: []string{"node-1"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Server: true}, now)
		if err != nil {
			t.Fatal(err)
		}
		write("tls.crt", pair.Certificate, age)
		write("tls.key", pair.Key, age)
	}
	serve(first, time.Minute)
	write("ca.crt", clients.CertificatePEM(), 0)
	files := &Files{CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key"), RootsFile: filepath.Join(dir, "ca.crt")}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.TLS.PeerCertificates[0].Subject.CommonName)
	}))
	server.TLS = ServerConfig(files, files)
	server.StartTLS()
	defer server.Close()

	get := func(issuer *Authority, trust []byte) (string, error) {
		held := &Held{}
		if issuer != nil {
			pair, err := issuer.Issue(Leaf{CommonName: "virtualization-api", Client: true}, now)
			if err != nil {
				t.Fatal(err)
			}
			if err := held.SetPair(pair); err != nil {
				t.Fatal(err)
			}
		}
		if err := held.SetRoots(trust); err != nil {
			t.Fatal(err)
		}
		config, err := ClientConfig(held, held, "node-1")
		if err != nil {
			t.Fatal(err)
		}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
		response, err := client.Get(server.URL)
		if err != nil {
			return "", err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		return string(body), err
	}

	if name, err := get(clients, first.CertificatePEM()); err != nil || name != "virtualization-api" {
		t.Fatalf("mutual TLS: %q, %v", name, err)
	}
	if _, err := get(first, first.CertificatePEM()); err == nil {
		t.Error("a client of another authority was let in")
	}
	if _, err := get(clients, second.CertificatePEM()); err == nil {
		t.Error("a server of an unknown authority was trusted")
	}
	serve(second, 0)
	if _, err := get(clients, second.CertificatePEM()); err != nil {
		t.Errorf("renewed certificate is not served: %v", err)
	}
	write("tls.crt", []byte("half"), -time.Minute)
	if _, err := get(clients, second.CertificatePEM()); err != nil {
		t.Errorf("a half-written certificate stopped the server: %v", err)
	}
}

func TestHeldIsNotReadyAtFirst(t *testing.T) {
	config := ServerConfig(&Held{}, nil)
	if _, err := config.GetCertificate(&tls.ClientHelloInfo{}); err == nil {
		t.Error("an empty identity served something")
	}
	if _, err := ClientConfig(nil, &Held{}, "x"); err == nil {
		t.Error("an empty trust made a configuration")
	}
}
