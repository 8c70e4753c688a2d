package site

import (
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/taskgroup"
	"github.com/nixp2p/nixp2p/p2p/discovery"
	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/p2p/swarmkey"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

// core is what all parts of a Site use: who is connected, who is banned, who may be dialled.
type core struct {
	self     peer.ID
	keyFile  string        // of the secrets; "": an open site
	keys     swarmkey.Keys // read by Run; none: an open site
	maxPeers int
	reports
	metrics *metrics.Metrics

	gate  *gate
	door  *door
	table *peerTable
	book  *discovery.Book
	tasks taskgroup.Group // what libp2p starts, and what outlives its caller
	wake  chan struct{}   // a contact may be due
	host  atomic.Pointer[running]
	zone  atomic.Pointer[string] // that this node is in; nil: none
}

// ownZone returns the zone that this node is in, "" if none.
func (c *core) ownZone() string {
	if z := c.zone.Load(); z != nil {
		return *z
	}
	return ""
}

// reports are where it is said what happens.
type reports struct {
	log        *slog.Logger
	events     source.Events
	conditions *source.Conditions
}

// running is the host while Run is.
type running struct{ host.Host }

var errNotRunning = errors.New("site: not running")

// wakeDialLoop has the book looked at now.
func (c *core) wakeDialLoop() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// disconnect closes the connections to a peer. Closing may wait for what is still to be sent.
func (c *core) disconnect(id peer.ID) {
	if h := c.host.Load(); h != nil {
		c.tasks.Go(func() { _ = h.Network().ClosePeer(id) })
	}
}

// ban disconnects a peer and keeps it out for some time.
func (c *core) ban(id peer.ID, d time.Duration) {
	c.gate.bans.Add(id, d)
	c.book.Forget(id.String())
	c.disconnect(id)
}

// violated bans a peer that broke the protocol.
func (c *core) violated(p *Peer, err error) {
	c.log.Warn("peer violates the protocol", "peer", p.ID, "err", err)
	c.events.Send(source.Event{Kind: source.ProtocolError, Source: source.Peer, Peer: p.Key, Err: err})
	c.ban(p.ID, violationBan)
}

const (
	// unadmittedBan is how long a peer that cannot prove that it belongs here is kept out,
	// violationBan one that broke the protocol.
	unadmittedBan = 10 * time.Minute
	violationBan  = 10 * time.Minute
)

// found puts addresses that were configured or heard on the link into the book.
func (c *core) found(alive bool, kind string, addrs []string) {
	c.enter(alive, c.contacts(discovery.Origin{Kind: kind}, addrs))
}

func (c *core) enter(alive bool, list []discovery.Contact) {
	for _, o := range list {
		if id, err := peer.Decode(o.Peer); err == nil {
			c.seenAt(id, o.Addrs)
		}
	}
	if c.book.Found(alive, list...) > 0 || alive {
		c.wakeDialLoop()
	}
}

// contacts sorts addresses by the peer to which they lead. Those that the gate would refuse
// are dropped, and so is everything that is not an IP address.
func (c *core) contacts(by discovery.Origin, addrs []string) (list []discovery.Contact) {
	byPeer := map[peer.ID]int{}
	for _, s := range addrs {
		addr, id, err := parseAddr(s)
		if err != nil || !c.gate.allowedAddr(addr) || c.gate.bans.Has(id) {
			continue
		}
		if id == "" && by.Kind == discovery.ByPeer {
			continue
		}
		if id == c.self {
			// This machine, or another one with the same identity: dialling tells.
			if c.isOwn(addr) {
				continue
			}
			id = ""
		}
		i, ok := byPeer[id]
		if !ok || id == "" {
			i = len(list)
			byPeer[id] = i
			list = append(list, discovery.Contact{By: by})
			if id != "" {
				list[i].Peer = id.String()
			}
		}
		list[i].Addrs = append(list[i].Addrs, addr.String())
	}
	return list
}

// isOwn reports whether this node listens on an address.
func (c *core) isOwn(addr ma.Multiaddr) bool {
	h := c.host.Load()
	if h == nil {
		return false
	}
	own, err := h.Network().InterfaceListenAddresses()
	return err == nil && slices.ContainsFunc(own, addr.Equal)
}

// maxNamed is how many other nodes are told to a peer, and taken from one.
const maxNamed = 32

// learn takes addresses that a peer names, and returns the peers to which they lead.
func (c *core) learn(by *Peer, addrs []string) (named []Neighbour) {
	origin := discovery.Origin{Kind: discovery.ByPeer, Machine: by.Machine, Peer: by.Key}
	var list []discovery.Contact
	for _, o := range c.contacts(origin, addrs) {
		if o.Peer == "" { // one with this node's identity
			list = append(list, o)
			continue
		}
		id, err := peer.Decode(o.Peer)
		if err != nil || len(named) >= maxNamed {
			continue
		}
		list = append(list, o)
		named = append(named, Neighbour{ID: id, Key: o.Peer, Addr: o.Addrs[0]})
	}
	c.enter(false, list)
	return named
}

// reachable returns the addresses of a peer that others may dial: of those that it says it
// listens on, the ones of the machine from which it is connected. Otherwise it could have
// other nodes dial whomever it likes.
func (c *core) reachable(p *Peer) (list []string) {
	h := c.host.Load()
	if h == nil {
		return nil
	}
	for _, a := range h.Peerstore().Addrs(p.ID) {
		if dialable(a) && machine.OfMultiaddr(a) == p.Machine && c.gate.allowedAddr(a) && len(list) < maxAdvertised {
			list = append(list, a.String())
		}
	}
	return list
}

// others returns a list of members for a peer that may not know them, and of other machines that have its
// identity.
func (c *core) others(to *Peer) []byte {
	var list []string
	for _, addr := range to.session.elsewhere.take() {
		list = append(list, addr+"/p2p/"+to.Key)
	}
	for _, p := range shuffled(c.table.all()) {
		if len(list) >= maxNamed {
			break
		}
		if p == to || !p.Member() || c.gate.bans.Has(p.ID) {
			continue
		}
		if addrs := c.reachable(p); len(addrs) > 0 {
			list = append(list, addrs[0]+"/p2p/"+p.Key)
		}
	}
	return wire.AppendPeers(nil, list)
}
