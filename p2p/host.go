package p2p

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/x/rate"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/nixp2p/nixp2p/internal/disk"
	"github.com/nixp2p/nixp2p/p2p/netif"
)

const (
	// httpProtocol carries requests and answers, siteProtocol the session: admission,
	// liveness, inventories. The number is the version.
	httpProtocol = protocol.ID("/nixp2p/http/1")
	siteProtocol = protocol.ID("/nixp2p/site/1")

	// On a LAN who does not answer within connectTime is not there. Who is may be short of
	// CPU time for the handshake: all machines of a cluster may start at once.
	connectTime   = time.Second
	handshakeMost = 5 * time.Second

	// messageSize is the most that one message of the muxer carries: with 256 KiB writes
	// larger ones save a tenth of the CPU time.
	messageSize = 256 << 10
)

// identity reads the private key from the file, or makes one and the file; without a file
// it is a fresh one each time.
func identity(path string) (crypto.PrivKey, error) {
	if path != "" {
		data, err := os.ReadFile(path)
		if err == nil {
			key, err := crypto.UnmarshalPrivateKey(data)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			return key, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil || path == "" {
		return key, err
	}
	data, err := crypto.MarshalPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, disk.Replace(path, data)
}

// open starts the host: TCP, TLS 1.3 and yamux, nothing that is for the internet.
func (n *Node) open() (host.Host, error) {
	limits, err := resources(n.cfg.MaxPeers, n.gate.allow)
	if err != nil {
		return nil, err
	}
	mux := *yamux.DefaultTransport
	mux.MaxMessageSize = messageSize
	h, err := libp2p.New(
		libp2p.Identity(n.identity),
		libp2p.ListenAddrStrings(n.cfg.Listen...),
		libp2p.NoTransports, libp2p.Transport(tcp.NewTCPTransport, tcp.WithConnectionTimeout(connectTime)),
		libp2p.Security(libp2ptls.ID, libp2ptls.New),
		libp2p.Muxer(yamux.ID, &mux),
		libp2p.ResourceManager(limits),
		libp2p.ConnectionGater(n.gate),
		// The default one closes connections at random beyond 192.
		libp2p.ConnectionManager(connmgr.NullConnMgr{}),
		libp2p.AddrsFactory(n.addrs.choose),
		libp2p.SwarmOpts(swarm.WithDialTimeout(handshakeMost), swarm.WithDialTimeoutLocal(handshakeMost),
			// The detector of broken IPv6 looks at dials to the internet.
			swarm.WithIPv6BlackHoleSuccessCounter(nil), swarm.WithUDPBlackHoleSuccessCounter(nil)),
		libp2p.WithDialTimeout(handshakeMost),
		libp2p.DisableRelay(),
		libp2p.DisableIdentifyAddressDiscovery(),
		libp2p.DisableMetrics(),
		libp2p.Ping(false),
		libp2p.UserAgent("nixp2p"),
		libp2p.ForceReachabilityPrivate(),
	)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return h, nil
}

// Limits of what peers may make this machine hold. The defaults of libp2p are for the
// internet: eight connections of one network would end an office of nine machines.
const (
	perPeerConns    = 8
	perPeerStreams  = 256
	perPeerRequests = 128
	perPeerSessions = 4
	perPeerMemory   = 96 << 20 // six streams with a full window
	allMemory       = 1 << 30
)

func resources(maxPeers int, allow []netip.Prefix) (network.ResourceManager, error) {
	conns := max(1024, 4*maxPeers)
	streams := 64 * conns
	l := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{
			Conns: rcmgr.LimitVal(conns), ConnsInbound: rcmgr.LimitVal(conns), ConnsOutbound: rcmgr.LimitVal(conns), FD: rcmgr.LimitVal(conns),
			Streams: rcmgr.LimitVal(streams), StreamsInbound: rcmgr.LimitVal(streams), StreamsOutbound: rcmgr.LimitVal(streams),
			Memory: allMemory,
		},
		Transient: rcmgr.ResourceLimits{
			Conns: rcmgr.LimitVal(conns), ConnsInbound: rcmgr.LimitVal(conns), ConnsOutbound: rcmgr.LimitVal(conns), FD: rcmgr.LimitVal(conns),
			Streams: 2048, StreamsInbound: 2048, StreamsOutbound: 2048, Memory: 256 << 20,
		},
		ProtocolDefault: rcmgr.ResourceLimits{
			Streams: rcmgr.LimitVal(streams), StreamsInbound: rcmgr.LimitVal(streams), StreamsOutbound: rcmgr.LimitVal(streams), Memory: allMemory,
		},
		PeerDefault: rcmgr.ResourceLimits{
			Conns: perPeerConns, ConnsInbound: perPeerConns, ConnsOutbound: perPeerConns, FD: perPeerConns,
			Streams: 2 * perPeerStreams, StreamsInbound: perPeerStreams, StreamsOutbound: perPeerStreams, Memory: perPeerMemory,
		},
		ProtocolPeer: map[protocol.ID]rcmgr.ResourceLimits{
			httpProtocol: {Streams: 2 * perPeerRequests, StreamsInbound: perPeerRequests, StreamsOutbound: perPeerRequests, Memory: perPeerMemory},
			siteProtocol: {Streams: 2 * perPeerSessions, StreamsInbound: perPeerSessions, StreamsOutbound: perPeerSessions, Memory: 32 << 20},
		},
	}
	var v4, v6 []rcmgr.NetworkPrefixLimit
	var rates []rate.PrefixLimit
	for _, p := range allow {
		rates = append(rates, rate.PrefixLimit{Prefix: p}) // no limit
		if p.Addr().Is4() {
			v4 = append(v4, rcmgr.NetworkPrefixLimit{Network: p, ConnCount: math.MaxInt})
		} else {
			v6 = append(v6, rcmgr.NetworkPrefixLimit{Network: p, ConnCount: math.MaxInt})
		}
	}
	// Networks that are allowed only because this machine is on them change while it runs:
	// they have the limits of a site as well, a network at a time.
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(l.Build(rcmgr.DefaultLimits.Scale(allMemory, 2*conns))),
		rcmgr.WithNetworkPrefixLimit(v4, v6),
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: 64}},
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 64, ConnCount: conns}}),
		rcmgr.WithConnRateLimiters(&rate.Limiter{NetworkPrefixLimits: rates}),
		rcmgr.WithMetricsDisabled())
}

// fullAddrs returns addresses with the peer ID.
func fullAddrs(info peer.AddrInfo) (list []string) {
	full, err := peer.AddrInfoToP2pAddrs(&info)
	if err != nil || len(info.Addrs) == 0 {
		return nil
	}
	for _, a := range full {
		list = append(list, a.String())
	}
	return list
}

// parseAddr reads a multiaddr with or without a peer ID.
func parseAddr(s string) (addr ma.Multiaddr, id peer.ID, err error) {
	m, err := ma.NewMultiaddr(s)
	if err != nil {
		return nil, "", err
	}
	if _, err := m.ValueForProtocol(ma.P_P2P); err != nil {
		return m, "", nil
	}
	addr, id = peer.SplitAddr(m)
	if addr == nil || id == "" {
		return nil, "", errors.New("no address before the peer ID")
	}
	return addr, id, nil
}

// gate says with whom a connection may be: machines of the allowed networks, and nobody who
// was shown the door a while ago. It is asked before every dial, accept and handshake.
type gate struct {
	allow  []netip.Prefix
	onLink bool

	mu    sync.Mutex
	links []netip.Prefix
	seen  time.Time
	shut  map[peer.ID]time.Time
}

const (
	// linksFor is how long a look at the interfaces holds.
	linksFor = 5 * time.Second
	// maxShut bounds the memory of who was shown the door.
	maxShut = 4096
)

func newGate(allow []netip.Prefix, onLink, loopback bool) *gate {
	if loopback {
		allow = append(allow[:len(allow):len(allow)], netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"))
	}
	return &gate{allow: allow, onLink: onLink, shut: make(map[peer.ID]time.Time)}
}

// allowed tells whether a machine of this address may be a peer.
func (g *gate) allowed(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	for _, p := range g.allow {
		if p.Contains(ip) {
			return true
		}
	}
	if !g.onLink {
		return false
	}
	for _, p := range g.linkPrefixes() {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

func (g *gate) linkPrefixes() []netip.Prefix {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := time.Now(); now.Sub(g.seen) > linksFor {
		if links, err := netif.Links(); err == nil {
			g.links, g.seen = netif.OnLink(links), now
		}
	}
	return g.links
}

// close keeps a peer out for some time.
func (g *gate) close(p peer.ID, pause time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	for id, until := range g.shut {
		if len(g.shut) >= maxShut || !until.After(now) {
			delete(g.shut, id)
		}
	}
	g.shut[p] = now.Add(pause)
}

func (g *gate) isShut(p peer.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shut[p].After(time.Now())
}

func (g *gate) allowedAddr(a ma.Multiaddr) bool {
	ip, err := manet.ToIP(a)
	if err != nil {
		return false
	}
	addr, ok := netip.AddrFromSlice(ip)
	return ok && g.allowed(addr)
}

// InterceptPeerDial is part of libp2p's ConnectionGater.
func (g *gate) InterceptPeerDial(p peer.ID) bool { return !g.isShut(p) }

// InterceptAddrDial is part of libp2p's ConnectionGater.
func (g *gate) InterceptAddrDial(_ peer.ID, a ma.Multiaddr) bool { return g.allowedAddr(a) }

// InterceptAccept is part of libp2p's ConnectionGater.
func (g *gate) InterceptAccept(c network.ConnMultiaddrs) bool {
	return g.allowedAddr(c.RemoteMultiaddr())
}

// InterceptSecured is part of libp2p's ConnectionGater.
func (g *gate) InterceptSecured(_ network.Direction, p peer.ID, _ network.ConnMultiaddrs) bool {
	return !g.isShut(p)
}

// InterceptUpgraded is part of libp2p's ConnectionGater.
func (g *gate) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }

// listensOnLoopback tells whether one of the multiaddrs names a loopback address: then
// several nodes of one machine are meant to find each other.
func listensOnLoopback(listen []string) bool {
	for _, l := range listen {
		part := strings.Split(l, "/")
		for i, s := range part {
			if ip, err := netip.ParseAddr(s); err == nil && i > 0 && ip.IsLoopback() {
				return true
			}
		}
	}
	return false
}

// advertiser chooses the addresses that others are told.
type advertiser struct {
	loopback bool

	mu   sync.Mutex
	seen time.Time
	real map[netip.Addr]bool
}

// maxAdvertised addresses are told of this node: each one is in every record of the DHT and
// every list of peers.
const maxAdvertised = 3

// choose is libp2p's AddrsFactory. It leaves out what leads nowhere from outside.
func (a *advertiser) choose(all []ma.Multiaddr) (chosen []ma.Multiaddr) {
	real := a.realAddrs()
	for _, m := range all {
		ip, err := manet.ToIP(m)
		if err != nil {
			continue
		}
		addr, ok := netip.AddrFromSlice(ip)
		addr = addr.Unmap()
		switch {
		case !ok || len(chosen) == maxAdvertised:
		case addr.IsLoopback() && a.loopback, real[addr] && !addr.Is6():
			chosen = append(chosen, m)
		case real[addr] && !addr.IsLinkLocalUnicast():
			chosen = append(chosen, m)
		}
	}
	return chosen
}

func (a *advertiser) realAddrs() map[netip.Addr]bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := time.Now(); now.Sub(a.seen) > linksFor {
		if links, err := netif.Links(); err == nil {
			a.seen, a.real = now, make(map[netip.Addr]bool)
			for _, ip := range netif.Advertised(links) {
				a.real[ip] = true
			}
		}
	}
	return a.real
}
