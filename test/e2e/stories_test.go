//go:build e2e

package e2e

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Patience of the stories: a guest takes 3 s to boot under TCG on an idle machine.
const (
	soon = 60 * time.Second
	long = 5 * time.Minute
)

// TestStory01FirstMachine is the quick start: three objects, a guest, every way in.
func TestStory01FirstMachine(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, image("tiny", "tiny.qcow2")+disk("root", "local", "1Gi", "tiny")+machine("linux", "256Mi", []string{"root"}))

	seen := reaches(t, long, ns, "vi/tiny", ".status.phase", "Ready")
	if !slices.Contains(seen, "Provisioning") {
		t.Errorf("the image was never seen in Provisioning: %q", seen)
	}
	reaches(t, long, ns, "vm/linux", ".status.phase", "Running")
	if got := field(t, ns, "vd/root", ".status.phase"); got != "Ready" {
		t.Errorf("disk of a running machine is %q, want Ready", got)
	}
	address := field(t, ns, "vm/linux", ".status.ipAddress")
	if pod := field(t, ns, "pod", ".items[?(@.metadata.labels.kubevirt\\.internal\\.virtualization\\.deckhouse\\.io=='virt-launcher')].status.podIP"); pod != address {
		t.Errorf("machine has %q, its pod %q", address, pod)
	}
	console := open(t, ns, "linux")
	console.prompt(soon)

	t.Run("a command in the console", func(t *testing.T) {
		console.send("echo sum=$((40+2))")
		console.expect(soon, `sum=42`)
	})
	t.Run("another user takes the console over", func(t *testing.T) { takeOver(t, ns, console) })
	console = open(t, ns, "linux")
	console.prompt(soon)
	t.Run("the host reaches the address", func(t *testing.T) {
		eventually(t, soon, "the guest answers HTTP", func() bool { return answers("http://" + net.JoinHostPort(address, "8080")) })
	})
	t.Run("port-forward reaches the guest", func(t *testing.T) { forward(t, ns) })
	t.Run("pods of both nodes reach address and Service", func(t *testing.T) { fromPods(t, ns, address) })
	t.Run("nothing in the pod is privileged", func(t *testing.T) { unprivileged(t, ns) })
	t.Run("a guest reboot stays inside its QEMU", func(t *testing.T) {
		before := field(t, ns, "vm/linux", ".status.instance.name")
		console.send("reboot")
		console.expect(soon, `orlop-tiny: userspace up`)
		if after := field(t, ns, "vm/linux", ".status.instance.name"); after != before {
			t.Errorf("instance changed from %s to %s", before, after)
		}
	})
	t.Run("stop and start", func(t *testing.T) {
		d8(t, "v", "-n", ns, "stop", "linux", "--wait", "--yes")
		reaches(t, soon, ns, "vm/linux", ".status.phase", "Stopped")
		d8(t, "v", "-n", ns, "start", "linux", "--wait", "--yes")
		reaches(t, long, ns, "vm/linux", ".status.phase", "Running")
		if again := field(t, ns, "vm/linux", ".status.ipAddress"); again != address {
			t.Errorf("address changed from %s to %s", address, again)
		}
	})
	t.Run("deleted in the wrong order, nothing hangs", func(t *testing.T) {
		d8(t, "k", "-n", ns, "delete", "vi/tiny", "vd/root", "--wait=false")
		d8(t, "k", "-n", ns, "delete", "vm/linux", "--timeout=120s")
		eventually(t, soon, "image and disk are gone", func() bool {
			return field(t, ns, "vd", ".items[*].metadata.name")+field(t, ns, "vi", ".items[*].metadata.name") == ""
		})
		d8(t, "k", "-n", ns, "delete", "pods", "-l", "!vm.kubevirt.internal.virtualization.deckhouse.io/name", "--force", "--grace-period=0")
		eventually(t, soon, "pods, claims and instances are gone", func() bool {
			return field(t, ns, "pods,pvc,instances.internal.virtualization.deckhouse.io", ".items[*].metadata.name") == ""
		})
	})
}

func answers(url string) bool {
	client := http.Client{Timeout: 2 * time.Second}
	response, err := client.Get(url)
	if err != nil {
		return false
	}
	_ = response.Body.Close()
	return response.StatusCode == http.StatusOK
}

func forward(t *testing.T, ns string) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(listener.Addr().(*net.TCPAddr).Port)
	_ = listener.Close()
	command := d8Command(t.Context(), "v", "-n", ns, "port-forward", "linux", port+":8080")
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = command.Process.Kill(); _ = command.Wait() }()
	eventually(t, soon, "the forwarded port answers", func() bool { return answers("http://127.0.0.1:" + port) })
}

// fromPods asks for the guest from a pod of each node, by address and by Service.
func fromPods(t *testing.T, ns, address string) {
	apply(t, ns, `---
apiVersion: v1
kind: Service
metadata: {name: linux}
spec: {selector: {app: linux}, ports: [{port: 80, targetPort: 8080}]}
`)
	for node := range strings.FieldsSeq(d8(t, "k", "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}")) {
		pod := "client-" + node
		apply(t, ns, `---
apiVersion: v1
kind: Pod
metadata: {name: `+pod+`}
spec:
  nodeName: `+node+`
  terminationGracePeriodSeconds: 0
  containers:
  - {name: shell, image: "`+clientImage(t)+`", command: [/usr/bin/sleep, infinity]}
`)
		reaches(t, soon, ns, "pod/"+pod, ".status.phase", "Running")
		for _, url := range []string{"http://" + address + ":8080/", "http://linux/"} {
			eventually(t, soon, pod+" reaches "+url, func() bool {
				_, err := try(t, "k", "-n", ns, "exec", pod, "--", "/usr/bin/timeout", "4", "/usr/bin/bash", "-c", fetch(url))
				return err == nil
			})
		}
	}
}

// clientImage is an image of ours with a few tools: no other can be pulled here.
func clientImage(t *testing.T) string {
	t.Helper()
	image := field(t, "d8-virtualization", "deployment/virtualization-controller", ".spec.template.spec.containers[0].image")
	return strings.Replace(image, "virtualization-controller", "test-client", 1)
}

// fetch is a GET in a few words of bash.
func fetch(url string) string {
	host, path, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
	host, port, found := strings.Cut(host, ":")
	if !found {
		port = "80"
	}
	return `exec 3<>/dev/tcp/` + host + `/` + port + ` && printf 'GET /` + path + ` HTTP/1.0\r\n\r\n' >&3 && read -r line <&3 && [[ $line == *" 200 "* ]]`
}

// unprivileged looks at the launcher's process: what a guest that escaped QEMU would find.
func unprivileged(t *testing.T, ns string) {
	launchers := processes(t, "virt-launcher")
	if len(launchers) == 0 {
		t.Fatal("no launcher runs")
	}
	for _, pid := range append(launchers, processes(t, "qemu-system-x86_64")...) {
		at := func(name string) string {
			content, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), name))
			if err != nil {
				t.Fatal(err)
			}
			return string(content)
		}
		status := at("status")
		for _, want := range []string{`Uid:\s+107\s+107\s+107\s+107`, `Gid:\s+107\s+107\s+107\s+107`, `CapPrm:\s+0{16}`, `CapEff:\s+0{16}`,
			`CapBnd:\s+0{16}`, `NoNewPrivs:\s+1`, `Seccomp:\s+2`} {
			if !regexp.MustCompile(want).MatchString(status) {
				t.Errorf("process %d does not match %s:\n%s", pid, want, status)
			}
		}
		mounts := at("mounts")
		if !regexp.MustCompile(`(?m)^\S+ / \S+ ro,`).MatchString(mounts) {
			t.Errorf("the root file system of process %d is not read-only:\n%s", pid, mounts)
		}
		if strings.Contains(mounts, "serviceaccount") {
			t.Errorf("process %d has a service account token:\n%s", pid, mounts)
		}
	}
	for label, want := range map[string]string{
		`kubevirt\.internal\.virtualization\.deckhouse\.io`:          "virt-launcher",
		`vm\.kubevirt\.internal\.virtualization\.deckhouse\.io/name`: "linux",
	} {
		pod := "pod/" + field(t, ns, "vm/linux", ".status.instance.name")
		if got := field(t, ns, pod, ".metadata.labels."+label); got != want {
			t.Errorf("label %s is %q, want %q", label, got, want)
		}
	}
}
