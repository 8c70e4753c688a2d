package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
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
	nar, err := u.nar(ctx, cancel, info, form, off)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("upstream: get %s NAR of %s: %w", form, info.StorePath(), err)
	}
	return nar, nil
}

func (u *Upstreams) nar(ctx context.Context, cancel func(), info *verify.Info, form nix.Form, off int64) (*verify.Unverified, error) {
	if off < 0 || form.IsRaw() && off > info.NarSize() {
		return nil, fmt.Errorf("offset %d of %d", off, info.NarSize())
	}
	b := newBudget(MaxNARRequests)
	if !u.known(info) {
		// Nothing was asked before, or this process is new: all are asked at once.
		got, err := u.askAll(ctx, info.StorePath().Hash(), b)
		switch {
		case err != nil:
			return nil, err
		case !sameNAR(got, info) && len(u.mirrors) == 1:
			return nil, errOtherNAR
		}
	}
	if form.IsRaw() {
		if off == info.NarSize() {
			cancel()
			return &verify.Unverified{Body: http.NoBody, Size: off}, nil
		}
		d := &decodedBody{u: u, info: info, pos: off, cancel: cancel, budget: b, tried: map[any]bool{}}
		d.open = func() error { return d.choose(ctx) }
		if err := d.open(); err != nil {
			return nil, err
		}
		return &verify.Unverified{Body: d, Size: info.NarSize()}, nil
	}
	r := u.newBody(ctx, cancel, info, form, b,
		func(_ *mirror, l *location) bool { return l.compression == form.Compression && l.file == form.File })
	r.exact, r.pos = true, off
	if err := r.open(); err != nil {
		return nil, err
	}
	if r.size < 0 || off > r.size {
		_ = r.Close()
		return nil, fmt.Errorf("offset %d of %d", off, r.size)
	}
	return &verify.Unverified{Body: r, Size: r.size}, nil
}

var errOtherNAR = fmt.Errorf("another NAR: %w", fs.ErrNotExist)

func sameNAR(a, b *verify.Info) bool {
	return a.NarHash() == b.NarHash() && a.NarSize() == b.NarSize()
}

// known reports whether one of the caches is known to have info's NAR.
func (u *Upstreams) known(info *verify.Info) bool {
	for _, m := range u.mirrors {
		if _, ok := u.found.get(m, info); ok {
			return true
		}
	}
	return false
}

// find returns where a cache has info's NAR. It asks for the narinfo if that is not
// known, or if fresh says that what is known is out of date.
func (u *Upstreams) find(ctx context.Context, m *mirror, info *verify.Info, fresh bool, b *budget) (location, error) {
	if l, ok := u.found.get(m, info); ok && !fresh {
		return l, nil
	}
	got, err := u.ask(ctx, m, info.StorePath().Hash(), b)
	if err != nil {
		return location{}, err
	}
	if !sameNAR(got, info) {
		return location{}, fmt.Errorf("%s: %w", m.name, errOtherNAR)
	}
	return locationOf(got), nil
}

// decodedBody is a raw NAR: as a cache has it raw, or decoded from files, with another file
// where one cannot be decoded to the end. One reader at a time; Close at any time.
type decodedBody struct {
	u      *Upstreams
	info   *verify.Info
	open   func() error
	cancel func()
	budget *budget

	mu      sync.Mutex
	pos     int64          // next byte for the reader
	skip    int64          // bytes of src before it
	src     io.ReadCloser  // nil between two files
	file    *resumableBody // below src
	raw     bool           // file is the NAR itself
	flowing bool           // bytes have left
	tried   map[any]bool
	verdict verdict
	err     error
}

// costs orders the compressions by what decoding costs.
var costs = map[nix.Compression]int{nix.None: 0, nix.Zstd: 1, nix.Gzip: 2, nix.Bzip2: 3, nix.Brotli: 3, nix.XZ: 4}

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
		r := d.u.newBody(ctx, func() {}, d.info, nix.Raw, d.budget,
			func(o *mirror, q *location) bool { return q.compression == l.compression && q.key(o) == key })
		r.flowing = d.flowing
		if d.raw = l.compression == nix.None; d.raw {
			r.size, r.exact, r.pos = d.info.NarSize(), true, d.pos
		} else {
			r.most = mostFile(d.info.NarSize())
		}
		if err := r.open(); err != nil {
			d.verdict.add(err)
			continue
		}
		d.file, d.src, d.skip = r, r, 0
		if d.raw {
			return nil
		}
		if d.src, err = compress.NewReader(l.compression, r); err != nil {
			_ = r.Close()
			d.verdict.add(err)
			continue
		}
		d.skip = d.pos
		return nil
	}
}

// best returns the next location to try.
func (d *decodedBody) best(ctx context.Context) (*mirror, location, error) {
	may, left := d.u.order()
	if left != nil {
		d.verdict.add(left)
	}
	var best *mirror
	var at location
	var unknown []*mirror
	for _, m := range may {
		if d.u.wrong.has(m, d.info, nix.Raw) {
			d.verdict.add(fmt.Errorf("%s: sent it wrong before: %w", m.name, fs.ErrNotExist))
			continue
		}
		l, ok := d.u.found.get(m, d.info)
		switch {
		case !ok:
			unknown = append(unknown, m)
		case d.tried[l.key(m)]:
		case best == nil || costs[l.compression] < costs[at.compression]:
			best, at = m, l
		}
	}
	if best != nil {
		return best, at, nil
	}
	for _, m := range unknown {
		if d.tried[m] {
			continue
		}
		d.tried[m] = true
		l, err := d.u.find(ctx, m, d.info, false, d.budget)
		switch {
		case err != nil:
			d.verdict.add(err)
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
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil || len(p) == 0 {
		return 0, d.err
	}
	n, err := d.read(p)
	d.err = err
	return n, err
}

func (d *decodedBody) read(p []byte) (int, error) {
	size := d.info.NarSize()
	for {
		if d.src == nil {
			if err := d.open(); err != nil {
				return 0, err
			}
		}
		if d.pos == size && d.skip == 0 {
			return 0, d.end()
		}
		room := p[:min(int64(len(p)), size-d.pos)]
		if d.skip > 0 {
			room = p[:min(int64(len(p)), d.skip)]
		}
		n, err := d.src.Read(room)
		if d.skip > 0 {
			d.skip -= int64(n)
			n = 0
		}
		d.pos += int64(n)
		if n > 0 {
			d.flowing = true
			return n, nil // an error comes again
		}
		if err != nil {
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
	d.file.last = true
	var one [1]byte
	if n, _ := io.ReadFull(d.src, one[:]); n > 0 {
		return &verify.InvalidError{Reason: verify.ReasonSize, Err: fmt.Errorf("decodes to more than %d bytes", d.info.NarSize())}
	}
	return io.EOF
}

// fault returns what an error of decoding means. What came whole and cannot be decoded is
// invalid.
func (d *decodedBody) fault(err error) error {
	switch {
	case d.file.err != nil && !errors.Is(d.file.err, io.EOF):
		return d.file.err
	case d.raw:
		return err
	case errors.Is(err, io.EOF):
		err = fmt.Errorf("decodes to %d of %d bytes", d.pos-d.skip, d.info.NarSize())
		return &verify.InvalidError{Reason: verify.ReasonSize, Err: err}
	case errors.Is(err, compress.ErrCorrupt), errors.Is(err, io.ErrUnexpectedEOF):
		return &verify.InvalidError{Reason: verify.ReasonEncoding, Err: err}
	}
	return err
}

// drop closes the file that is open.
func (d *decodedBody) drop() {
	if d.src != nil && !d.raw {
		_ = d.src.Close()
	}
	if d.file != nil {
		_ = d.file.Close()
	}
	d.src, d.file = nil, nil
}

// Close ends a Read that waits.
func (d *decodedBody) Close() error {
	d.cancel()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = errClosed
	d.drop()
	return nil
}
