package ipam

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
)

// AddressAnnotation on a pod names the address that pod must get. An admission
// policy lets nobody but the virtualization controller set it.
const AddressAnnotation = "internal.virtualization.deckhouse.io/ip-address"

// DefaultDataDir is where the plugin remembers annotated addresses when the
// configuration names no other directory.
const DefaultDataDir = "/var/lib/cni/vm-ipam"

// config is the part of the network configuration this plugin reads. The runtime
// adds the annotations when the interface plugin declares the capability
// "io.kubernetes.cri.pod-annotations".
type config struct {
	types.PluginConf
	IPAM struct {
		Type string `json:"type"`
		// Delegate is the ipam section of the plugin that serves ordinary pods.
		Delegate json.RawMessage `json:"delegate"`
		// Gateway is the node's side of every pod link; by default the delegate's.
		Gateway netip.Addr `json:"gateway"`
		// DataDir holds one small file per annotated attachment.
		DataDir string `json:"dataDir"`
	} `json:"ipam"`
	RuntimeConfig struct {
		Annotations map[string]string `json:"io.kubernetes.cri.pod-annotations"`
	} `json:"runtimeConfig"`

	delegate delegate
}

// delegate is what this plugin must know of the delegate's own section.
type delegate struct {
	Type    string         `json:"type"`
	Routes  []*types.Route `json:"routes"`
	Subnet  netip.Prefix   `json:"subnet"`
	Gateway netip.Addr     `json:"gateway"`
	Ranges  [][]struct {
		Subnet  netip.Prefix `json:"subnet"`
		Gateway netip.Addr   `json:"gateway"`
	} `json:"ranges"`
}

// parse reads the network configuration and completes its defaults.
func parse(stdin []byte) (*config, error) {
	conf := &config{}
	if err := json.Unmarshal(stdin, conf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "decode network configuration", err.Error())
	}
	if len(conf.IPAM.Delegate) == 0 {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "ipam.delegate is missing", "")
	}
	if err := json.Unmarshal(conf.IPAM.Delegate, &conf.delegate); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "decode ipam.delegate", err.Error())
	}
	if conf.delegate.Type == "" {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "ipam.delegate.type is missing", "")
	}
	if conf.IPAM.DataDir == "" {
		conf.IPAM.DataDir = DefaultDataDir
	}
	if !conf.IPAM.Gateway.IsValid() {
		conf.IPAM.Gateway = conf.delegate.gateway()
	}
	return conf, nil
}

// annotated returns the address the pod asks for, invalid if it asks for none.
func (c *config) annotated() (netip.Addr, error) {
	text, ok := c.RuntimeConfig.Annotations[AddressAnnotation]
	if !ok {
		return netip.Addr{}, nil
	}
	addr, err := netip.ParseAddr(text)
	if err != nil || !addr.Is4() || !addr.IsGlobalUnicast() {
		return netip.Addr{}, types.NewError(types.ErrInvalidNetworkConfig,
			fmt.Sprintf("annotation %s is %q, which is not a unicast IPv4 address", AddressAnnotation, text), "")
	}
	if c.delegate.owns(addr) {
		return netip.Addr{}, types.NewError(types.ErrInvalidNetworkConfig,
			fmt.Sprintf("address %s belongs to the node's ordinary pods", addr), "")
	}
	if !c.IPAM.Gateway.IsValid() {
		return netip.Addr{}, types.NewError(types.ErrInvalidNetworkConfig,
			"neither ipam.gateway nor an IPv4 subnet of the delegate gives a gateway", "")
	}
	return addr, nil
}

// delegateStdin is the configuration as the delegate expects it: the same, with
// its own section in place of ours.
func delegateStdin(stdin []byte, conf *config) ([]byte, error) {
	var whole map[string]json.RawMessage
	if err := json.Unmarshal(stdin, &whole); err != nil {
		return nil, fmt.Errorf("decode network configuration: %w", err)
	}
	whole["ipam"] = conf.IPAM.Delegate
	return json.Marshal(whole)
}

// gateway is the IPv4 gateway that host-local gives to ordinary pods: the one it
// is told, else the first address of its first subnet.
func (d *delegate) gateway() netip.Addr {
	if d.Gateway.Is4() {
		return d.Gateway
	}
	if d.Subnet.IsValid() && d.Subnet.Addr().Is4() {
		return d.Subnet.Masked().Addr().Next()
	}
	for _, set := range d.Ranges {
		for _, r := range set {
			if r.Gateway.Is4() {
				return r.Gateway
			}
			if r.Subnet.IsValid() && r.Subnet.Addr().Is4() {
				return r.Subnet.Masked().Addr().Next()
			}
		}
	}
	return netip.Addr{}
}

// owns says whether the delegate could hand out this address itself.
func (d *delegate) owns(addr netip.Addr) bool {
	if d.Subnet.IsValid() && d.Subnet.Contains(addr) {
		return true
	}
	for _, set := range d.Ranges {
		for _, r := range set {
			if r.Subnet.IsValid() && r.Subnet.Contains(addr) {
				return true
			}
		}
	}
	return false
}
