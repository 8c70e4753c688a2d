package site

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"github.com/nixp2p/nixp2p/internal/backoff"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

const (
	// idleSession ends a session over which not even pings come.
	idleSession = time.Minute
	// A peer sends some two frames a second. One that sends more than this violates the
	// protocol: the rest must not wait in buffers.
	frameRate  = 20
	frameBurst = 600
	// Lists of addresses that come faster are skipped: a peer sends one every five seconds.
	listEvery = 2 * time.Second
	listBurst = 4
	// defaultInventoryBytes bounds what all inventories together take: 256 of 100,000 paths
	// take 61 MB.
	defaultInventoryBytes = 64 << 20
	// maxIncoming bounds the filters that are on their way in.
	maxIncoming = 16 << 20
	// spareMembers are taken beyond the number of peers when they ask: newcomers find all
	// others full otherwise.
	spareMembers = 4
	// fullAfter is when a peer that found no room tries again.
	fullAfter = 5 * time.Minute
	maxPushed = 4096
)

// inventories bounds, by machine, the peers whose inventories this node takes and the memory
// that they use. Both bounds hold at every moment: what peers have told, and who tells it,
// changes only under mu, together with the shares.
type inventories struct {
	incoming *machine.Shares[*incoming]
	pushed   *backoff.Set[peer.ID] // had to give way: no room for them for some time
	known    func(peer.ID) bool    // from before: they give way last

	mu      sync.Mutex
	members *machine.Shares[*Peer]
	bytes   *machine.Shares[*Peer]
}

// incoming is a filter on its way in.
type incoming struct{ abort context.CancelFunc }

// hearing is a session over which a member tells its inventory.
type hearing struct{ abort context.CancelFunc }

func newInventories(maxPeers int, maxBytes int64, known func(peer.ID) bool) *inventories {
	if maxBytes <= 0 {
		maxBytes = defaultInventoryBytes
	}
	return &inventories{
		members:  machine.NewShares[*Peer](machine.Limits{Total: int64(maxPeers + spareMembers)}),
		bytes:    machine.NewShares[*Peer](machine.Limits{Total: maxBytes}),
		incoming: machine.NewShares[*incoming](machine.Limits{Total: maxIncoming}),
		pushed:   backoff.NewSet[peer.ID](maxPushed), known: known,
	}
}

// admit makes a peer a member, for which others may have to give way. Abort ends the session
// over which it tells its inventory; an older session of the peer ends now. The caller calls
// leave when the session has ended. If there is no room, leave is nil.
func (v *inventories) admit(p *Peer, abort context.CancelFunc) (leave func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if p.told.gone || v.pushed.Has(p.ID) {
		return nil
	}
	gone, ok := v.members.Put(p.Machine, p, 1, v.known(p.ID))
	for _, o := range gone {
		v.pushed.Add(o.ID, fullAfter)
		o.hear(nil)
	}
	if !ok {
		return nil
	}
	h := &hearing{abort}
	p.hear(h)
	return func() { p.told.over.CompareAndSwap(h, nil) }
}

// full takes a filter in place of all that was known of a peer's inventory. It is dropped
// where there is no room for it.
func (v *inventories) full(p *Peer, body []byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if p.told.gone || !v.charge(p, int64(len(body))) {
		return nil
	}
	r := new(inventory.Remote)
	if err := r.Full(body); err != nil {
		return fmt.Errorf("%w: %w", wire.ErrFrame, err)
	}
	p.told.inventory.Store(r)
	return nil
}

// changes takes a list of changes. Those to an inventory that was dropped mean nothing.
func (v *inventories) changes(p *Peer, body []byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if p.told.gone || p.told.dropped {
		return nil
	}
	r := p.told.inventory.Load()
	if err := r.Delta(body); err != nil {
		return fmt.Errorf("%w: %w", wire.ErrFrame, err)
	}
	v.charge(p, int64(r.Bytes()))
	return nil
}

// charge notes how much a peer's inventory takes. The inventories of those that give way for
// it are dropped, perhaps its own.
func (v *inventories) charge(p *Peer, bytes int64) bool {
	gone, ok := v.bytes.Put(p.Machine, p, bytes, v.known(p.ID))
	for _, o := range gone {
		o.drop()
	}
	if p.told.dropped = !ok; !ok {
		p.drop()
	}
	return ok
}

// use notes that a peer is of use.
func (v *inventories) use(p *Peer) {
	v.members.Use(p)
	v.bytes.Use(p)
}

// lost forgets a peer.
func (v *inventories) lost(p *Peer) {
	v.mu.Lock()
	defer v.mu.Unlock()
	p.told.gone = true
	v.members.Remove(p)
	v.bytes.Remove(p)
	p.hear(nil)
}

// sessionReader is the listening side of a session.
type sessionReader struct {
	peer     *Peer
	stream   stream
	taken    *inventories
	received func(bytes int)      // counts bytes of inventories
	named    func(addrs []string) // takes addresses of other nodes
	names    bool                 // whether the peer's own name is of interest
	frames   *rate.Limiter
	filters  *rate.Limiter
	lists    *rate.Limiter // of addresses
}

func newSessionReader(p *Peer, s stream, taken *inventories) *sessionReader {
	return &sessionReader{
		peer: p, stream: s, taken: taken,
		frames:  rate.NewLimiter(frameRate, frameBurst),
		filters: rate.NewLimiter(rate.Every(inventory.FilterEvery), inventory.FilterBurst),
		lists:   rate.NewLimiter(rate.Every(listEvery), listBurst),
	}
}

// run takes frames until the session ends.
func (r *sessionReader) run(ctx context.Context) error {
	for {
		_ = r.stream.SetReadDeadline(time.Now().Add(idleSession))
		k, size, err := wire.ReadHead(r.stream, 0)
		if err != nil {
			return err
		}
		if !r.frames.Allow() {
			return fmt.Errorf("%w: too many frames", wire.ErrFrame)
		}
		if err := r.frame(ctx, k, size); err != nil {
			return err
		}
	}
}

func (r *sessionReader) frame(ctx context.Context, k wire.Kind, size int) error {
	if k == wire.Filter {
		return r.filter(ctx, size)
	}
	body, err := wire.ReadBody(r.stream, size)
	if err != nil {
		return err
	}
	switch k {
	case wire.Ping:
		_ = r.stream.SetWriteDeadline(time.Now().Add(writeTime))
		_, err = r.stream.Write(wire.AppendFrame(nil, wire.Pong, body))
	case wire.Changes:
		r.received(len(body))
		err = r.taken.changes(r.peer, body)
	case wire.Name:
		if name := wire.ParseName(body); r.names {
			r.peer.told.name.Store(&name)
		}
	case wire.Zone:
		var zone string
		if zone, err = wire.ParseZone(string(body)); err == nil {
			r.peer.told.zone.Store(&zone)
		}
	case wire.Peers:
		var list []string
		if list, err = wire.ParsePeers(body); err == nil && r.lists.Allow() {
			r.named(list)
		}
	}
	return err
}

var errNoRoom = errors.New("no room for another inventory on its way in")

// filter takes an inventory. It takes room as its bytes come, not as its length claims.
func (r *sessionReader) filter(ctx context.Context, size int) error {
	if err := r.filters.Wait(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in := &incoming{abort: cancel}
	defer r.taken.incoming.Remove(in)
	_ = r.stream.SetReadDeadline(time.Now().Add(filterTime))
	stop := context.AfterFunc(ctx, func() { _ = r.stream.SetReadDeadline(time.Now()) })
	defer stop()
	body, err := wire.ReadBodyStepwise(r.stream, size, func(bytes int) error {
		gone, ok := r.taken.incoming.Put(r.peer.Machine, in, int64(bytes), false)
		for _, o := range gone {
			o.abort()
		}
		if !ok {
			return errNoRoom
		}
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	r.received(len(body))
	return r.taken.full(r.peer, body)
}
