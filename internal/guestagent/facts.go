package guestagent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"orlop.dev/orlop/api/instance/v1alpha1"
)

// Bounds on what is taken from the guest. Facts end in the API server's store: their
// sum stays below 64 KiB.
const (
	maxText       = 256 // bytes
	maxInterfaces = 16
	maxAddresses  = 16
	maxUsers      = 16
)

// Facts asks for everything that the Instance's status tells of the guest; fields
// that the guest does not offer stay empty. Since is not set. While the file systems
// are frozen the agent answers hardly anything, so known is returned but for Frozen.
func (c *Client) Facts(ctx context.Context, known *v1alpha1.Guest) (*v1alpha1.Guest, error) {
	if err := c.Sync(ctx); err != nil {
		return nil, err
	}
	frozen, err := c.Frozen(ctx)
	if err != nil && !refused(err) {
		return nil, err
	}
	if frozen {
		g := &v1alpha1.Guest{}
		if known != nil {
			g = known.DeepCopy()
		}
		g.Frozen = true
		return g, nil
	}
	g := &v1alpha1.Guest{}
	for _, ask := range []func(context.Context, *v1alpha1.Guest) error{
		c.version, c.operatingSystem, c.hostname, c.timezone, c.interfaces, c.users,
	} {
		if err := ask(ctx, g); err != nil && !refused(err) {
			return nil, err
		}
	}
	return g, nil
}

// refused is true if the agent answered, but does not want to or cannot.
func refused(err error) bool {
	var e *Error
	return errors.As(err, &e)
}

func (c *Client) version(ctx context.Context, g *v1alpha1.Guest) error {
	var info struct {
		Version string `json:"version"`
	}
	err := c.execute(ctx, "guest-info", &info)
	g.AgentVersion = clean(info.Version)
	return err
}

func (c *Client) operatingSystem(ctx context.Context, g *v1alpha1.Guest) error {
	var info struct {
		ID            string `json:"id"`
		Name          string `json:"name"`
		PrettyName    string `json:"pretty-name"`
		Version       string `json:"version"`
		VersionID     string `json:"version-id"`
		KernelRelease string `json:"kernel-release"`
		KernelVersion string `json:"kernel-version"`
		Machine       string `json:"machine"`
	}
	err := c.execute(ctx, "guest-get-osinfo", &info)
	g.OS = v1alpha1.GuestOS{
		ID: clean(info.ID), Name: clean(info.Name), PrettyName: clean(info.PrettyName),
		Version: clean(info.Version), VersionID: clean(info.VersionID),
		KernelRelease: clean(info.KernelRelease), KernelVersion: clean(info.KernelVersion), Machine: clean(info.Machine),
	}
	return err
}

func (c *Client) hostname(ctx context.Context, g *v1alpha1.Guest) error {
	var host struct {
		Name string `json:"host-name"`
	}
	err := c.execute(ctx, "guest-get-host-name", &host)
	g.Hostname = clean(host.Name)
	return err
}

func (c *Client) timezone(ctx context.Context, g *v1alpha1.Guest) error {
	var zone struct {
		Zone string `json:"zone"`
		// Offset from UTC in seconds.
		Offset *int64 `json:"offset"`
	}
	err := c.execute(ctx, "guest-get-timezone", &zone)
	if zone.Offset != nil {
		g.Timezone = fmt.Sprintf("%s, %d", clean(zone.Zone), *zone.Offset)
	}
	return err
}

func (c *Client) interfaces(ctx context.Context, g *v1alpha1.Guest) error {
	var all []struct {
		Name      string `json:"name"`
		MAC       string `json:"hardware-address"`
		Addresses []struct {
			Address string `json:"ip-address"`
			Prefix  int64  `json:"prefix"`
		} `json:"ip-addresses"`
	}
	err := c.execute(ctx, "guest-network-get-interfaces", &all)
	for _, i := range all[:min(len(all), maxInterfaces)] {
		one := v1alpha1.GuestInterface{Name: clean(i.Name)}
		if mac, err := net.ParseMAC(i.MAC); err == nil {
			one.MAC = mac.String()
		}
		for _, a := range i.Addresses {
			address, err := netip.ParseAddr(a.Address)
			if err != nil || a.Prefix < 0 || a.Prefix > int64(address.BitLen()) || len(one.Addresses) == maxAddresses {
				continue
			}
			one.Addresses = append(one.Addresses, netip.PrefixFrom(address.WithZone(""), int(a.Prefix)).String())
		}
		g.Interfaces = append(g.Interfaces, one)
	}
	return err
}

func (c *Client) users(ctx context.Context, g *v1alpha1.Guest) error {
	var all []struct {
		User string `json:"user"`
	}
	err := c.execute(ctx, "guest-get-users", &all)
	for _, u := range all {
		if name := clean(u.User); name != "" {
			g.Users = append(g.Users, name)
		}
	}
	slices.Sort(g.Users) // the order of logins means nothing and changes
	g.Users = slices.Compact(g.Users)
	g.Users = g.Users[:min(len(g.Users), maxUsers)]
	return err
}

// clean makes a text of the guest fit to be stored and shown: valid, of bounded
// length, without anything that a terminal would obey.
func clean(s string) string {
	s = strings.ToValidUTF8(s[:min(len(s), 4*maxText)], "")
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "")
	}
	return strings.TrimSpace(s)
}
