package qemu_test

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/qemu"
)

// launcherBudget is what PID 1 may cost for each virtual machine, in bytes of
// proportional set size. The pod's shim has to fit the same 20 MiB beside it.
const launcherBudget = 12 << 20

// The pod's limit is guest memory plus qemu.Overhead; a container that exceeds it is
// killed by the kernel, and the guest with it. So the processes must stay well below,
// when the guest has touched all it has and the translator is busy.
func TestOverheadIsEnough(t *testing.T) {
	cases := map[string]struct {
		memory string
		cpus   int32
	}{
		"256Mi and one CPU":  {"256Mi", 1},
		"512Mi and two CPUs": {"512Mi", 2},
		"1Gi and four CPUs":  {"1Gi", 4},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			p := newPod(t)
			r := tinyRequest(t, tinyDisk(t), func(m *v1alpha1.Machine) {
				m.Memory.Size = resource.MustParse(tc.memory)
				m.CPU.CoresPerSocket = tc.cpus
			})
			c := p.mustStart(r)
			c.run("touch-memory")
			c.expect("orlop-tiny: touched")
			// Much code, some of it new, on every CPU; and the disk.
			c.run(fmt.Sprintf("for i in $(seq %d); do (for j in 1 2 3; do find / -xdev -type f | xargs md5sum; ls -lR /proc/1 | sort | uniq -c; done >/dev/null 2>&1) & done; wait; dd if=/dev/sda of=/dev/null bs=1M; echo worked-$?", tc.cpus))
			c.expect("worked-0")

			process, launcher := memoryOf(t, p.qemuPID()), memoryOf(t, p.cmd.Process.Pid)
			guest := r.Machine.Memory.Size.Value()
			if process["RssShmem"] < guest*3/4 {
				t.Errorf("the guest touched only %s", mebibytes(process["RssShmem"]))
			}
			// Guest memory is the only shared memory; all else counts, clean file pages
			// and page tables too.
			beyond := process["RssAnon"] + process["RssFile"] + process["VmPTE"] + max(0, process["RssShmem"]-guest)
			total := beyond + launcher["VmRSS"] + launcher["VmPTE"]
			overhead := qemu.Overhead(r.Machine)
			t.Logf("QEMU %s, launcher %s (Pss %s), overhead %s", mebibytes(beyond), mebibytes(launcher["VmRSS"]),
				mebibytes(launcher["Pss"]), overhead.String())
			if limit := overhead.Value() * 4 / 5; total > limit {
				t.Errorf("QEMU and launcher take %s beyond the guest; %s of %s are allowed", mebibytes(total), mebibytes(limit), overhead.String())
			}
			if launcher["Pss"] > launcherBudget {
				t.Errorf("the launcher's Pss is %s, %s are allowed", mebibytes(launcher["Pss"]), mebibytes(launcherBudget))
			}
		})
	}
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// memoryOf reads what the kernel counts for a process, in bytes.
func memoryOf(t *testing.T, pid int) map[string]int64 {
	t.Helper()
	values := map[string]int64{}
	for _, name := range []string{"status", "smaps_rollup"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/%s", pid, name))
		if err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			key, rest, _ := strings.Cut(lines.Text(), ":")
			var kib int64
			var unit string
			if n, _ := fmt.Sscan(rest, &kib, &unit); n == 2 && unit == "kB" {
				values[key] = kib << 10
			}
		}
		_ = f.Close()
	}
	return values
}
