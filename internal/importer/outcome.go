package importer

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Phase is what a run is doing.
type Phase string

// The phases, in order; a run skips those it does not need.
const (
	PhaseConnecting  Phase = "Connecting"
	PhaseDownloading Phase = "Downloading"
	PhaseConverting  Phase = "Converting"
	PhaseUploading   Phase = "Uploading"
	PhaseWriting     Phase = "Writing"
	PhaseDone        Phase = "Done"
	PhaseFailed      Phase = "Failed"
)

// Progress is what ProgressPath serves.
type Progress struct {
	Phase Phase `json:"phase"`
	// Percent of the whole run, 0 to 100, never falling; -1 while the total is unknown.
	Percent float64 `json:"percent"`
	// BytesDone and BytesTotal of the current phase; the total is 0 when unknown.
	BytesDone  int64 `json:"bytesDone"`
	BytesTotal int64 `json:"bytesTotal"`
	// SpeedBytes is the current transfer speed in bytes per second, AverageSpeedBytes
	// that since the start of the phase.
	SpeedBytes        int64 `json:"speedBytes"`
	AverageSpeedBytes int64 `json:"averageSpeedBytes"`
}

// Result is the termination message of a run that succeeded.
type Result struct {
	// Format of the stored data: "qcow2" or "iso".
	Format string `json:"format"`
	// SourceFormat is what the server delivered once unpacked: "qcow2", "raw",
	// "vmdk", "vdi" or "iso"; empty for a blank disk.
	SourceFormat string `json:"sourceFormat,omitempty"`
	// VirtualSize is what a guest sees, in bytes.
	VirtualSize int64 `json:"virtualSize"`
	// StoredSize is what the data takes in the registry or on the volume, in bytes.
	StoredSize int64 `json:"storedSize"`
	// SourceSize is how many bytes were downloaded.
	SourceSize int64 `json:"sourceSize,omitempty"`
	// Digest of the manifest in the registry; empty for a blank disk.
	Digest string `json:"digest,omitempty"`
	// CDROM is true for an ISO image.
	CDROM bool `json:"cdrom,omitempty"`
	// Checksums that were asked for, as computed.
	Checksums Checksums `json:"checksums,omitzero"`
	// AverageSpeedBytes of the download, in bytes per second.
	AverageSpeedBytes int64 `json:"averageSpeedBytes,omitempty"`
	// DurationSeconds of the whole run.
	DurationSeconds float64 `json:"durationSeconds,omitempty"`
}

// Reason says why a run failed, in one stable word.
type Reason string

// The reasons.
const (
	// ReasonNotFound: the source does not have it (404, 410), or the registry lost it.
	ReasonNotFound Reason = "NotFound"
	// ReasonRefused: the server answered with another status that is no success.
	ReasonRefused Reason = "Refused"
	// ReasonUnreachable: no connection, no valid certificate, or no byte for too long.
	ReasonUnreachable Reason = "Unreachable"
	// ReasonTruncated: the transfer, or the compressed stream in it, ended early.
	ReasonTruncated Reason = "Truncated"
	// ReasonNotAnImage: the content is no disk image of a known format, or a damaged one.
	ReasonNotAnImage Reason = "NotAnImage"
	// ReasonBackingFile: the image refers to another image.
	ReasonBackingFile Reason = "BackingFile"
	// ReasonExternalData: the image keeps its data in another file.
	ReasonExternalData Reason = "ExternalData"
	// ReasonTooLarge: a limit on bytes was passed.
	ReasonTooLarge Reason = "TooLarge"
	// ReasonChecksumMismatch: a given checksum is not that of the downloaded bytes.
	ReasonChecksumMismatch Reason = "ChecksumMismatch"
	// ReasonUnsupported: something asked for that does not exist yet.
	ReasonUnsupported Reason = "Unsupported"
	// ReasonRegistryFull: the registry has no room.
	ReasonRegistryFull Reason = "RegistryFull"
	// ReasonRegistryUnavailable: the registry cannot be reached or refuses the token.
	ReasonRegistryUnavailable Reason = "RegistryUnavailable"
	// ReasonVolumeFull: the volume, or the scratch directory, has no room.
	ReasonVolumeFull Reason = "VolumeFull"
	// ReasonDiskTooSmall: the asked virtual size is smaller than the image's.
	ReasonDiskTooSmall Reason = "DiskTooSmall"
	// ReasonInvalidConfig: the configuration makes no sense.
	ReasonInvalidConfig Reason = "InvalidConfig"
	// ReasonInternal: anything else.
	ReasonInternal Reason = "Internal"
)

// retryable tells which reasons may go away by themselves. The others need a
// change by somebody, and trying again would only repeat the download.
var retryable = map[Reason]bool{
	ReasonNotFound:            true,
	ReasonRefused:             true,
	ReasonUnreachable:         true,
	ReasonTruncated:           true,
	ReasonRegistryFull:        true,
	ReasonRegistryUnavailable: true,
	ReasonVolumeFull:          true,
	ReasonInternal:            true,
}

// Failure is the termination message of a run that failed, and the error that
// every step of this package returns.
type Failure struct {
	Reason Reason `json:"reason"`
	// Message is a sentence for the user; it names the cause.
	Message string `json:"message"`
	// Retry tells that the same run may succeed later without a change.
	Retry bool `json:"retry"`

	cause error
}

// Error returns the message.
func (f *Failure) Error() string { return f.Message }

// Unwrap returns what was found underneath, if anything.
func (f *Failure) Unwrap() error { return f.cause }

func fail(r Reason, cause error, format string, args ...any) *Failure {
	return &Failure{Reason: r, Message: fmt.Sprintf(format, args...), Retry: retryable[r], cause: cause}
}

// asFailure returns err itself if it is a Failure, else wraps it as internal.
func asFailure(err error) *Failure {
	if f, ok := errors.AsType[*Failure](err); ok {
		return f
	}
	return fail(ReasonInternal, err, "Internal error: %v", err)
}

// terminationMessage encodes an outcome; a message that would not fit is cut.
func terminationMessage(r *Result, f *Failure) []byte {
	if f == nil {
		raw, _ := json.Marshal(r) // plain fields only: cannot fail
		return raw
	}
	cut := *f
	for {
		raw, _ := json.Marshal(cut)
		if len(raw) <= TerminationLimit {
			return raw
		}
		cut.Message = cut.Message[:len(cut.Message)*3/4] + "…"
	}
}

// ParseTermination reads a termination message: exactly one of the first two
// results is set if the error is nil. An empty or foreign message (the process
// was killed before it could write one) is an error.
func ParseTermination(message string) (*Result, *Failure, error) {
	var probe struct {
		Reason Reason `json:"reason"`
		Format string `json:"format"`
	}
	if err := json.Unmarshal([]byte(message), &probe); err != nil {
		return nil, nil, fmt.Errorf("parse termination message: %w", err)
	}
	switch {
	case probe.Reason != "":
		f := &Failure{}
		return nil, f, json.Unmarshal([]byte(message), f)
	case probe.Format != "":
		r := &Result{}
		return r, nil, json.Unmarshal([]byte(message), r)
	}
	return nil, nil, errors.New("termination message has neither reason nor format")
}
