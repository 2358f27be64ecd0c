package main

import (
	"context"
	"embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ulikunitz/xz"
)

//go:embed guests
var guestFiles embed.FS

// bootParts are a kernel and a shell, unpacked but not configured: nothing of this
// root ever runs on the machine.
var bootParts = Root{
	Name:     "boot",
	Variant:  "extract",
	Packages: []string{"busybox-static", "linux-image-cloud-amd64"},
}

// tinyModules are the drivers of the tiny guest, in the order of their loading.
var tinyModules = []string{
	"net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net",
	"drivers/scsi/scsi_common", "drivers/scsi/scsi_mod", "drivers/scsi/sd_mod", "drivers/scsi/virtio_scsi", "drivers/block/virtio_blk",
	"drivers/acpi/button", "drivers/input/evdev",
}

// tinyCommandLine leaves out what takes an emulated processor long and serves no test:
// self-tests and entropy collectors of the crypto library, certificates, patching for
// processors that are not there. The timer check can fail by chance on a busy machine,
// and leave the guest without a timer.
const tinyCommandLine = "console=ttyS0,115200 quiet panic=1 mitigations=off nokaslr i8042.noaux no_timer_check " +
	"cryptomgr.notests=1 edd=off audit=0 lsm=capability init_on_alloc=0 tsc=reliable 8250.nr_uarts=1 nowatchdog " +
	"rodata=off rcupdate.rcu_expedited=1 noreplace-smp " +
	"initcall_blacklist=jent_mod_init,crypto_kdf108_init,init_encrypted,load_system_certificate_list"

// tinyGuest is a kernel and a busybox that live in memory: it boots in two or three
// seconds even when emulated, and says on its console how far it is.
func tinyGuest() guest {
	return guest{
		name:  "tiny",
		build: buildTiny,
		key:   []any{bootParts, tinyModules, tinyCommandLine, bootLoader, embedded("guests/tiny"), diskRecipe},
	}
}

// embedded returns the content of a directory of guest files, for keys.
func embedded(dir string) string {
	var all strings.Builder
	entries, err := guestFiles.ReadDir(dir)
	if err != nil {
		return err.Error()
	}
	for _, e := range entries {
		content, err := guestFiles.ReadFile(path.Join(dir, e.Name()))
		fmt.Fprintf(&all, "%s %s %v\n", e.Name(), content, err)
	}
	return all.String()
}

func buildTiny(ctx context.Context, cache Cache, image string) error {
	archive, err := bootParts.archive(ctx, cache)
	if err != nil {
		return err
	}
	file, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer file.Close()
	files, err := openTree(file)
	if err != nil {
		return err
	}
	staging := image + ".root"
	if err := os.MkdirAll(staging, 0o755); err != nil {
		return err
	}
	kernels, err := files.match([]string{"/boot/vmlinuz-*"})
	if err != nil {
		return err
	}
	packed, err := files.read(kernels[0])
	if err != nil {
		return err
	}
	initramfs := image + ".initrd"
	defer os.Remove(initramfs)
	release := strings.TrimPrefix(kernels[0], "/boot/vmlinuz-")
	if err := writeTinyInitramfs(ctx, files, release, initramfs); err != nil {
		return err
	}
	initrd, err := os.ReadFile(initramfs)
	if err != nil {
		return err
	}
	kernel, err := newKernel(packed, initrd, tinyCommandLine)
	if err != nil {
		return fmt.Errorf("unpack kernel %s: %w", release, err)
	}
	return writeDisk(ctx, cache, disk{image: image, root: staging, mebibytes: 144, kernel: kernel})
}

func (t tree) read(name string) ([]byte, error) {
	real, _ := t.resolve(name)
	e, ok := t[real]
	if !ok || e.content == nil {
		return nil, fmt.Errorf("%s is not a file", name)
	}
	return io.ReadAll(io.NewSectionReader(e.content, 0, e.content.Size()))
}

// writeTinyInitramfs makes the guest's whole file system. It stays uncompressed:
// an emulated processor reads faster than it decompresses.
func writeTinyInitramfs(ctx context.Context, files tree, release, name string) error {
	target, err := os.Create(name)
	if err != nil {
		return err
	}
	defer target.Close()
	w := newCpio(target)
	for _, dir := range []string{
		"/bin", "/sbin", "/usr", "/usr/bin", "/usr/sbin", "/dev", "/proc", "/sys", "/tmp", "/disk", "/www", "/modules",
		"/etc", "/etc/acpi", "/etc/acpi/PWRF",
	} {
		w.dir(dir)
	}
	busybox, err := files.read("/usr/bin/busybox")
	if err != nil {
		return err
	}
	w.file("/bin/busybox", 0o755, busybox)
	commands, err := applets(ctx, busybox, filepath.Dir(name))
	if err != nil {
		return err
	}
	for _, command := range commands {
		w.link("/"+command, "/bin/busybox")
	}
	w.link("/init", "/sbin/init")
	if err := addTinyModules(w, files, release); err != nil {
		return err
	}
	for from, to := range map[string]string{
		"inittab": "/etc/inittab", "rc": "/etc/rc", "dhcp": "/etc/dhcp", "profile": "/etc/profile",
		"touch-memory": "/bin/touch-memory", "power": "/etc/acpi/PWRF/00000080",
	} {
		content, err := guestFiles.ReadFile("guests/tiny/" + from)
		if err != nil {
			return err
		}
		w.file(to, 0o755, content)
	}
	if err := w.close(); err != nil {
		return err
	}
	return target.Close()
}

// applets asks busybox for the paths of its commands ("bin/sh"). It is started from
// a scratch directory, under the name that makes it speak for itself.
func applets(ctx context.Context, busybox []byte, dir string) ([]string, error) {
	scratch := filepath.Join(dir, "busybox")
	if err := os.WriteFile(scratch, busybox, 0o755); err != nil {
		return nil, err
	}
	defer os.Remove(scratch)
	list, err := exec.CommandContext(ctx, scratch, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("list commands of busybox: %w", err)
	}
	return slices.DeleteFunc(strings.Fields(string(list)), func(name string) bool {
		return name == "bin/busybox" || strings.Count(name, "/") == 0
	}), nil
}

func addTinyModules(w *cpioWriter, files tree, release string) error {
	var order strings.Builder
	for _, module := range tinyModules {
		packed, err := files.read("/usr/lib/modules/" + release + "/kernel/" + module + ".ko.xz")
		if err != nil {
			return err
		}
		reader, err := xz.NewReader(strings.NewReader(string(packed)))
		if err != nil {
			return fmt.Errorf("decompress %s: %w", module, err)
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			return fmt.Errorf("decompress %s: %w", module, err)
		}
		w.file("/modules/"+path.Base(module)+".ko", 0o644, content)
		order.WriteString(path.Base(module) + ".ko\n")
	}
	w.file("/modules/order", 0o644, []byte(order.String()))
	return nil
}
