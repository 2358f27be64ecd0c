package launcher

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/guest"
	"orlop.dev/orlop/internal/qemu"
	"orlop.dev/orlop/internal/wire"
)

// firstDescriptor is the number that the first inherited file has in QEMU.
const firstDescriptor = 3

// inputs are the files that QEMU inherits, and how its command line calls them.
type inputs struct {
	environment qemu.Environment
	files       []*os.File
	// made are those of the files that are ours to close.
	made []*os.File
}

// inherit adds a file and returns its number inside QEMU.
func (in *inputs) inherit(f *os.File) int {
	in.files = append(in.files, f)
	return firstDescriptor + len(in.files) - 1
}

func (in *inputs) close() { wire.CloseFiles(in.made) }

// gather checks the descriptors of a start request against its machine and makes what
// the launcher adds itself.
func gather(start wire.Start, received []*os.File, c Config) (*inputs, error) {
	if err := qemu.Validate(start.Machine); err != nil {
		return nil, err
	}
	in := &inputs{environment: qemu.Environment{
		RunDir:   c.RunDir,
		Incoming: start.Incoming,
		Disks:    map[string]qemu.Backing{},
		Taps:     map[string]qemu.Tap{},
	}}
	err := errors.Join(in.kvm(start, received), in.disks(start, received, c), in.taps(start, received))
	if err != nil {
		in.close()
		return nil, err
	}
	return in, nil
}

// pick is one of the received files, of the type it must have (S_IF…).
func pick(received []*os.File, index int, types ...uint32) (*os.File, uint32, error) {
	if index < 0 || index >= len(received) {
		return nil, 0, fmt.Errorf("descriptor %d was not sent", index)
	}
	f := received[index]
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, 0, fmt.Errorf("stat descriptor %d: %w", index, err)
	}
	for _, t := range types {
		if st.Mode&unix.S_IFMT == t {
			return f, t, nil
		}
	}
	return nil, 0, fmt.Errorf("descriptor %d is of the wrong type", index)
}

func (in *inputs) kvm(start wire.Start, received []*os.File) error {
	if start.Machine.Accelerator != v1alpha1.AcceleratorKVM {
		return nil
	}
	if start.KVM == nil {
		return errors.New("accelerator KVM without its descriptor")
	}
	f, _, err := pick(received, *start.KVM, unix.S_IFCHR)
	if err != nil {
		return fmt.Errorf("KVM: %w", err)
	}
	in.environment.KVM = in.inherit(f)
	return nil
}

func (in *inputs) disks(start wire.Start, received []*os.File, c Config) error {
	given := map[string]wire.StartDisk{}
	for _, d := range start.Disks {
		given[d.ID] = d
	}
	for _, d := range start.Machine.Disks {
		var backing qemu.Backing
		var err error
		if d.Source.FirstBoot != nil {
			backing, err = in.firstBoot(start, c)
		} else {
			backing, err = in.disk(d, given[d.ID], received)
		}
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.ID, err)
		}
		in.environment.Disks[d.ID] = backing
	}
	return nil
}

// Types of descriptors that disks may have.
const (
	regularFile uint32 = unix.S_IFREG
	blockDevice uint32 = unix.S_IFBLK
)

// disk takes the descriptors of one disk of a start.
func (in *inputs) disk(d v1alpha1.Disk, given wire.StartDisk, received []*os.File) (qemu.Backing, error) {
	b, files, err := backing(d, given.FDs, received)
	for _, f := range files {
		b.FDs = append(b.FDs, in.inherit(f))
	}
	return b, err
}

// backing takes the descriptors of one disk. All must suit the guest's right to write,
// and a writable one must bypass the page cache, or a migration could read stale data.
func backing(d v1alpha1.Disk, indices []int, received []*os.File) (qemu.Backing, []*os.File, error) {
	var b qemu.Backing
	var files []*os.File
	if len(indices) == 0 {
		return b, nil, errors.New("no descriptor")
	}
	for _, index := range indices {
		f, kind, err := pick(received, index, regularFile, blockDevice)
		if err != nil {
			return b, nil, err
		}
		flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
		if err != nil {
			return b, nil, fmt.Errorf("read flags of descriptor %d: %w", index, err)
		}
		if writable := flags&unix.O_ACCMODE == unix.O_RDWR; writable == qemu.ReadOnly(d) {
			return b, nil, fmt.Errorf("descriptor %d: writable is %t, the opposite is needed", index, writable)
		}
		b.Device = kind == blockDevice
		b.Buffered = b.Buffered || flags&unix.O_DIRECT == 0
		files = append(files, f)
	}
	return b, files, nil
}

// firstBoot makes the disc in memory, sealed, and opens it for reading only.
func (in *inputs) firstBoot(start wire.Start, c Config) (qemu.Backing, error) {
	if start.FirstBoot == nil {
		return qemu.Backing{}, errors.New("no first-boot data in the request")
	}
	keys, err := guest.Keys(start.FirstBoot.Type)
	if err != nil {
		return qemu.Backing{}, err
	}
	data := map[string][]byte{}
	for _, k := range keys {
		content, err := os.ReadFile(filepath.Join(c.FirstBootDir, k))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return qemu.Backing{}, fmt.Errorf("read first-boot data: %w", err)
		}
		data[k] = content
	}
	var disc bytes.Buffer
	if err := guest.WriteDisc(&disc, *start.FirstBoot, data); err != nil {
		return qemu.Backing{}, err
	}
	f, err := sealed(disc.Bytes())
	if err != nil {
		return qemu.Backing{}, err
	}
	in.made = append(in.made, f)
	return qemu.Backing{FDs: []int{in.inherit(f)}, Buffered: true}, nil
}

// sealed is a read-only file in memory that nobody can change.
func sealed(content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("firstboot", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make file in memory: %w", err)
	}
	w := os.NewFile(uintptr(fd), "firstboot")
	defer func() { _ = w.Close() }()
	if _, err := w.Write(content); err != nil {
		return nil, fmt.Errorf("write file in memory: %w", err)
	}
	if _, err := unix.FcntlInt(w.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE|unix.F_SEAL_SEAL); err != nil {
		return nil, fmt.Errorf("seal file in memory: %w", err)
	}
	r, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, fmt.Errorf("reopen file in memory: %w", err)
	}
	return r, nil
}

func (in *inputs) taps(start wire.Start, received []*os.File) error {
	for _, i := range start.Interfaces {
		f, _, err := pick(received, i.FD, unix.S_IFCHR)
		if err != nil {
			return fmt.Errorf("interface %s: %w", i.ID, err)
		}
		in.environment.Taps[i.ID] = qemu.Tap{FD: in.inherit(f), MTU: i.MTU}
	}
	return nil
}
