package narcache

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/verify"
)

const (
	// shrunkTail is what is still held back from a reader that has waited for patience: as in
	// verify.Guard, a client that hears nothing would give up.
	shrunkTail = 64 << 10
	patience   = 20 * time.Second
)

// Reader reads a download, from its own place and at its own pace. Read is for one goroutine,
// Close may be called at any time by any.
type Reader struct {
	d      *Download
	file   *os.File
	leave  func()
	err    error // why there is no file
	follow bool
	others bool // it is for another machine
	off    int64
	hold   int64

	once   sync.Once
	closed chan struct{}
}

// Reader returns a reader from byte off on. It blocks for bytes that are still to come, sees
// all but the last verify.TailSize of what was written until Commit, everything after it, and
// the error of Abort after that.
func (d *Download) Reader(off int64) *Reader { return d.reader(off, true) }

// PeerReader is Reader for another machine: it waits for what is doubted as for what is still to come.
func (d *Download) PeerReader(off int64) *Reader {
	r := d.reader(off, true)
	r.others = true
	return r
}

// ReadBack returns a reader of what was written so far, the tail included: unproven bytes, for the
// filler's own eyes. It ends where writing is.
func (d *Download) ReadBack() *Reader { return d.reader(0, false) }

func (d *Download) reader(off int64, follow bool) *Reader {
	r := &Reader{d: d, follow: follow, off: off, hold: verify.TailSize, closed: make(chan struct{})}
	if off < 0 || off > d.size {
		r.err = fmt.Errorf("narcache: %s: byte %d of %d", d.key.nar, off, d.size)
		return r
	}
	r.file, r.leave, r.err = d.enter()
	return r
}

// Read returns the next bytes that may be seen.
func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil || len(p) == 0 {
		return 0, r.err
	}
	var timer *time.Timer
	for {
		free, changed, err := r.free(timer != nil)
		if free > 0 && err == nil {
			return r.take(p[:min(int64(len(p)), free)])
		}
		if err != nil {
			return 0, err
		}
		if timer == nil {
			timer = time.NewTimer(patience)
			defer timer.Stop()
			continue // now with a channel to wait for
		}
		select {
		case <-changed:
		case <-r.closed:
			return 0, fs.ErrClosed
		case <-timer.C:
			r.hold = min(r.hold, shrunkTail)
		}
	}
}

// Have returns how many bytes from the first one on can be read without waiting.
func (r *Reader) Have() int64 {
	d := r.d
	d.mu.Lock()
	defer d.mu.Unlock()
	return max(r.seen(), 0)
}

// seen returns how many bytes from the first one on this reader may see. The caller holds d.mu.
func (r *Reader) seen() int64 {
	d := r.d
	n := d.written
	if d.state != filling || !r.follow {
		return n
	}
	if n -= r.hold; r.others && d.doubted {
		n = min(n, d.doubt)
	}
	return n
}

// free returns how many bytes may be read now. When there are none it returns a channel that is
// closed at the next change, if wait asks for one.
func (r *Reader) free(wait bool) (n int64, changed <-chan struct{}, err error) {
	d := r.d
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-r.closed:
		return 0, nil, fs.ErrClosed
	default:
	}
	if d.state == aborted {
		return 0, nil, d.err
	}
	if n = r.seen() - r.off; n > 0 {
		return n, nil, nil
	}
	if d.state == committed || !r.follow {
		return 0, nil, io.EOF
	}
	if wait {
		if d.changed == nil {
			d.changed = make(chan struct{})
		}
		changed = d.changed
	}
	return 0, changed, nil
}

// take reads bytes that are there. What is missing after all went with an Abort at this moment.
func (r *Reader) take(p []byte) (int, error) {
	n, err := r.file.ReadAt(p, r.off)
	if n < len(p) {
		if _, _, why := r.free(false); why != nil && !errors.Is(why, io.EOF) {
			return 0, why
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, fmt.Errorf("narcache: read %s: %w", r.d.key.nar, err)
	}
	r.off += int64(n)
	return n, nil
}

// Close ends the reader, also while it waits.
func (r *Reader) Close() error {
	r.once.Do(func() {
		close(r.closed)
		if r.leave != nil {
			r.leave()
		}
	})
	return nil
}
