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
	"github.com/nixp2p/nixp2p/p2p/pick"
	"github.com/nixp2p/nixp2p/p2p/standing"
	"github.com/nixp2p/nixp2p/p2p/wire"
	"github.com/nixp2p/nixp2p/verify"
)

const (
	// openTime is how long a peer may take to begin with a NAR.
	openTime = time.Second
	// busyFirst is the wait when all who have it are busy, longer each time up to busyLast;
	// as a whole busyTime and what the NAR takes at busyRate, then another source is better.
	busyFirst = 50 * time.Millisecond
	busyLast  = time.Second
	busyTime  = 5 * time.Second
	busyRate  = 50 << 20 // bytes a second
)

// errBusy says that all peers that have a NAR give it to others at the moment.
var errBusy = errors.New("p2p: the peers that have it are busy")

// NAR fetches from peers that may share info's path, going on with another one where one
// stalls, dies or is slow, at the same byte. A NAR that no share key signed is absent at
// once, and nobody is asked.
func (n *Node) NAR(ctx context.Context, info *verify.Info, form nix.Form, off int64) (*verify.Claim, error) {
	if !info.SignedByAny(n.cfg.ShareKeys) {
		return nil, errNobody
	}
	f := &fetch{n: n, info: info, form: form, at: off, tried: map[peer.ID]bool{}}
	if form.IsRaw() {
		f.size = info.NarSize()
	}
	if err := f.begin(ctx); err != nil {
		return nil, err
	}
	n.trails.Began(f.name(), off)
	return &verify.Claim{Body: f.stream(ctx), Size: f.size}, nil
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
	refused := map[peer.ID]bool{}
	for {
		r := f.candidate(ctx, refused)
		if r == nil {
			return busy, err
		}
		src, oerr := f.open(ctx, r)
		var full *busyError
		var lie *verify.LieError
		switch {
		case oerr == nil:
			f.from = src
			return false, nil
		case ctx.Err() != nil:
			return false, ctx.Err()
		case errors.As(oerr, &full):
			busy = true
			refused[r.id] = true
			f.named = append(f.named, f.n.takeHints(full.others)...)
			continue
		case errors.As(oerr, &lie):
			f.n.convict(r.key, lie)
			f.n.passOver(lie)
		case !errors.Is(oerr, fs.ErrNotExist):
			r.slow()
			err = oerr
		}
		f.tried[r.id] = true
		f.n.log.Debug("peer does not give a NAR", "peer", r.id, "nar", f.info.NarHash(), "err", oerr)
	}
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
func (f *fetch) candidate(ctx context.Context, refused map[peer.ID]bool) *remote {
	usable := func(r *remote) bool { return f.usable(r) && !refused[r.id] }
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
	if len(list) == 0 && !f.asked && len(refused) == 0 && f.info.NarSize() >= largeNAR {
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
	return list[0]
}

// busyError is a peer's refusal, with others whom it named.
type busyError struct{ others []string }

func (e *busyError) Error() string { return errBusy.Error() }

// open asks one peer for the NAR from the next byte on.
func (f *fetch) open(ctx context.Context, r *remote) (*source, error) {
	ctx, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(openTime, cancel)
	header := http.Header{}
	if f.at > 0 {
		header.Set("Range", wire.FormatRange(f.at))
	}
	if f.form.IsRaw() && f.info.NarSize()-f.at >= largeNAR && r.meter.Compress() {
		header.Set("Accept-Encoding", string(nix.Zstd))
	}
	start := time.Now()
	resp, err := f.n.request(ctx, http.MethodGet, r, wire.Request{Nar: f.info.NarHash(), Form: f.form}, header)
	if err == nil && !late.Stop() {
		_ = resp.Body.Close()
		err = context.DeadlineExceeded
	}
	if err != nil {
		late.Stop()
		cancel()
		return nil, fmt.Errorf("p2p: peer %s: get NAR: %w", r.id, err)
	}
	r.answered(time.Since(start))
	size, squeezed, err := f.accept(resp, r)
	if err != nil {
		_ = resp.Body.Close()
		cancel()
		return nil, err
	}
	f.size = size
	return newSource(f, r, resp.Body, squeezed, cancel), nil
}

// accept judges the head of an answer.
func (f *fetch) accept(resp *http.Response, r *remote) (size int64, squeezed bool, err error) {
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
		return 0, false, &verify.LieError{Reason: verify.ReasonSize, Err: fmt.Errorf("a NAR of %d bytes where %d are signed", size, f.info.NarSize())}
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
