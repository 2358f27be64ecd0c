package diskimage

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of a qemu-img process.
const (
	probeTimeout = 30 * time.Second
	checkTimeout = 10 * time.Minute
	probeCPU     = 20      // seconds
	probeMemory  = 1 << 30 // bytes of address space, most of it never touched
	workMemory   = 3 << 30 // the same, with threads
	workTimeout  = 12 * time.Hour
	outputLimit  = 64 << 10 // bytes of its output that are kept
)

// Info is what is known of an image.
type Info struct {
	Format Format
	// VirtualSize is what a guest sees, in bytes.
	VirtualSize int64
}

// Probe finds out what the file is, trusting nothing in it. An image that is
// larger for the guest than maxVirtual bytes is refused.
func Probe(ctx context.Context, path string, maxVirtual int64) (Info, error) {
	f, err := os.Open(path)
	if err != nil {
		return Info{}, fmt.Errorf("open image: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Info{}, fmt.Errorf("stat image: %w", err)
	}
	info := Info{VirtualSize: (st.Size() + sector - 1) / sector * sector}
	if info.Format, err = Detect(f, st.Size()); err != nil {
		return Info{}, err
	}
	if info.Format != Raw && info.Format != ISO {
		if info.VirtualSize, err = virtualSize(ctx, path, info.Format); err != nil {
			return Info{}, err
		}
	}
	if info.VirtualSize > maxVirtual {
		return Info{}, refuse(TooLarge, "The image is a disk of %d bytes, more than the limit of %d", info.VirtualSize, maxVirtual)
	}
	if info.VirtualSize <= 0 {
		return Info{}, refuse(NotAnImage, "The image is a disk of %d bytes", info.VirtualSize)
	}
	return info, check(ctx, path, info.Format)
}

// check finds images that were cut off: qemu-img would read zeros where data is
// missing. VDI has no such check and is looked at by Detect.
func check(ctx context.Context, path string, format Format) error {
	if format != QCOW2 && format != VMDK {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	err := qemuImg(ctx, limits{memory: probeMemory, file: 0}, io.Discard, "check", "-q", "-f", string(format), "file:"+path)
	var te *toolError
	if errors.As(err, &te) && te.code == checkLeaks {
		return nil // wasted space, no wrong data
	}
	return damaged(err, "The %s image is damaged or incomplete", format)
}

func virtualSize(ctx context.Context, path string, format Format) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var out bytes.Buffer
	err := qemuImg(ctx, limits{memory: probeMemory, cpu: probeCPU, file: 0}, &out,
		"info", "--output=json", "-f", string(format), "file:"+path)
	if err != nil {
		return 0, damaged(err, "The %s image cannot be read", format)
	}
	var answer struct {
		VirtualSize  int64   `json:"virtual-size"`
		Backing      *string `json:"backing-filename"`
		EncryptedAny bool    `json:"encrypted"`
	}
	if err := json.Unmarshal(out.Bytes(), &answer); err != nil {
		return 0, fmt.Errorf("parse output of qemu-img: %w", err)
	}
	if answer.Backing != nil {
		return 0, refuse(BackingFile, "The %s image has a backing file: give a complete image", format)
	}
	if answer.EncryptedAny {
		return 0, refuse(NotAnImage, "The %s image is encrypted, which is not supported", format)
	}
	return answer.VirtualSize, nil
}

// Conversion of an image into a qcow2 file with zstd-compressed clusters.
type Conversion struct {
	Source string
	// Format of the source, as Probe found it.
	Format Format
	Target string
	// MaxSize of the target in bytes.
	MaxSize int64
	// Progress is called with 0 to 100; nil is allowed.
	Progress func(percent float64)
}

// Convert does it; what it left of a target that failed is removed.
func Convert(ctx context.Context, c Conversion) error {
	ctx, cancel := context.WithTimeout(ctx, workTimeout)
	defer cancel()
	source := c.Format
	if source == ISO {
		source = Raw
	}
	out := io.Discard
	if c.Progress != nil {
		out = &percentages{report: c.Progress}
	}
	err := qemuImg(ctx, limits{memory: workMemory, file: uint64(c.MaxSize)}, out,
		"convert", "-p", "-f", string(source), "-O", string(QCOW2), "-c", "-o", "compression_type=zstd",
		"-W", "-m", strconv.Itoa(min(8, max(2, runtime.NumCPU()))), "file:"+c.Source, "file:"+c.Target)
	if err == nil {
		return nil
	}
	_ = os.Remove(c.Target)
	return damaged(err, "The %s image is damaged", c.Format)
}

// CreateBlank makes an empty qcow2 disk.
func CreateBlank(ctx context.Context, path string, size int64) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	err := qemuImg(ctx, limits{memory: probeMemory, cpu: probeCPU, file: unlimited}, io.Discard,
		"create", "-q", "-f", string(QCOW2), "file:"+path, strconv.FormatInt(size, 10))
	if err != nil {
		return fmt.Errorf("create disk: %w", err)
	}
	return nil
}

// Grow makes a qcow2 disk of ours as large as size, in bytes; a smaller size is
// refused, the same size does nothing.
func Grow(ctx context.Context, path string, size int64) error {
	have, err := virtualSize(ctx, path, QCOW2)
	if err != nil {
		return err
	}
	switch {
	case size == have:
		return nil
	case size < have:
		return refuse(TooSmall, "The disk would have %d bytes, but the image is a disk of %d", size, have)
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	err = qemuImg(ctx, limits{memory: probeMemory, cpu: probeCPU, file: unlimited}, io.Discard,
		"resize", "-q", "-f", string(QCOW2), "file:"+path, strconv.FormatInt(size, 10))
	if err != nil {
		return fmt.Errorf("grow disk: %w", err)
	}
	return nil
}

// checkLeaks is the exit code of qemu-img check when clusters are lost but none
// is wrong.
const checkLeaks = 3

const unlimited = unix.RLIM_INFINITY

// limits of a process; 0 seconds of processor time means no limit.
type limits struct {
	memory, cpu, file uint64
}

// toolError is a qemu-img that ended with an error.
type toolError struct {
	code   int
	status string
	text   string
}

func (e *toolError) Error() string { return "qemu-img: " + e.status + ": " + e.text }

// damaged blames the image for an error that qemu-img reported, unless it is one
// of the surroundings.
func damaged(err error, format string, args ...any) error {
	var te *toolError
	if !errors.As(err, &te) {
		return err
	}
	what := fmt.Sprintf(format, args...)
	switch {
	case strings.Contains(te.text, "No space left"):
		return refuse(NoSpace, "There is no room for the converted image")
	case strings.Contains(te.text, "File too large"):
		return refuse(TooLarge, "The converted image is larger than the limit")
	}
	return refuse(NotAnImage, "%s: %s", what, te.text)
}

// qemuImg runs qemu-img within limits.
func qemuImg(ctx context.Context, l limits, out io.Writer, args ...string) error {
	var complaints tail
	cmd := exec.CommandContext(ctx, "qemu-img", args...)
	cmd.Stdout, cmd.Stderr = out, &complaints
	// Nothing of our environment concerns it, and its messages are searched for words.
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/bin:/bin"}
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start qemu-img: %w", err)
	}
	limitErr := l.apply(cmd.Process.Pid)
	if limitErr != nil {
		_ = cmd.Process.Kill()
	}
	err := cmd.Wait()
	switch {
	case limitErr != nil:
		return limitErr
	case ctx.Err() != nil:
		return fmt.Errorf("run qemu-img: %w", ctx.Err())
	case err == nil:
		return nil
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return &toolError{code: exit.ExitCode(), status: exit.String(), text: complaints.String()}
	}
	return fmt.Errorf("run qemu-img: %w", err)
}

// apply sets the limits of a process that has just been started: before it has
// read the image, since loading its libraries takes longer.
func (l limits) apply(pid int) error {
	set := map[int]uint64{unix.RLIMIT_AS: l.memory, unix.RLIMIT_FSIZE: l.file, unix.RLIMIT_CORE: 0}
	if l.cpu > 0 {
		set[unix.RLIMIT_CPU] = l.cpu
	}
	for which, value := range set {
		err := unix.Prlimit(pid, which, &unix.Rlimit{Cur: value, Max: value}, nil)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("limit qemu-img: %w", err)
		}
	}
	return nil
}

// tail keeps the end of what is written to it, on one line.
type tail struct{ kept []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - outputLimit; over > 0 {
		t.kept = t.kept[over:]
	}
	return len(p), nil
}

// String is the last line: the one that says what went wrong.
func (t *tail) String() string {
	text := strings.TrimSpace(string(t.kept))
	if i := strings.LastIndexByte(text, '\n'); i >= 0 {
		text = text[i+1:]
	}
	text = strings.TrimPrefix(text, "qemu-img: ")
	return text[:min(len(text), 512)]
}

// percentages reads the progress that qemu-img prints as "    (12.50/100%)\r".
type percentages struct {
	report func(float64)
	rest   []byte
}

func (p *percentages) Write(raw []byte) (int, error) {
	p.rest = append(p.rest, raw...)
	s := bufio.NewScanner(bytes.NewReader(p.rest))
	s.Split(splitAtReturn)
	used := 0
	for s.Scan() {
		used += len(s.Bytes()) + 1
		text := strings.TrimSpace(s.Text())
		number, _, found := strings.Cut(strings.TrimPrefix(text, "("), "/")
		if v, err := strconv.ParseFloat(number, 64); found && err == nil {
			p.report(v)
		}
	}
	p.rest = p.rest[used:]
	if len(p.rest) > outputLimit {
		p.rest = nil
	}
	return len(raw), nil
}

// splitAtReturn yields only what is complete.
func splitAtReturn(data []byte, _ bool) (int, []byte, error) {
	if i := bytes.IndexAny(data, "\r\n"); i >= 0 {
		return i + 1, data[:i], nil
	}
	return 0, nil, nil
}
