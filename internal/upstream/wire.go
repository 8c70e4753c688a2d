package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nixp2p/nixp2p/internal/runclock"
)

// wire is a response body on its way: it counts bytes, and ends when none comes for too
// long. Only the time in which a byte is waited for counts, not the reader's own.
type wire struct {
	rc     io.ReadCloser
	stall  time.Duration
	bytes  prometheus.Counter
	pace   *pace         // nil unless it is a NAR
	own    *pace         // of the cache itself, nil if the body comes from elsewhere
	heard  *atomic.Int64 // when the cache was heard last, nil if the body comes from elsewhere
	cancel context.CancelCauseFunc
	cause  func() error    // why the request was cancelled
	timer  *runclock.Timer // cancels the request; nil before the first Read
	last   time.Time       // end of the last Read
	ended  bool
}

func (w *wire) Read(p []byte) (int, error) {
	if w.timer == nil {
		w.timer = runclock.NewTimer(w.stall, func() { w.cancel(errStalled) })
		w.last = time.Now()
	} else {
		w.timer.Reset(w.stall)
	}
	for _, p := range []*pace{w.pace, w.own} {
		if p != nil {
			p.begin(time.Since(w.last))
		}
	}
	n, err := w.rc.Read(p)
	w.timer.Stop()
	for _, p := range []*pace{w.pace, w.own} {
		if p != nil {
			p.end(n)
		}
	}
	w.last = time.Now()
	if n > 0 {
		w.bytes.Add(float64(n))
		if w.heard != nil {
			w.heard.Store(w.last.UnixNano())
		}
	}
	switch {
	case errors.Is(err, io.EOF):
		w.ended = true
	case err != nil && errors.Is(w.cause(), errStalled):
		err = fmt.Errorf("no byte in %v: %w", w.stall, errStalled)
	}
	return n, err
}

// Close may be called once. A body that was read to its end leaves its connection to the next
// request.
func (w *wire) Close() error {
	if !w.ended {
		w.cancel(context.Canceled)
	}
	err := w.rc.Close()
	w.cancel(context.Canceled)
	return err
}

// finish closes a body that is of no use, with its connection kept if little is left.
func (w *wire) finish() {
	const little, soon = 4 << 10, 200 * time.Millisecond
	w.stall, w.pace, w.own = min(w.stall, soon), nil, nil
	var buf [1 << 10]byte
	for left := little; left > 0 && !w.ended; {
		n, err := w.Read(buf[:])
		if left -= n; err != nil {
			break
		}
	}
	_ = w.Close()
}
