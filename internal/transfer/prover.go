package transfer

import (
	"context"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// prover decodes files in the background that came into the cache: their FileHash was right,
// but nobody signed that. One worker does it while nothing else is sent. Whoever asks for a
// file before has it proven at once (see NAR.fromCache).
type prover struct {
	mu    sync.Mutex
	queue []file
	wake  chan struct{} // capacity 1
}

type file struct {
	info *verify.Info
	form nix.Form
}

const (
	proveQueue = 4096 // files that wait; the others are proven when they are asked for
	idleBefore = 3 * time.Second
	idleTick   = time.Second
)

func newProver() prover { return prover{wake: make(chan struct{}, 1)} }

// add queues a file.
func (p *prover) add(info *verify.Info, form nix.Form) {
	p.mu.Lock()
	if len(p.queue) < proveQueue {
		p.queue = append(p.queue, file{info, form})
	}
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *prover) next() (file, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		return file{}, false
	}
	f := p.queue[0]
	p.queue = p.queue[1:]
	return f, true
}

// prove works the queue until ctx ends.
func (s *Server) prove(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.prover.wake:
		}
		for s.awaitIdle(ctx) {
			f, ok := s.prover.next()
			if !ok {
				break
			}
			_ = s.proveFile(ctx, f.info, f.form)
		}
	}
}

// awaitIdle waits until nothing has been sent for a while. It reports false when ctx ends.
func (s *Server) awaitIdle(ctx context.Context) bool {
	tick := time.NewTicker(idleTick)
	defer tick.Stop()
	for s.responses.idle() < idleBefore || s.downloads.active() {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return ctx.Err() == nil
}

// proveFile has a file decoded, unless it was before. A file that does not hold the signed NAR
// is gone on return, with the narinfo that named it.
func (s *Server) proveFile(ctx context.Context, info *verify.Info, form nix.Form) error {
	if s.cfg.Cache.Proven(info.NarHash(), form) {
		return nil
	}
	err := s.cfg.Cache.Prove(ctx, info, form)
	s.reportFile(info, form, err)
	return err
}
