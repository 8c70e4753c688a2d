package resolve

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

var (
	errNoSpool     = errors.New("the NAR does not fit into the cache")
	errSpoolFailed = errors.New("the cache failed")
	errClosed      = errors.New("shutting down")
)

// downloadKey names what is fetched once for all.
type downloadKey struct {
	nar  nix.NarHash
	form nix.Form
	size int64 // of the form in bytes: that of a file is what a narinfo says
}

// download is one fetch from afar that any number of responses follow. It runs on a context
// of its own: who leaves cancels nobody, and only when all have left and none came for
// linger does it end.
type download struct {
	key    downloadKey
	info   *verify.Info
	cancel context.CancelFunc

	begun chan struct{} // closed when the first source gives bytes, or none does
	spool Download      // valid once begun is closed and err is nil
	err   error         // valid once begun is closed
	giver atomic.Value  // string: who is giving

	followers int  // under Resolver.mu
	left      int  // how often all have left, under Resolver.mu
	ended     bool // under Resolver.mu
}

// begin lets the joiners go on. It is called by the filler, and the first call counts.
func (d *download) begin(err error) {
	select {
	case <-d.begun:
	default:
		d.err = err
		close(d.begun)
	}
}

// join follows the download of a form of a NAR, beginning it if nobody has. It returns when the
// first source has answered. The caller calls leave.
func (r *Resolver) join(ctx context.Context, info *verify.Info, c choice, size int64) (d *download, began bool, err error) {
	if r.cfg.Spool == nil {
		return nil, false, errNoSpool
	}
	key := downloadKey{info.NarHash(), c.form, size}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil, false, errClosed
	}
	d, ok := r.downloads[key]
	if !ok {
		own, cancel := context.WithCancel(context.WithoutCancel(ctx))
		d = &download{key: key, info: info, cancel: cancel, begun: make(chan struct{})}
		r.downloads[key] = d
		r.fillers.Go(func() {
			defer cancel()
			r.fill(own, d, c)
		})
	}
	d.followers++
	r.mu.Unlock()
	select {
	case <-d.begun:
	case <-ctx.Done():
		r.leave(d)
		return nil, false, ctx.Err()
	}
	if d.err != nil {
		r.leave(d)
		return nil, false, d.err
	}
	return d, !ok, nil
}

func (r *Resolver) leave(d *download) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d.followers--
	if d.followers > 0 || d.ended {
		return
	}
	d.left++
	left := d.left
	time.AfterFunc(linger, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if d.followers == 0 && d.left == left {
			r.unlist(d)
			d.cancel()
		}
	})
}

// drop takes d out of the list: who asks from now on finds it in the cache or begins anew.
func (r *Resolver) drop(d *download) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d.ended = true
	r.unlist(d)
}

// unlist is for holders of mu. Another download may have taken d's place.
func (r *Resolver) unlist(d *download) {
	if r.downloads[d.key] == d {
		delete(r.downloads, d.key)
	}
}

// closeDownloads ends all downloads and lets none begin.
func (r *Resolver) closeDownloads() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, d := range r.downloads {
		d.cancel()
	}
}

// fill fetches d and takes it out of the list when it has ended: from then on it is in the
// cache, or the next who asks tries anew.
func (r *Resolver) fill(ctx context.Context, d *download, c choice) {
	spool, err := r.cfg.Spool(d.key.nar, d.key.form, d.key.size)
	if err != nil {
		r.drop(d)
		d.begin(errors.Join(errNoSpool, err))
		return
	}
	d.spool = spool
	p := &pouring{
		r: r, info: d.info, form: d.key.form, size: d.key.size, sources: c.far, backup: c.backup,
		begun: func(source string) {
			d.giver.Store(source)
			d.begin(nil)
		},
	}
	into := &spoolSink{
		Download: spool, r: r, info: d.info, form: d.key.form, drop: func() { r.drop(d) },
		proof: verify.NewProof(d.info.Want(d.key.form, d.key.size)), buf: make([]byte, min(copyBuffer, d.key.size)),
	}
	err = p.pour(ctx, into, nil)
	r.drop(d)
	d.begin(err)
}

// follow sends a download as it grows.
func (n *NAR) follow(ctx context.Context, w io.Writer) error {
	rd := n.d.spool.Reader(0)
	stop := context.AfterFunc(ctx, func() { _ = rd.Close() })
	defer stop()
	defer rd.Close()
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{rd}, make([]byte, min(copyBuffer, n.formSize)))
	return err
}

// spoolSink writes a stream into the cache's file and judges it.
type spoolSink struct {
	Download
	r     *Resolver
	info  *verify.Info
	form  nix.Form
	drop  func() // takes the download out of the list
	proof *verify.Proof
	buf   []byte
}

func (s *spoolSink) Offset() int64 { return s.proof.Offset() }

func (s *spoolSink) Fill(src io.Reader) error {
	for {
		n, err := src.Read(s.buf)
		if n > 0 {
			if _, err := s.proof.Write(s.buf[:n]); err != nil {
				return err
			}
			if _, err := s.Write(s.buf[:n]); err != nil {
				return &receiverError{errors.Join(errSpoolFailed, err)}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// End commits proven bytes, and aborts all others. A file whose hash is wrong may still hold
// the right NAR: nobody signed the file hash. Then the response is completed, but the file
// hash is not used again.
func (s *spoolSink) End(err error, blame func(error)) error {
	if err == nil {
		err = s.proof.Check()
		if isLie(err) && !s.form.IsRaw() && s.holdsNAR() {
			s.r.log.Warn("file hash of an upstream is wrong, its NAR is right", "path", s.info.StorePath().Base(), "form", s.form.String())
			s.r.disbelieve(s.info, s.form)
			err = s.commit()
			if s.r.cfg.Cache != nil {
				s.r.cfg.Cache.Convict(s.info, s.form, nil)
			}
			return err
		}
	}
	if err != nil {
		blame(err)
		// Out of the list first: a follower that tries anew must not find it there.
		s.drop()
		s.Abort(err)
		return err
	}
	return s.commit()
}

func (s *spoolSink) commit() error {
	if err := s.Commit(); err != nil {
		err = &receiverError{errors.Join(errSpoolFailed, err)}
		s.drop()
		s.Abort(err)
		return err
	}
	return nil
}

// holdsNAR decodes what was written and tells whether it is the signed NAR.
func (s *spoolSink) holdsNAR() bool {
	file := s.Filled()
	defer file.Close()
	dec, err := compress.NewReader(s.form.Compression, file)
	if err != nil {
		return false
	}
	defer dec.Close()
	proof := verify.NewProof(s.info.Want(nix.Raw, 0))
	if _, err := io.CopyBuffer(struct{ io.Writer }{proof}, struct{ io.Reader }{dec}, s.buf); err != nil {
		return false
	}
	return proof.Check() == nil
}
