package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/p2p/lease"
	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/p2p/reputation"
	"github.com/nixp2p/nixp2p/p2p/site"
	"github.com/nixp2p/nixp2p/verify"
)

const (
	// largeNAR and more bytes are announced in the DHT, asked for compressed on slow links, and
	// taken from trusted peers first.
	largeNAR = 1 << 20
	// dhtWait is how long a transfer waits for the DHT. The look-up goes on by itself.
	dhtWait = 20 * time.Millisecond
)

// agreed is what the site has agreed on.
type agreed struct {
	lease  atomic.Pointer[lease.Lease] // nil before a coordinator was asked
	inZone atomic.Pointer[lease.Lease] // the same within the zone
	zoned
	sharers atomic.Int32 // other machines that get the NAR at the same time
}

// zoned is what a session knows of the zone. It is for the goroutine that calls Next and End.
type zoned struct {
	zone       string          // that the node is in; "": all peers are alike
	zoneOver   <-chan struct{} // this node gets the NAR for the zone, until then
	lastInZone bool            // the zone agreed on the last turn
	far        bool            // peers of other zones that list the path were asked to the end
	ended      chan struct{}   // closed by End
}

// tried is who was asked to the end.
type tried struct {
	direct bool // the peers that list the path
	asked  bool // the DHT
}

// session is a source.Session.
type session struct {
	c    *Client
	want source.Want

	// For the goroutine that calls Next and End.
	last *stream // of the turn before
	tried
	size map[nix.Form]int64

	agreed
	deltas

	mu     sync.Mutex
	named  []peer.ID // by busy peers and the DHT
	form   *nix.Form // of all turns; nil before the first
	failed map[peer.ID]bool
	from   map[string]machine.ID // peers that sent bytes, by ID, and where they are
	open   *stream               // that sends now
	gap    bool                  // not all bytes from the first one on came from peers
	at     int64                 // the byte after the last one that came
}

var errBrokeOff = errors.New("p2p: the peer broke off")

// Begin starts the transfer of one NAR. It returns nil if there is nobody to ask.
func (c *Client) Begin(_ context.Context, want source.Want) source.Session {
	if !c.cfg.Site.Any() || len(want.Forms) == 0 || !want.Info.SignedByAny(c.cfg.ShareKeys) {
		return nil
	}
	s := &session{c: c, want: want, size: map[nix.Form]int64{}, failed: map[peer.ID]bool{}, from: map[string]machine.ID{}}
	s.zone, s.ended = c.cfg.Zone.name(), make(chan struct{})
	s.far = s.zone == "" // nobody is far
	for _, f := range want.Forms {
		s.size[f.Form] = f.Size
	}
	return s
}

// Next says where the bytes from byte off on come from: first peers that list the path, then
// those that a coordinator names. Peers of other zones come after what the own zone agrees on, so
// that each byte crosses once.
func (s *session) Next(ctx context.Context, off int64) (source.Turn, error) {
	ofSite := s.finish()
	var ofZone lease.Outcome
	if s.lastInZone {
		ofZone, ofSite = ofSite, lease.Outcome{}
	}
	s.lastInZone = false
	once := s.want.Whole && len(s.sent()) > 0
	coordinate := s.want.Coordinate && !s.want.Whole
	err := errBrokeOff
	if !s.direct && !once {
		var st *stream
		if st, err = s.fromHolders(ctx, off, s.zone); err == nil {
			return s.turn(st, off, nil), nil
		}
		if ctx.Err() != nil {
			return source.Turn{}, ctx.Err()
		}
		s.direct = true
	}
	if s.zone != "" && coordinate && s.c.cfg.Zone.Leases != nil {
		if turn, follow, err := s.askZone(ctx, off, ofZone); follow || err != nil {
			return turn, err
		}
	}
	if !s.far && !once {
		var st *stream
		if st, err = s.fromHolders(ctx, off, ""); err == nil {
			return s.fetchForZone(&s.c.group, s.turn(st, off, nil), &st.form), nil
		}
		if ctx.Err() != nil {
			return source.Turn{}, ctx.Err()
		}
		s.far = true
	}
	switch {
	case !coordinate:
		return source.Turn{}, err
	case s.c.cfg.Leases == nil:
		return source.Turn{}, source.ErrFetch
	}
	turn, err := s.agree(ctx, s.c.cfg.Leases, &s.lease, lease.Want{Nar: s.want.Info.NarHash()}, off, ofSite)
	switch {
	case err == nil:
		turn = s.fetchForZone(&s.c.group, turn, &turn.Stream.Form)
	case errors.Is(err, source.ErrFetch):
		turn = s.fetchForZone(&s.c.group, turn, nil)
	}
	return turn, err
}

// turn notes that a stream is the next source.
func (s *session) turn(st *stream, off int64, over <-chan struct{}) source.Turn {
	s.last = st
	s.mu.Lock()
	defer s.mu.Unlock()
	s.form = &st.form
	s.open = st
	s.gap = s.gap || off != s.at
	s.at = off
	return source.Turn{Stream: &source.Stream{Body: st, Form: st.form, Size: st.size, Peer: st.p.Key}, Over: over}
}

// finish ends the turn before, and returns what a coordinator is told of it.
func (s *session) finish() (o lease.Outcome) {
	st := s.last
	s.last = nil
	if st == nil {
		return o
	}
	s.mu.Lock()
	s.open = nil
	at := s.at
	s.mu.Unlock()
	err := st.ended()
	if err == nil {
		return o // it was over, or the reader left it
	}
	if st.delta {
		// The peer gives the rest as usual.
		s.deltas.fail()
		return o
	}
	slow := errors.Is(err, errStalled) || errors.Is(err, errTooSlow)
	if slow {
		s.c.late(st, at)
	}
	if slow && st.named {
		// It may be waiting for upstream, as everybody else who follows: the coordinator knows.
		o.Stalled = lease.NodeID(st.p.ID)
		return o
	}
	s.fail(st.p)
	if slow {
		o.Stalled = lease.NodeID(st.p.ID)
	} else {
		o.Failed = []lease.NodeID{lease.NodeID(st.p.ID)}
	}
	return o
}

// fail has a peer not asked again in this session.
func (s *session) fail(p *site.Peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed[p.ID] = true
}

// usable reports whether a peer may be asked: whoever named it, what is held against it counts.
func (s *session) usable(p *site.Peer) bool {
	if p == nil || !p.Usable() || s.c.blamed(p) || s.c.rests(p) {
		return false
	}
	if !s.want.Whole && s.c.avoid.Has(asked{p.ID, s.want.Info.NarHash()}) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.failed[p.ID]
}

// holders returns the peers in a zone ("": all) that may have the path, in no order.
func (s *session) holders(ctx context.Context, zone string) (list []*site.Peer) {
	add := func(p *site.Peer) {
		if s.usable(p) && near(zone, p) && !slices.Contains(list, p) {
			list = append(list, p)
		}
	}
	for _, p := range s.c.cfg.Site.Holders(keyOf(s.want.Info)) {
		add(p)
	}
	if len(list) == 0 && zone == "" && !s.asked && s.c.cfg.DHT != nil && s.want.Info.NarSize() >= largeNAR {
		s.asked = true
		wait, cancel := context.WithTimeout(ctx, dhtWait)
		defer cancel()
		s.name(s.c.cfg.DHT.Providers(wait, s.want.Info.NarHash()))
	}
	s.mu.Lock()
	named := slices.Clone(s.named)
	s.mu.Unlock()
	for _, id := range named {
		add(s.c.cfg.Site.Peer(id))
	}
	return list
}

// name notes peers that others named.
func (s *session) name(ids []peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.named = append(s.named, ids...)
}

// nobody returns the error for a NAR that no peer gives.
func (s *session) nobody() error {
	if len(s.c.cfg.Site.Holders(keyOf(s.want.Info))) > 0 {
		return errQuiet
	}
	return errNobody
}

// agree follows what the nodes of leases agree on, until a stream is open or this node is to
// fetch. At keeps the lease.
func (s *session) agree(ctx context.Context, leases *lease.Client, at *atomic.Pointer[lease.Lease], want lease.Want, off int64, o lease.Outcome) (source.Turn, error) {
	l := at.Load()
	if l == nil {
		want.Forms = s.want.Forms
		if s.form != nil { // bytes have come: no other is of use
			want.Forms = []source.Sized{{Form: *s.form, Size: s.size[*s.form]}}
		}
		l = leases.Begin(want)
		if off > 0 {
			l.Progress(0, off)
		}
		at.Store(l)
	}
	for {
		d, err := l.Next(ctx, o)
		if err != nil {
			return source.Turn{}, err
		}
		told := "follow"
		switch {
		case d.Fetch():
			told = "fetch"
		case d.Yielded:
			told = "yield"
		}
		s.c.cfg.Metrics.Leases.WithLabelValues(told).Inc()
		s.c.log.Debug("a coordinator said where to take a NAR from", "nar", s.want.Info.NarHash(), "told", told, "sources", len(d.Sources))
		if d.Fetch() {
			return source.Turn{Over: d.Over}, source.ErrFetch
		}
		st, failed := s.follow(ctx, d, off)
		if st != nil {
			l.From(lease.NodeID(st.p.ID), st.form)
			return s.turn(st, off, d.Over), nil
		}
		if ctx.Err() != nil {
			return source.Turn{}, ctx.Err()
		}
		o = lease.Outcome{Failed: failed}
	}
}

// leases returns those that there are.
func (a *agreed) leases() (list []*lease.Lease) {
	for _, at := range []*atomic.Pointer[lease.Lease]{&a.inZone, &a.lease} {
		if l := at.Load(); l != nil {
			list = append(list, l)
		}
	}
	return list
}

// Progress tells those who coordinate how far this machine is.
func (s *session) Progress(readable, received int64) {
	for _, l := range s.leases() {
		l.Progress(readable, received)
	}
}

// FetchAnyway tells those who coordinate that this machine fetches from upstream.
func (s *session) FetchAnyway() {
	s.mu.Lock()
	st, at := s.open, s.at
	s.mu.Unlock()
	if st != nil {
		s.c.late(st, at)
	}
	for _, l := range s.leases() {
		l.FetchAnyway()
	}
}

// received notes bytes of a peer.
func (s *session) received(p *site.Peer, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.from[p.Key] = p.Host
	s.at += int64(n)
}

// sent returns the peers that sent bytes.
func (s *session) sent() (keys []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.from {
		keys = append(keys, k)
	}
	return keys
}

// Peers returns how many peers sent bytes.
func (s *session) Peers() int { return len(s.sent()) }

// Sharers returns how many machines get this NAR at the same time, as coordinators said.
func (s *session) Sharers() int { return 1 + int(s.sharers.Load()) }

// Trusted reports whether every peer that sent bytes, or is about to, is trusted, and none came as
// a delta.
func (s *session) Trusted() bool {
	if len(s.deltas.list()) > 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open != nil && !s.c.trusted(s.open.p.Key, s.open.p.Host) {
		return false
	}
	for k, on := range s.from {
		if !s.c.trusted(k, on) {
			return false
		}
	}
	return true
}

// whole reports whether all bytes of the form came from peers.
func (s *session) whole() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.form != nil && !s.gap && s.at == s.size[*s.form]
}

// End ends the session, and draws the conclusions.
func (s *session) End(ctx context.Context, o source.Outcome) {
	if s.last != nil {
		_ = s.last.Close()
	}
	close(s.ended)
	for _, l := range s.leases() {
		l.End(ctx, o == source.Correct)
	}
	peers, whole := s.sent(), s.whole()
	used := s.deltas.list()
	if o == source.Wrong {
		s.c.countWrong(verify.ReasonHash)
	}
	switch {
	case len(used) > 0 && (o == source.Wrong || o == source.Mixed):
		s.c.deltasWereWrong(ctx, s.want.Info, used, len(used) == 1 && len(peers) == 1 && whole && s.deltas.allowed())
	case o == source.Correct && whole:
		for _, k := range peers {
			s.c.cfg.Reputation.Trust(k)
		}
	case o == source.Wrong && whole && len(peers) == 1:
		if m := s.from[peers[0]]; m != (machine.ID{}) {
			s.c.liars.Add(m, reputation.BlameFor)
		}
		s.c.blame(peers[0], source.WrongBytes, s.want.Info.StorePath().String(), &verify.InvalidError{
			Reason: verify.ReasonHash, Err: fmt.Errorf("all bytes of NAR %s came from this peer, and they are wrong", s.want.Info.NarHash()),
		})
	case o == source.Wrong, o == source.Mixed:
		s.mixed(peers)
	}
}

// mixed notes that these peers took part in a wrong NAR.
func (s *session) mixed(peers []string) {
	for _, k := range peers {
		s.c.cfg.Reputation.Distrust(k)
		if id, err := peer.Decode(k); err == nil {
			s.c.avoid.Add(asked{id, s.want.Info.NarHash()}, avoidFor)
		}
	}
	if len(peers) > 0 {
		s.c.cfg.Events.Send(source.Event{Kind: source.Mixture, Source: source.Peer, StorePath: s.want.Info.StorePath().String()})
	}
}
