package p2p

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/lease"
	"github.com/nixp2p/nixp2p/p2p/leasing"
	"github.com/nixp2p/nixp2p/verify"
)

// leasePath is where a node is asked as coordinator: a POST with a lease.Request, answered
// with a lease.Answer.
const leasePath = "/v1/lease"

// nodeID returns a peer as packages without libp2p name it.
func nodeID(id peer.ID) lease.NodeID { return lease.NodeID(id) }

// coordinators is the other nodes of the site as leases see them.
type coordinators struct{ n *Node }

// Self is part of leasing.Site.
func (c coordinators) Self() lease.NodeID { return nodeID(c.n.self) }

// Live is part of leasing.Site. Whoever is connected is up: one that has died is not for long.
// So is whom they are connected to: where each node knows only some others, those alone would
// be other coordinators for each.
func (c coordinators) Live() []lease.NodeID {
	n, now := c.n, time.Now()
	if l := n.live.Load(); l != nil && now.Sub(l.at) < liveFor {
		return l.nodes
	}
	l := &live{at: now}
	seen := map[peer.ID]bool{n.self: true}
	for _, r := range n.table.all() {
		if r.member.Load() && n.admitted(r) && n.coordinates(r.key, r) {
			seen[r.id] = true
			l.nodes = append(l.nodes, nodeID(r.id))
		}
	}
	for o := range n.neighbours {
		if len(l.nodes) < maxLive && !seen[o.id] && n.coordinates(o.key, n.table.get(o.id)) {
			seen[o.id] = true
			l.nodes = append(l.nodes, nodeID(o.id))
		}
	}
	n.live.Store(l)
	return l.nodes
}

// live is the nodes that are known to be up at a moment.
type live struct {
	at    time.Time
	nodes []lease.NodeID
}

const (
	// maxLive bounds the nodes that are ranked.
	maxLive = 512
	// liveFor is short beside the time in which a node is missed.
	liveFor = 200 * time.Millisecond
)

// coordinates tells whether a node may be asked; r is nil when it is not connected.
func (n *Node) coordinates(key string, r *remote) bool {
	if _, liar := n.standing.Lied(key); liar {
		return false
	}
	if r == nil {
		return !n.ways.isShut(key)
	}
	return !r.leaseless.Load()
}

// ways are those to nodes that others named and that are not connected.
type ways struct {
	mu    sync.Mutex
	under map[peer.ID]*way
	// shut are nodes that could not be reached, by ID as text: nobody has many NARs wait for one
	// that is not there.
	shut map[string]time.Time
}

// way is a connection that is being made. All who want it wait for the same one, and it is made
// also when they have gone on without it: the next one needs it.
type way struct {
	began time.Time
	done  chan struct{}
	err   error // valid when done
}

const (
	shutFor     = time.Minute
	maxShutWays = 1024
	// maxWays are made at a time: who answers as coordinator can name whom it likes.
	maxWays = 64
	// wayPatience is how long a coordinator is waited for that somebody is connected to and this
	// node is not: a handshake takes milliseconds, but not where all machines start at once.
	wayPatience = time.Second
)

var errManyWays = errors.New("too many nodes are being connected to")

func (w *ways) isShut(key string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.shut[key].After(time.Now())
}

// young tells whether a connection to the node is being made, and not for long yet.
func (w *ways) young(id peer.ID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	u := w.under[id]
	return u != nil && time.Since(u.began) < wayPatience
}

// take returns the way to a node, nil when too many are being made; fresh tells that the caller has
// to make it.
func (w *ways) take(id peer.ID) (u *way, fresh bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if u := w.under[id]; u != nil {
		return u, false
	}
	if w.under == nil {
		w.under = make(map[peer.ID]*way)
	}
	if len(w.under) >= maxWays {
		return nil, false
	}
	u = &way{began: time.Now(), done: make(chan struct{})}
	w.under[id] = u
	return u, true
}

// end says how making a way ended.
func (w *ways) end(id peer.ID, u *way, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.under, id)
	u.err = err
	close(u.done)
	if err == nil {
		return
	}
	now := time.Now()
	for k, until := range w.shut {
		if until.Before(now) || len(w.shut) >= maxShutWays {
			delete(w.shut, k)
		}
	}
	if w.shut == nil {
		w.shut = make(map[string]time.Time)
	}
	w.shut[id.String()] = now.Add(shutFor)
}

// neighbours goes through the nodes that connected ones are connected to.
func (n *Node) neighbours(yield func(neighbour) bool) {
	for _, r := range n.table.all() {
		if known := r.knows.Load(); known != nil {
			for _, o := range *known {
				if !yield(o) {
					return
				}
			}
		}
	}
}

// livelyGuest is how short a silence shows that a node works that is connected without an
// inventory: it sends no pings, only answers.
const livelyGuest = 4 * time.Second

// Lively is part of leasing.Site.
func (c coordinators) Lively(node lease.NodeID) bool {
	id := peer.ID(node)
	switch r := c.n.table.get(id); {
	case r == nil:
		return c.n.ways.young(id)
	case r.member.Load():
		return r.silent() < r.table.suspectAfter()
	default:
		return r.silent() < livelyGuest
	}
}

// Ask is part of leasing.Site.
func (c coordinators) Ask(ctx context.Context, node lease.NodeID, addr string, r lease.Request) (lease.Answer, error) {
	start := time.Now()
	a, err := c.ask(ctx, node, addr, r)
	c.n.log.Debug("asked coordinator", "peer", peer.ID(node), "nar", r.Nar, "verb", r.Verb, "kind", a.Kind, "sources", len(a.Sources), "took", time.Since(start), "err", err)
	return a, err
}

func (c coordinators) ask(ctx context.Context, node lease.NodeID, addr string, r lease.Request) (lease.Answer, error) {
	n := c.n
	if node == c.Self() {
		return n.coordinator.Handle(node, r, c.Live(), time.Now()), nil
	}
	p, err := n.reach(ctx, node, addr)
	if err != nil {
		return lease.Answer{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://peer"+leasePath, bytes.NewReader(r.Append(nil)))
	if err != nil {
		return lease.Answer{}, err
	}
	resp, err := n.roundTrip(p, req)
	if err != nil {
		return lease.Answer{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		// An older node, or one whose operator wants none of it: it is not asked again.
		p.leaseless.Store(resp.StatusCode == http.StatusNotFound)
		return lease.Answer{}, fmt.Errorf("p2p: peer %s: lease: status %d", p.id, resp.StatusCode)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, lease.MaxMessage+1))
	if err != nil {
		return lease.Answer{}, fmt.Errorf("p2p: peer %s: lease: %w", p.id, err)
	}
	return lease.DecodeAnswer(b)
}

// reach returns a node, connecting to it if it is not: to addr, or to where it was last.
func (n *Node) reach(ctx context.Context, node lease.NodeID, addr string) (*remote, error) {
	id, err := peer.IDFromBytes([]byte(node))
	h := n.host.Load()
	switch {
	case err != nil:
		return nil, fmt.Errorf("p2p: %w", err)
	case h == nil:
		return nil, errNoHost
	}
	if r := n.table.get(id); r != nil && n.admitted(r) {
		return r, nil
	}
	if err := n.approach(ctx, *h, id, addr); err != nil {
		return nil, fmt.Errorf("p2p: peer %s: %w", id, err)
	}
	r, _ := n.table.add(id)
	if n.admitted(r) {
		return r, nil
	}
	select {
	case <-r.in:
		return r, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("p2p: peer %s: %w", id, ctx.Err())
	}
}

// approach has a node connected to, and waits for it as long as ctx allows.
func (n *Node) approach(ctx context.Context, h host.Host, id peer.ID, addr string) error {
	u, fresh := n.ways.take(id)
	if u == nil {
		return errManyWays
	}
	if fresh {
		to := peer.AddrInfo{ID: id}
		for o := range n.neighbours {
			if addr == "" && o.id == id {
				addr = o.addr
			}
		}
		if a, _, err := parseAddr(addr); err == nil && n.gate.allowedAddr(a) {
			to.Addrs = []ma.Multiaddr{a}
		}
		own, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*dialTime) // identifying comes on top
		if !n.crew.enter() {
			cancel()
			n.ways.end(id, u, errNoHost)
			return errNoHost
		}
		go func() {
			defer n.crew.leave()
			defer cancel()
			n.ways.end(id, u, connect(own, h, to))
		}()
	}
	select {
	case <-u.done:
		return u.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// answerLease answers as coordinator. It takes from the asker what it says of itself, and
// nothing that it says of others.
func (n *Node) answerLease(w http.ResponseWriter, req *http.Request, id peer.ID) {
	switch {
	case !n.cfg.Leases:
		w.WriteHeader(http.StatusNotFound)
		return
	case n.draining.Load():
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(headerTime))
	b, err := io.ReadAll(io.LimitReader(req.Body, lease.MaxMessage+1))
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	r, err := lease.DecodeRequest(b)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	a := n.coordinator.Handle(nodeID(id), r, coordinators{n}.Live(), time.Now())
	if h := n.host.Load(); h != nil {
		n.address(*h, &a)
	}
	out := a.Append(nil)
	w.Header().Set("Content-Length", strconv.Itoa(len(out)))
	_, _ = w.Write(out)
}

// address fills in where the nodes of an answer are.
func (n *Node) address(h host.Host, a *lease.Answer) {
	where := func(node lease.NodeID) string {
		if addrs := n.reachable(h, peer.ID(node)); len(addrs) > 0 {
			return addrs[0].String()
		}
		return ""
	}
	if a.Kind == lease.Elsewhere {
		a.Addr = where(a.Node)
	}
	for i := range a.Sources {
		a.Sources[i].Addr = where(a.Sources[i].Node)
	}
}

// Lease is an agreement with the site about one download of this node. Next and End are for
// one goroutine.
type Lease struct {
	*leasing.Lease
	n    *Node
	info *verify.Info
	form nix.Form
	last *Following // nil: upstream, or nothing yet
}

// Lease begins to agree on who fetches a form of size bytes of info's NAR. Nil: no share key
// signed it, so that nobody may know that this machine wants it, or there are no leases.
func (n *Node) Lease(ctx context.Context, info *verify.Info, form nix.Form, size int64) *Lease {
	if !n.cfg.Leases || n.host.Load() == nil || !info.SignedByAny(n.cfg.ShareKeys) {
		return nil
	}
	want := lease.Want{Nar: info.NarHash(), Form: form, Size: size}
	return &Lease{Lease: n.leases.Begin(ctx, want), n: n, info: info, form: form}
}

// Next says who gives the bytes that come next, nil being upstream, until the turn ends.
func (l *Lease) Next(ctx context.Context) (from *Following, turn context.Context) {
	var o leasing.Outcome
	if l.last != nil {
		o = l.last.outcome()
	}
	yields := l.Yields()
	turn, sources := l.Lease.Next(ctx, o)
	l.last = nil
	told := "fetch"
	if len(sources) > 0 {
		if told = "follow"; yields {
			told = "yield"
		}
		l.last = &Following{l: l, sources: sources, failed: map[lease.NodeID]bool{}}
	}
	l.n.cfg.Metrics.Leases.WithLabelValues(told).Inc()
	l.n.log.Debug("told where to take it from", "nar", l.info.NarHash(), "sources", len(sources))
	return l.last, turn
}

// OtherFormError says that others get a NAR in another form than the one that is wanted here.
type OtherFormError struct {
	Form nix.Form
	Size int64 // of that form in bytes
}

func (e *OtherFormError) Error() string { return "p2p: others get it as " + e.Form.String() }

// Following is a source: the nodes that a coordinator named.
type Following struct {
	l       *Lease
	sources []lease.Source
	fetch   *fetch // nil before NAR
	failed  map[lease.NodeID]bool
}

// Name returns the label of this source in metrics.
func (f *Following) Name() string { return f.l.n.Name() }

// NAR opens the first of the nodes that gives the form from byte off on. Those that are busy
// are waited for.
func (f *Following) NAR(ctx context.Context, info *verify.Info, form nix.Form, off int64) (*verify.Unverified, error) {
	n := f.l.n
	f.fetch = n.newFetch(info, form, off)
	f.fetch.gives = f.l.From
	var other *OtherFormError
	for _, s := range f.sources {
		f.failed[s.Node] = true // until it is there to be asked
		// Who has the whole file decodes it once for all who ask.
		if s.Form != form && !(form.IsRaw() && s.Whole()) {
			other = &OtherFormError{s.Form, s.Size}
			continue
		}
		dctx, cancel := context.WithTimeout(ctx, openTime)
		r, err := n.reach(dctx, s.Node, s.Addr)
		cancel()
		if err != nil {
			n.log.Debug("told to follow who cannot be reached", "err", err)
			continue
		}
		f.fetch.only = append(f.fetch.only, r.id)
	}
	switch {
	case len(f.fetch.only) > 0:
	case other != nil:
		return nil, other
	default:
		return nil, errNobody
	}
	claim, err := f.fetch.claim(ctx)
	if err == nil || errors.Is(err, errBusy) {
		for _, id := range f.fetch.only {
			delete(f.failed, nodeID(id))
		}
	}
	return claim, err
}

// Convict says that all bytes of this form came from peers and were wrong.
func (f *Following) Convict(info *verify.Info, form nix.Form, err error) {
	f.l.n.Convict(info, form, err)
}

// outcome is how following ended.
func (f *Following) outcome() (o leasing.Outcome) {
	if f.fetch != nil {
		for id := range f.fetch.tried {
			f.failed[nodeID(id)] = true
		}
		o.Stalled = nodeID(f.fetch.stalled)
	}
	for node := range f.failed {
		o.Failed = append(o.Failed, node)
	}
	return o
}
