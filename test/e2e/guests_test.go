//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestStory06Debian boots a distribution: cloud-init makes a user, and ssh lets in.
func TestStory06Debian(t *testing.T) {
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		t.Skip("needs the OpenSSH client (package openssh-client)")
	}
	ns := namespace(t)
	directory := t.TempDir()
	key := filepath.Join(directory, "key")
	if output, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, output)
	}
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	userData := `provisioning:
    type: UserData
    userData: |
      #cloud-config
      users:
        - name: cloud
          sudo: ALL=(ALL) NOPASSWD:ALL
          shell: /bin/bash
          ssh_authorized_keys: ["` + strings.TrimSpace(string(public)) + `"]`
	apply(t, ns, image("debian", "debian.qcow2")+disk("root", "shared", "4Gi", "debian")+machine("linux", "1Gi", []string{"root"}, userData))
	reaches(t, long, ns, "vm/linux", ".status.phase", "Running")

	ssh := func(command string) (string, error) {
		return try(t, "v", "-n", ns, "ssh", "-i", key, "--known-hosts", "/dev/null",
			"--ssh-args", "-o StrictHostKeyChecking=no -o LogLevel=ERROR -o ConnectTimeout=10 -o BatchMode=yes", "cloud@linux", "-c", command)
	}
	var last string
	eventually(t, long, "ssh lets in", func() bool {
		output, err := ssh("hostname")
		last = output
		return err == nil && strings.HasSuffix(output, "linux")
	})
	t.Log(last)
	t.Run("the guest knows its network", func(t *testing.T) {
		dns := field(t, "kube-system", "service/kube-dns", ".spec.clusterIP")
		output, err := ssh("ip -4 -o addr show scope global; ip route; resolvectl dns; timeout 10 bash -c '</dev/tcp/" + dns + "/53' && echo dns answers; sudo true && echo sudo works")
		if err != nil {
			t.Fatalf("%v\n%s", err, output)
		}
		for _, want := range []string{field(t, ns, "vm/linux", ".status.ipAddress") + "/", "default via ", ": " + dns, "dns answers", "sudo works"} {
			if !strings.Contains(output, want) {
				t.Errorf("no %q in\n%s", want, output)
			}
		}
	})
	t.Run("the root file system has grown to the disk", func(t *testing.T) {
		output, err := ssh("df -BM --output=size / | tail -1")
		if err != nil || !strings.HasPrefix(strings.TrimSpace(output), "3") {
			t.Errorf("got %v %q, want 3…M or more of a 4 GiB disk", err, output)
		}
	})
	t.Run("story 14: the guest agent", func(t *testing.T) { story14(t, ns, ssh) })
}

// TestStory07Memory lets guests touch all their memory: none may be killed for it.
func TestStory07Memory(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, image("tiny", "tiny.qcow2"))
	sizes := map[string]string{"small": "256Mi", "large": "4Gi"}
	for name, size := range sizes {
		apply(t, ns, disk(name, "shared", "512Mi", "tiny")+machine(name, size, []string{name}))
	}
	for name, size := range sizes {
		t.Run(size, func(t *testing.T) {
			reaches(t, long, ns, "vm/"+name, ".status.phase", "Running")
			console := open(t, ns, name)
			console.prompt(soon)
			console.send("touch-memory; echo touched=$?")
			console.expect(long, `touched=0`)
			if phase := field(t, ns, "vm/"+name, ".status.phase"); phase != "Running" {
				t.Errorf("phase is %q after all memory was touched", phase)
			}
		})
	}
}
