package site

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/nixp2p/nixp2p/p2p/discovery"
	"github.com/nixp2p/nixp2p/p2p/mdns"
)

const (
	// parallelDials go on at a time: handshakes cost CPU time, and all machines may start at
	// once.
	parallelDials = 4
	dialTick      = 500 * time.Millisecond

	// pollEvery is how often the sources are looked at again, and two unknown addresses
	// tried: a site that fell into two halves grows together by that.
	pollEvery = 5 * time.Minute
	// pollAlone is the same while no peer is connected, fileTick how often a file is.
	pollAlone   = 10 * time.Second
	fileTick    = 2 * time.Second
	healUnknown = 2
)

// dialLoop finds other nodes and dials them.
type dialLoop struct {
	*core
	sources []*discovery.Source
	saved   []string
	mdns    bool
	onTwin  func(addr string)
}

// run dials whom the book says is due, and looks at the sources, until ctx ends.
func (d *dialLoop) run(ctx context.Context, h host.Host) {
	var all sync.WaitGroup
	defer all.Wait()
	d.found(false, "saved", d.saved)
	for _, s := range d.sources {
		all.Go(func() { d.poll(ctx, s) })
	}
	if d.mdns {
		all.Go(func() { d.onLink(ctx, h) })
	}
	heal := time.NewTicker(pollEvery)
	defer heal.Stop()
	tick := time.NewTicker(dialTick)
	defer tick.Stop()
	free := make(chan struct{}, parallelDials)
	for {
		for !d.table.full(d.maxPeers) {
			c, ok := d.book.Due(time.Now())
			if !ok {
				break
			}
			select {
			case free <- struct{}{}:
			case <-ctx.Done():
				return
			}
			all.Go(func() {
				d.dial(ctx, h, c)
				<-free
			})
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-d.wake:
		case <-heal.C:
			d.tryUnknown("saved", d.saved)
		}
	}
}

// poll asks one source for addresses, again and again.
func (d *dialLoop) poll(ctx context.Context, s *discovery.Source) {
	first := true
	for ctx.Err() == nil {
		addrs, err := s.Look(ctx)
		d.sayKeptOut(s.String(), addrs)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			d.log.Debug("looking for peers", "source", s.Kind(), "err", err)
		case first || len(d.table.all()) == 0 || s.Kind() == "file":
			d.found(true, s.Kind(), addrs)
			first = false
		default:
			d.tryUnknown(s.Kind(), addrs)
		}
		next := time.Now().Add(pollEvery*4/5 + rand.N(pollEvery*2/5))
		alone := time.Now().Add(pollAlone)
		for now := time.Now(); now.Before(next); now = time.Now() {
			if !pause(ctx, fileTick) {
				return
			}
			if s.Changed() || len(d.table.all()) == 0 && now.After(alone) {
				break
			}
		}
	}
}

// sayKeptOut says which addresses of a source are not dialled.
func (d *dialLoop) sayKeptOut(name string, addrs []string) {
	key := "bootstrap/" + name
	if ips := d.gate.keptOut(addrs); len(ips) > 0 {
		d.conditions.Report(d.log, key, d.gate.aboutKeptOut(name, ips))
	} else if len(addrs) > 0 {
		d.conditions.Over(d.log, key)
	}
}

// tryUnknown puts a few addresses into the book to which there is no connection.
func (d *dialLoop) tryUnknown(kind string, addrs []string) {
	var unknown []discovery.Contact
	for _, c := range d.contacts(discovery.Origin{Kind: kind}, addrs) {
		if !d.book.Known(c) {
			unknown = append(unknown, c)
		}
	}
	rand.Shuffle(len(unknown), func(i, j int) { unknown[i], unknown[j] = unknown[j], unknown[i] })
	d.book.Found(false, unknown[:min(healUnknown, len(unknown))]...)
}

// dial connects to one contact.
func (d *dialLoop) dial(ctx context.Context, h host.Host, c discovery.Contact) {
	ctx, cancel := context.WithTimeout(ctx, dialTime+identifyTime)
	defer cancel()
	var addrs []ma.Multiaddr
	for _, s := range c.Addrs {
		if a, err := ma.NewMultiaddr(s); err == nil {
			addrs = append(addrs, a)
		}
	}
	id, err := peer.Decode(c.Peer)
	if c.Peer == "" {
		var twin bool
		if id, twin, err = d.identify(ctx, h, addrs); twin && d.onTwin != nil {
			d.onTwin(c.Addrs[0])
		}
		d.seenAt(id, c.Addrs)
	}
	if err == nil && id != d.self {
		err = connect(ctx, h, peer.AddrInfo{ID: id, Addrs: addrs})
	}
	if err != nil {
		d.log.Debug("dial", "peer", c.Peer, "found_by", c.By.Kind, "err", err)
		d.book.Failed(c, time.Now())
		d.metrics.PeerDials.WithLabelValues("failed").Inc()
		return
	}
	d.book.Reached(c, id.String(), time.Now())
	d.metrics.PeerDials.WithLabelValues("ok").Inc()
}

// onLink looks for peers by multicast.
func (d *dialLoop) onLink(ctx context.Context, h host.Host) {
	s, err := mdns.New(mdns.Config{
		ID:      d.self.String(),
		Listens: func() []netip.AddrPort { return listens(h) },
		Peers:   func() int { return len(d.table.all()) },
		Found:   func(addrs []string) { d.found(true, discovery.ByMDNS, addrs) },
		Log:     d.log, Conditions: d.conditions,
	})
	if err != nil {
		d.log.Error("no multicast", "err", err)
		return
	}
	_ = s.Run(ctx)
}

// listens returns where a host listens.
func listens(h host.Host) (list []netip.AddrPort) {
	for _, a := range h.Network().ListenAddresses() {
		if na, err := manet.ToNetAddr(a); err == nil {
			if ap, err := netip.ParseAddrPort(na.String()); err == nil {
				list = append(list, netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
			}
		}
	}
	return list
}
