// Package site is the embedded cluster as benchmarks use it: through the d8 command,
// as a user would, with the guests' images served to its pods and its boxes open to
// whoever measures from a node. It makes no clusters; `make up` does.
package site

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Box is a node of the cluster, or its control plane.
type Box struct {
	Name string `json:"name"`
	// PID is the box's first process, as this machine counts.
	PID int `json:"pid"`
}

// Site is a running cluster.
type Site struct {
	// Guests is the address under which pods find the guests' images.
	Guests string
	Boxes  []Box

	d8     string
	server *http.Server
}

// Open finds the cluster, which must be the current context's, and serves bin/guests
// of the repository.
func Open(ctx context.Context, root, cluster string) (*Site, error) {
	s := &Site{d8: filepath.Join(root, "bin", "d8")}
	output, err := exec.CommandContext(ctx, s.d8, "cluster", "status", "--name", cluster, "-o", "json").Output()
	if err != nil {
		return nil, fmt.Errorf("ask for the cluster's status (run `make up` first): %w", err)
	}
	var status struct {
		HostAddress string `json:"hostAddress"`
		Boxes       []Box  `json:"boxes"`
	}
	if err := json.Unmarshal(output, &status); err != nil {
		return nil, fmt.Errorf("read the cluster's status: %w", err)
	}
	s.Boxes = status.Boxes
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(status.HostAddress, "0"))
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	s.Guests = "http://" + listener.Addr().String()
	s.server = &http.Server{Handler: http.FileServer(http.Dir(filepath.Join(root, "bin", "guests"))), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.server.Serve(listener) }()
	return s, nil
}

// Close ends the service of images.
func (s *Site) Close() { _ = s.server.Close() }

// Box finds a box by name.
func (s *Site) Box(name string) (Box, error) {
	for _, b := range s.Boxes {
		if b.Name == name {
			return b, nil
		}
	}
	return Box{}, fmt.Errorf("there is no box %q", name)
}

// Kubectl runs `d8 k` and returns what it printed.
func (s *Site) Kubectl(ctx context.Context, input string, arguments ...string) (string, error) {
	command := exec.CommandContext(ctx, s.d8, append([]string{"k"}, arguments...)...)
	command.Stdin = strings.NewReader(input)
	output, err := command.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("d8 k %s: %w: %s", strings.Join(arguments, " "), err, output)
	}
	return strings.TrimSpace(string(output)), nil
}

// Apply applies YAML.
func (s *Site) Apply(ctx context.Context, yaml string) error {
	_, err := s.Kubectl(ctx, yaml, "apply", "-f", "-")
	return err
}

// Await waits until a field of objects has a value: `wait` of kubectl.
func (s *Site) Await(ctx context.Context, namespace, path, want string, objects ...string) error {
	arguments := append([]string{"-n", namespace, "wait", "--for=jsonpath={" + path + "}=" + want, "--timeout=10m"}, objects...)
	_, err := s.Kubectl(ctx, "", arguments...)
	return err
}

// Get reads a JSON path of an object.
func (s *Site) Get(ctx context.Context, namespace, object, path string) (string, error) {
	return s.Kubectl(ctx, "", "-n", namespace, "get", object, "-o", "jsonpath="+path)
}

// Remove deletes a namespace, its machines first.
func (s *Site) Remove(namespace string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if _, err := s.Kubectl(ctx, "", "-n", namespace, "delete", "vm", "--all", "--timeout=5m"); err != nil {
		return err
	}
	_, err := s.Kubectl(ctx, "", "delete", "namespace", namespace, "--ignore-not-found", "--timeout=5m")
	return err
}

// Image is the YAML of a namespace with the image of a guest, under the guest's name.
func (s *Site) Image(namespace, guest string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: virtualization.deckhouse.io/v1alpha2
kind: VirtualImage
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  storage: ContainerRegistry
  dataSource: {type: HTTP, http: {url: %[3]s/%[2]s.qcow2}}
`, namespace, guest, s.Guests)
}

// Machine is the YAML of a small machine with a disk of its own from the image tiny;
// more is put into its spec.
func Machine(namespace, name, more string) string {
	return fmt.Sprintf(`
---
apiVersion: virtualization.deckhouse.io/v1alpha2
kind: VirtualDisk
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  persistentVolumeClaim: {size: 512Mi}
  dataSource: {type: ObjectRef, objectRef: {kind: VirtualImage, name: tiny}}
---
apiVersion: virtualization.deckhouse.io/v1alpha2
kind: VirtualMachine
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  virtualMachineClassName: generic
  cpu: {cores: 1, coreFraction: 5%%}
  memory: {size: 256Mi}
  blockDeviceRefs: [{kind: VirtualDisk, name: %[2]s}]
%[3]s`, namespace, name, more)
}
