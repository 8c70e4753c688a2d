package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/nixp2p/nixp2p/internal/backoff"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/update"
	"github.com/nixp2p/nixp2p/verify"
)

const (
	// noDeltaFor is how long a mirror that sent a wrong delta is not asked for another, and
	// wrongDeltaFor the same if this machine's base turns out to be right.
	noDeltaFor    = time.Hour
	wrongDeltaFor = 24 * time.Hour
	// farAway is the latency of a narinfo from which a link whose rate is not known counts as slow, and
	// assumedRate what is then taken for its rate, in bytes a second.
	farAway     = 2 * time.Millisecond
	assumedRate = 1e6
	// longest bounds how long a NAR would take without a delta. Nix gets no byte before all of a delta is
	// verified, and gives a download up in which no byte came for five minutes; a poor delta has
	// a third of the bytes of the NAR.
	longest = 10 * time.Minute
	// maxDeltas is how many NARs are remembered that came as deltas, and maxDoubted how many bases
	// wait to be hashed.
	maxDeltas  = 1 << 10
	maxDoubted = 16
)

// deltas is what is known of NARs that came as what differs from a base of this machine.
type deltas struct {
	bases   *update.Bases                 // nil: none are asked for
	came    *lru.Cache[sent, source.Base] // by what was sent last
	refused *backoff.Set[int]             // mirrors that are not asked for any, by index
	doubted chan doubted                  // for Run
}

// doubted is a base of which a wrong NAR was made.
type doubted struct {
	m    *mirror
	base source.Base
}

func newDeltas(bases *update.Bases) deltas {
	came, _ := lru.New[sent, source.Base](maxDeltas) // fails for sizes below 1 only
	return deltas{bases, came, backoff.NewSet[int](maxDeltas), make(chan doubted, maxDoubted)}
}

// Update is NAR from byte 0 on, for a reader that shows nothing before it has verified all of it: in place of the
// form, a mirror that is a nixp2p, behind a slow link, may send what differs from a path of this
// machine's store. It reports whether that is so: then the body is the raw NAR.
func (u *Upstreams) Update(ctx context.Context, info *verify.Info, form nix.Form) (nar *verify.Unverified, delta bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	nar, delta, err = u.nar(ctx, cancel, info, form, 0, true)
	if err != nil {
		cancel()
		return nil, false, fmt.Errorf("upstream: get %s NAR of %s: %w", form, info.StorePath(), err)
	}
	return nar, delta, nil
}

// DeltaBases returns what would be proposed to a mirror for a NAR, and its URL.
func DeltaBases(u *Upstreams, info *verify.Info) (mirror string, bases []source.Base) {
	may, _ := u.order()
	for _, m := range may {
		if _, ok := u.givesDeltas(m, info); ok {
			if list := u.deltas.bases.List(info, nil); len(list) > 0 {
				return m.name, list
			}
		}
	}
	return "", nil
}

// givesDeltas reports whether a mirror sends deltas, and one of info's NAR would arrive sooner, and the rate in bytes a
// second at which it would come without.
func (s *shared) givesDeltas(m *mirror, info *verify.Info) (rate float64, ok bool) {
	c := m.info.Load()
	if s.deltas.bases == nil || c == nil || !c.deltas || s.deltas.refused.Has(m.index) {
		return 0, false
	}
	rate = m.pace.now().Rate
	switch {
	case rate == 0 && m.latency.get() < farAway, rate >= update.MaxRate:
		return rate, false
	case rate == 0:
		rate = assumedRate
	}
	size := info.NarSize()
	if l, ok := s.located(m, info); ok && l.size > 0 {
		size = min(size, l.size)
	}
	return rate, float64(size) <= rate*longest.Seconds()
}

// propose opens the bases that are named with a request to m for a NAR. The caller closes them.
func (s *shared) propose(ctx context.Context, m *mirror, info *verify.Info, q *request) (p update.Proposal) {
	ok := false
	if q.rate, ok = s.givesDeltas(m, info); ok {
		p = s.deltas.bases.Propose(ctx, info, nil)
		q.bases = p.Names()
	}
	return p
}

var errNotProposed = errors.New("a delta of what was not proposed")

// acceptDelta makes an answer the source if it is a delta, and reports whether it is. The bytes of the file
// are those of the delta then. It closes all bases but that of the delta.
func (r *resumableBody) acceptDelta(m *mirror, got *reply, p update.Proposal) (is bool, err error) {
	key := sentBy(m, r.info, nix.Raw)
	is = len(p) > 0 && got.status == http.StatusOK && got.header.Get("Content-Encoding") == update.Coding
	nar, err := nix.ParseNarHash32(got.header.Get(update.BaseHeader))
	if !is || err != nil {
		nar = nix.NarHash{}
	}
	base, ok := p.Take(nar)
	switch {
	case is && (!ok || !got.own):
		if ok {
			_ = base.Close()
		}
		r.mayDelta = false
		r.u.deltas.refused.Add(m.index, noDeltaFor)
		return true, r.strike(m, errNotProposed)
	case !is:
		if len(p) > 0 {
			r.u.deltas.bases.Declined()
		}
		if r.form.IsRaw() {
			r.u.deltas.came.Remove(key)
		}
		return false, nil
	}
	r.u.deltas.came.Add(key, base.Base)
	r.form = nix.Raw
	got.body.pace, got.body.own = nil, nil // it says how fast the delta is made
	r.base = &base
	r.fileSize = fileSize{size: got.length, most: mostFile(r.info.NarSize())}
	r.current = current{src: got, from: m}
	r.open = func() error { return io.ErrUnexpectedEOF } // it cannot be resumed
	return true, nil
}

// wasWrong notes that a NAR was wrong that m sent as a delta, and reports whether it did. Nobody is
// to blame yet: the base may be damaged, here or there.
func (d *deltas) wasWrong(m *mirror, k sent) bool {
	base, ok := d.came.Peek(k)
	if !ok {
		return false
	}
	d.came.Remove(k)
	d.refused.Add(m.index, noDeltaFor)
	select {
	case d.doubted <- doubted{m, base}:
	default: // there are enough
	}
	return true
}

// checkBases is the part of Run that hashes bases of which wrong NARs were made. The store puts one that is
// wrong into quarantine.
func (d *deltas) checkBases(ctx context.Context, log *slog.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case x := <-d.doubted:
			right := d.bases.Right(ctx, x.base)
			log.Info("a delta made a wrong NAR", "upstream", x.m.name, "base", x.base.Nar, "base_is_right", right)
			if right {
				d.refused.Add(x.m.index, wrongDeltaFor)
			}
		}
	}
}
