package qemu_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/qemu"
)

// A disk that comes later must be the disk it would have been from the start: what
// QMP gets is compared with the command line, property by property.
func TestHotPlugIsTheCommandLine(t *testing.T) {
	m := machine(block, images)
	m.Disks[0].BootIndex, m.Disks[2].BootIndex = 0, 0 // only a start has an order
	args, err := qemu.Command(m, environment())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range m.Disks {
		t.Run(d.ID, func(t *testing.T) {
			backing := environment().Disks[d.ID]
			if d.Source.FirstBoot != nil {
				backing.Buffered = true
			}
			plug, err := qemu.HotPlug(d, backing, 77)
			if err != nil {
				t.Fatal(err)
			}
			wantNodes, wantDevice := fromCommandLine(t, args, d)
			if diff := cmp.Diff(wantNodes, through(t, plug.Nodes)); diff != "" {
				t.Error(diff)
			}
			got := map[string]string{}
			for k, v := range through(t, plug.Device).(map[string]any) {
				got[k] = strings.Trim(string(encode(t, v)), `"`)
			}
			if diff := cmp.Diff(wantDevice, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// fromCommandLine finds a disk's nodes and device in an argument vector.
func fromCommandLine(t *testing.T, args []string, d v1alpha1.Disk) (nodes any, device map[string]string) {
	t.Helper()
	var list []any
	for i, a := range args {
		switch {
		case a == "-blockdev":
			var node map[string]any
			if err := json.Unmarshal([]byte(args[i+1]), &node); err != nil {
				t.Fatal(err)
			}
			name := strings.TrimSuffix(node["node-name"].(string), "-file")
			if name != qemu.NodeName(d) {
				continue
			}
			if f, _ := node["filename"].(string); f != "" {
				node["filename"] = "/dev/fdset/77"
			}
			list = append(list, node)
		case a == "-device" && strings.Contains(args[i+1], "id="+d.ID+","):
			device = map[string]string{}
			driver, rest, _ := strings.Cut(args[i+1], ",")
			device["driver"] = driver
			for p := range strings.SplitSeq(rest, ",") {
				k, v, _ := strings.Cut(p, "=")
				device[k] = v
			}
		}
	}
	return list, device
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// through is a value as JSON carries it.
func through(t *testing.T, v any) any {
	t.Helper()
	var out any
	if err := json.Unmarshal(encode(t, v), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestHotPlugRefuses(t *testing.T) {
	cases := map[string]struct {
		change   func(*v1alpha1.Disk)
		buffered bool
		want     string
	}{
		"a bus that is fixed":      {func(d *v1alpha1.Disk) { d.Bus = "sata" }, false, `bus "sata" takes no disks`},
		"an id of our own":         {func(d *v1alpha1.Disk) { d.ID = "scsi" }, false, "used twice"},
		"an id with an option":     {func(d *v1alpha1.Disk) { d.ID = "a,b=c" }, false, "not valid"},
		"a unit nobody finds":      {func(d *v1alpha1.Disk) { d.Slot = 256 }, false, "slot 256"},
		"a buffered writable disk": {func(*v1alpha1.Disk) {}, true, "without O_DIRECT"},
		"no source":                {func(d *v1alpha1.Disk) { d.Source = v1alpha1.VolumeSource{} }, false, "volume source"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			d := machine().Disks[0]
			tc.change(&d)
			if _, err := qemu.HotPlug(d, qemu.Backing{Buffered: tc.buffered}, 1); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want error with %q", err, tc.want)
			}
		})
	}
}
