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
	"github.com/nixp2p/nixp2p/verify"
)

const (
	// readSize is how much of a file is hashed or skipped at once.
	readSize = 256 << 10
	// stampAfter is how exactly the disk knows the last use.
	stampAfter = 10 * time.Minute
)

// errDropped says that an entry was found bad and is gone.
var errDropped = errors.New("was damaged")

// NAR returns the bytes of a form from byte off on, if it is here as a whole; raw is decoded
// from a file if need be. An entry from before the start is hashed first; what is wrong is
// dropped, as if it had never been here. The error wraps fs.ErrNotExist when there is none.
func (c *Cache) NAR(ctx context.Context, info *verify.Info, form nix.Form, off int64) (*verify.Unverified, error) {
	for {
		e := c.choose(info.NarHash(), form)
		if e == nil {
			return nil, fmt.Errorf("narcache: %s: %w", info.NarHash(), fs.ErrNotExist)
		}
		claim, err := c.claim(ctx, e, info, form, off)
		switch {
		case err == nil:
			return claim, nil
		case errors.Is(err, errDropped):
			continue // perhaps there is another
		default:
			return nil, fmt.Errorf("narcache: %s: %w", info.NarHash(), err)
		}
	}
}

// choose returns the entry to serve form from: itself, or for raw the file that is decoded
// fastest.
func (c *Cache) choose(nar nix.NarHash, form nix.Form) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.find(key{nar, form}); e != nil || !form.IsRaw() {
		return e
	}
	var best *entry
	for e := c.index[nar]; e != nil; e = e.sibling {
		if best == nil || e.form.Compression == nix.Zstd {
			best = e
		}
	}
	return best
}

func (c *Cache) claim(ctx context.Context, e *entry, info *verify.Info, form nix.Form, off int64) (*verify.Unverified, error) {
	decode := e.form != form
	size := e.size
	if decode || form.IsRaw() {
		size = info.NarSize()
	}
	if off < 0 || off > size || !decode && size != e.size {
		return nil, fmt.Errorf("byte %d of %d, has %d", off, size, e.size)
	}
	f, err := c.openEntry(e)
	if err != nil {
		return nil, err
	}
	body := &entryReader{c: c, e: e, f: f}
	if err := c.proveOnce(ctx, e, f); err != nil {
		_ = body.Close()
		return nil, err
	}
	c.use(e)
	if !decode {
		if err := body.seek(off); err != nil {
			_ = body.Close()
			return nil, err
		}
		return &verify.Unverified{Body: body, Size: size}, nil
	}
	dec, err := newDecoder(body)
	if err != nil {
		return nil, err
	}
	if err := skip(ctx, dec, off); err != nil {
		_ = dec.Close()
		if isLie(err) {
			err = errDropped
		}
		return nil, err
	}
	return &verify.Unverified{Body: dec, Size: size}, nil
}

// openEntry opens the file of e for a caller who closes it and then calls release. An entry
// without a good file is dropped.
func (c *Cache) openEntry(e *entry) (*os.File, error) {
	c.mu.Lock()
	if e.gone {
		c.mu.Unlock()
		return nil, errDropped
	}
	c.acquire(e)
	named := e.named
	c.mu.Unlock()
	final := c.path(e.key, e.size)
	f, err := os.Open(final)
	if err != nil && !named {
		// It may get its name at any moment: look at both, and at the final one again.
		if f, err = os.Open(e.tmp); err != nil {
			f, err = os.Open(final)
		}
	}
	if err == nil {
		var st os.FileInfo
		if st, err = f.Stat(); err == nil && st.Size() != e.size {
			err = fmt.Errorf("has %d bytes instead of %d", st.Size(), e.size)
		}
		if err != nil {
			_ = f.Close()
		}
	}
	if err == nil {
		return f, nil
	}
	c.release(e)
	if isShortOfFiles(err) {
		return nil, err
	}
	c.discard(e, err)
	return nil, errDropped
}

// isShortOfFiles tells that the process has too many files open, which says nothing about this
// one.
func isShortOfFiles(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// discard drops an entry that cannot be used and says so; false when somebody did before.
func (c *Cache) discard(e *entry, err error) bool {
	if !c.drop(e) {
		return false
	}
	c.log.Warn("a file of the cache cannot be used and is removed", "source", name,
		"nar", e.nar.String(), "form", e.form.String(), "err", err)
	c.cfg.Trouble(name, "a file could not be used and was removed", "", err)
	return true
}

// proveOnce hashes an entry from before the start when it is first offered. Who comes meanwhile
// waits for the result.
func (c *Cache) proveOnce(ctx context.Context, e *entry, f *os.File) error {
	for {
		c.mu.Lock()
		if e.proven || e.gone {
			proven := e.proven
			c.mu.Unlock()
			if !proven {
				return errDropped
			}
			return nil
		}
		wait, running := c.proving[e]
		if !running {
			wait = make(chan struct{})
			c.proving[e] = wait
		}
		c.mu.Unlock()
		if running {
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		err := prove(ctx, e, f)
		if err != nil && ctx.Err() == nil {
			c.blame(e, err) // before others may try
			err = errDropped
		}
		c.mu.Lock()
		delete(c.proving, e)
		e.proven = err == nil
		c.mu.Unlock()
		close(wait)
		return err
	}
}

// prove hashes the file and goes back to its beginning.
func prove(ctx context.Context, e *entry, f *os.File) error {
	want := verify.Want{Size: e.size, Hash: e.nar}
	if !e.form.IsRaw() {
		want.Hash = e.form.File
	}
	proof := verify.NewProof(want)
	buf := make([]byte, min(readSize, e.size))
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.Read(buf)
		if _, err := proof.Write(buf[:n]); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if err := proof.Check(); err != nil {
		return err
	}
	_, err := f.Seek(0, io.SeekStart)
	return err
}

// blame drops an entry whose bytes are wrong, and counts it.
func (c *Cache) blame(e *entry, err error) {
	var lie *verify.InvalidError
	if !c.discard(e, err) || !errors.As(err, &lie) {
		return
	}
	if m := c.cfg.Metrics; m != nil {
		m.VerifyFailures.WithLabelValues(name, string(lie.Reason)).Inc()
	}
}

func isLie(err error) bool {
	var lie *verify.InvalidError
	return errors.As(err, &lie)
}

// Invalid says that what NAR gave for this form was wrong, and drops it. With a nil err it is
// dropped without blame.
func (c *Cache) Invalid(info *verify.Info, form nix.Form, err error) {
	var guilty []*entry
	c.mu.Lock()
	if e := c.find(key{info.NarHash(), form}); e != nil {
		guilty = append(guilty, e)
	} else if form.IsRaw() { // then it was decoded from one of these
		for e := c.index[info.NarHash()]; e != nil; e = e.sibling {
			guilty = append(guilty, e)
		}
	}
	c.mu.Unlock()
	for _, e := range guilty {
		if err != nil {
			c.blame(e, err)
		} else {
			c.drop(e)
		}
	}
}

// use notes that e is used now.
func (c *Cache) use(e *entry) {
	now := time.Now()
	c.mu.Lock()
	e.used = now.Unix()
	if !e.gone {
		c.ranks.use(e)
	}
	stamp := e.named && e.used-e.stamped >= int64(stampAfter/time.Second)
	if stamp {
		e.stamped = e.used
	}
	c.mu.Unlock()
	if stamp {
		_ = os.Chtimes(c.path(e.key, e.size), time.Time{}, now) // what fails is known less exactly
	}
}

// entryReader reads a whole file. An entry is in use as long as it is open.
type entryReader struct {
	c    *Cache
	e    *entry
	f    *os.File
	at   int64
	once sync.Once
}

func (r *entryReader) seek(off int64) error {
	r.at = off
	_, err := r.f.Seek(off, io.SeekStart)
	return err
}

// Read drops the entry when the disk does not give what it should.
func (r *entryReader) Read(p []byte) (int, error) {
	n, err := r.f.Read(p)
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
	r.c.discard(r.e, err)
	return n, fmt.Errorf("narcache: read %s: %w", r.e.nar, err)
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

// Read drops the entry when the whole file is not what its compression says.
func (d *decoder) Read(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.dec.Read(p)
	e := d.src.e
	if errors.Is(err, compress.ErrCorrupt) || errors.Is(err, io.ErrUnexpectedEOF) && d.src.at == e.size {
		err = &verify.InvalidError{Reason: verify.ReasonEncoding, Err: err}
		d.src.c.blame(e, err)
	}
	return n, err
}

func (d *decoder) Close() error {
	_ = d.src.Close() // ends a Read
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dec.Close()
}

// skip reads n bytes of r.
func skip(ctx context.Context, r io.Reader, n int64) error {
	buf := make([]byte, min(readSize, n))
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		got, err := io.ReadFull(r, buf[:min(n, int64(len(buf)))])
		n -= int64(got)
		if err != nil {
			return err
		}
	}
	return nil
}
