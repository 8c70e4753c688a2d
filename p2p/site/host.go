package site

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	basichost "github.com/libp2p/go-libp2p/p2p/host/basic"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/x/rate"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	// httpProtocol carries requests and answers, siteProtocol the sessions: admission,
	// liveness, inventories. The number is the version.
	httpProtocol = protocol.ID("/nixp2p/http/1")
	siteProtocol = protocol.ID("/nixp2p/site/1")

	// On a LAN a machine that does not answer within connectTime is not there. One that does
	// may be short of CPU time for the handshake: all machines of a cluster may start at once.
	connectTime  = time.Second
	dialTime     = 5 * time.Second
	identifyTime = 5 * time.Second
	// acceptTime bounds a handshake that another machine began.
	acceptTime = 5 * time.Second

	// messageSize is the most that one message of the muxer carries: with 256 KiB writes
	// larger ones save a tenth of the CPU time.
	messageSize = 256 << 10
	// A connection may have so many streams that came in, and so many of them that were
	// not accepted yet: each may bring 256 KiB.
	streamsPerConn = 192
	acceptBacklog  = 16

	// What libp2p remembers of nodes that are not connected.
	maxPeerAddrs    = 8192
	maxPeerRecords  = 1024
	maxAddrsPerPeer = 16
)

// hostParts are what a host is made of.
type hostParts struct {
	identity crypto.PrivKey
	listen   []ma.Multiaddr
	door     *door
	addrs    *advertiser
	maxPeers int
}

// newHost starts a host that does not listen yet: TCP, TLS 1.3 and yamux. It is put together here, not by libp2p.New,
// because that links in every transport there is, and relays.
func newHost(parts hostParts) (_ host.Host, err error) {
	var undo []func() error
	defer func() {
		if err != nil {
			for _, f := range undo {
				_ = f()
			}
		}
	}()
	id, err := peer.IDFromPrivateKey(parts.identity)
	if err != nil {
		return nil, err
	}
	store, err := pstoremem.NewPeerstore(pstoremem.WithMaxAddresses(maxPeerAddrs),
		pstoremem.WithMaxSignedPeerRecords(maxPeerRecords), pstoremem.WithMaxAddressesPerPeer(maxAddrsPerPeer))
	if err != nil {
		return nil, err
	}
	undo = append(undo, store.Close)
	if err := errors.Join(store.AddPrivKey(id, parts.identity), store.AddPubKey(id, parts.identity.GetPublic())); err != nil {
		return nil, err
	}
	limits, err := newLimits(parts.maxPeers)
	if err != nil {
		return nil, err
	}
	undo = append(undo, limits.Close)
	bus := eventbus.NewBus()
	sw, err := swarm.NewSwarm(id, store, bus,
		swarm.WithConnectionGater(parts.door), swarm.WithResourceManager(limits),
		swarm.WithDialTimeout(dialTime), swarm.WithDialTimeoutLocal(dialTime),
		swarm.WithMultiaddrResolver(noNames{}),
		// The detector of broken IPv6 looks at dials to the internet.
		swarm.WithIPv6BlackHoleSuccessCounter(nil), swarm.WithUDPBlackHoleSuccessCounter(nil))
	if err != nil {
		return nil, err
	}
	undo = []func() error{sw.Close} // closes the rest
	if err := addTransport(sw, parts, limits); err != nil {
		return nil, err
	}
	h, err := basichost.NewHost(sw, &basichost.HostOpts{
		EventBus: bus, ConnManager: connmgr.NullConnMgr{}, AddrsFactory: parts.addrs.choose, UserAgent: "nixp2p",
	})
	if err != nil {
		return nil, err
	}
	h.Start()
	return h, nil
}

func addTransport(sw *swarm.Swarm, parts hostParts, limits network.ResourceManager) error {
	mux := *yamux.DefaultTransport
	mux.MaxMessageSize, mux.MaxIncomingStreams, mux.AcceptBacklog = messageSize, streamsPerConn, acceptBacklog
	muxers := []upgrader.StreamMuxer{{ID: yamux.ID, Muxer: &mux}}
	security, err := libp2ptls.New(libp2ptls.ID, parts.identity, muxers)
	if err != nil {
		return err
	}
	up, err := upgrader.New([]sec.SecureTransport{security}, muxers, nil, limits, parts.door, upgrader.WithAcceptTimeout(acceptTime))
	if err != nil {
		return err
	}
	t, err := tcp.NewTCPTransport(guardedUpgrader{up, parts.door}, limits, nil, tcp.WithConnectionTimeout(connectTime))
	if err != nil {
		return err
	}
	return sw.AddTransport(t)
}

// noNames resolves no name: peers, which identify themselves with any address, must not make
// this machine ask the DNS. Names of the configuration are resolved in package discovery.
type noNames struct{}

// ResolveDNSAddr is part of network.MultiaddrDNSResolver.
func (noNames) ResolveDNSAddr(context.Context, peer.ID, ma.Multiaddr, int, int) ([]ma.Multiaddr, error) {
	return nil, errNoAddr
}

// ResolveDNSComponent is part of network.MultiaddrDNSResolver.
func (noNames) ResolveDNSComponent(context.Context, ma.Multiaddr, int) ([]ma.Multiaddr, error) {
	return nil, errNoAddr
}

// Limits of one peer. Connections that come in are counted by machine, by the door, and so are
// requests: libp2p's own limits are for the internet, and would end an office of nine machines.
const (
	perPeerStreams  = 256
	perPeerRequests = 128
	perPeerSessions = 3 // one, and one that replaces it
	perPeerMemory   = 96 << 20
	allMemory       = 512 << 20 // windows of all streams; far less is used
)

func newLimits(maxPeers int) (network.ResourceManager, error) {
	conns := rcmgr.LimitVal(max(1024, 4*maxPeers))
	streams := 16 * conns
	all := rcmgr.ResourceLimits{
		Conns: conns, ConnsInbound: conns, ConnsOutbound: conns, FD: conns,
		Streams: streams, StreamsInbound: streams, StreamsOutbound: streams, Memory: allMemory,
	}
	transient := all
	transient.Streams, transient.StreamsInbound, transient.StreamsOutbound, transient.Memory = 1024, 512, 1024, 256<<20
	l := rcmgr.PartialLimitConfig{
		System: all, Transient: transient,
		ProtocolDefault: rcmgr.ResourceLimits{Streams: streams, StreamsInbound: streams, StreamsOutbound: streams, Memory: allMemory},
		PeerDefault: rcmgr.ResourceLimits{
			Conns: perPeerConns, ConnsInbound: perPeerConns, ConnsOutbound: perPeerConns, FD: perPeerConns,
			Streams: 2 * perPeerStreams, StreamsInbound: perPeerStreams, StreamsOutbound: perPeerStreams, Memory: perPeerMemory,
		},
		ProtocolPeer: map[protocol.ID]rcmgr.ResourceLimits{
			httpProtocol: {Streams: 2 * perPeerRequests, StreamsInbound: perPeerRequests, StreamsOutbound: perPeerRequests, Memory: perPeerMemory},
			siteProtocol: {Streams: 2 * perPeerSessions, StreamsInbound: perPeerSessions, StreamsOutbound: perPeerSessions, Memory: 32 << 20},
		},
	}
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(l.Build(rcmgr.DefaultLimits.Scale(allMemory, 2*int(conns)))),
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: math.MaxInt}},
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 64, ConnCount: math.MaxInt}}),
		rcmgr.WithConnRateLimiters(&rate.Limiter{}),
		rcmgr.WithMetricsDisabled())
}
