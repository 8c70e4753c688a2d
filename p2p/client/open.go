package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/nixp2p/nixp2p/internal/hedge"
	"github.com/nixp2p/nixp2p/internal/httprange"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/runclock"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/update"
	"github.com/nixp2p/nixp2p/p2p/balance"
	"github.com/nixp2p/nixp2p/p2p/lease"
	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/p2p/site"
	"github.com/nixp2p/nixp2p/p2p/wire"
	"github.com/nixp2p/nixp2p/verify"
)

const (
	// openTime is how long a peer may take to begin with a NAR, namedTime the same for one that
	// a coordinator named: where all machines start at once they have much to do.
	openTime  = time.Second
	namedTime = 2 * time.Second
	// formsTime is how long peers are awaited that are asked which forms they have, formsAsked
	// how many of them.
	formsTime  = 300 * time.Millisecond
	formsAsked = 3
	// busyFirst is the wait when all peers that have a NAR are busy, twice as long each time up
	// to busyLast, and busyTime in all.
	busyFirst = 50 * time.Millisecond
	busyLast  = time.Second
	busyTime  = 5 * time.Second
	// openParallel peers are asked for the same bytes at a time.
	openParallel = 2
)

var errBusy = errors.New("p2p: the peers that have it are busy")

// busyError is a refusal, with other peers that were named.
type busyError struct{ others []peer.ID }

func (e *busyError) Error() string { return errBusy.Error() }

// fromHolders opens a stream of a peer in a zone ("": any) that lists the path, waiting a while if
// all are busy.
func (s *session) fromHolders(ctx context.Context, off int64, zone string) (*stream, error) {
	limit := time.Now().Add(busyTime)
	for wait := busyFirst; ; wait = min(2*wait, busyLast) {
		peers := s.holders(ctx, zone)
		if len(peers) == 0 {
			return nil, s.nobody()
		}
		form, ok := s.choose(ctx, s.order(peers), off)
		if !ok {
			return nil, errNobody
		}
		st, busy, err := s.openAny(ctx, peers, form, off)
		if err == nil || !busy || ctx.Err() != nil {
			return st, err
		}
		if time.Now().Add(wait).After(limit) {
			return nil, errBusy
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// order puts peers into the order in which they are asked. A wrong large NAR costs much:
// unverified peers are tried with what is small.
func (s *session) order(peers []*site.Peer) []*site.Peer {
	balance.Order(peers, (*site.Peer).Meter)
	rank := func(p *site.Peer) int {
		if s.c.trusted(p.Key, p.Host) {
			return 0
		}
		return 1
	}
	if s.want.Info.NarSize() >= largeNAR {
		slices.SortStableFunc(peers, func(a, b *site.Peer) int {
			return rank(a) - rank(b)
		})
	}
	return peers
}

// choose decides in which form to take the NAR, by what the first peers of the list have: the
// preferred one that is whole somewhere, then one that is coming in and further than here, then
// raw made from a file. It puts the peers that have the form first. Once bytes have come, only
// their form is of use.
func (s *session) choose(ctx context.Context, peers []*site.Peer, off int64) (nix.Form, bool) {
	s.mu.Lock()
	chosen := s.form
	s.mu.Unlock()
	if chosen != nil {
		return *chosen, true
	}
	listed := s.ask(ctx, peers)
	best, bestPeer, form := numFits, -1, nix.Raw
	for i, forms := range listed {
		for j, f := range s.want.Forms {
			if fit := fitOf(forms, f, off, j); fit < best {
				best, bestPeer, form = fit, i, f.Form
			}
		}
	}
	if bestPeer < 0 {
		return form, false
	}
	peers[0], peers[bestPeer] = peers[bestPeer], peers[0]
	return form, true
}

// Fits of what a peer has, the best first; between them there is room for preferences.
const (
	fitWhole   = 0
	fitPartial = 100
	fitDecoded = 200
	numFits    = 1000
)

// fitOf rates what a peer has of the form that is preferred in place rank.
func fitOf(forms []wire.Present, want source.Sized, off int64, rank int) int {
	fit := numFits
	for _, p := range forms {
		switch {
		case p.Form == want.Form && p.Size == want.Size && p.Whole():
			fit = min(fit, fitWhole+rank)
		case p.Form == want.Form && p.Size == want.Size && p.Bytes > off:
			fit = min(fit, fitPartial+rank)
		case want.Form.IsRaw() && !p.Form.IsRaw() && p.Whole():
			fit = min(fit, fitDecoded+rank)
		}
	}
	return fit
}

// partOf returns how many bytes of a form a peer says it has.
func partOf(forms []wire.Present, want source.Sized) (bytes int64) {
	for _, p := range forms {
		if p.Form == want.Form && p.Size == want.Size {
			bytes = max(bytes, p.Bytes)
		}
	}
	return bytes
}

// ask returns what the first peers of the list have, in the order of the list. If one said
// lately that it has all of a form, no other is asked.
func (s *session) ask(ctx context.Context, peers []*site.Peer) [][]wire.Present {
	forms := make([][]wire.Present, len(peers))
	for i, p := range peers {
		if a, ok := s.c.answers.Get(asked{p.ID, s.want.Info.NarHash()}); ok && time.Now().Before(a.until) {
			forms[i] = a.forms
		}
	}
	for _, list := range forms {
		for _, f := range s.want.Forms {
			if fitOf(list, f, 0, 0) == fitWhole {
				return forms
			}
		}
	}
	ctx, cancel := runclock.WithTimeout(ctx, formsTime)
	defer cancel()
	var all sync.WaitGroup
	n := 0
	for i, p := range peers {
		if forms[i] != nil {
			continue
		}
		if n++; n > formsAsked {
			break
		}
		all.Go(func() {
			// A peer that does not answer has nothing of use now.
			forms[i], _ = s.c.forms(ctx, p, s.want.Info)
		})
	}
	all.Wait()
	return forms
}

// openAny opens the first of the peers that gives the form, asking a second one when the first
// is slow. It reports whether one of them has it but no room.
func (s *session) openAny(ctx context.Context, peers []*site.Peer, form nix.Form, off int64) (st *stream, busy bool, err error) {
	return s.race(ctx, peers, openTime, s.c.opens.After, func(ctx context.Context, p *site.Peer) (*stream, error) {
		forms, err := s.c.forms(ctx, p, s.want.Info)
		if err != nil {
			return nil, err
		}
		want := source.Sized{Form: form, Size: s.size[form]}
		o := offered{has: want.Size}
		switch fitOf(forms, want, off, 0) {
		case numFits:
			return nil, errNobody
		case fitPartial:
			o.partial, o.has = true, partOf(forms, want)
		}
		st, err := s.openOne(ctx, p, form, off, o)
		if !o.partial && source.Absent(err) {
			s.c.rest(p)
		}
		return st, err
	})
}

// follow opens the first of the nodes that a coordinator named, or returns those that failed.
func (s *session) follow(ctx context.Context, d lease.Decision, off int64) (st *stream, failed []lease.NodeID) {
	s.sharers.Store(max(s.c.machines(d.Sources), s.sharers.Load()))
	forms := map[peer.ID]lease.Source{}
	var peers []*site.Peer
	for _, x := range d.Sources {
		failed = append(failed, x.Node)
		id, err := peer.IDFromBytes([]byte(x.Node))
		if err != nil || s.form != nil && *s.form != x.Form || s.size[x.Form] != x.Size {
			continue
		}
		dial, cancel := runclock.WithTimeout(ctx, openTime)
		p, err := s.c.cfg.Site.Connect(dial, id, x.Addr)
		cancel()
		if err != nil || !s.usable(p) || slices.Contains(peers, p) {
			continue
		}
		forms[p.ID] = x
		peers = append(peers, p)
	}
	limit := s.c.cfg.Clock.Now().Add(namedTime)
	for wait := busyFirst; len(peers) > 0; wait *= 2 {
		st, busy, err := s.race(ctx, peers, namedTime, func() time.Duration { return openTime }, func(ctx context.Context, p *site.Peer) (*stream, error) {
			x := forms[p.ID]
			o := offered{named: true, partial: !x.Whole()}
			if together(s.c.cfg.Site, p, d.By) {
				o.has = x.Bytes
			}
			st, err := s.openOne(ctx, p, x.Form, off, o)
			switch {
			case err == nil:
			case source.Absent(err) && o.partial:
				err = &busyError{} // told to fetch a moment ago, it has not begun yet
			}
			return st, err
		})
		if err == nil {
			return st, nil
		}
		if !busy || ctx.Err() != nil || s.c.cfg.Clock.Now().Add(wait).After(limit) {
			break
		}
		select {
		case <-ctx.Done():
			return nil, failed
		case <-time.After(wait):
		}
	}
	return nil, failed
}

// machines returns how many connected machines are among the sources: identities cost nothing.
func (c *Client) machines(sources []lease.Source) int32 {
	seen := map[machine.ID]bool{}
	for _, x := range sources {
		if p := c.cfg.Site.Peer(peer.ID(x.Node)); p != nil && p.Member() {
			seen[p.Machine] = true
		}
	}
	return int32(len(seen))
}

// race opens the first of the peers that answers. The others are given up, and nothing is held
// against them.
func (s *session) race(ctx context.Context, peers []*site.Peer, limit time.Duration, after func() time.Duration,
	open func(context.Context, *site.Peer) (*stream, error),
) (st *stream, busy bool, err error) {
	var mu sync.Mutex
	running, gone := 0, ctx.Done()
	r, release, wait := hedge.Do(ctx, len(peers), openParallel, after, func(ctx context.Context, i int) (*stream, error) {
		mu.Lock()
		if running++; running > 1 {
			s.c.cfg.Metrics.PeerHedges.WithLabelValues("nar", "sent").Inc()
		}
		mu.Unlock()
		p := peers[i]
		// The limit is for the head of the answer; the body goes on as long as ctx.
		octx, cancel := context.WithCancel(ctx)
		stop := runclock.AfterFunc(s.c.cfg.Clock.Now, s.c.cfg.Clock.Now().Add(limit), cancel)
		st, err := open(octx, p)
		if inTime := stop(); err == nil && !inTime {
			_ = st.Close()
			err = context.DeadlineExceeded
		}
		if err != nil {
			cancel()
		} else {
			st.ends, st.gone = append(st.ends, cancel), gone
		}
		mu.Lock()
		defer mu.Unlock()
		running--
		var full *busyError
		switch {
		case err == nil || ctx.Err() != nil:
		case errors.As(err, &full):
			busy = true
			s.c.cfg.Metrics.PeerBusy.WithLabelValues("received").Inc()
			s.name(full.others)
		default:
			s.refused(p, err)
		}
		return st, err
	}, nil, func(st *stream) { _ = st.Close() })
	if !s.c.group.Go(wait) {
		wait()
	}
	mu.Lock()
	defer mu.Unlock()
	if r.Err != nil {
		release()
		return nil, busy, r.Err
	}
	if r.Late {
		s.c.cfg.Metrics.PeerHedges.WithLabelValues("nar", "won").Inc()
	}
	r.Value.ends = append(r.Value.ends, release)
	return r.Value, false, nil
}

// refused draws conclusions from a failed attempt.
func (s *session) refused(p *site.Peer, err error) {
	s.c.log.Debug("peer does not give a NAR", "peer", p.Key, "nar", s.want.Info.NarHash(), "err", err)
	s.fail(p)
	s.c.answers.Remove(asked{p.ID, s.want.Info.NarHash()})
	if invalid := source.Invalid(err); invalid != nil {
		s.c.countWrong(invalid.Reason)
		s.c.blame(p.Key, source.WrongBytes, s.want.Info.StorePath().String(), invalid)
	} else if !source.Absent(err) {
		p.TimedOut()
	}
}

// openOne asks one peer for the bytes from byte off on.
func (s *session) openOne(ctx context.Context, p *site.Peer, form nix.Form, off int64, o offered) (*stream, error) {
	header := http.Header{}
	if off > 0 {
		header.Set("Range", httprange.From(off))
	}
	st := &stream{s: s, p: p, form: form, size: s.size[form], offered: o}
	bases, freeBases := update.Proposal(nil), func() {}
	if s.want.Delta && s.deltas.allowed() && form.IsRaw() && off == 0 && !st.partial {
		bases, freeBases = s.c.propose(ctx, p, s.want.Info)
	}
	if len(bases) > 0 {
		header.Set(wire.BaseHeader, wire.FormatBases(bases.Names()))
		update.SetRate(header, s.c.meter(p).Rate())
	}
	release := func() {}
	zip := form.IsRaw() && st.size-off >= largeNAR && p.Meter().Compress() && s.c.decoders.TryAcquire(1)
	if zip {
		header.Set("Accept-Encoding", string(nix.Zstd))
		release = func() { s.c.decoders.Release(1) }
	}
	start := time.Now()
	resp, err := s.c.get(ctx, p, wire.Request{Nar: s.want.Info.NarHash(), Form: form}, header)
	took := time.Since(start)
	s.c.opens.Observe(took)
	if err != nil {
		bases.Close()
		freeBases()
		release()
		return nil, fmt.Errorf("p2p: peer %s: get NAR: %w", p.Key, err)
	}
	p.Answered(took)
	coded, err := s.accept(resp, p, st, off, asCoded{zip, bases})
	if err != nil {
		_ = resp.Body.Close()
		bases.Close()
		freeBases()
		release()
		return nil, err
	}
	base, isDelta := bases.Take(coded.base)
	switch {
	case isDelta:
		s.deltas.begins(p, base.Base)
		st.beginDelta(resp.Body, base)
		st.ends = append(st.ends, freeBases)
	default:
		freeBases()
		if len(bases) > 0 {
			s.c.cfg.Bases.Declined()
		}
		st.begin(resp.Body, off, coded.zstd)
	}
	st.ends = append(st.ends, release)
	return st, nil
}

// asCoded is how a body may be coded.
type asCoded struct {
	zip   bool
	bases update.Proposal
}

// coding is how a body is coded.
type coding struct {
	zstd bool
	base nix.NarHash // that of a delta; zero if it is none
}

func (c coding) plain() bool { return c == coding{} }

// accept judges the head of an answer, and returns how the body is coded: in a way that may be.
func (s *session) accept(resp *http.Response, p *site.Peer, st *stream, off int64, may asCoded) (coded coding, err error) {
	fail := func(format string, args ...any) (coding, error) {
		return coding{}, fmt.Errorf("p2p: peer %s: "+format, append([]any{p.Key}, args...)...)
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
	case http.StatusNotFound, http.StatusGone:
		return coding{}, errNobody
	case http.StatusServiceUnavailable:
		body, err := io.ReadAll(io.LimitReader(resp.Body, wire.MaxPeerList+1))
		if err != nil {
			return fail("busy: %w", err)
		}
		others, err := wire.ParsePeers(body)
		if err != nil {
			return fail("busy: %w", err)
		}
		return coding{}, &busyError{s.c.cfg.Site.Learn(p, others)}
	default:
		return fail("get NAR: status %d", resp.StatusCode)
	}
	switch name := resp.Header.Get("Content-Encoding"); {
	case name == string(nix.Zstd) && may.zip:
		coded.zstd = true
	case name == update.Coding && off == 0:
		if coded.base, err = deltaHead(resp, may.bases); err != nil {
			return fail("%w", err)
		}
	case name != "":
		return fail("%w", errCoding)
	}
	size, from := resp.ContentLength, int64(0)
	switch {
	case resp.StatusCode == http.StatusPartialContent:
		var length int64
		if from, length, size, err = httprange.ParseContentRange(resp.Header.Get("Content-Range")); err != nil {
			return fail("%w", err)
		}
		if from+length != size {
			return fail("stops before the end")
		}
	case !coded.plain():
		if size, err = strconv.ParseInt(resp.Header.Get(wire.SizeHeader), 10, 64); err != nil {
			return fail("no size")
		}
	}
	switch {
	case from != off:
		return fail("begins at byte %d, not %d", from, off)
	case size <= 0 || coded.plain() && resp.ContentLength != size-off:
		return fail("does not say how much comes")
	case size != st.size && st.form.IsRaw():
		// The size is signed; a node that has this NAR knows it.
		return coding{}, &verify.InvalidError{Reason: verify.ReasonSize, Err: fmt.Errorf("a NAR of %d bytes where %d are signed", size, st.size)}
	case size != st.size:
		return fail("%d bytes where the upstream has %d", size, st.size)
	}
	has := st.size
	if have := resp.Header.Get(wire.HaveHeader); have != "" {
		st.partial = true
		has, _ = strconv.ParseInt(have, 10, 64)
	}
	st.has = min(max(st.has, has), st.size)
	return coded, nil
}
