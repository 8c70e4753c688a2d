package resolve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// Query says how a NAR is asked for.
type Query struct {
	Reach Reach
	// Resume: the client has the beginning already and asks for a range. It can go on only
	// with exactly the bytes that it began with.
	Resume bool
	// Head: only what can be said about it is asked for. Nothing is fetched for that.
	Head bool
	// ForPeer: the bytes do not go to Nix and are not counted as such.
	ForPeer bool
}

// NAR is the answer to a NAR request: where it will come from is chosen, nothing is sent.
// The caller closes it.
type NAR struct {
	r    *Resolver
	name nix.NARName
	info *verify.Info
	q    Query

	form     nix.Form        // of the bytes that sources give
	formSize int64           // in bytes
	wrap     nix.Compression // the stored container around a raw NAR, or ""

	choice  choice
	claim   *verify.Unverified // opened, of near[0]
	d       *download          // joined, when the bytes come from afar
	began   bool               // d, for others to join
	giver   atomic.Value       // string: who is giving, when d is nil
	useless []NARSource        // near sources that failed here
	out     *section           // what is sent
	alone   bool               // others fetch it in a form that is of no use here
	// insist: the client has the beginning of this form, and only others lied about its end.
	insist bool
}

// choice is one way to answer: near sources are streamed from directly, far ones are
// fetched once for all who ask. A near source that dies is followed by the next, then by
// the far ones, then by backup, which begins nothing: another choice has it first.
type choice struct {
	form              nix.Form
	wrap              nix.Compression
	near, far, backup []NARSource
	alone             bool // the site is not asked who fetches it
}

// NAR chooses the sources for a NAR. An error that wraps fs.ErrNotExist means that none has
// it.
func (r *Resolver) NAR(ctx context.Context, name nix.NARName, q Query) (*NAR, error) {
	if q.Resume && r.cuts.has(name) {
		return nil, fmt.Errorf("cut for wrong bytes a while ago: %w", fs.ErrNotExist)
	}
	info, err := r.infoFor(ctx, name, q.Reach)
	if err != nil {
		return nil, err
	}
	n := &NAR{r: r, name: name, info: info, q: q}
	if err := n.open(ctx, func(choice) bool { return true }); err != nil {
		return nil, err
	}
	return n, nil
}

// infoFor finds the narinfo that signs the NAR hash of the URL. The best answer for the path
// may sign another one: builds are not always reproducible, and Nix may remember the URL
// from another source.
func (r *Resolver) infoFor(ctx context.Context, name nix.NARName, reach Reach) (*verify.Info, error) {
	info, err := r.proof(ctx, name.Store, reach)
	if err != nil {
		return nil, err
	}
	if info.NarHash() == name.Nar {
		return info, nil
	}
	sources := []InfoSource{sourceOrNil(r.cfg.Store), memoryOrNil(r.cfg.Disk)}
	if !reach.stays() {
		sources = append(sources, sourceOrNil(r.cfg.Peers))
		if !r.farDown() {
			sources = append(sources, r.upstream())
		}
	}
	ctx, cancel := r.deadline(ctx, infoDeadline)
	defer cancel()
	for _, s := range sources {
		if s == nil {
			continue
		}
		info, err := anyway(s.Info(ctx, name.Store))
		switch {
		case err != nil:
			_ = r.blame(s.Name(), name.Store, err)
		case info.NarHash() == name.Nar && (!reach.shared() || info.SignedByAny(r.cfg.Share)):
			return info, nil
		}
	}
	return nil, fmt.Errorf("no narinfo of %s signs NAR hash %s: %w", name.Store, name.Nar.Nix32(), fs.ErrNotExist)
}

// choices lists the ways to answer, best first.
func (n *NAR) choices() []choice {
	r, want := n.r, n.name.Form
	var store, cache, peers, upstream []NARSource
	if r.cfg.Store != nil {
		store = n.usable(r.cfg.Store)
	}
	var cachedRaw, cachedFile, cachedOther bool
	if r.cfg.Cache != nil {
		cache = n.usable(r.cfg.Cache)
		raw, files := r.cfg.Cache.Held(n.info.NarHash())
		cachedRaw = raw
		for _, f := range files {
			cachedFile = cachedFile || f == want
			cachedOther = true
		}
	}
	if !n.q.Reach.stays() {
		if r.cfg.Peers != nil {
			peers = n.usable(r.cfg.Peers)
		}
		if r.cfg.Upstream != nil {
			upstream = n.usable(r.cfg.Upstream)
		}
	}
	far := append(peers[:len(peers):len(peers)], upstream...)

	bad := r.badFiles.has(want.File) && !n.insist
	if n.q.Resume && !want.IsRaw() {
		if bad {
			return nil
		}
		list := []choice{{form: want, far: far}}
		if cachedFile {
			list = append([]choice{{form: want, near: cache, far: far}}, list...)
		}
		return list
	}
	raw := choice{near: store, far: far}
	if cachedRaw {
		raw.near = append(raw.near[:len(raw.near):len(raw.near)], cache...)
	}
	rawPeers := choice{far: peers, backup: upstream}
	// Decoded from another form, once for all who ask.
	rawCache := choice{far: append(cache[:len(cache):len(cache)], far...)}
	decoded := choice{far: upstream}
	var list []choice
	if r.cfg.AtHand != nil && len(peers) > 0 && !want.IsRaw() {
		rawPeers.far = []NARSource{r.cfg.AtHand}
	}
	for _, c := range []*choice{&raw, &rawPeers, &rawCache, &decoded} {
		c.wrap = want.Compression
	}
	if len(raw.near) > 0 {
		list = append(list, raw)
	}
	if want.IsRaw() {
		list = append(list, rawPeers)
		if cachedOther {
			list = append(list, rawCache)
		}
		return append(list, decoded)
	}
	if !bad {
		if cachedFile {
			list = append(list, choice{form: want, near: cache, far: far})
		}
		list = append(list, choice{form: want, far: peers, backup: upstream}, rawPeers, choice{form: want, far: upstream})
	} else {
		list = append(list, rawPeers)
	}
	if cachedOther {
		list = append(list, rawCache)
	}
	return append(list, decoded)
}

// usable leaves out a source that had a part in wrong bytes of this NAR, or failed before, and
// peers for what is private: the question alone would tell them.
func (n *NAR) usable(s NARSource) []NARSource {
	private := s.Name() == peerName && !n.info.SignedByAny(n.r.cfg.Share)
	if private || n.r.avoided.has(avoidKey{s.Name(), n.info.NarHash()}) || slices.Contains(n.useless, s) {
		return nil
	}
	return []NARSource{s}
}

// finder is a source of peers that can look for more of them than it knows.
type finder interface {
	// Find tells whether somebody was found who says that he has info's NAR.
	Find(ctx context.Context, info *verify.Info) bool
}

// findTime is how long a NAR that is nowhere to be had waits for the peers to be searched: what
// was asked first may not have ended yet, and a 404 costs Nix more.
const findTime = 1500 * time.Millisecond

// open begins the first choice that fits and works. When none does, peers are looked for as far
// as that goes, and asked again.
func (n *NAR) open(ctx context.Context, fits func(choice) bool) error {
	err := n.openAny(ctx, fits)
	f, ok := n.r.cfg.Peers.(finder)
	if err == nil || !ok || ctx.Err() != nil || n.q.Reach.stays() || len(n.usable(n.r.cfg.Peers)) == 0 {
		return err
	}
	within, cancel := context.WithTimeout(ctx, findTime)
	defer cancel()
	if !f.Find(within, n.info) {
		return err
	}
	return n.openAny(ctx, fits)
}

// openAny begins the first choice that fits and works.
func (n *NAR) openAny(ctx context.Context, fits func(choice) bool) error {
	var errs []error
	var other *OtherFormError
	for _, c := range n.choices() {
		if !fits(c) || len(c.near)+len(c.far) == 0 {
			continue
		}
		c.alone = n.alone
		err := n.begin(ctx, c)
		if err == nil {
			return nil
		}
		if errors.As(err, &other) {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if other != nil && !n.alone {
		n.alone = true
		n.getOther(ctx, other)
		return n.openAny(ctx, fits)
	}
	return missing(errs)
}

// getOther gets the form that others get into the cache, where it can be decoded from.
func (n *NAR) getOther(ctx context.Context, other *OtherFormError) {
	if other.Form.IsRaw() || n.r.cfg.Upstream == nil {
		return
	}
	d, _, err := n.r.join(ctx, n.info, choice{form: other.Form, far: n.usable(n.r.cfg.Upstream)}, other.Size)
	if err != nil {
		return
	}
	select {
	case <-d.done:
	case <-ctx.Done():
	}
	n.r.leave(d, linger)
}

// begin opens the first near source of c that has it, or joins the fetch from the far ones
// when c has no near one.
func (n *NAR) begin(ctx context.Context, c choice) error {
	size := n.sizeOf(c.form)
	if len(c.near) == 0 {
		if size > 0 && !n.q.Head {
			d, began, err := n.r.join(ctx, n.info, c, size)
			if err == nil {
				n.set(c, size)
				n.d, n.began = d, began
				return nil
			}
			if !errors.Is(err, errNoSpool) {
				return err
			}
		}
		// It does not fit, or only the source knows its size: stream it through. Or it has just
		// come into the cache.
		c.near, c.far, c.backup = append(n.cached(c.form), c.far...), c.backup, nil
	}
	var errs []error
	for i, s := range c.near {
		claim, err := n.r.ask(ctx, s, n.info, c.form, size, 0)
		if err == nil {
			c.near = c.near[i:]
			n.set(c, claim.Size)
			n.claim = claim
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return missing(errs)
}

// cached returns the cache if it holds exactly this form now.
func (n *NAR) cached(form nix.Form) []NARSource {
	if n.r.cfg.Cache == nil {
		return nil
	}
	if raw, files := n.r.cfg.Cache.Held(n.info.NarHash()); form.IsRaw() && raw || slices.Contains(files, form) {
		return n.usable(n.r.cfg.Cache)
	}
	return nil
}

func (n *NAR) set(c choice, size int64) {
	n.choice, n.form, n.wrap, n.formSize = c, c.form, c.wrap, size
}

// source says who is giving, for the counters: a NAR that was fetched for somebody else
// comes out of the cache.
func (n *NAR) source() string {
	if n.d != nil && !n.began {
		return cacheName
	}
	giver := &n.giver
	if n.d != nil {
		giver = &n.d.giver
	}
	name, _ := giver.Load().(string)
	return name
}

// sizeOf returns the size of a form in bytes, 0 when the narinfo at hand does not say.
func (n *NAR) sizeOf(form nix.Form) int64 {
	if form.IsRaw() {
		return n.info.NarSize()
	}
	if own, ok := n.info.FileForm(); ok && own == form {
		return n.info.Hints().FileSize
	}
	return 0
}

// Size returns the length of the whole response in bytes.
func (n *NAR) Size() int64 {
	if n.wrap != "" {
		return compress.StoredSize(n.wrap, n.info.NarSize())
	}
	return n.formSize
}

// Ranges tells whether a part of it can be asked for: the same bytes are there another time,
// which is not so for stored containers.
func (n *NAR) Ranges() bool { return n.wrap == "" }

// StorePath returns the path whose NAR this is.
func (n *NAR) StorePath() nix.StorePath { return n.info.StorePath() }

// Info returns the proof for it.
func (n *NAR) Info() *verify.Info { return n.info }

// Close gives up what was opened and not sent.
func (n *NAR) Close() {
	if n.claim != nil {
		_ = n.claim.Body.Close()
		n.claim = nil
	}
	if n.d != nil {
		stay := linger
		if n.out == nil { // nothing was asked of it
			stay = 0
		}
		n.r.leave(n.d, stay)
		n.d = nil
	}
}

// Send writes count bytes from byte from on, verified as a part of the whole. When it returns
// an error and nothing was written to w, the request may still be refused; else the response
// has to be cut.
func (n *NAR) Send(ctx context.Context, w io.Writer, from, count int64) error {
	counted, end := n.r.responses.begin(n, w, count)
	defer end()
	out := newSection(counted, from, count, n.Size())
	n.out = out
	for attempt := 1; ; attempt++ {
		err := n.once(ctx, out)
		if err == nil {
			err = out.finish()
		}
		n.Close()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || out.failed != nil {
			return errors.Join(err, ctx.Err())
		}
		if out.began() && isLie(err) {
			// The liar is not asked again, and what has left may be right: another source
			// shows that, and goes on.
			n.insist = true
		}
		if again := n.again(ctx, out, err, attempt); again != nil {
			if n.insist || errors.Is(again, errDiverged) {
				n.r.cuts.add(n.name, cutFor)
			}
			return again
		}
		out.rewind()
	}
}

// again opens what answers after err: nothing has left yet, or somebody lied about what has
// not, or only the disk failed. It returns why there is nothing.
func (n *NAR) again(ctx context.Context, out *section, err error, attempt int) error {
	if out.began() && !isLie(err) && !errors.Is(err, errSpoolFailed) || attempt == maxAttempts {
		return err
	}
	form, wrap, size := n.form, n.wrap, n.formSize
	again := n.open(ctx, func(c choice) bool { return c.form == form && c.wrap == wrap })
	if again == nil && n.formSize != size {
		n.Close()
		again = errShort
	}
	if again != nil {
		return errors.Join(err, again)
	}
	return nil
}

// maxAttempts bounds how often a response is begun anew.
const maxAttempts = 4

// once sends what is opened, through the container if there is one.
func (n *NAR) once(ctx context.Context, out *section) error {
	if n.wrap == "" {
		return n.stream(ctx, out)
	}
	stored, err := compress.NewStored(n.wrap, out, n.info.NarSize())
	if err != nil {
		return err
	}
	err = n.stream(ctx, stored)
	if closing := stored.Close(); err == nil {
		err = closing
	}
	return err
}

func (n *NAR) stream(ctx context.Context, w io.Writer) error {
	if n.d != nil {
		return n.follow(ctx, w)
	}
	claim := n.claim
	n.claim = nil
	err := n.direct(ctx, w, claim)
	// A mirror that lied is not asked again, but there may be others.
	if s := n.choice.near[0]; err != nil && (n.r.cfg.Upstream == nil || s != NARSource(n.r.cfg.Upstream)) {
		n.useless = append(n.useless, s)
	}
	return err
}
