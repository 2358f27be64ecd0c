package main

// suite is the Debian release that roots and guests are made of. The platform's
// QEMU is this release's: older ones crash current guests under emulation.
const suite = "trixie"

// base is the Debian system that images pick their files from. It is downloaded
// and unpacked once for all of them and never shipped itself.
var base = Root{
	Name:    "base",
	Variant: "minbase",
	Packages: []string{
		"ca-certificates", "e2fsprogs", "grub-pc-bin", "mount", "qemu-system-x86", "qemu-utils", "seabios", "util-linux", "xfsprogs",
	},
}

// certificates is what a static program needs to verify a public server.
const certificates = "/etc/ssl/certs/ca-certificates.crt"

// emulator is a QEMU that runs PC guests without a screen of its own: no user
// interface modules, no firmware of other architectures, no shell.
var emulator = Pick{
	Root: base,
	Paths: []string{
		"/usr/bin/qemu-system-x86_64",
		"/usr/share/qemu/kvmvapic.bin",
		"/usr/share/qemu/linuxboot_dma.bin",
		"/usr/share/qemu/pvh.bin",
		"/usr/share/qemu/efi-virtio.rom",
		"/usr/share/qemu/keymaps/en-us",
		"/usr/share/seabios/bios-256k.bin",
		"/usr/share/seabios/vgabios*.bin",
		"/usr/lib/x86_64-linux-gnu/qemu/hw-display-virtio-*.so",
	},
}

// converter is qemu-img and the means to fetch its input.
var converter = Pick{
	Root:  base,
	Paths: []string{"/usr/bin/qemu-img", certificates},
}

// filesystems are the tools with which a CSI node makes, checks and grows file
// systems; it mounts and attaches loop devices by itself.
var filesystems = Pick{
	Root: base,
	Paths: []string{
		"/etc/mke2fs.conf", "/usr/sbin/mkfs.ext4", "/usr/sbin/e2fsck", "/usr/sbin/resize2fs",
		"/usr/sbin/mkfs.xfs", "/usr/sbin/xfs_growfs", "/usr/sbin/xfs_repair",
	},
}

// client is what a pod needs to ask others over TCP, for the user stories.
var client = Pick{
	Root:  base,
	Paths: []string{"/usr/bin/bash", "/usr/bin/sleep", "/usr/bin/timeout"},
}

// Users of the images. A launcher's number is part of the contract with the disks
// it opens (files belong to it); the others only must not be root.
const (
	root         = "0:0"
	qemuUser     = "107:107"
	ordinaryUser = "65532:65532"
)

// catalog is every image of the platform.
var catalog = []Image{
	ours("virtualization-controller", ordinaryUser),
	ours("virtualization-api", ordinaryUser),
	ours("vm-route-forge", root),
	ours("dvcr", ordinaryUser),
	ours("virt-handler", root),
	withRoot(with(ours("virt-launcher", qemuUser), "bin/pause"), emulator), // pause for attachment pods
	withRoot(ours("dvcr-importer", ordinaryUser), converter),
	ours("orlop-netpol", root),
	{
		Name:       "coredns",
		Pick:       certificatesOnly,
		Files:      []string{"bin/embedded/coredns"},
		Entrypoint: []string{"/usr/bin/coredns"},
		User:       ordinaryUser,
	},
	{
		Name: "csi",
		Pick: filesystems,
		Files: []string{
			"bin/embedded/csi-provisioner", "bin/embedded/csi-resizer", "bin/embedded/csi-snapshotter",
			"bin/embedded/snapshot-controller", "bin/orlop-csi",
		},
		Entrypoint: []string{"/usr/bin/orlop-csi"},
		User:       root,
	},
	{
		Name:       "test-client",
		Pick:       client,
		Entrypoint: []string{"/usr/bin/sleep"},
		User:       ordinaryUser,
	},
	{
		Name:       "pause",
		Files:      []string{"bin/pause"},
		Entrypoint: []string{"/usr/bin/pause"},
		User:       ordinaryUser,
	},
}

var certificatesOnly = Pick{Root: base, Paths: []string{certificates}}

// ours is an image with one static program of ours, which is its entry point.
func ours(name, user string) Image {
	return Image{
		Name:       name,
		Pick:       certificatesOnly,
		Files:      []string{"bin/" + name},
		Entrypoint: []string{"/usr/bin/" + name},
		User:       user,
	}
}

// with adds another program of ours.
func with(image Image, file string) Image {
	image.Files = append(image.Files, file)
	return image
}

func withRoot(image Image, pick Pick) Image {
	image.Pick = pick
	return image
}
