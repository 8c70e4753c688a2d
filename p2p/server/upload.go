package server

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/share"
	"github.com/nixp2p/nixp2p/p2p/site"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

const (
	// flushAfter: a body that grows more slowly than this is passed on at once as it comes.
	flushAfter = 20 * time.Millisecond
	// smallWrite is less than what net/http collects before it sends.
	smallWrite = 4 << 10
)

// upload is one NAR on its way to a peer.
type upload struct {
	timing
	s       *Server
	w       http.ResponseWriter
	control *http.ResponseController
	to      *site.Peer
	nar     *share.NAR
	hash    nix.NarHash
	kind    kind
	size    int64        // of what was asked for, in bytes
	flow    metrics.Flow // bytes of the form, before they are compressed
	cancel  context.CancelFunc

	left int64                // bytes of the form to send
	zip  *compress.ZstdWriter // nil: not compressed
}

// timing is when an upload did what. began and writing are on the clock of the process.
type timing struct {
	started, began time.Time
	last           time.Time    // it took bytes
	writing        atomic.Int64 // the peer was given the piece that it has not taken yet; 0: none
}

// send answers with the NAR from byte off on.
func (u *upload) send(ctx context.Context, status int, off int64, zstd bool) error {
	raw := writerFunc(func(b []byte) (int, error) { return u.writeWire(ctx, b) })
	out := io.Writer(raw)
	if zstd && u.nar.Form.IsRaw() && u.s.encoders.TryAcquire(1) {
		defer u.s.encoders.Release(1)
		u.zip = compress.NewZstdWriter(raw)
		defer u.zip.Release()
		out = u.zip
		h := u.w.Header()
		h.Del("Content-Length")
		h.Set("Content-Encoding", string(nix.Zstd))
		h.Set(wire.SizeHeader, strconv.FormatInt(u.nar.Size, 10))
	}
	u.w.Header().Set("Connection", "close") // the deadlines of the writes stay with the stream
	u.w.WriteHeader(status)
	if u.size >= smallNAR || u.nar.Partial() {
		// The other side waits for a beginning, and a download may have nothing yet.
		_ = u.control.Flush()
	}
	u.last = time.Now()
	// A write that waits for the peer ends with the context.
	stop := context.AfterFunc(ctx, func() { _ = u.control.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	err := u.nar.Send(ctx, writerFunc(func(b []byte) (int, error) { return u.write(out, b) }), off)
	if err == nil && u.zip != nil {
		err = u.zip.Close()
	}
	if err != nil {
		u.s.log.Debug("upload ended early", "peer", u.to.Key, "nar", u.hash, "err", err)
	}
	return err
}

// writerFunc is an io.Writer.
type writerFunc func([]byte) (int, error)

// Write is part of io.Writer.
func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// write takes bytes of the form, and passes them on to the wire, or to what compresses them.
func (u *upload) write(out io.Writer, b []byte) (int, error) {
	slow := time.Since(u.last) > flushAfter
	n, err := out.Write(b)
	u.left -= int64(n)
	u.flow.Add(int64(n))
	if err == nil && u.left > 0 && (slow || len(b) < smallWrite) {
		// It would wait for more, and the source has little at the moment.
		if u.zip != nil && slow {
			err = u.zip.Flush()
		}
		if err == nil {
			err = u.control.Flush()
		}
	}
	u.last = time.Now()
	return n, err
}

// writeWire takes bytes as on the wire.
func (u *upload) writeWire(ctx context.Context, b []byte) (int, error) {
	if err := u.s.limiter.wait(ctx, len(b)); err != nil {
		return 0, err
	}
	now := time.Now()
	_ = u.control.SetWriteDeadline(now.Add(writeTime))
	if err := ctx.Err(); err != nil { // the deadline that ended it may have been overwritten
		return 0, err
	}
	u.writing.Store(u.s.cfg.Clock.Now().UnixNano())
	n, err := u.w.Write(b)
	u.writing.Store(0)
	u.s.cfg.Metrics.PeerSentBytes.Add(float64(n))
	u.to.Sent.Add(int64(n))
	return n, err
}

// stuck returns for how long the peer has not taken a piece, now on the clock of the process.
func (u *upload) stuck(now time.Time) time.Duration {
	if at := u.writing.Load(); at != 0 {
		return now.Sub(time.Unix(0, at))
	}
	return 0
}

// Upload is a NAR on its way to a peer, for status pages.
type Upload struct {
	Peer        string // ID
	StorePath   string
	Source      string
	Nar         nix.NarHash
	Form        nix.Form
	Bytes, Size int64 // done, and asked for
	Rate        int64 // bytes a second of the last seconds
	Started     time.Time
}

// Uploads returns the NARs that are on their way to peers now, in no order.
func (s *Server) Uploads() []Upload {
	list := []Upload{}
	for _, u := range s.uploads.all() {
		list = append(list, Upload{
			Peer: u.to.Key, StorePath: u.nar.Info.StorePath().String(), Source: u.nar.Source.String(),
			Nar: u.hash, Form: u.nar.Form, Bytes: u.flow.Load(), Size: u.size,
			Rate: u.flow.Rate(u.started), Started: u.started,
		})
	}
	return list
}
