package transfer

import (
	"context"
	"fmt"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// Transfer is a NAR on its way, for status pages.
type Transfer struct {
	Info    *verify.Info
	Inbound bool        // from elsewhere into the cache; else to Nix
	Form    nix.Form    // of the bytes that are counted
	Source  source.Role // who supplies them, None if nobody does yet
	Peer    string      // ID of the peer that supplies them, "" if none does
	Bytes   int64       // done
	Size    int64       // of the whole, or of the part that was asked for
	Rate    int64       // bytes a second, lately
	Started time.Time
	Readers int // responses that wait for it
}

// Transfers returns what is on its way now, in no order.
func (s *Server) Transfers() []Transfer {
	list := s.responses.list()
	s.downloads.mu.Lock()
	defer s.downloads.mu.Unlock()
	for _, d := range s.downloads.running {
		t := Transfer{
			Info: d.info, Inbound: true, Form: d.forms[0].Form, Size: d.forms[0].Size, Bytes: d.flow.Load(),
			Rate: d.flow.Rate(d.asked), Started: d.asked, Readers: d.followers,
		}
		if s := d.latest.Load(); s != nil {
			t.Source, t.Peer = s.role, s.peer // of what is not followed before all of it is verified
		}
		if st := d.current(); st != nil {
			t.Form, t.Size, t.Source = st.form, st.size, source.Role(st.role.Load())
			t.Peer, _ = st.peer.Load().(string)
		}
		list = append(list, t)
	}
	return list
}

// Prefetched says how a path stands after Prefetch.
type Prefetched struct {
	Info  *verify.Info
	Size  int64       // bytes of the form in which it is fetched
	Local source.Role // who on this machine had it before: Store, Cache or None
}

// Prefetch brings a path's NAR into the cache unless this machine has it already. If dry, it
// only says what it would do. The error wraps fs.ErrNotExist if no source has the path.
func (s *Server) Prefetch(ctx context.Context, h nix.StoreHash, dry bool) (Prefetched, error) {
	a, err := s.cfg.Resolver.Ahead(ctx, h)
	if err != nil {
		return Prefetched{}, err
	}
	return s.bring(ctx, a, Query{Head: dry})
}

// Copy is Prefetch of the NAR of an answer, from peers alone and as nobody waits for it. A client that asks for the
// NAR meanwhile follows the copy, and the download is then one for a client: what peers do not give in time is
// fetched from upstream.
func (s *Server) Copy(ctx context.Context, a *resolve.Answer, dry bool) (Prefetched, error) {
	return s.bring(ctx, a, Query{Head: dry, idle: true})
}

func (s *Server) bring(ctx context.Context, a *resolve.Answer, q Query) (Prefetched, error) {
	n := &NAR{
		s: s, info: a.Info, asked: time.Now(), q: q,
		name: nix.NARName{Store: a.Info.StorePath().Hash(), Nar: a.Info.NarHash(), Form: a.Form},
	}
	p := Prefetched{Info: a.Info}
	if n.planLocal(ctx) == nil {
		p.Local, p.Size = n.local.role, n.size
		n.Close()
		return p, nil
	}
	o, err := n.order(ctx)
	if err != nil {
		return p, err
	}
	p.Size = o.forms[0].Size
	if q.Head {
		return p, nil
	}
	if err = n.planRemote(ctx); err == nil {
		err = n.arrive(ctx)
	}
	if err != nil {
		return p, fmt.Errorf("prefetch %s: %w", a.Info.StorePath().Base(), err)
	}
	return p, nil
}

// arrive waits until the NAR is in the cache.
func (n *NAR) arrive(ctx context.Context) error {
	n.out = &section{} // something is asked of the download
	defer n.Close()
	d := n.d
	if d.private {
		return errNoRoom
	}
	if n.began {
		ended := n.s.savings.prefetching(n.info.NarHash())
		defer func() { ended(d.role()) }()
	}
	select {
	case <-d.done:
		return d.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// role returns who gave the last bytes.
func (d *download) role() source.Role {
	if st := d.current(); st != nil {
		return source.Role(st.role.Load())
	}
	return source.None
}

// response is a NAR on its way to Nix. It counts by the source that supplies at the moment.
type response struct {
	io.Writer
	n       *NAR
	info    *verify.Info // with what an upstream said, if it did
	flow    metrics.Flow
	size    int64 // of what was asked for
	started time.Time
	role    atomic.Uint32 // source.Role

	// Used by the goroutine that writes alone, in bytes of the response.
	whole          int64 // of the response without a range
	done, upstream int64 // sent, and those of them that an upstream gave
	unpacked       int64 // of the NAR, as far as they were counted
	kept           bool  // read from the cache's disk
}

func (c *response) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	role := c.n.role()
	c.role.Store(uint32(role))
	c.flow.Add(int64(n))
	if n == 0 {
		return n, err
	}
	c.done += int64(n)
	switch role {
	case source.Upstream:
		c.upstream += int64(n)
	case source.Cache:
		c.kept = c.kept || c.n.local != nil
	}
	unpacked := int64(float64(c.done) / float64(max(c.whole, 1)) * float64(c.info.NarSize()))
	m := c.n.s.cfg.Metrics
	m.NarBytes.WithLabelValues(role.String()).Add(float64(n))
	m.NarUnpacked.WithLabelValues(role.String()).Add(float64(unpacked - c.unpacked))
	c.unpacked = unpacked
	return n, err
}

// end books what did not cross the uplink.
func (c *response) end() {
	if c.done == 0 {
		return
	}
	s, whole := c.n.s, float64(max(c.whole, 1))
	part := s.savings.give(givenKey{c.info.NarHash(), c.n.q.Client}, float64(c.upstream)/whole, float64(c.done-c.upstream)/whole, c.kept)
	size, known := s.savings.fileSize(c.info, func() int64 {
		if s.cfg.Peers == nil {
			return 0
		}
		return s.cfg.Peers.FileSize(c.info)
	})
	saved := math.Round(part * float64(size))
	s.cfg.Metrics.SavedBytes.Add(saved)
	if !known {
		s.cfg.Metrics.SavedEstimated.Add(saved)
	}
}

// responses are those on their way. The lock is taken when one begins and when it ends, never
// while it runs.
type responses struct {
	mu   sync.Mutex
	all  map[*response]struct{}
	last time.Time // when one ended
}

// begin returns the writer for a response of size bytes, which counts, and what is called at
// its end.
func (r *responses) begin(n *NAR, w io.Writer, size int64) (io.Writer, func()) {
	c := &response{Writer: w, n: n, info: n.info, size: size, whole: n.Size(), started: time.Now()}
	if n.d != nil {
		c.info = n.d.info
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all = make(map[*response]struct{})
	}
	r.all[c] = struct{}{}
	return c, func() {
		c.end()
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.all, c)
		r.last = time.Now()
	}
}

// touch begins the idle time anew.
func (r *responses) touch() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = time.Now()
}

// idle returns for how long nothing has been sent, 0 if something is.
func (r *responses) idle() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all) > 0 {
		return 0
	}
	return time.Since(r.last)
}

func (r *responses) list() []Transfer {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]Transfer, 0, len(r.all))
	for c := range r.all {
		list = append(list, Transfer{
			Info: c.n.info, Form: c.n.name.Form, Bytes: c.flow.Load(), Size: c.size, Source: source.Role(c.role.Load()),
			Rate: c.flow.Rate(c.started), Started: c.started, Readers: 1,
		})
	}
	return list
}
