package importer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"orlop.dev/orlop/internal/diskimage"
)

// Run is one run of the importer and the places it works in.
type Run struct {
	Config *Config
	// Scratch and Target stand for ScratchDir and TargetDir.
	Scratch, Target string
	Meter           *Meter
	Now             func() time.Time
}

// Do does what the configuration says. The error is always a *Failure.
func (r *Run) Do(ctx context.Context) (*Result, error) {
	began := r.Now()
	var result *Result
	var err error
	if r.Config.Import != nil {
		result, err = r.importImage(ctx, r.Config.Import)
	} else {
		result, err = r.populate(ctx, r.Config.Populate)
	}
	if err != nil {
		r.Meter.end(PhaseFailed)
		if ctx.Err() != nil {
			return nil, fail(ReasonInternal, err, "The run was interrupted")
		}
		return nil, asFailure(byFault(err))
	}
	result.DurationSeconds = r.Now().Sub(began).Seconds()
	r.Meter.end(PhaseDone)
	return result, nil
}

// byFault gives a refusal of the image its reason.
func byFault(err error) error {
	var refused *diskimage.Error
	if !errors.As(err, &refused) {
		return err
	}
	reason := map[diskimage.Fault]Reason{
		diskimage.NotAnImage:   ReasonNotAnImage,
		diskimage.BackingFile:  ReasonBackingFile,
		diskimage.ExternalData: ReasonExternalData,
		diskimage.TooLarge:     ReasonTooLarge,
		diskimage.TooSmall:     ReasonDiskTooSmall,
		diskimage.NoSpace:      ReasonVolumeFull,
	}[refused.Fault]
	if reason == "" {
		return err
	}
	return fail(reason, err, "%s", refused.Message)
}

// The parts of an import, in percent of the whole.
var (
	shareDownload = share{0, 60}
	shareConvert  = share{60, 80}
	shareUpload   = share{80, 100}
	shareWrite    = share{0, 98}
)

// uploadStall is how long the registry may take to swallow what it got: it reads
// a large blob once more before it accepts it.
const uploadStall = 5 * time.Minute

// importImage downloads, checks, converts and pushes.
func (r *Run) importImage(ctx context.Context, c *Import) (*Result, error) {
	raw, ready := filepath.Join(r.Scratch, "source"), filepath.Join(r.Scratch, "image.qcow2")
	defer os.Remove(raw)
	defer os.Remove(ready)

	result, err := r.download(ctx, c, raw)
	if err != nil {
		return nil, err
	}
	info, err := diskimage.Probe(ctx, raw, atLeastOne(c.MaxVirtualSize, DefaultMaxVirtualSize))
	if err != nil {
		return nil, err
	}
	result.SourceFormat, result.VirtualSize = string(info.Format), info.VirtualSize
	kind := MediaTypeISO
	if info.Format == diskimage.ISO {
		result.Format, result.CDROM, ready = string(diskimage.ISO), true, raw
	} else {
		kind, result.Format = MediaTypeQCOW2, string(diskimage.QCOW2)
		r.Meter.begin(PhaseConverting, shareConvert, 0)
		err := diskimage.Convert(ctx, diskimage.Conversion{
			Source: raw, Format: info.Format, Target: ready, MaxSize: atLeastOne(c.ScratchLimit, DefaultScratchLimit),
			Progress: func(percent float64) { r.Meter.fraction(percent / 100) },
		})
		if err != nil {
			return nil, err
		}
	}
	return result, r.upload(ctx, c.Destination, ready, kind, result)
}

// download brings the image, unpacked, into a file.
func (r *Run) download(ctx context.Context, c *Import, path string) (*Result, error) {
	checks, err := newSums(c.Source.Checksums)
	if err != nil {
		return nil, err
	}
	ctx, dog, done := watch(ctx, seconds(c.StallTimeoutSeconds, DefaultStallTimeout))
	defer done()
	src, err := open(ctx, c.Source, dog)
	if err != nil {
		return nil, err
	}
	defer src.body.Close()
	r.Meter.begin(PhaseDownloading, shareDownload, src.size)
	var got int64
	transfer := &transferError{Reader: &counting{Reader: io.TeeReader(src.body, checks), count: func(n int64) { got += n; r.Meter.add(n) }}}
	err = r.unpackTo(path, transfer, c)
	if transfer.err != nil {
		return nil, interrupted(ctx, transfer.err, got, src.size)
	}
	if err != nil {
		return nil, err
	}
	if err := checks.verify(); err != nil {
		return nil, err
	}
	return &Result{SourceSize: got, Checksums: checks.result, AverageSpeedBytes: r.Meter.Progress().AverageSpeedBytes}, nil
}

// transferError remembers an error of the transfer, which decompressors wrap or
// replace by their own.
type transferError struct {
	io.Reader

	err error
}

func (t *transferError) Read(p []byte) (int, error) {
	n, err := t.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		t.err = err
	}
	return n, err
}

func (r *Run) unpackTo(path string, in io.Reader, c *Import) error {
	content, closeContent, err := unpacker(in)
	if err != nil {
		return unpackFailure(err, c)
	}
	defer closeContent()
	out, err := createSparse(path, atLeastOne(c.MaxVirtualSize, DefaultMaxVirtualSize), atLeastOne(c.ScratchLimit, DefaultScratchLimit))
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{content}, make([]byte, 256<<10)); err != nil {
		return unpackFailure(err, c)
	}
	// What follows a compressed stream belongs to the file, and so to its checksums.
	if _, err := io.Copy(io.Discard, in); err != nil {
		return unpackFailure(err, c)
	}
	if err := out.finish(false); err != nil {
		return unpackFailure(err, c)
	}
	return nil
}

func unpackFailure(err error, c *Import) error {
	var bad *badStream
	switch {
	case errors.Is(err, errOverLimit):
		return fail(ReasonTooLarge, err, "The image takes more than the limit of %d bytes (unpacked)", atLeastOne(c.ScratchLimit, DefaultScratchLimit))
	case errors.As(err, &bad) && errors.Is(bad.cause, io.ErrUnexpectedEOF):
		return fail(ReasonTruncated, err, "The %s file ends early: it was cut off before it reached the server, or on the way", bad.kind)
	case errors.As(err, &bad):
		return fail(ReasonNotAnImage, err, "The %s file is damaged: %v", bad.kind, bad.cause)
	}
	return err
}

// upload pushes the file and completes the result.
func (r *Run) upload(ctx context.Context, to Repository, path string, kind types.MediaType, result *Result) error {
	ctx, dog, done := watch(ctx, uploadStall)
	defer done()
	layer, err := newFileLayer(path, kind, func(n int64) { dog.feed(); r.Meter.add(n) })
	if err != nil {
		return err
	}
	dog.feed()
	result.StoredSize = layer.size
	r.Meter.begin(PhaseUploading, shareUpload, layer.size)
	result.Digest, err = push(ctx, to, layer, map[string]string{
		AnnotationVirtualSize:  strconv.FormatInt(result.VirtualSize, 10),
		AnnotationSourceFormat: result.SourceFormat,
		AnnotationFormat:       result.Format,
		AnnotationSourceSize:   strconv.FormatInt(result.SourceSize, 10),
	})
	return err
}

// WriteOutcome writes the termination message.
func WriteOutcome(path string, result *Result, err error) error {
	var f *Failure
	if err != nil {
		f = asFailure(err)
	}
	if err := os.WriteFile(path, terminationMessage(result, f), 0o600); err != nil {
		return fmt.Errorf("write termination message: %w", err)
	}
	return nil
}
