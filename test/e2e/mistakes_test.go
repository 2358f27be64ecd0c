//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestStory04BadSources imports what must not be imported: each ends in Failed
// with a message that names the cause, and no importer is left.
func TestStory04BadSources(t *testing.T) {
	ns := namespace(t)
	base := serveBad(t)
	const patience = "internal.virtualization.deckhouse.io/import-stall-timeout"
	d8(t, "k", "annotate", "moduleconfig", "virtualization", patience+"=4s")
	defer d8(t, "k", "annotate", "moduleconfig", "virtualization", patience+"-")
	cases := map[string]struct {
		path string
		more string
		want string // part of the message
		// passing: it may be better the next time, so it is tried again
		passing bool
	}{
		"missing":   {path: "missing.qcow2", want: "404"},
		"html":      {path: "page.html", want: "HTML"},
		"cut":       {path: "cut.qcow2", want: "transfer", passing: true},
		"hangs":     {path: "hangs.qcow2", want: "does not answer", passing: true},
		"stalls":    {path: "stalls.qcow2", want: "The transfer stalled after ", passing: true},
		"backing":   {path: "backing.qcow2", want: "backing file"},
		"external":  {path: "external.qcow2", want: "data in another file"},
		"wrong-sum": {path: "good.qcow2", more: `, checksum: {sha256: "` + strings.Repeat("0", 64) + `"}`, want: "sha256"},
	}
	var manifest strings.Builder
	for name, test := range cases {
		fmt.Fprintf(&manifest, `---
apiVersion: virtualization.deckhouse.io/v1alpha2
kind: VirtualImage
metadata: {name: %s}
spec:
  storage: ContainerRegistry
  dataSource: {type: HTTP, http: {url: "%s/%s"%s}}
`, name, base, test.path, test.more)
	}
	apply(t, ns, manifest.String())
	for name, test := range cases {
		t.Run(name, func(t *testing.T) {
			if test.passing {
				mayMend(t, ns, name, test.want)
				return
			}
			reaches(t, long, ns, "vi/"+name, ".status.phase", "Failed")
			ready := condition(t, ns, "vi/"+name, "Ready")
			t.Log(ready)
			if !strings.HasPrefix(ready, "False ProvisioningFailed") || !strings.Contains(ready, test.want) {
				t.Errorf("Ready is %q, want False ProvisioningFailed… with %q", ready, test.want)
			}
		})
	}
	d8(t, "k", "-n", ns, "delete", "vi", "--all", "--timeout=60s")
	eventually(t, soon, "no importer is left", func() bool { return field(t, ns, "pods", ".items[*].metadata.name") == "" })
}

// mayMend waits for an attempt to fail: the condition says why and that it is tried
// again, and until then there is no importer.
func mayMend(t *testing.T, ns, name, want string) {
	uid := field(t, ns, "vi/"+name, ".metadata.uid")
	var ready, importers string
	eventually(t, long, "the condition names the cause while no importer is there", func() bool {
		filter := `.status.conditions[?(@.type=="Ready")]`
		ready, _ = try(t, "k", "-n", ns, "get", "vi/"+name, "-o", "jsonpath={"+filter+".status} {"+filter+".reason}: {"+filter+".message}")
		importers, _ = try(t, "k", "-n", ns, "get", "pods", "-l", "internal.virtualization.deckhouse.io/owner-uid="+uid, "-o", "name")
		return strings.HasPrefix(ready, "False ProvisioningFailed: ") && strings.Contains(ready, want) &&
			strings.Contains(ready, "tried again") && importers == ""
	})
	t.Log(ready)
}

// serveBad serves broken images on the cluster's bridge.
func serveBad(t *testing.T) string {
	t.Helper()
	directory := t.TempDir()
	create := func(args ...string) {
		if output, err := exec.CommandContext(t.Context(), "qemu-img", args...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img %v: %v\n%s", args, err, output)
		}
	}
	path := func(name string) string { return filepath.Join(directory, name) }
	create("create", "-f", "qcow2", path("good.qcow2"), "16M")
	create("create", "-f", "qcow2", "-b", path("good.qcow2"), "-F", "qcow2", path("backing.qcow2"))
	create("create", "-f", "qcow2", "-o", "data_file="+path("raw.bin"), path("external.qcow2"), "16M")
	if err := os.WriteFile(path("page.html"), []byte("<!DOCTYPE html><html><body>Sign in</body></html>"), 0o600); err != nil {
		t.Fatal(err)
	}
	files := http.FileServer(http.Dir(directory))
	mux := http.NewServeMux()
	mux.Handle("/", files)
	mux.HandleFunc("/cut.qcow2", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(1<<20))
		_, _ = w.Write(bytes.Repeat([]byte("QFI\xfb"), 1000))
		panic(http.ErrAbortHandler)
	})
	mux.HandleFunc("/hangs.qcow2", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/stalls.qcow2", func(w http.ResponseWriter, r *http.Request) {
		content, err := os.ReadFile(path("good.qcow2"))
		if err != nil {
			t.Error(err)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		_, _ = w.Write(content[:64<<10])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	listener, err := listen(host)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return "http://" + listener.Addr().String()
}

// TestStory05Mistakes makes the usual mistakes; each is named, and mends itself
// when its cause is gone.
func TestStory05Mistakes(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, image("tiny", "tiny.qcow2"))

	t.Run("a disk smaller than its image recovers when it is grown", func(t *testing.T) {
		reaches(t, long, ns, "vi/tiny", ".status.phase", "Ready")
		apply(t, ns, disk("small", "shared", "1Mi", "tiny"))
		eventually(t, soon, "the condition names the sizes", func() bool {
			return strings.HasPrefix(condition(t, ns, "vd/small", "Ready"), "False") && strings.Contains(condition(t, ns, "vd/small", "Ready"), "1Mi")
		})
		apply(t, ns, disk("small", "shared", "512Mi", "tiny"))
		reaches(t, long, ns, "vd/small", ".status.phase", "Ready")
	})
	t.Run("an unknown StorageClass is refused at once", func(t *testing.T) {
		output, err := feed(t, blank("lost", "no-such-class", "1Gi"), "k", "-n", ns, "apply", "-f", "-")
		if err == nil || !strings.Contains(output, "no-such-class") {
			t.Errorf("got %v: %s", err, output)
		}
	})
	t.Run("a disk of an image that comes later", func(t *testing.T) {
		apply(t, ns, disk("early", "shared", "512Mi", "late"))
		eventually(t, soon, "the condition names the image", func() bool {
			return strings.Contains(condition(t, ns, "vd/early", "DatasourceReady"), "late")
		})
		apply(t, ns, image("late", "tiny.qcow2"))
		reaches(t, long, ns, "vd/early", ".status.phase", "Ready")
	})
	t.Run("one disk, two machines", func(t *testing.T) {
		apply(t, ns, disk("one", "shared", "512Mi", "tiny")+machine("first", "256Mi", []string{"one"}))
		reaches(t, long, ns, "vm/first", ".status.phase", "Running")
		apply(t, ns, machine("second", "256Mi", []string{"one"}))
		eventually(t, soon, "the second machine names the first", func() bool {
			return strings.Contains(condition(t, ns, "vm/second", "BlockDevicesReady"), "first")
		})
		d8(t, "k", "-n", ns, "delete", "vm/first", "--timeout=120s")
		reaches(t, long, ns, "vm/second", ".status.phase", "Running")
		d8(t, "k", "-n", ns, "delete", "vm/second", "--timeout=120s")
	})
	t.Run("a Secret that comes later", func(t *testing.T) {
		apply(t, ns, blank("scratch", "shared", "64Mi")+machine("secretive", "256Mi", []string{"scratch"},
			"provisioning: {type: UserDataRef, userDataRef: {kind: Secret, name: cloud-init}}"))
		eventually(t, soon, "the condition names the Secret", func() bool {
			return strings.Contains(condition(t, ns, "vm/secretive", "ProvisioningReady"), "cloud-init")
		})
		apply(t, ns, `---
apiVersion: v1
kind: Secret
metadata: {name: cloud-init}
type: provisioning.virtualization.deckhouse.io/cloud-init
stringData: {userData: "#cloud-config\n"}
`)
		reaches(t, long, ns, "vm/secretive", ".status.phase", "Running")
	})
	t.Run("more memory than any node has", func(t *testing.T) {
		apply(t, ns, blank("big", "shared", "64Mi")+machine("giant", "512Gi", []string{"big"}))
		eventually(t, soon, "the condition has the scheduler's words", func() bool {
			return strings.Contains(condition(t, ns, "vm/giant", "Running"), "nsufficient memory")
		})
	})
}
