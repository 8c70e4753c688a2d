package server

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/nixp2p/nixp2p/internal/update"
	"github.com/nixp2p/nixp2p/p2p/share"
	"github.com/nixp2p/nixp2p/p2p/site"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

// delta returns what is sent as a delta, or nil if the NAR is sent as usual. The caller closes it.
func (s *Server) delta(req *http.Request, p *site.Peer, n *share.NAR, off int64) *update.Delta {
	if off > 0 || n.Partial() || !n.Form.IsRaw() || n.Decodes() {
		return nil
	}
	return s.cfg.Encoder.Open(req.Context(), update.Ask{
		To: p.Machine.Prefix(), Info: n.Info, Bases: wire.ParseBases(req.Header.Get(wire.BaseHeader)),
		Plain: update.PlainTime(req.Header, n.Size),
	})
}

const (
	// A peer that takes a delta slowly keeps the encoder and its memory from others: the time in which it is
	// waited for is takeTime, and what its bytes are worth at takeRate.
	takeTime = 10 * time.Second
	takeRate = 16 << 10 // bytes a second
)

var errTakesSlowly = errors.New("server: the peer takes a delta too slowly")

// taken is how a peer takes a delta.
type taken struct {
	bytes  int64
	waited time.Duration
}

// took notes that n bytes were waited for, and returns an error if the peer is too slow.
func (t *taken) took(n int, waited time.Duration) error {
	t.bytes, t.waited = t.bytes+int64(n), t.waited+waited
	if worth := time.Duration(float64(t.bytes) / takeRate * float64(time.Second)); t.waited > takeTime+worth {
		return errTakesSlowly
	}
	return nil
}

// sendDelta answers with a delta.
func (u *upload) sendDelta(ctx context.Context, d *update.Delta) error {
	h := u.w.Header()
	h.Del("Content-Length")
	h.Set("Content-Encoding", update.Coding)
	h.Set(wire.BaseHeader, d.Base.Nix32())
	h.Set(wire.SizeHeader, strconv.FormatInt(u.nar.Size, 10))
	u.w.WriteHeader(http.StatusOK)
	_ = u.control.Flush() // the other side waits for a beginning
	stop := context.AfterFunc(ctx, func() { _ = u.control.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	var to taken
	return d.Send(ctx, writerFunc(func(b []byte) (int, error) {
		start := time.Now()
		n, err := u.writeWire(ctx, b)
		if err == nil {
			err = u.control.Flush()
		}
		return n, errors.Join(err, to.took(n, time.Since(start)))
	}), func(n int) {
		u.left -= int64(n)
		u.flow.Add(int64(n))
	})
}
