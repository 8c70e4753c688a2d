package transfer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"time"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// Query says how a NAR is asked for.
type Query struct {
	Scope source.Scope
	// Resume: the client has the beginning already and asks for a range. It can go on only
	// with exactly the bytes that it began with.
	Resume bool
	// Head: only its size is asked for. Nothing is fetched or decoded for that.
	Head bool
	// Client is the address of a client on another machine, zero for one on this machine. A NAR
	// counts as saved once for each.
	Client netip.Addr

	idle bool // nobody waits: only peers are asked
}

// NAR is the answer to a NAR request: where it will come from is chosen, nothing is sent. The
// caller closes it. It is used by one goroutine.
type NAR struct {
	s     *Server
	name  nix.NARName
	info  *verify.Info
	q     Query
	asked time.Time

	form nix.Form        // of the bytes that sources give
	size int64           // of that form in bytes
	wrap nix.Compression // the stored container around a raw NAR, or ""

	local *local    // the bytes are on this machine
	d     *download // or else they come from elsewhere
	stage *stage    // of d
	began bool      // d, for others to join

	out    *section
	failed []candidate // could not be used
	options
}

// options are what earlier tries taught.
type options struct {
	private      bool // the cache has no room
	upstreamOnly bool // peers are too slow for a stream that is not kept
	alone        bool // something wrong came: all of it from one source
	fixed        bool // the response has its form: no other will do
}

// candidate is a source on this machine and a form of the NAR that it may have.
type candidate struct {
	role source.Role
	form nix.Form
}

// local is a source on this machine whose bytes are open.
type local struct {
	candidate
	src  source.NARs
	body *verify.Unverified // nil for Head
}

// NAR chooses where a NAR comes from. The error wraps fs.ErrNotExist if no source has it.
func (s *Server) NAR(ctx context.Context, name nix.NARName, q Query) (*NAR, error) {
	if q.Resume && s.cut.Has(name) {
		return nil, fmt.Errorf("cut for wrong bytes a while ago: %w", fs.ErrNotExist)
	}
	asked := time.Now()
	info, err := s.cfg.Resolver.ForNAR(ctx, name, q.Scope)
	if err != nil {
		return nil, err
	}
	n := &NAR{s: s, name: name, info: info, q: q, asked: asked}
	if err := n.plan(ctx); err != nil {
		if q.Scope == source.All && !q.Resume && !q.Head && source.Absent(err) {
			s.cfg.Resolver.Gone(info)
		}
		return nil, err
	}
	return n, nil
}

// maxPlans bounds how often a plan is made anew because something came into the cache, or the
// cache has no room.
const maxPlans = 4

var errPlanAgain = errors.New("plan again")

// plan chooses: what is on this machine, else a download.
func (n *NAR) plan(ctx context.Context) error {
	for range maxPlans {
		err := n.planLocal(ctx)
		if err == nil || !source.Absent(err) && n.q.Scope.Local() {
			return err
		}
		if n.q.Scope.Local() {
			return missing(nil)
		}
		if err = n.planRemote(ctx); !errors.Is(err, errPlanAgain) {
			return err
		}
	}
	return missing([]error{errPlanAgain})
}

// exact reports whether only the very bytes of a file will do.
func (n *NAR) exact() bool { return n.q.Resume && !n.name.Form.IsRaw() }

// usable reports whether the response can be made of a form: of the one of the URL, or of raw
// bytes, in a stored container if need be.
func (n *NAR) usable(form nix.Form) bool {
	if n.fixed {
		return form == n.form
	}
	return form == n.name.Form || form.IsRaw() && !n.exact()
}

// candidates lists what this machine may have, the cheapest first: raw bytes, the file, raw
// bytes decoded from another file.
func (n *NAR) candidates() (list []candidate) {
	if n.s.cfg.Store != nil {
		list = append(list, candidate{source.Store, nix.Raw})
	}
	if n.s.cfg.Cache == nil {
		return list
	}
	forms := n.s.cfg.Cache.Forms(n.info.NarHash())
	raw := candidate{source.Cache, nix.Raw}
	if slices.Contains(forms, nix.Raw) {
		list = append(list, raw)
	}
	if want := n.name.Form; !want.IsRaw() && slices.Contains(forms, want) {
		list = append(list, candidate{source.Cache, want})
	}
	if len(forms) > 0 && !slices.Contains(list, raw) {
		list = append(list, raw)
	}
	return list
}

// planLocal opens the first candidate that works.
func (n *NAR) planLocal(ctx context.Context) error {
	var errs []error
	for _, c := range n.candidates() {
		if slices.Contains(n.failed, c) || !n.usable(c.form) {
			continue
		}
		size, err := n.openLocal(ctx, c)
		if err == nil {
			n.set(c.form, size)
			return nil
		}
		n.failed = append(n.failed, c)
		if !source.Absent(err) {
			errs = append(errs, fmt.Errorf("%s: %w", c.role, err))
		}
	}
	return missing(errs)
}

// openLocal opens a candidate and returns its size. A file is passed on from the cache only if
// it was decoded once: its FileHash proves nothing.
func (n *NAR) openLocal(ctx context.Context, c candidate) (size int64, err error) {
	l := &local{candidate: c, src: source.NARs(n.s.cfg.Store)}
	if c.role == source.Cache {
		l.src = n.s.cfg.Cache
		if n.q.Head {
			n.local = l
			return n.headSize(ctx, c.form)
		}
	}
	if !c.form.IsRaw() {
		if err := n.s.proveFile(ctx, n.info, c.form); err != nil {
			return 0, err
		}
	}
	if l.body, err = l.src.NAR(ctx, n.info, c.form, 0); err != nil {
		return 0, n.s.reportLocal(l.src, c.role, n.info, c.form, err)
	}
	if c.form.IsRaw() && l.body.Size != n.info.NarSize() {
		_ = l.body.Body.Close()
		err := fmt.Errorf("%d bytes, not %d", l.body.Size, n.info.NarSize())
		return 0, n.s.reportLocal(l.src, c.role, n.info, c.form, &verify.InvalidError{Reason: verify.ReasonSize, Err: err})
	}
	n.local = l
	if tell := n.s.cfg.OnCached; tell != nil && c.role == source.Cache {
		tell(n.info)
	}
	return l.body.Size, nil
}

// headSize returns the size of what the cache has without opening it.
func (n *NAR) headSize(ctx context.Context, form nix.Form) (int64, error) {
	if form.IsRaw() {
		return n.info.NarSize(), nil
	}
	o, err := n.order(ctx)
	if err != nil {
		return 0, err
	}
	if size := o.sizeOf(form); size > 0 {
		return size, nil
	}
	return 0, fmt.Errorf("size unknown: %w", fs.ErrNotExist)
}

// order says what to download: the file of the URL if an upstream of this machine has named it,
// and the raw NAR.
func (n *NAR) order(ctx context.Context) (order, error) {
	r := n.s.cfg.Resolver
	o := order{info: n.info, up: r.Upstreams(n.q.Scope), options: n.options, asked: n.asked, idle: n.q.idle}
	if want := n.name.Form; !want.IsRaw() && n.usable(want) && (n.fixed || !r.Distrusted(want)) {
		if named := r.FromUpstream(ctx, n.name, n.q.Scope); named != nil {
			o.info = named
			if form, ok := named.FileForm(); ok && form == want {
				o.forms = append(o.forms, source.Sized{Form: form, Size: named.Hints().FileSize})
			}
		}
	}
	if n.usable(nix.Raw) {
		o.forms = append(o.forms, source.Sized{Form: nix.Raw, Size: n.info.NarSize()})
	}
	if len(o.forms) == 0 {
		return o, fmt.Errorf("no upstream has this file: %w", fs.ErrNotExist)
	}
	return o, nil
}

// planRemote joins the download of the NAR, or starts it, and waits until it is known in which
// form it comes.
func (n *NAR) planRemote(ctx context.Context) error {
	o, err := n.order(ctx)
	if err != nil {
		return err
	}
	if n.q.Head {
		n.set(o.forms[0].Form, o.forms[0].Size)
		return nil
	}
	o.private = o.private || n.s.cfg.Cache == nil
	d, began, err := n.s.join(ctx, o)
	if errors.Is(err, errNoRoom) {
		n.private = true
		return errPlanAgain
	}
	if err != nil {
		return err
	}
	return n.follows(ctx, d, began)
}

// follows waits for the first stage of a download, and makes it the source of n.
func (n *NAR) follows(ctx context.Context, d *download, began bool) error {
	select {
	case <-d.begun:
	case <-ctx.Done():
		n.s.leave(d, linger)
		return ctx.Err()
	}
	st := d.current()
	switch {
	case st == nil:
		n.s.leave(d, 0)
		if errors.Is(d.err, errNoRoom) && !d.private {
			n.private = true
			return errPlanAgain
		}
		if d.idle && !n.q.idle { // upstreams were not asked
			return errPlanAgain
		}
		return d.err
	case !n.usable(st.form):
		// It can be made of what comes, when that is here.
		select {
		case <-d.done:
		case <-ctx.Done():
		}
		n.s.leave(d, linger)
		return errors.Join(ctx.Err(), errPlanAgain)
	}
	n.d, n.stage, n.began = d, st, began
	n.set(st.form, st.size)
	return nil
}

func (n *NAR) set(form nix.Form, size int64) {
	n.form, n.size, n.wrap = form, size, ""
	if form.IsRaw() {
		n.wrap = n.name.Form.Compression
	}
}

// role returns who supplies the bytes, for the counters: a NAR that was fetched for another
// client comes out of the cache.
func (n *NAR) role() source.Role {
	switch {
	case n.local != nil:
		return n.local.role
	case n.d == nil:
		return source.None
	case !n.began:
		return source.Cache
	}
	return source.Role(n.stage.role.Load())
}

// Size returns the length of the whole response in bytes.
func (n *NAR) Size() int64 {
	if n.wrap != "" {
		return compress.StoredSize(n.wrap, n.info.NarSize())
	}
	return n.size
}

// Ranges reports whether a part of it can be asked for: the same bytes will be there another
// time, which is not so for stored containers.
func (n *NAR) Ranges() bool { return n.wrap == "" }

// Info returns the narinfo that signs it.
func (n *NAR) Info() *verify.Info { return n.info }

// Close gives up what was opened and not sent.
func (n *NAR) Close() {
	if n.local != nil && n.local.body != nil {
		_ = n.local.body.Body.Close()
	}
	n.local = nil
	if n.d == nil {
		return
	}
	stay := linger
	if n.out == nil { // nothing was asked of it
		stay = 0
	}
	n.s.leave(n.d, stay)
	n.d, n.stage = nil, nil
}
