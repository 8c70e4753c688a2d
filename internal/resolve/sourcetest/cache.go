package sourcetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/verify"
)

// Cache is a resolve.Cache in memory, with downloads. It is safe for concurrent use.
type Cache struct {
	*Fake

	mu     sync.Mutex
	refuse error
	failAt int64 // of each download, -1 never
	commit error
	begun  int
	under  map[downloadKey]bool // way
}

type downloadKey struct {
	nar  nix.NarHash
	form nix.Form
}

// NewCache returns an empty cache that takes all.
func NewCache() *Cache {
	return &Cache{Fake: NewFake("cache"), failAt: -1, under: map[downloadKey]bool{}}
}

var _ resolve.Cache = (*Cache)(nil)

// ErrDisk is what the disk of a Cache says.
var ErrDisk = errors.New("sourcetest: the disk failed")

// Refuse makes Create refuse.
func (c *Cache) Refuse(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuse = err
}

// FailAt makes the next download fail to write byte at.
func (c *Cache) FailAt(at int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failAt = at
}

// FailCommit makes Commit fail.
func (c *Cache) FailCommit(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.commit = err
}

// Begun returns how many downloads there were.
func (c *Cache) Begun() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.begun
}

// Held tells in which forms a NAR is there.
func (c *Cache) Held(nar nix.NarHash) (raw bool, files []nix.Form) {
	c.Fake.mu.Lock()
	defer c.Fake.mu.Unlock()
	for form := range c.blobs[nar] {
		if form.IsRaw() {
			raw = true
		} else {
			files = append(files, form)
		}
	}
	return raw, files
}

// NAR gives a form that is there, and raw made of another.
func (c *Cache) NAR(ctx context.Context, info *verify.Info, form nix.Form, off int64) (*verify.Unverified, error) {
	claim, err := c.Fake.NAR(ctx, info, form, off)
	_, files := c.Held(info.NarHash())
	if err == nil || !errors.Is(err, fs.ErrNotExist) || !form.IsRaw() || len(files) == 0 {
		return claim, err
	}
	if claim, err = c.Fake.NAR(ctx, info, files[0], 0); err != nil {
		return nil, err
	}
	dec, err := compress.NewReader(files[0].Compression, claim.Body)
	if err != nil {
		return nil, errors.Join(err, claim.Body.Close())
	}
	if _, err := io.CopyN(io.Discard, dec, off); err != nil {
		return nil, errors.Join(err, dec.Close(), claim.Body.Close())
	}
	return &verify.Unverified{Body: &decoded{dec, claim.Body}, Size: info.NarSize()}, nil
}

type decoded struct {
	io.ReadCloser
	file io.Closer
}

func (d *decoded) Close() error { return errors.Join(d.ReadCloser.Close(), d.file.Close()) }

// Create begins a download.
func (c *Cache) Create(nar nix.NarHash, form nix.Form, size int64) (resolve.Download, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse != nil {
		return nil, c.refuse
	}
	raw, files := c.Held(nar)
	if c.under[downloadKey{nar, form}] || form.IsRaw() && raw || slices.Contains(files, form) {
		return nil, errors.New("sourcetest: is there already")
	}
	c.under[downloadKey{nar, form}] = true
	c.begun++
	d := &download{c: c, nar: nar, form: form, size: size, failAt: c.failAt, commit: c.commit, changed: make(chan struct{})}
	c.failAt = -1
	return d, nil
}

type download struct {
	c      *Cache
	nar    nix.NarHash
	form   nix.Form
	size   int64
	failAt int64
	commit error

	mu      sync.Mutex
	data    []byte
	whole   bool
	err     error
	changed chan struct{} // closed at each change
}

// end lets another one begin.
func (d *download) end() {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	delete(d.c.under, downloadKey{d.nar, d.form})
}

func (d *download) change(fn func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fn()
	close(d.changed)
	d.changed = make(chan struct{})
}

func (d *download) Write(p []byte) (n int, err error) {
	d.change(func() {
		switch {
		case d.whole || d.err != nil:
			err = errors.New("sourcetest: written after the end")
		case int64(len(d.data)+len(p)) > d.size:
			err = errors.New("sourcetest: more than was reserved")
		case d.failAt >= 0 && int64(len(d.data)+len(p)) > d.failAt:
			err = ErrDisk
			d.err = fmt.Errorf("sourcetest: write: %w", ErrDisk) // as a real one, for followers at once
		default:
			d.data = append(d.data, p...)
			n = len(p)
		}
	})
	return n, err
}

// Doubt does nothing: nobody else reads it.
func (d *download) Doubt(bool) {}

func (d *download) Commit() error {
	if len(d.data) != int(d.size) {
		err := fmt.Errorf("sourcetest: %d of %d bytes", len(d.data), d.size)
		d.Abort(err)
		return err
	}
	if d.commit != nil {
		d.Abort(d.commit)
		return d.commit
	}
	d.c.AddBytes(d.nar, d.form, d.data)
	d.change(func() { d.whole = true })
	d.end()
	return nil
}

func (d *download) Abort(err error) {
	d.change(func() {
		if d.err == nil && !d.whole {
			d.err = fmt.Errorf("sourcetest: download: %w", err)
		}
	})
	d.end()
}

func (d *download) Reader(off int64) resolve.Reader {
	return &follower{d: d, pos: off, held: verify.TailSize, closed: make(chan struct{})}
}

func (d *download) Filled() resolve.Reader {
	return &follower{d: d, filled: true, closed: make(chan struct{})}
}

type follower struct {
	d      *download
	pos    int64
	held   int64
	filled bool // sees what is there, and then the end
	once   sync.Once
	closed chan struct{}
}

func (r *follower) Read(p []byte) (int, error) {
	for {
		r.d.mu.Lock()
		end := int64(len(r.d.data))
		if !r.d.whole && !r.filled {
			end -= r.held
		}
		var n int
		if r.pos < end && r.d.err == nil {
			n = copy(p, r.d.data[r.pos:end])
			r.pos += int64(n)
		}
		over, err, changed := r.d.whole || r.filled, r.d.err, r.d.changed
		r.d.mu.Unlock()
		select {
		case <-r.closed:
			return 0, os.ErrClosed
		default:
		}
		switch {
		case n > 0 || len(p) == 0:
			return n, nil
		case over:
			return 0, io.EOF
		case err != nil:
			return 0, err
		}
		select {
		case <-changed:
		case <-r.closed:
		}
	}
}

func (r *follower) Close() error {
	r.once.Do(func() { close(r.closed) })
	return nil
}
