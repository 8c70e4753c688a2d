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

// Reader reads a download, from its own place and at its own pace. Read is for one goroutine,
// Close may be called at any time by any.
type Reader struct {
	d       *Download
	file    *os.File
	release func()
	err     error // why there is no file
	follow  bool
	off     int64
	tail    verify.Tail // guarded by d.mu

	once   sync.Once
	closed chan struct{}
}

// ClientReader returns a reader from byte off on. It blocks for bytes that are still to come or
// hidden, sees all but the held-back tail of what was written until Commit, everything after it,
// and the error of Abort after that.
func (d *Download) ClientReader(off int64) *Reader { return d.reader(off, true) }

// peerTail is held back from other machines. They hash what they get and hold back a tail of
// their own, so it need not be as long as for a client, and a site copies a NAR the faster.
const peerTail = 64 << 10

func newPeerTail() verify.Tail { return verify.NewTail(verify.Holdback{Tail: peerTail}) }

// PeerReader is ClientReader for another machine, with a shorter tail. A file that ended a while
// ago and is not proven does not exist for it.
func (d *Download) PeerReader(off int64) *Reader {
	if d.closedToPeers() {
		return &Reader{d: d, closed: make(chan struct{}), err: fmt.Errorf("narcache: %s: not proven: %w", d.key.nar, fs.ErrNotExist)}
	}
	r := d.ClientReader(off)
	r.tail = newPeerTail()
	return r
}

// ReadBack returns a reader of what was written so far, the tail included: unproven bytes, for
// the writer's own use. It ends where writing is.
func (d *Download) ReadBack() *Reader { return d.reader(0, false) }

func (d *Download) reader(off int64, follow bool) *Reader {
	r := &Reader{d: d, follow: follow, off: off, closed: make(chan struct{})}
	if off < 0 || off > d.size {
		r.err = fmt.Errorf("narcache: %s: byte %d of %d", d.key.nar, off, d.size)
	} else {
		r.file, r.release, r.err = d.retain()
	}
	return r
}

// closedToPeers reports whether d is a file that ended a while ago and is not proven.
func (d *Download) closedToPeers() bool {
	d.mu.Lock()
	e := d.entry
	d.mu.Unlock()
	if e == nil {
		return false
	}
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	return !e.proven() && e.followed(time.Now()) == nil
}

// Read returns the next bytes that may be seen.
func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil || len(p) == 0 {
		return 0, r.err
	}
	var timer *time.Timer
	for {
		free, changed, err := r.free()
		if err != nil {
			return 0, err
		}
		if free > 0 {
			return r.take(p[:min(int64(len(p)), free)])
		}
		if timer == nil {
			timer = time.NewTimer(r.tail.Patience(r.d.size))
			defer timer.Stop()
		}
		select {
		case <-changed:
		case <-r.closed:
			return 0, fs.ErrClosed
		case <-timer.C:
			r.d.mu.Lock()
			r.tail.Shrink(r.d.size)
			r.d.mu.Unlock()
		}
	}
}

func (r *Reader) visibleLocked() int64 {
	if !r.follow {
		return r.d.written
	}
	return r.d.visibleLocked(&r.tail)
}

// free returns how many bytes may be read now. If there are none it returns a channel that is
// closed at the next change.
func (r *Reader) free() (n int64, changed <-chan struct{}, err error) {
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
	if n = r.visibleLocked() - r.off; n > 0 {
		return n, nil, nil
	}
	if d.state == committed || !r.follow {
		return 0, nil, io.EOF
	}
	if d.changed == nil {
		d.changed = make(chan struct{})
	}
	return 0, d.changed, nil
}

// take reads bytes that are there. What is missing after all went with an Abort at this moment.
func (r *Reader) take(p []byte) (int, error) {
	n, err := r.file.ReadAt(p, r.off)
	if n < len(p) {
		if _, _, why := r.free(); why != nil && !errors.Is(why, io.EOF) {
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
		if r.release != nil {
			r.release()
		}
	})
	return nil
}
