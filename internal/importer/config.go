package importer

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// Where things are in the pod. The controllers build the pod with these names.
const (
	// ConfigDir is where the Secret with the configuration is mounted.
	ConfigDir = "/run/importer"
	// ConfigKey is the key of the Secret (and the file in ConfigDir) that holds a Config as JSON.
	ConfigKey = "config.json"
	// ScratchDir is an emptyDir; only Import needs it.
	ScratchDir = "/scratch"
	// TargetDir is where the volume to fill is mounted; only Populate needs it.
	TargetDir = "/target"
	// DiskFile is the name of the disk inside a filled Filesystem volume.
	DiskFile = "disk.qcow2"
	// TerminationLog is where the outcome is written; at most TerminationLimit bytes.
	TerminationLog   = "/dev/termination-log"
	TerminationLimit = 4096
	// ProgressPort serves ProgressPath (a Progress as JSON) and /healthz over plain HTTP.
	ProgressPort = 8080
	ProgressPath = "/progress"
	// UserID is the uid and gid the pod runs as and that owns the disk.
	UserID = 107
)

// Defaults of the limits, used where a Config says zero.
const (
	// DefaultScratchLimit bounds what one import may write to ScratchDir, in bytes.
	DefaultScratchLimit = 64 << 30
	// DefaultMaxVirtualSize bounds the size an image may claim, in bytes.
	DefaultMaxVirtualSize = 16 << 40
	// DefaultStallTimeout ends a transfer in which no byte arrived for so long.
	DefaultStallTimeout = 60 * time.Second
)

// Config is what one run has to do: exactly one of its two parts is set.
type Config struct {
	Import   *Import   `json:"import,omitempty"`
	Populate *Populate `json:"populate,omitempty"`
}

// Import brings an image from outside into the registry.
type Import struct {
	Source      HTTPSource `json:"source"`
	Destination Repository `json:"destination"`
	// ScratchLimit is how many bytes may be written to the scratch directory;
	// 0 means DefaultScratchLimit.
	ScratchLimit int64 `json:"scratchLimit,omitempty"`
	// MaxVirtualSize is the largest virtual size accepted, in bytes; 0 means
	// DefaultMaxVirtualSize.
	MaxVirtualSize int64 `json:"maxVirtualSize,omitempty"`
	// StallTimeoutSeconds is how long the server may send nothing; 0 means
	// DefaultStallTimeout.
	StallTimeoutSeconds int64 `json:"stallTimeoutSeconds,omitempty"`
}

// HTTPSource is an image behind a URL.
type HTTPSource struct {
	// URL with scheme http or https.
	URL string `json:"url"`
	// CABundle is PEM; it is trusted in addition to the system's authorities.
	CABundle []byte `json:"caBundle,omitempty"`
	// Checksums of the bytes as the server sends them (before decompression);
	// all that are given must match.
	Checksums Checksums `json:"checksums,omitzero"`
}

// Checksums are digests in lower-case hex; empty means not given.
type Checksums struct {
	MD5         string `json:"md5,omitempty"`
	SHA1        string `json:"sha1,omitempty"`
	SHA256      string `json:"sha256,omitempty"`
	SHA512      string `json:"sha512,omitempty"`
	Streebog256 string `json:"streebog256,omitempty"`
	Streebog512 string `json:"streebog512,omitempty"`
}

// Repository is one tag in the cluster's registry and the right to use it.
type Repository struct {
	// Reference such as "dvcr.d8-virtualization.svc:5000/vi/default/debian:<uid>".
	Reference string `json:"reference"`
	// Token is a bearer token for this repository alone.
	Token string `json:"token"`
	// CABundle is PEM; the registry is trusted through it alone.
	CABundle []byte `json:"caBundle"`
}

// Populate fills the Filesystem volume mounted at TargetDir with DiskFile.
type Populate struct {
	// VirtualSize of the disk in bytes, a multiple of 512; 0 means the image's own.
	VirtualSize int64 `json:"virtualSize"`
	// Image is where the content comes from; nil makes a blank disk.
	Image *Repository `json:"image,omitempty"`
	// StallTimeoutSeconds is how long the registry may send nothing; 0 means
	// DefaultStallTimeout.
	StallTimeoutSeconds int64 `json:"stallTimeoutSeconds,omitempty"`
}

// ReadConfig reads and checks the configuration in a file.
func ReadConfig(path string) (*Config, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	var c Config
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, fail(ReasonInvalidConfig, err, "The configuration cannot be read: %v", err)
	}
	if (c.Import == nil) == (c.Populate == nil) {
		return nil, fail(ReasonInvalidConfig, nil, "The configuration needs exactly one of import and populate")
	}
	return &c, nil
}

// Marshal returns the configuration as the bytes of ConfigKey.
func (c *Config) Marshal() ([]byte, error) {
	raw, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	return raw, nil
}

func seconds(n int64, otherwise time.Duration) time.Duration {
	if n <= 0 {
		return otherwise
	}
	return time.Duration(n) * time.Second
}

func atLeastOne(n, otherwise int64) int64 {
	if n <= 0 {
		return otherwise
	}
	return n
}
