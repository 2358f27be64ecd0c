//go:build e2e

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestStory11HotPlug changes the devices of a running guest in every way there is.
func TestStory11HotPlug(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, image("tiny", "tiny.qcow2")+disk("root", "shared", "512Mi", "tiny")+
		blank("data", "shared", "64Mi")+blank("more", "shared", "32Mi")+machine("linux", "256Mi", []string{"root"}))
	reaches(t, long, ns, "vm/linux", ".status.phase", "Running")
	for _, name := range []string{"data", "more"} {
		reaches(t, long, ns, "vd/"+name, ".status.phase", "Ready")
	}
	g := &pluggedGuest{t: t, ns: ns, console: open(t, ns, "linux")}
	g.console.prompt(soon)
	instance := field(t, ns, "vm/linux", ".status.instance.name")

	t.Run("a disk is attached and can be written", func(t *testing.T) {
		apply(t, ns, attachment("data", "VirtualDisk", "data"))
		reaches(t, soon, ns, "vmbda/data", ".status.phase", "Attached")
		g.sees(64 << 20)
		g.runs("dd if=/dev/urandom of=/dev/$(disk 131072) bs=1M count=8 conv=fsync")
		if got := field(t, ns, "vm/linux", `.status.blockDeviceRefs[?(@.name=="data")].hotplugged`); got != "true" {
			t.Errorf("hotplugged is %q", got)
		}
		if got := condition(t, ns, "vd/data", "InUse"); !strings.HasPrefix(got, "True AttachedToVirtualMachine") {
			t.Errorf("InUse is %q", got)
		}
	})
	t.Run("it grows under the guest", func(t *testing.T) {
		d8(t, "k", "-n", ns, "patch", "vd/data", "--type=merge", "-p", `{"spec":{"persistentVolumeClaim":{"size":"96Mi"}}}`)
		reaches(t, long, ns, "vd/data", ".status.capacity", "96Mi")
		reaches(t, soon, ns, "vd/data", ".status.phase", "Ready")
		g.sees(96 << 20)
		if output, err := try(t, "k", "-n", ns, "patch", "vd/data", "--type=merge", "-p", `{"spec":{"persistentVolumeClaim":{"size":"64Mi"}}}`); err == nil ||
			!strings.Contains(output, "only grows") {
			t.Errorf("a disk shrinks: %v %s", err, output)
		}
	})
	t.Run("the machine's own list changes", func(t *testing.T) {
		g.lists("root", "more")
		g.sees(32 << 20)
		reaches(t, soon, ns, "vm/linux", `.status.conditions[?(@.type=="ConfigurationApplied")].status`, "True")
	})
	t.Run("a restart of the handler and one of the guest lose nothing", func(t *testing.T) {
		d8(t, "k", "-n", "d8-virtualization", "rollout", "restart", "daemonset/virt-handler")
		d8(t, "k", "-n", "d8-virtualization", "rollout", "status", "daemonset/virt-handler", "--timeout=120s")
		g.console = open(g.t, ns, "linux") // for the story's remaining parts too
		g.console.prompt(soon)
		g.console.send("reboot")
		g.console.expect(soon, `orlop-tiny: userspace up`)
		g.console.prompt(soon)
		g.sees(96<<20, 32<<20)
		if now := field(t, ns, "vm/linux", ".status.instance.name"); now != instance {
			t.Errorf("instance changed from %s to %s", instance, now)
		}
	})
	t.Run("mistakes are refused", func(t *testing.T) { refusedDevices(t, ns) })
	t.Run("everything is detached", func(t *testing.T) {
		g.lists("root")
		d8(t, "k", "-n", ns, "delete", "vmbda", "--all", "--timeout=60s")
		eventually(t, soon, "the guest has one disk left", func() bool { return g.count() == 1 })
		g.nothingLeft()
		d8(t, "k", "-n", ns, "delete", "vd/data", "vd/more", "--timeout=60s")
	})
}

// refusedDevices asks for what cannot be.
func refusedDevices(t *testing.T, ns string) {
	for name, test := range map[string]struct{ manifest, want string }{
		"attached already": {attachment("again", "VirtualDisk", "data"), "already"},
		"a spec is fixed":  {attachment("data", "VirtualDisk", "more"), "can not be changed"},
	} {
		if output, err := feed(t, test.manifest, "k", "-n", ns, "apply", "-f", "-"); err == nil || !strings.Contains(output, test.want) {
			t.Errorf("%s: %v %s", name, err, output)
		}
	}
	if output, err := try(t, "k", "-n", ns, "patch", "vm/linux", "--type=merge", "-p", `{"spec":{"blockDeviceRefs":[{"kind":"VirtualDisk","name":"more"}]}}`); err == nil ||
		!strings.Contains(output, "booted from") {
		t.Errorf("the boot disk goes: %v %s", err, output)
	}
	apply(t, ns, attachment("missing", "VirtualDisk", "nothing")+attachment("listed", "VirtualDisk", "root"))
	reaches(t, soon, ns, "vmbda/listed", ".status.phase", "Failed")
	eventually(t, soon, "the conditions say why", func() bool {
		return strings.Contains(condition(t, ns, "vmbda/listed", "Attached"), "Conflict") &&
			strings.Contains(condition(t, ns, "vmbda/missing", "BlockDeviceReady"), "does not exist")
	})
}

// TestStressHotPlug makes random changes, faster than they come true, and expects the
// last wish and no trace of the others: ORLOP_STRESS=200 is how many.
func TestStressHotPlug(t *testing.T) {
	changes, err := strconv.Atoi(os.Getenv("ORLOP_STRESS"))
	if err != nil {
		t.Skip("takes long: ORLOP_STRESS is how many changes")
	}
	ns := namespace(t)
	manifests := image("tiny", "tiny.qcow2") + disk("root", "shared", "512Mi", "tiny") + blank("busy", "shared", "64Mi") +
		machine("linux", "256Mi", []string{"root", "busy"})
	disks := []string{"d0", "d1", "d2", "d3", "d4"}
	for i, d := range disks {
		manifests += blank(d, "shared", fmt.Sprintf("%dMi", 16+i))
	}
	apply(t, ns, manifests)
	reaches(t, long, ns, "vm/linux", ".status.phase", "Running")
	for _, d := range disks {
		reaches(t, long, ns, "vd/"+d, ".status.phase", "Ready")
	}
	g := &pluggedGuest{t: t, ns: ns, console: open(t, ns, "linux")}
	g.console.prompt(soon)
	g.console.send("(while dd if=/dev/zero of=/dev/sdb bs=64k count=512 conv=fsync 2>/dev/null; do :; done; echo io-error > /dev/console) &")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	listed, attached := map[string]bool{}, map[string]bool{}
	for range changes {
		d := disks[random.IntN(len(disks))]
		switch {
		case listed[d]:
			delete(listed, d)
		case attached[d]:
			delete(attached, d)
			d8(t, "k", "-n", ns, "delete", "vmbda/"+d, "--wait=false")
			continue
		case random.IntN(2) == 0:
			if output, err := feed(t, attachment(d, "VirtualDisk", d), "k", "-n", ns, "create", "-f", "-"); err != nil {
				if !strings.Contains(output, "being deleted") && !strings.Contains(output, "AlreadyExists") {
					t.Fatalf("attach %s: %v %s", d, err, output)
				}
				continue // it is still on its way out
			}
			attached[d] = true
			continue
		default:
			listed[d] = true
		}
		g.lists(slices.Concat([]string{"root", "busy"}, keys(listed))...)
	}
	want := slices.Concat([]string{"busy", "root"}, keys(listed), keys(attached))
	slices.Sort(want)
	eventually(t, long, fmt.Sprintf("the guest has %v", want), func() bool {
		names := strings.Fields(field(t, ns, "vm/linux", ".status.blockDeviceRefs[?(@.attached==true)].name"))
		slices.Sort(names)
		return slices.Equal(names, want) && g.count() == len(want)
	})
	if strings.Contains(g.console.text(), "io-error") {
		t.Error("a disk that nobody touched failed")
	}
	g.lists("root", "busy")
	d8(t, "k", "-n", ns, "delete", "vmbda", "--all", "--timeout=120s")
	g.nothingLeft()
}

func keys(set map[string]bool) []string {
	var all []string
	for k := range set {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}

// attachment attaches a device to the machine "linux".
func attachment(name, kind, device string) string {
	return fmt.Sprintf(`---
apiVersion: virtualization.deckhouse.io/v1alpha2
kind: VirtualMachineBlockDeviceAttachment
metadata: {name: %s}
spec:
  virtualMachineName: linux
  blockDeviceRef: {kind: %s, name: %s}
`, name, kind, device)
}

// pluggedGuest is a tiny guest whose disks come and go.
type pluggedGuest struct {
	t       *testing.T
	ns      string
	console *terminal
	asked   int
}

// ask runs a command that prints one number, told from all others by a word of its own.
func (g *pluggedGuest) ask(command string) int {
	g.t.Helper()
	g.asked++
	g.console.send(fmt.Sprintf(`echo answer"%d"=$(%s)=`, g.asked, command))
	text := g.console.expect(soon, fmt.Sprintf(`answer%d=\d+=`, g.asked))
	n, err := strconv.Atoi(strings.Split(text, "=")[1])
	if err != nil {
		g.t.Fatal(err)
	}
	return n
}

// count is how many disks the guest has.
func (g *pluggedGuest) count() int { return g.ask("ls -d /sys/block/sd* | wc -l") }

// sees waits until the guest has disks of these sizes, in bytes.
func (g *pluggedGuest) sees(sizes ...int) {
	g.t.Helper()
	for _, size := range sizes {
		eventually(g.t, soon, fmt.Sprintf("the guest has a disk of %d bytes", size), func() bool {
			return g.ask(fmt.Sprintf("cat /sys/block/sd*/size | grep -cx %d", size/512)) == 1
		})
	}
}

// runs a command that must succeed; disk SECTORS is the name of the disk of that size.
func (g *pluggedGuest) runs(command string) {
	g.t.Helper()
	g.console.send(`disk() { for d in /sys/block/sd*; do [ "$(cat $d/size)" = "$1" ] && basename $d; done; }`)
	if code := g.ask("{ " + command + "; } >/dev/null 2>&1; echo $?"); code != 0 {
		g.t.Errorf("%s ends with %d", command, code)
	}
}

// lists gives the machine another list of disks.
func (g *pluggedGuest) lists(disks ...string) {
	g.t.Helper()
	var refs []string
	for _, d := range disks {
		refs = append(refs, fmt.Sprintf(`{"kind":"VirtualDisk","name":%q}`, d))
	}
	patch := `{"spec":{"blockDeviceRefs":[` + strings.Join(refs, ",") + `]}}`
	var output string
	eventually(g.t, soon, "the list is accepted", func() bool {
		var err error
		output, err = try(g.t, "k", "-n", g.ns, "patch", "vm/linux", "--type=merge", "-p", patch)
		if err != nil {
			g.t.Log(output)
		}
		return err == nil
	})
}

// nothingLeft checks that no attachment pod is there and no lock on a disk that is not listed.
func (g *pluggedGuest) nothingLeft() {
	g.t.Helper()
	eventually(g.t, soon, "no attachment pod is left", func() bool {
		pods, err := try(g.t, "k", "-n", g.ns, "get", "pods", "-l", "kubevirt.internal.virtualization.deckhouse.io=hotplug-disk", "-o", "name")
		return err == nil && pods == ""
	})
}
