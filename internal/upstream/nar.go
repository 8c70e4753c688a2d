package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"sync"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// NAR returns info's NAR in a form from byte off of that form on. A file comes from caches
// whose narinfo names its FileHash; raw comes as it is from a cache that has it so, else
// it is decoded, from the first byte of the file whatever off is. info may be from
// anywhere: a cache whose own narinfo says another NarHash does not have this NAR.
//
// The body continues with the same or another cache where one stops, and fails when none
// can go on. ctx governs it to its end. It may be closed at any time. Errors, also those of
// the body: as Info's.
func (u *Upstreams) NAR(ctx context.Context, info *verify.Info, form nix.Form, off int64) (*verify.Unverified, error) {
	ctx, cancel := context.WithCancel(ctx)
	nar, _, err := u.nar(ctx, cancel, info, form, off, false)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("upstream: get %s NAR of %s: %w", form, info.StorePath(), err)
	}
	return nar, nil
}

// nar reports whether the NAR comes as a delta, if it may.
func (u *Upstreams) nar(ctx context.Context, cancel func(), info *verify.Info, form nix.Form, off int64, mayDelta bool) (nar *verify.Unverified, delta bool, err error) {
	if off < 0 || form.IsRaw() && off > info.NarSize() {
		return nil, false, fmt.Errorf("offset %d of %d", off, info.NarSize())
	}
	b := newBudget(MaxNARRequests)
	known := func(m *mirror) bool { _, ok := u.located(m, info); return ok }
	if !slices.ContainsFunc(u.mirrors, known) {
		// Nothing was asked before, or this process is new: all are asked at once.
		got, err := u.askAll(ctx, info.StorePath().Hash(), b)
		switch {
		case err != nil:
			return nil, false, err
		case !sameNAR(got, info) && len(u.mirrors) == 1:
			return nil, false, errOtherNAR
		}
	}
	if form.IsRaw() {
		if off == info.NarSize() {
			cancel()
			return &verify.Unverified{Body: http.NoBody, Size: off}, false, nil
		}
		d := newDecoded(ctx, u, info, b)
		d.pos, d.mayDelta = off, mayDelta
		if err := d.open(); err != nil {
			return nil, false, err
		}
		return &verify.Unverified{Body: &body{src: d, cancel: cancel}, Size: info.NarSize()}, d.file.base != nil, nil
	}
	r := u.newBody(ctx, info, form, b, fileKey{compression: form.Compression, file: form.File})
	r.exact, r.pos, r.mayDelta = true, off, mayDelta
	if err := r.open(); err != nil {
		return nil, false, err
	}
	if r.base != nil {
		d := newDecoded(ctx, u, info, b)
		d.file = r
		d.src, _ = d.decode(fileKey{}, r) // fails for files alone
		return &verify.Unverified{Body: &body{src: d, cancel: cancel}, Size: info.NarSize()}, true, nil
	}
	if r.size < 0 || off > r.size {
		r.drop()
		return nil, false, fmt.Errorf("offset %d of %d", off, r.size)
	}
	return &verify.Unverified{Body: &body{src: r, cancel: cancel}, Size: r.size}, false, nil
}

// body is what the caller gets. One reader at a time; Close at any time.
type body struct {
	cancel func() // the requests

	mu  sync.Mutex
	src interface {
		io.Reader
		drop()
	}
	err error // of all further reads
}

func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil || len(p) == 0 {
		return 0, b.err
	}
	n, err := b.src.Read(p)
	b.err = err
	return n, err
}

// Close ends a Read that waits.
func (b *body) Close() error {
	b.cancel()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.src.drop()
	b.err = errClosed
	return nil
}

var errOtherNAR = fmt.Errorf("another NAR: %w", fs.ErrNotExist)

func sameNAR(a, b *verify.Info) bool {
	return a.NarHash() == b.NarHash() && a.NarSize() == b.NarSize()
}

// find returns where a cache has info's NAR. It asks for the narinfo if that is not known.
func (u *Upstreams) find(ctx context.Context, m *mirror, info *verify.Info, b *budget) (location, error) {
	if l, ok := u.located(m, info); ok {
		return l, nil
	}
	got, err := u.ask(ctx, m, info.StorePath().Hash(), b)
	switch {
	case err != nil:
		return location{}, err
	case !sameNAR(got, info):
		return location{}, errOtherNAR
	}
	return locationOf(got), nil
}

// decodedBody is a raw NAR: as a cache has it raw, or decoded from files, with another file
// where one cannot be decoded to the end. It is not safe for concurrent use.
type decodedBody struct {
	u      *Upstreams
	info   *verify.Info
	open   func() error
	budget *budget

	pos      int64          // next byte for the reader
	mayDelta bool           // it may be made of a delta, which begins at byte 0
	src      io.ReadCloser  // nil between two files
	file     *resumableBody // below src
	raw      bool           // file is the NAR itself
	flowing  bool           // bytes have left
	tried    map[fileKey]bool
	asked    map[*mirror]bool
	verdict  verdict
}

func newDecoded(ctx context.Context, u *Upstreams, info *verify.Info, b *budget) *decodedBody {
	d := &decodedBody{u: u, info: info, budget: b, tried: map[fileKey]bool{}, asked: map[*mirror]bool{}}
	d.open = func() error { return d.choose(ctx) }
	return d
}

// cheapest orders the compressions by what decoding costs. One that is not in it cannot be decoded here.
var cheapest = []nix.Compression{
	nix.None, nix.LZ4, nix.Zstd, nix.Gzip, nix.LZW, nix.Brotli, nix.Bzip2, nix.XZ, nix.LZMA, nix.Lzip,
}

// choose opens the file that is cheapest to decode among those not tried yet. Caches that
// were not asked yet are asked one after the other when no other file is left.
func (d *decodedBody) choose(ctx context.Context) error {
	for {
		m, l, err := d.best(ctx)
		if err != nil {
			return err
		}
		key := l.key(m)
		d.tried[key] = true
		r := d.u.newBody(ctx, d.info, nix.Raw, d.budget, key)
		r.flowing, r.mayDelta = d.flowing, d.mayDelta && d.pos == 0
		if d.raw = l.compression == nix.None; d.raw {
			r.size, r.exact, r.pos = d.info.NarSize(), true, d.pos
		} else {
			r.most = mostFile(d.info.NarSize())
		}
		if err = r.open(); err == nil {
			d.file = r
			d.src, err = d.decode(key, r)
		}
		if err == nil && !d.raw {
			if _, err = io.CopyN(io.Discard, d.src, d.pos); err != nil {
				err = d.fault(err)
			}
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		d.verdict.add(err)
		d.drop()
	}
}

// decode returns the NAR in a file. What a delta does not give comes as usual.
func (d *decodedBody) decode(key fileKey, r *resumableBody) (io.ReadCloser, error) {
	if r.base == nil {
		return compress.NewReader(key.compression, r)
	}
	d.raw, d.mayDelta = false, false
	delete(d.tried, key)
	return d.u.deltas.bases.NewBody(r, *r.base, d.info.NarSize()), nil
}

// best returns the next location to try.
func (d *decodedBody) best(ctx context.Context) (*mirror, location, error) {
	may, left := d.u.order()
	d.verdict.add(left)
	var best *mirror
	var at location
	var unknown, avoided []*mirror
	for _, m := range may {
		l, ok := d.u.located(m, d.info)
		switch {
		case d.u.wasWrong(m, d.info, nix.Raw):
			if !d.asked[m] {
				avoided = append(avoided, m)
			}
		case !ok && !d.asked[m]:
			unknown = append(unknown, m)
		case !ok, d.tried[l.key(m)]:
		case best == nil || slices.Index(cheapest, l.compression) < slices.Index(cheapest, at.compression):
			best, at = m, l
		}
	}
	if best != nil {
		return best, at, nil
	}
	for _, m := range append(unknown, avoided...) {
		d.asked[m] = true
		if !d.u.awaitAsked(ctx, m, d.info) {
			return nil, location{}, ctx.Err()
		}
		l, err := d.u.find(ctx, m, d.info, d.budget)
		switch {
		case err != nil:
			d.verdict.add(fmt.Errorf("%s: %w", m.name, err))
		case !d.tried[l.key(m)]:
			return m, l, nil
		}
	}
	return nil, location{}, d.verdict.err()
}

// mostFile is the most that a file of unknown size may have: no compression makes a NAR
// much larger.
func mostFile(nar int64) int64 { return nar + nar/8 + 1<<20 }

func (d *decodedBody) Read(p []byte) (int, error) {
	for {
		if d.src == nil {
			if err := d.open(); err != nil {
				return 0, err
			}
		}
		if d.pos == d.info.NarSize() {
			return 0, d.end()
		}
		n, err := d.src.Read(p[:min(int64(len(p)), d.info.NarSize()-d.pos)])
		d.pos += int64(n)
		switch {
		case n > 0:
			d.flowing = true
			return n, nil // an error comes again
		case err != nil:
			d.verdict.add(d.fault(err))
			d.drop()
		}
	}
}

// end checks whether the file goes on after the last byte of the NAR.
func (d *decodedBody) end() error {
	if d.raw {
		_, err := d.src.Read(make([]byte, 1))
		return err
	}
	d.file.open = func() error { return io.ErrUnexpectedEOF } // not worth another request
	if n, _ := io.ReadFull(d.src, make([]byte, 1)); n > 0 {
		return wrongSize("decodes to more than %d bytes", d.info.NarSize())
	}
	return io.EOF
}

// fault returns what an error of decoding means. What came whole and cannot be decoded is
// invalid.
func (d *decodedBody) fault(err error) error {
	switch {
	case d.file.failed != nil:
		return d.file.failed
	case d.raw:
		return err
	case errors.Is(err, io.EOF):
		return wrongSize("decodes to less than %d bytes", d.info.NarSize())
	case errors.Is(err, compress.ErrCorrupt), errors.Is(err, io.ErrUnexpectedEOF):
		return &verify.InvalidError{Reason: verify.ReasonEncoding, Err: err}
	}
	return err
}

// drop closes the file that is open.
func (d *decodedBody) drop() {
	if d.src != nil {
		_ = d.src.Close()
		d.file.drop()
	}
	d.src, d.file = nil, nil
}
