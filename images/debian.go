package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
)

// debianRoot is an ordinary Debian server that configures itself by cloud-init.
func debianRoot() Root {
	setup, err := guestFiles.ReadFile("guests/debian/setup")
	if err != nil {
		setup = nil // Embedded, so it is there; an empty hook fails in mmdebstrap.
	}
	return Root{
		Name:    "debian",
		Variant: "important",
		Packages: []string{
			// dbus and logind make the power button work.
			"cloud-guest-utils", "cloud-init", "curl", "dbus", "libpam-systemd", "linux-image-cloud-amd64", "openssh-server",
			"qemu-guest-agent", "sudo", "systemd-resolved", "systemd-sysv",
		},
		Hooks: []string{"cat > \"$1/setup\" <<'SETUP_END'\n" + string(setup) + "SETUP_END\nchroot \"$1\" sh /setup && rm \"$1/setup\""},
	}
}

// debianGuest grows to the size of its disk at the first boot.
func debianGuest() guest {
	return guest{name: "debian", build: buildDebian, key: []any{debianRoot(), embedded("guests/debian"), diskRecipe}}
}

func buildDebian(ctx context.Context, cache Cache, image string) error {
	archive, err := debianRoot().archive(ctx, cache)
	if err != nil {
		return err
	}
	staging := image + ".root"
	boot := filepath.Join(staging, "boot", "grub")
	if err := os.MkdirAll(staging, 0o755); err != nil {
		return err
	}
	// The machine's tar knows owners, device nodes and capabilities.
	if err := runLogged(exec.CommandContext(ctx, "tar", "-xpf", archive, "-C", staging, "--numeric-owner", "--xattrs", "--xattrs-include=*")); err != nil {
		return err
	}
	if err := os.MkdirAll(boot, 0o755); err != nil {
		return err
	}
	config, err := guestFiles.ReadFile("guests/debian/grub.cfg")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(boot, "grub.cfg"), config, 0o644); err != nil {
		return err
	}
	return writeDisk(ctx, cache, disk{
		image:       image,
		root:        staging,
		mebibytes:   2048,
		grubModules: []string{"biosdisk", "part_msdos", "ext2", "linux16", "normal", "serial", "terminal", "configfile", "minicmd"},
	})
}
