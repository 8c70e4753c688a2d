package server

import (
	"context"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/delta"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/p2p/share"
	"github.com/nixp2p/nixp2p/p2p/site"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

const (
	// A machine gets deltaEach encoders at a time, and deltaTime of CPU in deltaWindow.
	deltaEach   = 2
	deltaTime   = time.Minute
	deltaWindow = 10 * time.Minute
	// maxDeltaMachines bounds the machines whose time is counted. Others get none meanwhile.
	maxDeltaMachines = 1024
)

// deltaSlots shares the encoders of deltas among machines: half of the cores work on them at most.
type deltaSlots struct {
	mu       sync.Mutex
	free     int
	machines map[machine.ID]*deltaUse
}

// deltaUse is what one machine has had.
type deltaUse struct {
	running int
	spent   time.Duration // since
	since   time.Time
}

func newDeltaSlots() *deltaSlots {
	return &deltaSlots{free: (runtime.GOMAXPROCS(0) + 1) / 2, machines: make(map[machine.ID]*deltaUse)}
}

// take takes an encoder for a machine, if there is one at once. The caller says at the end how long
// it took.
func (s *deltaSlots) take(m machine.ID) (release func(spent time.Duration), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	u := s.machines[m]
	if u == nil {
		if len(s.machines) >= maxDeltaMachines {
			s.sweep(now)
		}
		if len(s.machines) >= maxDeltaMachines {
			return nil, false
		}
		u = &deltaUse{since: now}
		s.machines[m] = u
	}
	if now.Sub(u.since) >= deltaWindow {
		u.spent, u.since = 0, now
	}
	if s.free == 0 || u.running >= deltaEach || u.spent >= deltaTime {
		return nil, false
	}
	s.free--
	u.running++
	return func(spent time.Duration) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.free++
		u.running--
		u.spent += spent
	}, true
}

// sweep forgets machines whose window is over. The caller holds mu.
func (s *deltaSlots) sweep(now time.Time) {
	for m, u := range s.machines {
		if u.running == 0 && now.Sub(u.since) >= deltaWindow {
			delete(s.machines, m)
		}
	}
}

// delta returns what is sent as a delta, or nil if the NAR is sent as usual. The caller calls done.
func (s *Server) delta(req *http.Request, p *site.Peer, n *share.NAR, off int64) (d *share.Delta, done func(spent time.Duration)) {
	bases := wire.ParseBases(req.Header.Get(wire.BaseHeader))
	if !s.cfg.Delta || len(bases) == 0 || off > 0 || n.Partial() || !n.Form.IsRaw() {
		return nil, nil
	}
	release, ok := s.deltas.take(p.Machine)
	if !ok {
		s.cfg.Metrics.Delta.WithLabelValues("no_slot").Inc()
		return nil, nil
	}
	d, err := s.cfg.Holder.Delta(req.Context(), n, bases)
	if err != nil {
		release(0)
		s.cfg.Metrics.Delta.WithLabelValues("no_base").Inc()
		if !source.Absent(err) {
			s.log.Debug("base of a delta", "peer", p.Key, "nar", n.Info.NarHash(), "err", err)
		}
		return nil, nil
	}
	return d, func(spent time.Duration) {
		_ = d.Close() // only read
		release(spent)
	}
}

// sendDelta answers with a delta.
func (u *upload) sendDelta(ctx context.Context, d *share.Delta, done func(time.Duration)) error {
	h := u.w.Header()
	h.Del("Content-Length")
	h.Set("Content-Encoding", delta.Coding)
	h.Set(wire.BaseHeader, d.Base.Nix32())
	h.Set(wire.SizeHeader, strconv.FormatInt(u.nar.Size, 10))
	u.w.WriteHeader(http.StatusOK)
	_ = u.control.Flush() // the other side waits for a beginning
	stop := context.AfterFunc(ctx, func() { _ = u.control.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	runtime.LockOSThread() // whose time is counted
	defer runtime.UnlockOSThread()
	start := threadTime()
	stats, err := d.Send(ctx, writerFunc(func(b []byte) (int, error) {
		n, err := u.writeWire(ctx, b)
		if err == nil {
			err = u.control.Flush()
		}
		return n, err
	}), func(n int) {
		u.left -= int64(n)
		u.flow.Add(int64(n))
	})
	spent := threadTime() - start
	done(spent)
	u.s.cfg.Metrics.DeltaCPUSeconds.Add(spent.Seconds())
	result := "sent"
	switch {
	case err != nil:
		result = "cut"
		u.s.log.Debug("delta ended early", "peer", u.to.Key, "nar", u.hash, "err", err)
	case stats.Given > stats.Target/2:
		result = "poor"
	}
	u.s.cfg.Metrics.Delta.WithLabelValues(result).Inc()
	return err
}
