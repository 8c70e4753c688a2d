package update

import (
	"context"
	"net/netip"
	"runtime"
	"runtime/debug"
	"sync"
	"time"
)

const (
	// A machine gets encodersEach encoders at a time, and timeEach of CPU in window.
	encodersEach = 2
	timeEach     = time.Minute
	window       = 10 * time.Minute
	// maxMachines bounds the machines whose time is counted. Others get none meanwhile.
	maxMachines = 1024
	// An encoder needs leastMemory bytes and encodeFactor times the NAR, up to mostMemory.
	leastMemory  = 24 << 20
	mostMemory   = 104 << 20
	encodeFactor = 4
)

// memoryFor returns how many bytes an encoder needs at most for a NAR of size bytes.
func memoryFor(size int64) int64 {
	return min(leastMemory+encodeFactor*min(size, mostMemory), mostMemory)
}

// slots shares the encoders among machines: half of the cores work on deltas at most, and half of
// the memory that Go may use (GOMEMLIMIT), or mostMemory if that is more.
type slots struct {
	mu       sync.Mutex
	free     int
	memory   int64         // bytes that are free
	freed    chan struct{} // closed when an encoder is given back; nil while nobody waits
	machines map[netip.Prefix]*use
}

// use is what one machine has had.
type use struct {
	running int
	spent   time.Duration // since
	since   time.Time
}

func newSlots() *slots {
	return &slots{
		free: (runtime.GOMAXPROCS(0) + 1) / 2, memory: max(debug.SetMemoryLimit(-1)/2, mostMemory),
		machines: make(map[netip.Prefix]*use),
	}
}

// wait is take for somebody who waits for most if there is no encoder at once. A machine whose time is over gets none.
func (s *slots) wait(ctx context.Context, m netip.Prefix, size int64, most time.Duration) (release func(spent time.Duration), ok bool) {
	var timer *time.Timer
	for {
		release, later := s.take(m, size)
		if release != nil || later == nil || most <= 0 {
			return release, release != nil
		}
		if timer == nil {
			timer = time.NewTimer(most)
			defer timer.Stop()
		}
		select {
		case <-later:
		case <-timer.C:
			return nil, false
		case <-ctx.Done():
			return nil, false
		}
	}
}

// take takes an encoder of a NAR of size bytes for a machine, if there is one at once: else release is
// nil, and later is closed when there may be one, nil if that is not soon. The caller says at the end how long it took.
func (s *slots) take(m netip.Prefix, size int64) (release func(spent time.Duration), later <-chan struct{}) {
	memory := memoryFor(size)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	u := s.machines[m]
	if u == nil {
		if len(s.machines) >= maxMachines {
			s.sweep(now)
		}
		if len(s.machines) >= maxMachines {
			return nil, nil
		}
		u = &use{since: now}
		s.machines[m] = u
	}
	if now.Sub(u.since) >= window {
		u.spent, u.since = 0, now
	}
	switch {
	case u.spent >= timeEach:
		return nil, nil
	case s.free == 0, s.memory < memory, u.running >= encodersEach:
		if s.freed == nil {
			s.freed = make(chan struct{})
		}
		return nil, s.freed
	}
	s.free--
	s.memory -= memory
	u.running++
	return func(spent time.Duration) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.free++
		s.memory += memory
		u.running--
		u.spent += spent
		if s.freed != nil {
			close(s.freed)
			s.freed = nil
		}
	}, nil
}

// sweep forgets machines whose window is over. The caller holds mu.
func (s *slots) sweep(now time.Time) {
	for m, u := range s.machines {
		if u.running == 0 && now.Sub(u.since) >= window {
			delete(s.machines, m)
		}
	}
}
