package machine

import (
	"sync"
	"time"
)

// Slots is a number of places that cannot be taken away once they are given. A machine alone
// gets at most three quarters of them, so that another one finds room; when several hold or
// lately wanted some, each gets an equal part. It is safe for concurrent use.
type Slots struct {
	most int

	mu     sync.Mutex
	total  int
	held   map[ID]int
	wanted map[ID]time.Time // refused lately, and holding nothing
}

const (
	// wantedFor is how long a machine that was refused counts when parts are made.
	wantedFor = 2 * time.Second
	maxWanted = 1024
)

// NewSlots returns most free places.
func NewSlots(most int) *Slots {
	return &Slots{most: most, held: make(map[ID]int), wanted: make(map[ID]time.Time)}
}

// Take asks for a place for a machine. The caller calls release once. Without a place, ok is
// false.
func (s *Slots) Take(m ID) (release func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.total >= s.most || s.held[m] >= s.part(m, now) {
		if len(s.wanted) < maxWanted && s.held[m] == 0 {
			s.wanted[m] = now
		}
		return nil, false
	}
	delete(s.wanted, m)
	s.total++
	s.held[m]++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.total--
		if s.held[m]--; s.held[m] == 0 {
			delete(s.held, m)
		}
	}), true
}

// part returns how many places a machine may hold.
func (s *Slots) part(m ID, now time.Time) int {
	n := len(s.held)
	if s.held[m] == 0 {
		n++
	}
	for o, at := range s.wanted {
		if now.Sub(at) > wantedFor {
			delete(s.wanted, o)
		} else if o != m {
			n++
		}
	}
	if n == 1 {
		return max(s.most*3/4, 1)
	}
	return max(s.most/n, 1)
}

// Taken returns how many places are given.
func (s *Slots) Taken() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// Rate allows each machine some events at once and then one in Every. Events that turned out
// to be worth it are given back. It is safe for concurrent use.
type Rate[K comparable] struct {
	Every time.Duration
	Burst int

	mu    sync.Mutex
	spent map[K]time.Time // when all is free again
	sweep time.Time
}

// maxRates bounds how many are remembered; beyond it, those that are nearly free are
// forgotten.
const maxRates = 4096

// Allow reports whether an event of k may happen now, and counts it.
func (r *Rate[K]) Allow(k K) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	full := r.spent[k]
	if full.Before(now) {
		full = now
	}
	full = full.Add(r.Every)
	if full.Sub(now) > time.Duration(r.Burst)*r.Every {
		return false
	}
	if r.spent == nil {
		r.spent = make(map[K]time.Time)
	}
	r.spent[k] = full
	r.forget(now)
	return true
}

// Ready reports whether Allow would.
func (r *Rate[K]) Ready(k K) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Until(r.spent[k])+r.Every <= time.Duration(r.Burst)*r.Every
}

// Return gives one event back.
func (r *Rate[K]) Return(k K) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if full, ok := r.spent[k]; ok {
		r.spent[k] = full.Add(-r.Every)
	}
}

func (r *Rate[K]) forget(now time.Time) {
	if len(r.spent) <= maxRates && now.Sub(r.sweep) < time.Duration(r.Burst)*r.Every {
		return
	}
	r.sweep = now
	for k, full := range r.spent {
		if !full.After(now) {
			delete(r.spent, k)
		}
	}
	for k := range r.spent {
		if len(r.spent) <= maxRates {
			break
		}
		delete(r.spent, k)
	}
}
