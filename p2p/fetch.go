package p2p

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/lease"
	"github.com/nixp2p/nixp2p/p2p/pick"
	"github.com/nixp2p/nixp2p/p2p/standing"
	"github.com/nixp2p/nixp2p/p2p/wire"
	"github.com/nixp2p/nixp2p/verify"
)

const (
	// openTime is how long a peer may take to begin with a NAR.
	openTime = time.Second
	// toldTime is the same for one that a coordinator has just heard of: where all machines
	// start at once they have much to do, and to go upstream is what would cost most then.
	toldTime = 5 * time.Second
	// toldStall is how long nothing may come from such a one: what dies is noticed sooner, and
	// on a slow line all wait for the same bytes.
	toldStall = 4 * lease.StallTime
	// A second peer is asked when the first has not begun in the time that nine of ten need,
	// but never sooner than openLeast: what is cut off again costs both sides.
	openStart = 100 * time.Millisecond
	openLeast = 30 * time.Millisecond
	// busyFirst is the wait when all who have it are busy, longer each time up to busyLast;
	// as a whole busyTime and what the NAR takes at busyRate, then another source is better.
	busyFirst = 50 * time.Millisecond
	busyLast  = time.Second
	busyTime  = 5 * time.Second
	busyRate  = 50 << 20 // bytes a second
)

// errHollow says that a peer is about to get a NAR, but has no byte of it that would be of use.
// Two who wait for each other would get none: a coordinator knows who comes first.
var errHollow = fmt.Errorf("p2p: nothing there yet: %w", fs.ErrNotExist)

// maxHollow of those are enough to see that the NAR is under way.
const maxHollow = 2

// errBusy says that all peers that have a NAR give it to others at the moment.
var errBusy = errors.New("p2p: the peers that have it are busy")

// NAR fetches from peers that may share info's path, going on with another one where one
// stalls, dies or is slow, at the same byte. A NAR that no share key signed is absent at
// once, and nobody is asked.
func (n *Node) NAR(ctx context.Context, info *verify.Info, form nix.Form, off int64) (*verify.Unverified, error) {
	if !info.SignedByAny(n.cfg.ShareKeys) {
		return nil, errNobody
	}
	return n.newFetch(info, form, off).claim(ctx)
}

// AtHand is the same peers for those who can also use the file that an upstream has: nobody
// decodes it for them.
type AtHand struct{ *Node }

// NAR is that of Node, of what is at hand in this form.
func (n AtHand) NAR(ctx context.Context, info *verify.Info, form nix.Form, off int64) (*verify.Unverified, error) {
	if !info.SignedByAny(n.cfg.ShareKeys) {
		return nil, errNobody
	}
	f := n.newFetch(info, form, off)
	f.atHand = true
	return f.claim(ctx)
}

func (n *Node) newFetch(info *verify.Info, form nix.Form, off int64) *fetch {
	f := &fetch{n: n, info: info, form: form, at: off, tried: map[peer.ID]bool{}}
	if form.IsRaw() {
		f.size = info.NarSize()
	}
	return f
}

// claim opens the fetch.
func (f *fetch) claim(ctx context.Context) (*verify.Unverified, error) {
	if err := f.begin(ctx); err != nil {
		return nil, err
	}
	f.n.trails.Began(f.name(), f.at)
	return &verify.Unverified{Body: f.stream(ctx), Size: f.size}, nil
}

// fetch is one NAR from peers, one of them at a time.
type fetch struct {
	n    *Node
	info *verify.Info
	form nix.Form
	size int64 // of the whole form in bytes; 0 while unknown
	at   int64 // the next byte

	tried map[peer.ID]bool // failed in this fetch, or said no
	named []peer.ID        // by those who were busy
	asked bool             // the DHT was
	from  *source          // open now

	// Of one that follows a lease: whom it may ask, in this order, who is told of it, and who
	// gave nothing for a while, which ends it. The nodes that a coordinator names may have
	// nothing yet.
	only    []peer.ID
	gives   func(lease.NodeID)
	stalled peer.ID

	hollow int  // who are only about to get it
	atHand bool // nobody is to decode for it
}

func (f *fetch) name() standing.Stream {
	return standing.Stream{Nar: f.info.NarHash(), Form: f.form}
}

// begin opens the best peer at the next byte, waiting a while when all are busy.
func (f *fetch) begin(ctx context.Context) error {
	f.asked = false
	wait := busyFirst
	limit := time.Now().Add(busyTime + time.Duration(float64(f.info.NarSize())/busyRate*float64(time.Second)))
	for {
		busy, err := f.tryAll(ctx)
		if err == nil || !busy || ctx.Err() != nil {
			return err
		}
		if time.Now().Add(wait).After(limit) {
			return errBusy
		}
		if !pause(ctx, wait) {
			return ctx.Err()
		}
		wait = min(2*wait, busyLast)
	}
}

// tryAll goes through the peers once. Busy tells that one of them has it but no room.
func (f *fetch) tryAll(ctx context.Context) (busy bool, err error) {
	err = errNobody
	r := newRace(f)
	defer r.end()
	late := false
	for {
		if len(r.asked) == 0 || late && len(r.asked) == 1 {
			if !r.ask(ctx) && len(r.asked) == 0 {
				return busy, err
			}
		}
		var o opened
		select {
		case <-r.hedge.C:
			late = true
			continue
		case <-ctx.Done():
			return false, ctx.Err()
		case o = <-r.opened:
			delete(r.asked, o.peer)
		}
		var full *busyError
		var lie *verify.InvalidError
		switch {
		case o.err == nil:
			f.from, f.size = o.src, o.size
			if f.gives != nil {
				f.gives(nodeID(o.peer.id))
			}
			if o.second {
				f.n.cfg.Metrics.PeerHedges.WithLabelValues("nar", "won").Inc()
			}
			return false, nil
		case ctx.Err() != nil:
			return false, ctx.Err()
		case errors.As(o.err, &full):
			busy = true
			f.n.cfg.Metrics.PeerBusy.WithLabelValues("received").Inc()
			f.named = append(f.named, f.n.takeHints(full.others)...)
			continue
		case errors.Is(o.err, errHollow):
			f.hollow++
		case errors.As(o.err, &lie):
			f.n.convict(o.peer.key, lie)
			f.n.passOver(lie)
		case !errors.Is(o.err, fs.ErrNotExist):
			o.peer.slow()
			err = o.err
		}
		f.tried[o.peer.id] = true
		f.n.log.Debug("peer does not give a NAR", "peer", o.peer.id, "nar", f.info.NarHash(), "err", o.err)
	}
}

// race is the peers that are asked for the same bytes: one, and a second one when the first
// has not begun in the time that is usual. Who begins first is taken; the other is cut off
// and nothing is held against it.
type race struct {
	f      *fetch
	skip   map[peer.ID]bool // asked before in this round
	asked  map[*remote]context.CancelFunc
	opened chan opened
	over   chan struct{} // closed when nobody listens any more
	hedge  *time.Timer
}

// opened is how asking one peer ended.
type opened struct {
	peer   *remote
	src    *source
	size   int64 // of the form in bytes
	second bool
	err    error
}

func newRace(f *fetch) *race {
	r := &race{
		f: f, skip: map[peer.ID]bool{}, asked: map[*remote]context.CancelFunc{},
		opened: make(chan opened), over: make(chan struct{}), hedge: time.NewTimer(openTime),
	}
	r.hedge.Stop()
	return r
}

// ask has one more peer asked, and tells whether there is one.
func (r *race) ask(ctx context.Context) bool {
	f := r.f
	p := f.candidate(ctx, r.skip)
	if p == nil || !f.n.crew.enter() {
		return false
	}
	ctx, cancel := context.WithCancel(ctx)
	o := opened{peer: p, second: len(r.asked) > 0}
	if r.skip[p.id] = true; o.second {
		f.n.cfg.Metrics.PeerHedges.WithLabelValues("nar", "sent").Inc()
	} else if f.only == nil { // a coordinator sends each to another one
		r.hedge.Reset(f.n.opens.After())
	}
	r.asked[p] = cancel
	what := opening{f.n, f.info, f.form, f.at, f.size, f.only != nil, f.atHand}
	go func() {
		defer f.n.crew.leave()
		o.src, o.size, o.err = what.open(ctx, cancel, p)
		select {
		case r.opened <- o:
		case <-r.over:
			if o.src != nil {
				o.src.close()
			}
		}
	}()
	return true
}

// end cuts off those who have not begun.
func (r *race) end() {
	r.hedge.Stop()
	for _, cancel := range r.asked {
		cancel()
	}
	close(r.over)
}

// key stands for the path in inventories.
func (f *fetch) key() inventory.Key {
	return inventory.KeyOf(f.info.StorePath().Hash().Question())
}

// usable tells whether a peer may be asked in this fetch.
func (f *fetch) usable(r *remote) bool {
	return r != nil && !f.tried[r.id] && r.askable() && f.n.admitted(r) && !f.n.standing.Avoided(r.key, f.info.NarHash())
}

// candidate chooses the next peer to ask: of those whose inventory has the path and those
// whom a busy one named, the cheaper of two; then those that the DHT knows.
func (f *fetch) candidate(ctx context.Context, skip map[peer.ID]bool) *remote {
	usable := func(r *remote) bool { return f.usable(r) && !skip[r.id] }
	if f.only != nil {
		for _, id := range f.only {
			// Whatever is held against it, a coordinator has heard of it just now.
			if r := f.n.table.get(id); r != nil && !skip[id] && !f.tried[id] && f.n.admitted(r) && !f.n.standing.Avoided(r.key, f.info.NarHash()) {
				return r
			}
		}
		return nil
	}
	if f.hollow >= maxHollow {
		return nil
	}
	var list []*remote
	for _, r := range f.n.holders(nil, f.key()) {
		if usable(r) {
			list = append(list, r)
		}
	}
	for _, id := range f.named {
		if r := f.n.table.get(id); usable(r) && !slices.Contains(list, r) {
			list = append(list, r)
		}
	}
	if len(list) == 0 && !f.asked && len(skip) == 0 && f.info.NarSize() >= largeNAR {
		f.asked = true
		f.named = append(f.named, f.n.providers(ctx, f.info.NarHash())...)
		for _, id := range f.named {
			if r := f.n.table.get(id); usable(r) && !slices.Contains(list, r) {
				list = append(list, r)
			}
		}
	}
	if len(list) == 0 {
		return nil
	}
	pick.Order(list, func(r *remote) *pick.Meter { return &r.meter })
	if f.info.NarSize() >= largeNAR {
		// A stranger's lie would cost much: it is tried with what is small.
		for _, r := range list {
			if _, ok := f.n.vouched.Load(r.key); ok {
				return r
			}
		}
	}
	return list[0]
}

// busyError is a peer's refusal, with others whom it named.
type busyError struct{ others []string }

func (e *busyError) Error() string { return errBusy.Error() }

// opening is a question for a NAR from one byte on.
type opening struct {
	n    *Node
	info *verify.Info
	form nix.Form
	at   int64 // the first byte
	size int64 // of the form in bytes; 0 while unknown
	told bool  // by a coordinator: there may be nothing at that byte yet

	atHand bool
}

// open asks one peer. The source, or a failure, ends ctx by end.
func (f opening) open(ctx context.Context, end context.CancelFunc, r *remote) (*source, int64, error) {
	limit := openTime
	if f.told {
		limit = toldTime
	}
	late := time.AfterFunc(limit, end)
	header := http.Header{}
	if f.at > 0 {
		header.Set("Range", wire.FormatRange(f.at))
	}
	if f.form.IsRaw() && f.info.NarSize()-f.at >= largeNAR && r.meter.Compress() {
		header.Set("Accept-Encoding", string(nix.Zstd))
	}
	if f.atHand {
		header.Set(wire.AtHandHeader, "1")
	}
	start := time.Now()
	resp, err := f.n.request(ctx, http.MethodGet, r, wire.Request{Nar: f.info.NarHash(), Form: f.form}, header)
	took := time.Since(start)
	if err == nil || ctx.Err() != nil {
		f.n.opens.Note(took)
	}
	if err == nil && !late.Stop() {
		_ = resp.Body.Close()
		err = context.DeadlineExceeded
	}
	if err != nil {
		late.Stop()
		end()
		return nil, 0, fmt.Errorf("p2p: peer %s: get NAR: %w", r.id, err)
	}
	r.answered(took)
	size, squeezed, err := f.accept(resp, r)
	if err != nil {
		_ = resp.Body.Close()
		end()
		return nil, 0, err
	}
	src := newSource(f.n, r, resp.Body, size-f.at, squeezed, end)
	src.partial = resp.Header.Get(wire.HaveHeader) != ""
	if f.told {
		src.patience = toldStall
	}
	return src, size, nil
}

// accept judges the head of an answer.
func (f opening) accept(resp *http.Response, r *remote) (size int64, squeezed bool, err error) {
	fail := func(format string, args ...any) (int64, bool, error) {
		return 0, false, fmt.Errorf("p2p: peer %s: "+format, append([]any{r.id}, args...)...)
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
	case http.StatusNotFound, http.StatusGone:
		return 0, false, errNobody
	case http.StatusServiceUnavailable:
		body, err := io.ReadAll(io.LimitReader(resp.Body, wire.MaxPeerList+1))
		if err != nil {
			return fail("busy: %w", err)
		}
		others, err := wire.ParsePeers(body)
		if err != nil {
			return fail("busy: %w", err)
		}
		return 0, false, &busyError{others}
	default:
		return fail("get NAR: status %d", resp.StatusCode)
	}
	if have := resp.Header.Get(wire.HaveHeader); have != "" && f.n.cfg.Leases && !f.told {
		if n, err := strconv.ParseInt(have, 10, 64); err == nil && n <= f.at {
			return 0, false, errHollow
		}
	}
	var off int64
	squeezed = resp.Header.Get("Content-Encoding") == string(nix.Zstd)
	switch {
	case resp.StatusCode == http.StatusPartialContent:
		if off, size, err = wire.ParseContentRange(resp.Header.Get("Content-Range")); err != nil {
			return fail("%w", err)
		}
	case squeezed:
		if size, err = strconv.ParseInt(resp.Header.Get(wire.SizeHeader), 10, 64); err != nil {
			return fail("no size")
		}
	default:
		size = resp.ContentLength
	}
	switch {
	case off != f.at:
		return fail("begins at byte %d, not %d", off, f.at)
	case size <= 0 || !squeezed && resp.ContentLength != size-off || squeezed && !f.form.IsRaw():
		return fail("does not say how much comes")
	case f.form.IsRaw() && size != f.info.NarSize():
		// The size is signed; whoever has this NAR knows it.
		return 0, false, &verify.InvalidError{Reason: verify.ReasonSize, Err: fmt.Errorf("a NAR of %d bytes where %d are signed", size, f.info.NarSize())}
	case f.size != 0 && size != f.size:
		return fail("%d bytes where another peer has %d", size, f.size)
	}
	return size, squeezed, nil
}

// takeHints reads addresses that a busy peer named, and has those dialled that are not
// connected. It returns who they are.
func (n *Node) takeHints(addrs []string) (ids []peer.ID) {
	for _, c := range n.contacts("peer", addrs) {
		id, err := peer.Decode(c.Peer)
		if err != nil {
			continue
		}
		if n.table.get(id) == nil && n.book.Found(false, c) > 0 {
			n.wakeFinder()
		}
		ids = append(ids, id)
	}
	return ids
}
