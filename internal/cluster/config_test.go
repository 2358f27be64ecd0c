package cluster

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files again")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

func TestNodeFiles(t *testing.T) {
	plan := planSlot(0)
	config := nodeConfig{
		Name: "dev-1", Address: plan.node(1), Pods: plan.podsOf(1), Plan: plan, MTU: 1400, Cgroup: boxCgroup("dev", "dev-1"),
		Server: "https://10.70.0.2:6443", Pause: "orlop.internal/pause:v1", Reserved: reserve{milliCPU: 1100, memory: 13 << 30},
		RestrictOOM: true, Leased: true,
	}
	files := newFileSet("/etc")
	if err := addNodeFiles(files, config, []byte("authority")); err != nil {
		t.Fatal(err)
	}
	for name, text := range files.files {
		golden(t, strings.ReplaceAll(name, "/", "_"), text)
	}
	t.Run("without vm-ipam pods get addresses of the node", func(t *testing.T) {
		config.Leased = false
		text, err := cniConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "cni_host-local.conflist", text)
	})
}

func TestControlArguments(t *testing.T) {
	plan := planSlot(0)
	var text strings.Builder
	for _, argv := range [][]string{etcdArgs("dev-control"), apiserverArgs(plan), controllerManagerArgs(), schedulerArgs()} {
		text.WriteString(strings.Join(argv, "\n  ") + "\n")
	}
	golden(t, "control.args", []byte(text.String()))
}

func TestShare(t *testing.T) {
	const gib = 1 << 30
	cases := map[string]struct {
		machine         machine
		nodes, nodeCPUs int
		wantCPU         int64 // thousandths that one node offers
		wantMemory      int64 // MiB that one node offers
	}{
		"one node offers what the daemons leave": {
			machine: machine{cpus: 2, memory: 24 * gib}, nodes: 1, wantCPU: 1900, wantMemory: 24*1024 - 768 - 400,
		},
		"two nodes offer half each": {
			machine: machine{cpus: 2, memory: 24 * gib}, nodes: 2, wantCPU: 900, wantMemory: (24*1024-768)/2 - 400,
		},
		"CPUs can be shared when the user says so; memory cannot": {
			machine: machine{cpus: 2, memory: 24 * gib}, nodes: 3, nodeCPUs: 2, wantCPU: 1900, wantMemory: (24*1024-768)/3 - 400,
		},
		"nobody offers CPUs that the machine does not have": {
			machine: machine{cpus: 2, memory: 24 * gib}, nodes: 1, nodeCPUs: 64, wantCPU: 1900, wantMemory: 24*1024 - 768 - 400,
		},
		"a small machine still runs the basic pods": {
			machine: machine{cpus: 1, memory: 1 * gib}, nodes: 3, wantCPU: 233, wantMemory: 256,
		},
	}
	for name, test := range cases {
		t.Run(name, func(t *testing.T) {
			r := share(test.machine, test.nodes, test.nodeCPUs)
			if got := int64(test.machine.cpus)*1000 - r.milliCPU; got != test.wantCPU {
				t.Errorf("offers %d m of CPU, want %d", got, test.wantCPU)
			}
			if got := (test.machine.memory - r.memory) >> 20; got != test.wantMemory {
				t.Errorf("offers %d MiB, want %d", got, test.wantMemory)
			}
		})
	}
}

func TestManifests(t *testing.T) {
	objects, err := manifests(manifestData{
		Version: "v1", ClusterDNS: "10.180.0.10", ClusterDomain: "cluster.local",
		imageRef: func(name string) string { return "orlop.internal/" + name + ":v1" },
	})
	if err != nil {
		t.Fatal(err)
	}
	others := false
	for _, object := range objects {
		if object.GetKind() == "" || object.GetName() == "" {
			t.Errorf("object without kind or name: %v", object.Object)
		}
		definition := object.GetKind() == "CustomResourceDefinition"
		if definition && others {
			t.Errorf("definition %s comes after other objects", object.GetName())
		}
		others = others || !definition && object.GetKind() != "PriorityClass" && object.GetKind() != "Namespace"
	}
}
