package settings

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	corev1alpha2 "orlop.dev/orlop/api/core/v1alpha2"
	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
)

// Name of the module's ModuleConfig.
const Name = "virtualization"

// Version of the settings' format that is understood.
const Version = 1

// ErrNotFound means that the ModuleConfig does not exist.
var ErrNotFound = errors.New("ModuleConfig " + Name + " does not exist")

// Settings is the module's configuration with defaults applied.
type Settings struct {
	// Enabled is false if the administrator switched the module off.
	Enabled bool
	// VirtualMachineCIDRs are the ranges machine addresses are leased from, in the order given.
	VirtualMachineCIDRs []netip.Prefix
	// DVCR is the registry for images.
	DVCR DVCR
	// VirtualDisks and VirtualImages say where disks, and images on volumes, are put.
	VirtualDisks  Storage
	VirtualImages Storage
	// AllowEmulation lets machines run on nodes without working KVM.
	AllowEmulation bool
	// ImportStallTimeout is how long the server of an image may send nothing; 0 leaves
	// it to the importer.
	ImportStallTimeout time.Duration
	// Migration says how machines move.
	Migration Migration
	// HighAvailability forces several replicas (true) or one (false); nil lets the platform decide.
	HighAvailability *bool
	// LogLevel is "debug", "info", "warn" or "error".
	LogLevel string
	// LogFormat is "text" or "json".
	LogFormat string
}

// DVCR says how large the registry is and where.
type DVCR struct {
	// Size of the volume; it may only grow.
	Size resource.Quantity
	// StorageClassName of the volume; the cluster's default if empty.
	StorageClassName string
	// GCSchedule is a cron expression in UTC.
	GCSchedule string
}

// Storage says which StorageClasses may be used.
type Storage struct {
	// DefaultStorageClassName is used where an object names none; the cluster's default if empty.
	DefaultStorageClassName string
	// AllowedStorageClassNames limits the choice; empty allows all.
	AllowedStorageClassNames []string
}

// Allows reports whether a StorageClass may be used.
func (s Storage) Allows(name string) bool {
	return len(s.AllowedStorageClassNames) == 0 || slices.Contains(s.AllowedStorageClassNames, name)
}

// CIDROf returns the range that contains an address.
func (s *Settings) CIDROf(address netip.Addr) (netip.Prefix, bool) {
	for _, prefix := range s.VirtualMachineCIDRs {
		if prefix.Contains(address) {
			return prefix, true
		}
	}
	return netip.Prefix{}, false
}

// Load reads the module's configuration. It returns ErrNotFound if there is none.
func Load(ctx context.Context, reader client.Reader) (*Settings, error) {
	config := &deckhousev1alpha1.ModuleConfig{}
	err := reader.Get(ctx, client.ObjectKey{Name: Name}, config)
	if apierrors.IsNotFound(err) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("get ModuleConfig %s: %w", Name, err)
	}
	return Parse(config)
}

// document is the JSON shape of spec.settings.
type document struct {
	HighAvailability    *bool           `json:"highAvailability"`
	VirtualMachineCIDRs []string        `json:"virtualMachineCIDRs"`
	IngressClass        string          `json:"ingressClass"`
	GatewayAPIGateway   *gateway        `json:"gatewayAPIGateway"`
	HTTPS               json.RawMessage `json:"https"`
	DVCR                *struct {
		Storage struct {
			Type                  string `json:"type"`
			PersistentVolumeClaim *struct {
				Size             string `json:"size"`
				StorageClassName string `json:"storageClassName"`
			} `json:"persistentVolumeClaim"`
		} `json:"storage"`
		GC struct {
			Schedule string `json:"schedule"`
		} `json:"gc"`
	} `json:"dvcr"`
	Audit struct {
		Enabled bool `json:"enabled"`
	} `json:"audit"`
	VirtualImages struct {
		storage
		// StorageClassName is the deprecated name of defaultStorageClassName.
		StorageClassName string `json:"storageClassName"`
	} `json:"virtualImages"`
	VirtualDisks  storage         `json:"virtualDisks"`
	LiveMigration json.RawMessage `json:"liveMigration"`
	LogLevel      string          `json:"logLevel"`
	LogFormat     string          `json:"logFormat"`
	FeatureGates  []string        `json:"featureGates"`
}

type storage struct {
	DefaultStorageClassName     string `json:"defaultStorageClassName"`
	AllowedStorageClassSelector *struct {
		MatchNames []string `json:"matchNames"`
	} `json:"allowedStorageClassSelector"`
}

type gateway struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

// featureGates are the gates that exist; none of them does anything yet, so naming
// one is refused rather than ignored.
var featureGates = []string{
	"HotplugCPUWithLiveMigration", "HotplugMemoryWithLiveMigration", "HotplugCPUAndMemoryWithInPlaceResize", "GPU",
}

// cron matches the five fields of a schedule; dvcr itself checks their values.
var cron = regexp.MustCompile(`^\S+ \S+ \S+ \S+ \S+$`)

// Parse reads settings out of a ModuleConfig. The error joins everything that is
// wrong, each starting with the path of the field.
func Parse(config *deckhousev1alpha1.ModuleConfig) (*Settings, error) {
	doc, err := decode(config)
	if err != nil {
		return nil, err
	}
	var p problems
	settings := &Settings{
		ImportStallTimeout:  p.duration(config, corev1alpha2.AnnotationImportStallTimeout),
		Enabled:             config.Spec.Enabled == nil || *config.Spec.Enabled,
		VirtualMachineCIDRs: p.prefixes("virtualMachineCIDRs", doc.VirtualMachineCIDRs),
		DVCR:                p.dvcr(doc),
		VirtualDisks:        p.storage("virtualDisks", doc.VirtualDisks),
		VirtualImages:       p.storage("virtualImages", doc.VirtualImages.storage),
		AllowEmulation:      config.Annotations[corev1alpha2.AnnotationAllowEmulation] == "true",
		Migration:           p.migration(config.Annotations),
		HighAvailability:    doc.HighAvailability,
		LogLevel:            p.oneOf("logLevel", doc.LogLevel, "info", "debug", "info", "warn", "error"),
		LogFormat:           p.oneOf("logFormat", doc.LogFormat, "text", "text", "json"),
	}
	if settings.VirtualImages.DefaultStorageClassName == "" {
		settings.VirtualImages.DefaultStorageClassName = doc.VirtualImages.StorageClassName
	}
	p.notBuilt(doc)
	return settings, errors.Join(p...)
}

func decode(config *deckhousev1alpha1.ModuleConfig) (*document, error) {
	doc := &document{}
	raw := config.Spec.Settings
	if config.Spec.Version != Version && (config.Spec.Version != 0 || raw != nil) {
		return nil, fmt.Errorf("spec.version: %d is not known, use %d", config.Spec.Version, Version)
	}
	if raw == nil || len(raw.Raw) == 0 {
		return doc, nil
	}
	decoder := json.NewDecoder(bytes.NewReader(raw.Raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(doc); err != nil {
		return nil, fmt.Errorf("spec.settings: %w", err)
	}
	return doc, nil
}

// problems collects what is wrong with settings.
type problems []error

func (p *problems) add(path, format string, args ...any) {
	*p = append(*p, fmt.Errorf("spec.settings.%s: %s", path, fmt.Sprintf(format, args...)))
}

// duration reads an annotation, 0 if it is not there.
func (p *problems) duration(config *deckhousev1alpha1.ModuleConfig, name string) time.Duration {
	text, found := config.Annotations[name]
	if !found {
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Second || d > time.Hour {
		*p = append(*p, fmt.Errorf("metadata.annotations[%s]: %q is not a duration from 1s to 1h", name, text))
	}
	return d
}

// prefixes reads address ranges: IPv4, aligned, large enough for one machine
// besides the gateway or of a single address, and without overlap.
func (p *problems) prefixes(path string, texts []string) []netip.Prefix {
	var list []netip.Prefix
	for i, text := range texts {
		at := fmt.Sprintf("%s[%d]", path, i)
		prefix, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			p.add(at, "%q is not an address range such as 10.66.10.0/24", text)
			continue
		case !prefix.Addr().Is4():
			p.add(at, "%s is not an IPv4 range", text)
			continue
		case prefix.Masked() != prefix:
			p.add(at, "%s does not begin at a network address, use %s", text, prefix.Masked())
			continue
		case prefix.Bits() == 31:
			p.add(at, "%s has no room for a gateway and a machine, use at most 30 bits, or 32 for a single address", text)
			continue
		}
		for j, other := range list {
			if prefix.Overlaps(other) {
				p.add(at, "%s overlaps with virtualMachineCIDRs[%d] (%s)", text, j, other)
			}
		}
		list = append(list, prefix)
	}
	return list
}

func (p *problems) dvcr(doc *document) DVCR {
	var dvcr DVCR
	if doc.DVCR == nil {
		p.add("dvcr", "is required")
		return dvcr
	}
	s := doc.DVCR.Storage
	if s.Type != "" && s.Type != "PersistentVolumeClaim" {
		p.add("dvcr.storage.type", "%q is not known, use PersistentVolumeClaim", s.Type)
	}
	if s.PersistentVolumeClaim == nil {
		p.add("dvcr.storage.persistentVolumeClaim", "is required")
		return dvcr
	}
	size, err := resource.ParseQuantity(s.PersistentVolumeClaim.Size)
	if err != nil || size.Sign() <= 0 {
		p.add("dvcr.storage.persistentVolumeClaim.size", "%q is not a size such as 50G", s.PersistentVolumeClaim.Size)
	}
	schedule := doc.DVCR.GC.Schedule
	if schedule == "" {
		schedule = "0 2 * * *"
	} else if !cron.MatchString(schedule) {
		p.add("dvcr.gc.schedule", "%q is not a cron expression such as \"0 2 * * *\"", schedule)
	}
	return DVCR{Size: size, StorageClassName: s.PersistentVolumeClaim.StorageClassName, GCSchedule: schedule}
}

func (p *problems) storage(path string, s storage) Storage {
	result := Storage{DefaultStorageClassName: s.DefaultStorageClassName}
	if s.AllowedStorageClassSelector == nil {
		return result
	}
	result.AllowedStorageClassNames = s.AllowedStorageClassSelector.MatchNames
	if len(result.AllowedStorageClassNames) == 0 {
		p.add(path+".allowedStorageClassSelector.matchNames", "needs at least one name")
	}
	if name := s.DefaultStorageClassName; name != "" && !result.Allows(name) {
		p.add(path+".defaultStorageClassName", "%s is not among the allowed StorageClasses", name)
	}
	return result
}

func (p *problems) oneOf(path, value, fallback string, choices ...string) string {
	if value == "" {
		return fallback
	}
	if !slices.Contains(choices, value) {
		p.add(path, "%q is not known, use one of %v", value, choices)
	}
	return value
}

// notBuilt refuses settings whose behaviour does not exist yet: silence would let
// the administrator believe that they work. ingressClass, gatewayAPIGateway and https
// concern uploads from outside, which are refused on the image itself; they pass, so
// that existing ModuleConfigs do.
func (p *problems) notBuilt(doc *document) {
	if doc.Audit.Enabled {
		p.add("audit.enabled", "is not supported in this release")
	}
	if text := bytes.TrimSpace(doc.LiveMigration); len(text) > 0 && !isEmptyObject(text) {
		p.add("liveMigration", "is not supported in this release")
	}
	for i, gate := range doc.FeatureGates {
		if slices.Contains(featureGates, gate) {
			p.add(fmt.Sprintf("featureGates[%d]", i), "%s is not available in this release", gate)
		} else {
			p.add(fmt.Sprintf("featureGates[%d]", i), "%q is not a feature gate", gate)
		}
	}
}

// isEmptyObject reports whether JSON is null or an object whose values are all empty objects.
func isEmptyObject(text []byte) bool {
	var fields map[string]json.RawMessage
	if json.Unmarshal(text, &fields) != nil {
		return false
	}
	for _, value := range fields {
		if !isEmptyObject(value) {
			return false
		}
	}
	return true
}
