package narcache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

const (
	// readSize is how much of a file is hashed at once.
	readSize = 256 << 10
	// stampAfter is how exactly the disk knows the last use.
	stampAfter = 10 * time.Minute
)

// errDropped says that an entry was found bad and is gone.
var errDropped = errors.New("was damaged")

// NAR returns the bytes of a form from byte off on, if it is here as a whole; raw is decoded from
// a file if need be. A file from before the start is hashed first, and one that is not proven is
// proven first: see Prove. What the disk damaged is dropped, as if it had never been here; what is
// not the NAR is dropped, and the error is a *verify.InvalidError. The error wraps fs.ErrNotExist
// if there is none.
func (c *Cache) NAR(ctx context.Context, info *verify.Info, form nix.Form, off int64) (*verify.Unverified, error) {
	n := claimOf(info)
	for {
		e := c.choose(n.nar, form)
		if e == nil {
			return nil, fmt.Errorf("narcache: %s: %w", n.nar, fs.ErrNotExist)
		}
		u, err := c.serve(ctx, e, n, form, off)
		switch {
		case err == nil:
			c.use(e)
			return u, nil
		case errors.Is(err, errDropped):
			continue // perhaps there is another
		default:
			return nil, fmt.Errorf("narcache: %s: %w", n.nar, err)
		}
	}
}

// claim is what a NAR has to be: a narinfo says so, or the record of a delta that is made of it.
type claim struct {
	nar  nix.NarHash
	size int64  // of the NAR in bytes
	path string // "" if it is not known
}

func claimOf(info *verify.Info) claim {
	return claim{info.NarHash(), info.NarSize(), info.StorePath().String()}
}

func (n claim) digest() verify.Digest { return verify.Digest{Size: n.size, Hash: n.nar} }

// choose returns the entry to serve form from: itself, or for raw the file that is decoded
// fastest, of those that are proven if there are any, and a delta if there is nothing else.
func (dir *directory) choose(nar nix.NarHash, form nix.Form) *entry {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	if e := dir.state.find(key{nar, form}); e != nil || !form.IsRaw() {
		return e
	}
	var best *entry
	for e := dir.state.index[nar]; e != nil; e = e.sibling {
		if best == nil || best.packed() || !e.packed() && (e.decoded && !best.decoded || e.decoded == best.decoded && e.form.Compression == nix.Zstd) {
			best = e
		}
	}
	return best
}

// serve opens e, which is no use of it yet.
func (c *Cache) serve(ctx context.Context, e *entry, n claim, form nix.Form, off int64) (*verify.Unverified, error) {
	if e.packed() {
		return restored(ctx, c, e, n, off)
	}
	decode := e.form != form
	size := e.size
	if decode || form.IsRaw() {
		size = n.size
	}
	if off < 0 || off > size || !decode && size != e.size {
		return nil, fmt.Errorf("byte %d of %d, has %d", off, size, e.size)
	}
	// Whoever reads raw compares it with NarHash: the file need not be decoded before.
	if err := c.ensure(ctx, e, n, !decode); err != nil {
		return nil, err
	}
	f, err := c.openEntry(e)
	if err != nil {
		return nil, err
	}
	body := &entryReader{c: c, e: e, f: f}
	if !decode {
		body.at = off
		return &verify.Unverified{Body: body, Size: size}, nil
	}
	dec, err := newDecoder(body)
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, withContext(ctx, dec), off); err != nil {
		_ = dec.Close()
		return nil, err
	}
	return &verify.Unverified{Body: dec, Size: size}, nil
}

// openEntry opens the file of e for a caller who closes it and then calls release. An entry
// without a good file is dropped.
func (dir *directory) openEntry(e *entry) (*os.File, error) {
	dir.mu.Lock()
	gone := e.gone
	if !gone {
		dir.state.acquire(e)
	}
	dir.mu.Unlock()
	if gone {
		return nil, errDropped
	}
	name := dir.fileOf(e)
	f, err := dir.place.Load().Open(name)
	for errors.Is(err, fs.ErrNotExist) {
		now := dir.settled(e)
		if now == name {
			break
		}
		name = now // it was renamed meanwhile
		f, err = dir.place.Load().Open(name)
	}
	if err == nil {
		var st os.FileInfo
		if st, err = f.Stat(); err == nil && (st.Size() != e.size || !st.Mode().IsRegular()) {
			err = fmt.Errorf("has %d bytes instead of %d", st.Size(), e.size)
		}
		if err == nil {
			return f, nil
		}
		_ = f.Close()
	}
	dir.release(e)
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, fs.ErrClosed) {
		return nil, err // too many files are open, or the cache is closed: the file may be good
	}
	dir.discard(e, "", err)
	return nil, errDropped
}

// discard drops an entry that cannot be used and reports it. It returns false if the entry was
// dropped before.
func (dir *directory) discard(e *entry, storePath string, err error) bool {
	if !dir.drop(e) {
		return false
	}
	dir.cfg.Log.Warn("a file of the cache cannot be used and is removed",
		"nar", e.nar.String(), "form", e.form.String(), "err", err)
	dir.cfg.Events.Send(source.Event{Kind: source.WrongFile, Source: source.Cache, StorePath: storePath, Err: err})
	return true
}

// blame drops an entry whose bytes are wrong, and counts it.
func (dir *directory) blame(e *entry, storePath string, err error) {
	if !dir.discard(e, storePath, err) {
		return
	}
	if invalid := source.Invalid(err); invalid != nil && dir.cfg.Metrics != nil {
		dir.cfg.Metrics.VerifyFailures.WithLabelValues(source.Cache.String(), string(invalid.Reason)).Inc()
	}
}

// Invalid reports that what NAR returned for this form was wrong, and drops it. With a nil err it
// is dropped without being counted.
func (c *Cache) Invalid(info *verify.Info, form nix.Form, err error) {
	c.invalid(claimOf(info), form, err)
}

func (dir *directory) invalid(n claim, form nix.Form, err error) {
	var wrong []*entry
	dir.mu.Lock()
	if e := dir.state.find(key{n.nar, form}); e != nil {
		wrong = append(wrong, e)
	} else if form.IsRaw() { // then it was decoded from one of these
		for e := dir.state.index[n.nar]; e != nil; e = e.sibling {
			wrong = append(wrong, e)
		}
	}
	dir.mu.Unlock()
	for _, e := range wrong {
		if err != nil {
			dir.blame(e, n.path, err)
		} else {
			dir.drop(e)
		}
	}
}

// use notes that e is used now.
func (dir *directory) use(e *entry) {
	now := time.Now()
	dir.mu.Lock()
	e.used = now.Unix()
	if !e.gone {
		dir.state.policy.use(e)
	}
	stamp := e.named && e.used-e.stamped >= int64(stampAfter/time.Second)
	if stamp {
		e.stamped = e.used
	}
	file := e.file
	dir.mu.Unlock()
	if stamp {
		_ = dir.place.Load().Chtimes(file, time.Time{}, now) // what fails is known less exactly
	}
}

// entryReader reads a whole file. An entry is in use as long as it is open.
type entryReader struct {
	c    *Cache
	e    *entry
	f    *os.File
	at   int64
	err  error // of the disk
	once sync.Once
}

// Read drops the entry if the disk does not give what it should.
func (r *entryReader) Read(p []byte) (int, error) {
	n, err := r.f.ReadAt(p, r.at)
	r.at += int64(n)
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, io.EOF) && r.at == r.e.size:
		return n, io.EOF
	case errors.Is(err, fs.ErrClosed):
		return n, err
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	r.err = fmt.Errorf("narcache: read %s: %w", r.e.nar, err)
	r.c.discard(r.e, "", err)
	return n, r.err
}

// Close may be called while Read waits for the disk.
func (r *entryReader) Close() error {
	r.once.Do(func() {
		_ = r.f.Close()
		r.c.mu.Lock()
		r.e.used = time.Now().Unix()
		r.c.mu.Unlock()
		r.c.release(r.e)
	})
	return nil
}

// decoder reads the NAR in a file.
type decoder struct {
	src *entryReader
	mu  sync.Mutex // a decoder is given back only when nobody reads it
	dec io.ReadCloser
}

// newDecoder takes src over.
func newDecoder(src *entryReader) (*decoder, error) {
	dec, err := compress.NewReader(src.e.form.Compression, src)
	if err != nil {
		_ = src.Close()
		return nil, err
	}
	return &decoder{src: src, dec: dec}, nil
}

// Read drops the entry if the whole file is not what its compression says.
func (d *decoder) Read(p []byte) (int, error) {
	n, err := d.read(p)
	if source.Invalid(err) != nil {
		d.src.c.blame(d.src.e, "", err)
	}
	return n, err
}

func (d *decoder) read(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.dec.Read(p)
	if errors.Is(err, compress.ErrCorrupt) || errors.Is(err, io.ErrUnexpectedEOF) && d.src.at == d.src.e.size {
		err = &verify.InvalidError{Reason: verify.ReasonEncoding, Err: err}
	}
	return n, err
}

func (d *decoder) Close() error {
	_ = d.src.Close() // ends a Read
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dec.Close()
}
