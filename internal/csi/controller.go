package csi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"orlop.dev/orlop/internal/loopdev"
)

// StorageClass parameters and their values.
const (
	// ParameterClass is "shared" or "local".
	ParameterClass = "class"
	ClassShared    = "shared"
	ClassLocal     = "local"

	// TopologyKey is the topology segment (and Node label) of local volumes.
	TopologyKey = DriverName + "/node"

	nameLimit = 128
)

// Controller makes and deletes volumes and snapshots. One process of a store
// runs it at a time.
type Controller struct {
	csi.UnimplementedControllerServer

	store *Store
	// overcommit is how many times the store's size may be promised in all.
	overcommit float64
	// promising serialises what is checked against the capacity.
	promising sync.Mutex
}

// NewController frees what a former process left half done and returns the service.
func NewController(s *Store, overcommit float64) (*Controller, error) {
	if err := s.sweep(); err != nil {
		return nil, fmt.Errorf("sweep store: %w", err)
	}
	return &Controller{store: s, overcommit: overcommit}, nil
}

// ControllerGetCapabilities lists what the service can do.
func (c *Controller) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	out := &csi.ControllerGetCapabilitiesResponse{}
	for _, t := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csi.ControllerServiceCapability_RPC_GET_CAPACITY,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES,
		csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		out.Capabilities = append(out.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}},
		})
	}
	return out, nil
}

// CreateVolume makes a volume: empty, or a copy of a volume or snapshot.
func (c *Controller) CreateVolume(_ context.Context, r *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	want, err := wantedVolume(r)
	if err != nil {
		return nil, err
	}
	c.promising.Lock()
	defer c.promising.Unlock()

	have, err := c.store.readVolume(want.ID)
	if err == nil {
		return existing(have, want, r.GetCapacityRange())
	}
	if !errors.Is(err, errNotExist) {
		return nil, status.Errorf(codes.Internal, "look for volume: %v", err)
	}
	if r.GetVolumeContentSource() != nil {
		if err := c.sizeBySource(want, r.GetCapacityRange()); err != nil {
			return nil, err
		}
	}
	if err := c.admit(want.Capacity); err != nil {
		return nil, err
	}
	if err := c.store.create(want.ID, want, func(image string) error { return c.fill(image, want) }); err != nil {
		return nil, asStatus(err, "create volume")
	}
	return &csi.CreateVolumeResponse{Volume: want.message()}, nil
}

// wantedVolume checks a request and describes the volume it asks for.
func wantedVolume(r *csi.CreateVolumeRequest) (*volume, error) {
	if r.GetName() == "" || len(r.GetName()) > nameLimit {
		return nil, status.Errorf(codes.InvalidArgument, "name must have 1 to %d bytes", nameLimit)
	}
	class, err := classOf(r.GetParameters())
	if err != nil {
		return nil, err
	}
	if err := checkCapabilities(r.GetVolumeCapabilities(), class); err != nil {
		return nil, err
	}
	v := &volume{ID: volumeID(r.GetName()), Name: r.GetName(), Class: class}
	if v.FSType, err = fsTypeOf(r.GetVolumeCapabilities()); err != nil {
		return nil, err
	}
	if class == ClassLocal {
		if v.Node = nodeOf(r.GetAccessibilityRequirements()); v.Node == "" {
			return nil, status.Error(codes.ResourceExhausted, "a local volume needs a node: use volumeBindingMode WaitForFirstConsumer")
		}
	}
	if v.Capacity, err = sizeIn(r.GetCapacityRange(), v.FSType, 0); err != nil {
		return nil, err
	}
	switch src := r.GetVolumeContentSource(); {
	case src == nil:
	case src.GetVolume() != nil:
		v.SourceVolume = src.GetVolume().GetVolumeId()
	case src.GetSnapshot() != nil:
		v.SourceSnapshot = src.GetSnapshot().GetSnapshotId()
	default:
		return nil, status.Error(codes.InvalidArgument, "content source is neither volume nor snapshot")
	}
	return v, nil
}

func classOf(parameters map[string]string) (string, error) {
	class := ClassShared
	for key, value := range parameters {
		if key != ParameterClass {
			return "", status.Errorf(codes.InvalidArgument, "parameter %q is not known", key)
		}
		class = value
	}
	if class != ClassShared && class != ClassLocal {
		return "", status.Errorf(codes.InvalidArgument, "parameter %s must be %q or %q, not %q", ParameterClass, ClassShared, ClassLocal, class)
	}
	return class, nil
}

// nodeOf returns the node a topology requirement prefers most.
func nodeOf(t *csi.TopologyRequirement) string {
	for _, list := range [][]*csi.Topology{t.GetPreferred(), t.GetRequisite()} {
		for _, one := range list {
			if n := one.GetSegments()[TopologyKey]; n != "" {
				return n
			}
		}
	}
	return ""
}

var multiNode = []csi.VolumeCapability_AccessMode_Mode{
	csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY,
	csi.VolumeCapability_AccessMode_MULTI_NODE_SINGLE_WRITER,
	csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER,
}

func checkCapabilities(all []*csi.VolumeCapability, class string) error {
	if len(all) == 0 {
		return status.Error(codes.InvalidArgument, "volume capabilities are missing")
	}
	for _, one := range all {
		if err := checkCapability(one, class); err != nil {
			return err
		}
	}
	return nil
}

func checkCapability(one *csi.VolumeCapability, class string) error {
	mode := one.GetAccessMode().GetMode()
	switch {
	case one == nil:
		return status.Error(codes.InvalidArgument, "volume capability is missing")
	case one.GetBlock() == nil && one.GetMount() == nil:
		return status.Error(codes.InvalidArgument, "access type must be block or mount")
	case mode == csi.VolumeCapability_AccessMode_UNKNOWN:
		return status.Error(codes.InvalidArgument, "access mode is missing")
	case class == ClassLocal && slices.Contains(multiNode, mode):
		return status.Errorf(codes.InvalidArgument, "a local volume is used on one node only, not %s", mode)
	}
	if _, err := flagsOf(one.GetMount().GetMountFlags()); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return nil
}

// fsTypeOf returns the file system to make, empty for a raw block volume.
func fsTypeOf(all []*csi.VolumeCapability) (string, error) {
	if all[0].GetBlock() != nil {
		return "", nil
	}
	switch t := all[0].GetMount().GetFsType(); t {
	case "", fsXFS:
		return fsXFS, nil
	case fsExt4:
		return fsExt4, nil
	default:
		return "", status.Errorf(codes.InvalidArgument, "file system %q is not supported: use xfs or ext4", t)
	}
}

// sizeIn picks a size in the range that is at least the given one.
func sizeIn(r *csi.CapacityRange, fsType string, least int64) (int64, error) {
	low, high := r.GetRequiredBytes(), r.GetLimitBytes()
	if low < 0 || high < 0 || (high > 0 && low > high) {
		return 0, status.Errorf(codes.InvalidArgument, "capacity range %d to %d makes no sense", low, high)
	}
	size := volumeSize(max(low, least), fsType)
	if high > 0 && size > high {
		return 0, status.Errorf(codes.OutOfRange, "the volume would have %d bytes, more than the limit of %d", size, high)
	}
	return size, nil
}

// existing answers a repeated creation.
func existing(have, want *volume, r *csi.CapacityRange) (*csi.CreateVolumeResponse, error) {
	fits := have.Capacity >= r.GetRequiredBytes() && (r.GetLimitBytes() == 0 || have.Capacity <= r.GetLimitBytes())
	same := have.Class == want.Class && have.Node == want.Node && have.FSType == want.FSType &&
		have.SourceVolume == want.SourceVolume && have.SourceSnapshot == want.SourceSnapshot
	if !fits || !same {
		return nil, status.Errorf(codes.AlreadyExists, "volume %q exists and is another one", want.Name)
	}
	return &csi.CreateVolumeResponse{Volume: have.message()}, nil
}

// sizeBySource looks the source up and makes the volume at least as large.
func (c *Controller) sizeBySource(v *volume, r *csi.CapacityRange) error {
	var size int64
	var fsType string
	if v.SourceVolume != "" {
		src, err := c.store.readVolume(v.SourceVolume)
		if err != nil {
			return asStatus(err, "look for source volume")
		}
		size, fsType = src.Capacity, src.FSType
	} else {
		src, err := c.store.readSnapshot(v.SourceSnapshot)
		if err != nil {
			return asStatus(err, "look for source snapshot")
		}
		size, fsType = src.Size, src.FSType
	}
	if (fsType == "") != (v.FSType == "") {
		return status.Error(codes.InvalidArgument, "a raw block volume and a file system are not copies of each other")
	}
	// The copy has the file system of its source, whatever the class would make.
	v.FSType = fsType
	if required := r.GetRequiredBytes(); required > 0 && required < size {
		return status.Errorf(codes.OutOfRange, "a copy cannot be smaller than its source: %d bytes wanted, source has %d", required, size)
	}
	var err error
	v.Capacity, err = sizeIn(r, fsType, size)
	return err
}

// admit refuses what the store cannot hold.
func (c *Controller) admit(bytes int64) error {
	sp, err := c.store.space()
	if err != nil {
		return status.Errorf(codes.Internal, "measure store: %v", err)
	}
	if left := sp.available(c.overcommit); bytes > left {
		return status.Errorf(codes.ResourceExhausted, "%d bytes are wanted and %d are left", bytes, left)
	}
	return nil
}

func (c *Controller) fill(image string, v *volume) error {
	switch {
	case v.SourceVolume != "":
		return c.copyVolume(image, v.SourceVolume, v.Capacity)
	case v.SourceSnapshot != "":
		unlock, err := c.store.lock(v.SourceSnapshot)
		if err != nil {
			return err
		}
		defer unlock()
		return copyByReference(image, c.store.image(v.SourceSnapshot), v.Capacity)
	}
	if err := makeSparse(image, v.Capacity); err != nil {
		return err
	}
	return format(image, v.FSType)
}

// DeleteVolume deletes a volume, unless a node has it mounted or open.
func (c *Controller) DeleteVolume(_ context.Context, r *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	id := r.GetVolumeId()
	if id == "" {
		return nil, status.Error(codes.InvalidArgument, "volume ID is missing")
	}
	unlock, err := c.store.lock(id)
	if errors.Is(err, errNotExist) {
		return &csi.DeleteVolumeResponse{}, nil
	}
	if err != nil {
		return nil, status.Errorf(codes.Internal, "lock volume: %v", err)
	}
	defer unlock()
	// The kernel is asked, not the marks of the nodes: the mark of a node that was
	// lost would keep the volume forever.
	if err := c.release(id); err != nil {
		return nil, err
	}
	if err := c.store.remove(id); err != nil {
		return nil, status.Errorf(codes.Internal, "delete volume: %v", err)
	}
	return &csi.DeleteVolumeResponse{}, nil
}

func (c *Controller) release(id string) error {
	d, err := loopdev.Find(c.store.image(id))
	if err != nil {
		return status.Errorf(codes.Internal, "look for loop device: %v", err)
	}
	if d == nil {
		return nil
	}
	busy, err := d.Busy()
	if err != nil {
		return status.Errorf(codes.Internal, "ask for users: %v", err)
	}
	if busy {
		return status.Errorf(codes.FailedPrecondition, "volume %s is in use", id)
	}
	if err := d.DetachStack(); err != nil {
		return status.Errorf(codes.Internal, "release volume: %v", err)
	}
	return nil
}

// ControllerExpandVolume makes the image larger; the node does the rest.
func (c *Controller) ControllerExpandVolume(_ context.Context, r *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, status.Error(codes.InvalidArgument, "volume ID is missing")
	}
	if r.GetCapacityRange() == nil {
		return nil, status.Error(codes.InvalidArgument, "capacity range is missing")
	}
	c.promising.Lock()
	defer c.promising.Unlock()
	unlock, err := c.store.lock(r.GetVolumeId())
	if err != nil {
		return nil, asStatus(err, "lock volume")
	}
	defer unlock()
	v, err := c.store.readVolume(r.GetVolumeId())
	if err != nil {
		return nil, asStatus(err, "read volume")
	}
	size, err := sizeIn(r.GetCapacityRange(), v.FSType, v.Capacity)
	if err != nil {
		return nil, err
	}
	if size > v.Capacity {
		if err := c.admit(size - v.Capacity); err != nil {
			return nil, err
		}
		if err := c.grow(v, size); err != nil {
			return nil, status.Errorf(codes.Internal, "grow volume: %v", err)
		}
	}
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: v.Capacity, NodeExpansionRequired: true}, nil
}

func (c *Controller) grow(v *volume, size int64) error {
	// The description first: if we die in between, the next try truncates again.
	v.Capacity = size
	if err := writeMeta(c.store.path(v.ID), v); err != nil {
		return err
	}
	if err := os.Truncate(c.store.image(v.ID), size); err != nil {
		return fmt.Errorf("grow image: %w", err)
	}
	return nil
}

// ValidateVolumeCapabilities says whether a volume can be used in a way.
func (c *Controller) ValidateVolumeCapabilities(_ context.Context, r *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, status.Error(codes.InvalidArgument, "volume ID is missing")
	}
	if len(r.GetVolumeCapabilities()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "volume capabilities are missing")
	}
	v, err := c.store.readVolume(r.GetVolumeId())
	if err != nil {
		return nil, asStatus(err, "read volume")
	}
	for _, one := range r.GetVolumeCapabilities() {
		if err := v.usable(one); err != nil {
			return &csi.ValidateVolumeCapabilitiesResponse{Message: status.Convert(err).Message()}, nil
		}
	}
	return &csi.ValidateVolumeCapabilitiesResponse{
		Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
			VolumeContext:      r.GetVolumeContext(),
			VolumeCapabilities: r.GetVolumeCapabilities(),
			Parameters:         r.GetParameters(),
		},
	}, nil
}

// usable tells whether the volume can be used as a capability says.
func (v *volume) usable(one *csi.VolumeCapability) error {
	if err := checkCapability(one, v.Class); err != nil {
		return err
	}
	if (one.GetBlock() != nil) != (v.FSType == "") {
		return status.Error(codes.InvalidArgument, "the volume is of the other kind: file system or raw block")
	}
	if t := one.GetMount().GetFsType(); t != "" && t != v.FSType {
		return status.Errorf(codes.InvalidArgument, "the volume has file system %s, not %s", v.FSType, t)
	}
	return nil
}

// GetCapacity says how much a new volume may have.
func (c *Controller) GetCapacity(_ context.Context, r *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	if _, err := classOf(r.GetParameters()); err != nil {
		return nil, err
	}
	sp, err := c.store.space()
	if err != nil {
		return nil, status.Errorf(codes.Internal, "measure store: %v", err)
	}
	return &csi.GetCapacityResponse{AvailableCapacity: sp.available(c.overcommit)}, nil
}

// ListVolumes lists volumes by ID, page by page.
func (c *Controller) ListVolumes(_ context.Context, r *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	all, err := c.store.volumes()
	if err != nil {
		return nil, status.Errorf(codes.Internal, "list volumes: %v", err)
	}
	part, next, err := page(all, r.GetStartingToken(), r.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	out := &csi.ListVolumesResponse{NextToken: next}
	for _, v := range part {
		out.Entries = append(out.Entries, &csi.ListVolumesResponse_Entry{Volume: v.message()})
	}
	return out, nil
}

// page cuts a list: the token is the index to begin with.
func page[T any](all []T, token string, limit int32) (part []T, next string, err error) {
	if limit < 0 {
		return nil, "", status.Error(codes.InvalidArgument, "number of entries is negative")
	}
	from := 0
	if token != "" {
		if from, err = strconv.Atoi(token); err != nil || from < 0 || from > len(all) {
			return nil, "", status.Errorf(codes.Aborted, "token %q is not valid", token)
		}
	}
	to := len(all)
	if limit > 0 && from+int(limit) < to {
		to = from + int(limit)
		next = strconv.Itoa(to)
	}
	return all[from:to], next, nil
}

func (v *volume) message() *csi.Volume {
	out := &csi.Volume{VolumeId: v.ID, CapacityBytes: v.Capacity}
	if v.Node != "" {
		out.AccessibleTopology = []*csi.Topology{{Segments: map[string]string{TopologyKey: v.Node}}}
	}
	switch {
	case v.SourceVolume != "":
		out.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
			Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: v.SourceVolume},
		}}
	case v.SourceSnapshot != "":
		out.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: v.SourceSnapshot},
		}}
	}
	return out
}

// asStatus turns an error of the store into one of the protocol.
func asStatus(err error, doing string) error {
	if _, already := status.FromError(err); already {
		return err
	}
	code := codes.Internal
	switch {
	case errors.Is(err, errNotExist):
		code = codes.NotFound
	case isNoSpace(err):
		code = codes.ResourceExhausted
	}
	return status.Errorf(code, "%s: %v", doing, err)
}
