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
// The body goes on with the same or another cache where one stops, and fails when none
// can go on. ctx governs it to its end. It may be closed at any time. Errors, also those of
// the body: as Info's.
func (u *Upstreams) NAR(ctx context.Context, info *verify.Info, form nix.Form, off int64) (*verify.Unverified, error) {
	ctx, cancel := context.WithCancel(ctx)
	claim, err := u.nar(ctx, cancel, info, form, off)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("upstream: get %s NAR of %s: %w", form, info.StorePath(), err)
	}
	return claim, nil
}

func (u *Upstreams) nar(ctx context.Context, cancel func(), info *verify.Info, form nix.Form, off int64) (*verify.Unverified, error) {
	if off < 0 {
		return nil, fmt.Errorf("offset %d", off)
	}
	if !u.memory.knows(info) {
		// Nothing was asked before, or this process is new: all are asked at once.
		got, err := u.info(ctx, info.StorePath().Hash())
		switch {
		case err != nil:
			return nil, err
		case !sameNAR(got, info) && len(u.mirrors) == 1:
			return nil, errOtherNAR
		}
	}
	if form.IsRaw() {
		switch {
		case off > info.NarSize():
			return nil, fmt.Errorf("offset %d of %d", off, info.NarSize())
		case off == info.NarSize():
			cancel()
			return &verify.Unverified{Body: http.NoBody, Size: off}, nil
		}
		b := &unpacked{u: u, info: info, pos: off, cancel: cancel, tried: map[any]bool{}}
		b.open = func() error { return b.choose(ctx) }
		if err := b.open(); err != nil {
			return nil, err
		}
		return &verify.Unverified{Body: b, Size: info.NarSize()}, nil
	}
	want := func(_ *mirror, p *place) bool { return p.compression == form.Compression && p.file == form.File }
	r := u.newRelay(ctx, cancel, info, form, want)
	r.strict, r.pos = true, off
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

// find returns where a cache has info's NAR. It asks for the narinfo when that is not
// known, or when fresh says that what is known is out of date.
func (u *Upstreams) find(ctx context.Context, m *mirror, info *verify.Info, fresh bool) (place, error) {
	if p, ok := u.memory.place(m, info); ok && !fresh {
		return p, nil
	}
	got, err := u.ask(ctx, m, info.StorePath().Hash())
	if err != nil {
		return place{}, err
	}
	if !sameNAR(got, info) {
		return place{}, fmt.Errorf("%s: %w", m.name, errOtherNAR)
	}
	h := got.Hints()
	return place{h.URL, h.Compression, h.FileHash, h.FileSize}, nil
}

// unpacked is a raw NAR: as a cache has it raw, or decoded from files, with another file
// where one cannot be decoded to the end. One reader at a time; Close at any time.
type unpacked struct {
	u      *Upstreams
	info   *verify.Info
	open   func() error
	cancel func()

	mu      sync.Mutex
	pos     int64         // next byte for the reader
	skip    int64         // bytes of src before it
	src     io.ReadCloser // nil between two files
	file    *relay        // below src
	raw     bool          // file is the NAR itself
	flowing bool          // bytes have left
	tried   map[any]bool
	verdict verdict
	closed  bool
	err     error
}

// costs are the compressions in the order in which they are decoded gladly.
var costs = map[nix.Compression]int{nix.None: 0, nix.Zstd: 1, nix.Gzip: 2, nix.Bzip2: 3, nix.Brotli: 3, nix.XZ: 4}

// file identifies what a cache has at p: two caches that name the same are interchangeable.
func (p *place) key(m *mirror) any {
	switch {
	case p.compression == nix.None:
		return nix.None
	case p.file != (nix.FileHash{}):
		return p.file
	}
	return m.index
}

// choose opens the file that is cheapest to decode among those not tried yet. Caches that
// were not asked yet are asked one after the other when no other file is left.
func (b *unpacked) choose(ctx context.Context) error {
	for {
		m, p, err := b.best(ctx)
		if err != nil {
			return err
		}
		key := p.key(m)
		b.tried[key] = true
		want := func(o *mirror, q *place) bool { return q.compression == p.compression && q.key(o) == key }
		r := b.u.newRelay(ctx, func() {}, b.info, nix.Raw, want)
		r.flowing = b.flowing
		if b.raw = p.compression == nix.None; b.raw {
			r.size, r.strict, r.pos = b.info.NarSize(), true, b.pos
		} else {
			r.most = mostFile(b.info.NarSize())
		}
		if err := r.open(); err != nil {
			b.verdict.add(err)
			continue
		}
		b.file, b.skip = r, 0
		if b.raw {
			b.src = r
			return nil
		}
		if b.src, err = compress.NewReader(p.compression, r); err != nil {
			_ = r.Close()
			b.verdict.add(err)
			continue
		}
		b.skip = b.pos
		return nil
	}
}

// best returns the next place to try.
func (b *unpacked) best(ctx context.Context) (*mirror, place, error) {
	may, left := b.u.order()
	if left != nil {
		b.verdict.add(left)
	}
	var bestM *mirror
	var best place
	var unknown []*mirror
	for _, m := range may {
		if b.u.memory.convicted(m, b.info, nix.Raw) {
			b.verdict.add(fmt.Errorf("%s: sent it wrong before: %w", m.name, fs.ErrNotExist))
			continue
		}
		p, ok := b.u.memory.place(m, b.info)
		switch {
		case !ok:
			unknown = append(unknown, m)
		case b.tried[p.key(m)]:
		case bestM == nil || costs[p.compression] < costs[best.compression]:
			bestM, best = m, p
		}
	}
	if bestM != nil {
		return bestM, best, nil
	}
	for _, m := range unknown {
		if b.tried[m] {
			continue
		}
		b.tried[m] = true
		p, err := b.u.find(ctx, m, b.info, false)
		switch {
		case err != nil:
			b.verdict.add(err)
		case !b.tried[p.key(m)]:
			return m, p, nil
		}
	}
	return nil, place{}, b.verdict.err()
}

// mostFile is the most that a file of unknown size may have: no compression makes a NAR
// much larger.
func mostFile(nar int64) int64 { return nar + nar/8 + 1<<20 }

func (b *unpacked) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.read(p)
	b.err = err
	return n, err
}

func (b *unpacked) read(p []byte) (int, error) {
	size := b.info.NarSize()
	for {
		switch {
		case b.closed:
			return 0, errClosed
		case len(p) == 0:
			return 0, nil
		case b.src == nil:
			if err := b.open(); err != nil {
				return 0, err
			}
		}
		if b.pos == size && b.skip == 0 {
			return 0, b.end()
		}
		room := p[:min(int64(len(p)), size-b.pos)]
		if b.skip > 0 {
			room = p[:min(int64(len(p)), b.skip)]
		}
		n, err := b.src.Read(room)
		if b.skip > 0 {
			b.skip -= int64(n)
			n = 0
		}
		b.pos += int64(n)
		if n > 0 {
			b.flowing = true
			return n, nil // an error comes again
		}
		if err != nil {
			b.verdict.add(b.fault(err))
			b.drop()
		}
	}
}

// end looks whether the file goes on after the last byte of the NAR.
func (b *unpacked) end() error {
	if b.raw {
		_, err := b.src.Read(make([]byte, 1))
		return err
	}
	b.file.last = true
	var one [1]byte
	if n, _ := io.ReadFull(b.src, one[:]); n > 0 {
		return &verify.InvalidError{Reason: verify.ReasonSize, Err: fmt.Errorf("decodes to more than %d bytes", b.info.NarSize())}
	}
	return io.EOF
}

// fault says what an error of decoding means. What cannot be decoded although it came
// whole is a lie.
func (b *unpacked) fault(err error) error {
	switch {
	case b.file.err != nil && !errors.Is(b.file.err, io.EOF):
		return b.file.err
	case b.raw:
		return err
	case errors.Is(err, io.EOF):
		err = fmt.Errorf("decodes to %d of %d bytes", b.pos-b.skip, b.info.NarSize())
		return &verify.InvalidError{Reason: verify.ReasonSize, Err: err}
	case errors.Is(err, compress.ErrCorrupt), errors.Is(err, io.ErrUnexpectedEOF):
		return &verify.InvalidError{Reason: verify.ReasonEncoding, Err: err}
	}
	return err
}

// drop closes the file that is open.
func (b *unpacked) drop() {
	if b.src != nil && !b.raw {
		_ = b.src.Close()
	}
	if b.file != nil {
		_ = b.file.Close()
	}
	b.src, b.file = nil, nil
}

// Close ends a Read that waits.
func (b *unpacked) Close() error {
	b.cancel()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed, b.err = true, errClosed
	b.drop()
	return nil
}

var errClosed = errors.New("upstream: body is closed")
