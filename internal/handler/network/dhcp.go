package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/rfc1035label"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// infinite is a lease without end: the address is the guest's for as long as there
// is a guest, and no renewal can fail.
const infinite = time.Duration(1<<32-1) * time.Second

// Lease is everything DHCP tells the guest.
type Lease struct {
	Plan          Plan
	Hostname      string
	Nameservers   []netip.Addr
	SearchDomains []string
}

// Answer is the reply to a client's message, nil if there is none. Only the guest
// itself is answered: nothing else may be on its bridge.
func (l Lease) Answer(request *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, error) {
	if request.OpCode != dhcpv4.OpcodeBootRequest || request.ClientHWAddr.String() != l.Plan.MAC.String() {
		return nil, nil
	}
	kind := dhcpv4.MessageTypeAck
	switch request.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		kind = dhcpv4.MessageTypeOffer
	case dhcpv4.MessageTypeRequest:
		if id := request.ServerIdentifier(); id != nil && fromIP(id) != l.Plan.Local {
			return nil, nil // the client chose another server
		}
		if !l.wants(request) {
			return l.refuse(request)
		}
	case dhcpv4.MessageTypeInform:
	default:
		return nil, nil
	}
	reply, err := dhcpv4.NewReplyFromRequest(request, dhcpv4.WithMessageType(kind), dhcpv4.WithServerIP(l.Plan.Local.AsSlice()))
	if err != nil {
		return nil, fmt.Errorf("make DHCP reply: %w", err)
	}
	if request.MessageType() != dhcpv4.MessageTypeInform {
		reply.YourIPAddr = l.Plan.Guest.Addr().AsSlice()
		reply.UpdateOption(dhcpv4.OptIPAddressLeaseTime(infinite))
	}
	for _, o := range l.options() {
		reply.UpdateOption(o)
	}
	return reply, nil
}

// wants says whether a REQUEST is for the address the guest has here: an address
// remembered from elsewhere must be given up at once.
func (l Lease) wants(request *dhcpv4.DHCPv4) bool {
	asked := request.RequestedIPAddress()
	if asked == nil || asked.IsUnspecified() {
		asked = request.ClientIPAddr
	}
	return asked == nil || fromIP(asked) == l.Plan.Guest.Addr()
}

func (l Lease) refuse(request *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, error) {
	nak, err := dhcpv4.NewReplyFromRequest(request, dhcpv4.WithMessageType(dhcpv4.MessageTypeNak),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(l.Plan.Local.AsSlice())))
	if err != nil {
		return nil, fmt.Errorf("make DHCP refusal: %w", err)
	}
	nak.SetBroadcast()
	return nak, nil
}

func (l Lease) options() []dhcpv4.Option {
	options := []dhcpv4.Option{
		dhcpv4.OptServerIdentifier(l.Plan.Local.AsSlice()),
		dhcpv4.OptSubnetMask(net.CIDRMask(l.Plan.Guest.Bits(), 32)),
		dhcpv4.OptRouter(l.Plan.Router.AsSlice()),
	}
	if len(l.Nameservers) > 0 {
		servers := make([]net.IP, len(l.Nameservers))
		for i, s := range l.Nameservers {
			servers[i] = s.AsSlice()
		}
		options = append(options, dhcpv4.OptDNS(servers...))
	}
	if l.Plan.MTU > 0 {
		mtu := binary.BigEndian.AppendUint16(nil, uint16(min(l.Plan.MTU, 0xffff)))
		options = append(options, dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, mtu))
	}
	if l.Hostname != "" {
		options = append(options, dhcpv4.OptHostName(l.Hostname))
	}
	if len(l.SearchDomains) > 0 {
		options = append(options,
			// The domain name is one name (several clients refuse a list); the first is
			// that of the machine's own namespace.
			dhcpv4.OptDomainName(l.SearchDomains[0]),
			dhcpv4.OptDomainSearch(&rfc1035label.Labels{Labels: l.SearchDomains}))
	}
	return options
}

// Server answers DHCP on one pod's bridge until it is closed.
type Server struct {
	in   net.PacketConn
	out  int
	link int
	done chan struct{}
}

// Serve opens the server's sockets inside the namespace and begins to answer.
// report gets errors that concern a single message.
func (n *Namespace) Serve(l Lease, report func(error)) (*Server, error) {
	s := &Server{out: -1, done: make(chan struct{})}
	if err := n.Do(s.open); err != nil {
		return nil, fmt.Errorf("open DHCP server: %w", err)
	}
	go s.serve(l, report)
	return s, nil
}

// Close stops the server. The namespace can only vanish after that.
func (s *Server) Close() error {
	err := s.in.Close()
	<-s.done
	return errors.Join(err, unix.Close(s.out))
}

// open makes one socket for each direction. Requests come through the kernel's UDP,
// so that nothing but DHCP wakes us. Replies are whole frames with checksums of
// their own: the kernel would leave those to a network card that does not exist,
// and old clients, who read raw packets, would drop them.
func (s *Server) open() (err error) {
	bridge, err := netlink.LinkByName(BridgeLink)
	if err != nil {
		return fmt.Errorf("find %s: %w", BridgeLink, err)
	}
	s.link = bridge.Attrs().Index
	if s.in, err = listen(); err != nil {
		return err
	}
	s.out, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		_ = s.in.Close()
		return fmt.Errorf("open packet socket: %w", err)
	}
	return nil
}

// dhcpServerPort and dhcpClientPort are the well-known ports.
const (
	dhcpServerPort = 67
	dhcpClientPort = 68
)

func listen() (net.PacketConn, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open UDP socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "dhcp")
	defer f.Close() // FilePacketConn has its own copy
	// A handler that takes over from another must not wait for its socket.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return nil, fmt.Errorf("share UDP port: %w", err)
	}
	if err := unix.BindToDevice(fd, BridgeLink); err != nil {
		return nil, fmt.Errorf("bind to %s: %w", BridgeLink, err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: dhcpServerPort}); err != nil {
		return nil, fmt.Errorf("bind UDP port %d: %w", dhcpServerPort, err)
	}
	return net.FilePacketConn(f)
}

func (s *Server) serve(l Lease, report func(error)) {
	defer close(s.done)
	buffer := make([]byte, 1<<16)
	for {
		n, _, err := s.in.ReadFrom(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			report(fmt.Errorf("receive DHCP message: %w", err))
			return
		}
		request, err := dhcpv4.FromBytes(buffer[:n])
		if err != nil {
			continue // whatever a guest sends there, it is not DHCP
		}
		if err := s.reply(l, request); err != nil {
			report(err)
		}
	}
}

func (s *Server) reply(l Lease, request *dhcpv4.DHCPv4) error {
	reply, err := l.Answer(request)
	if err != nil || reply == nil {
		return err
	}
	to, hw := destination(request, reply)
	address := &unix.SockaddrLinklayer{Ifindex: s.link, Halen: 6, Protocol: 0x0008} // ETH_P_IP in network order
	copy(address.Addr[:], hw)
	if err := unix.Sendto(s.out, frame(l.Plan.Local, to, hw, reply.ToBytes()), 0, address); err != nil {
		return fmt.Errorf("send DHCP reply: %w", err)
	}
	return nil
}

var broadcastMAC = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// destination follows RFC 2131, section 4.1: to the address the client already
// has, else to everybody if it asks for that or is refused, else to the address it
// is about to have.
func destination(request, reply *dhcpv4.DHCPv4) (netip.Addr, net.HardwareAddr) {
	switch {
	case reply.MessageType() == dhcpv4.MessageTypeNak:
		return netip.AddrFrom4([4]byte{255, 255, 255, 255}), broadcastMAC
	case request.ClientIPAddr != nil && !request.ClientIPAddr.IsUnspecified():
		return fromIP(request.ClientIPAddr), request.ClientHWAddr
	case request.IsBroadcast():
		return netip.AddrFrom4([4]byte{255, 255, 255, 255}), broadcastMAC
	default:
		return fromIP(reply.YourIPAddr), request.ClientHWAddr
	}
}

// frame wraps a DHCP message into UDP, IPv4 and Ethernet, checksums included.
func frame(from, to netip.Addr, hw net.HardwareAddr, payload []byte) []byte {
	udp := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(udp[0:], dhcpServerPort)
	binary.BigEndian.PutUint16(udp[2:], dhcpClientPort)
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(payload)))
	udp = append(udp, payload...)
	pseudo := append(append(from.AsSlice(), to.AsSlice()...), 0, unix.IPPROTO_UDP, udp[4], udp[5])
	sum := checksum(append(pseudo, udp...))
	if sum == 0 {
		sum = 0xffff // zero would mean "none"
	}
	binary.BigEndian.PutUint16(udp[6:], sum)

	ip := make([]byte, 20)
	ip[0], ip[1] = 0x45, 0x10 // low delay, as every DHCP server says
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(udp)))
	ip[8], ip[9] = 64, unix.IPPROTO_UDP
	copy(ip[12:], from.AsSlice())
	copy(ip[16:], to.AsSlice())
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))

	out := append(append([]byte{}, hw...), bridgeMAC...)
	out = append(out, 0x08, 0x00)
	return append(append(out, ip...), udp...)
}

// checksum is the internet checksum of RFC 1071.
func checksum(data []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(data); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	if len(data)%2 == 1 {
		sum += uint32(data[len(data)-1]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
