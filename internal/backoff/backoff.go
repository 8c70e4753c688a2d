// Package backoff says what is left alone, and until when: a set whose entries expire, a
// delay that doubles with each failure, and a breaker for a service that is down. It takes
// the time from the time package, so that tests with testing/synctest control it.
package backoff

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Set has keys until they expire. It holds at most a fixed number: beyond that the key that was
// put in first is dropped. It is safe for concurrent use.
type Set[K comparable] struct {
	mu    sync.Mutex
	most  int
	keys  map[K]entry
	order []ticket[K] // as put in; some may be of keys that are gone
	next  uint64
}

type entry struct {
	until  time.Time
	stays  time.Duration // by Grow; 0: was put in by Add
	number uint64
}

type ticket[K comparable] struct {
	key    K
	number uint64
}

// NewSet returns an empty set of at most most keys.
func NewSet[K comparable](most int) *Set[K] {
	return &Set[K]{most: most, keys: make(map[K]entry)}
}

// Add puts k in for d. A key that is there gets the new time.
func (s *Set[K]) Add(k K, d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(k, d, 0)
}

// Grow puts k in for first. A key that expired, and was not dropped for others, gets twice the
// time that it had, at most most.
func (s *Set[K]) Grow(k K, first, most time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.keys[k]
	stays := max(first, min(2*e.stays, most))
	if e.stays > 0 && time.Now().Before(e.until) {
		stays = e.stays // several found the same at once
	}
	s.put(k, stays, stays)
}

// put puts k in for d. The caller holds mu.
func (s *Set[K]) put(k K, d, stays time.Duration) {
	e, ok := s.keys[k]
	if !ok {
		s.next++
		e.number = s.next
		s.order = append(s.order, ticket[K]{k, e.number})
	}
	e.until, e.stays = time.Now().Add(d), stays
	s.keys[k] = e
	for len(s.keys) > s.most {
		if first := s.order[0]; s.current(first) {
			delete(s.keys, first.key)
		}
		s.order = s.order[1:]
	}
	if len(s.order) > 2*s.most+16 {
		s.order = slices.DeleteFunc(s.order, func(t ticket[K]) bool { return !s.current(t) })
	}
}

// current reports whether t is of a key that is still there, and not of an earlier stay.
func (s *Set[K]) current(t ticket[K]) bool {
	e, ok := s.keys[t.key]
	return ok && e.number == t.number
}

// Has reports whether k is in the set and has not expired.
func (s *Set[K]) Has(k K) bool {
	_, ok := s.Until(k)
	return ok
}

// Until returns when k expires, and whether it is in the set.
func (s *Set[K]) Until(k K) (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.keys[k]
	if ok && !time.Now().Before(e.until) {
		if e.stays == 0 { // else it is known how long it stayed
			delete(s.keys, k)
		}
		return time.Time{}, false
	}
	return e.until, ok
}

// Remove takes k out.
func (s *Set[K]) Remove(k K) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.keys, k)
}

// Len returns how many keys are held, expired ones included.
func (s *Set[K]) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.keys)
}

// Delay is an exponential backoff for one thing. The zero value is ready to use with First
// and Most set; it is safe for concurrent use.
type Delay struct {
	First, Most time.Duration

	failures atomic.Int32
	until    atomic.Pointer[time.Time] // by the monotonic clock: the other one may be set back
}

// Fail notes a failure and returns for how long the thing is now left alone: First, then
// twice as long each time, at most Most.
func (d *Delay) Fail() time.Duration {
	n := min(d.failures.Add(1)-1, 30)
	wait := d.First << n
	if wait > d.Most || wait <= 0 {
		wait = d.Most
	}
	d.Pause(wait)
	return wait
}

// Pause leaves the thing alone for wait, whatever happened before.
func (d *Delay) Pause(wait time.Duration) {
	until := time.Now().Add(wait)
	d.until.Store(&until)
}

// Succeed forgets all failures.
func (d *Delay) Succeed() {
	d.failures.Store(0)
	d.until.Store(nil)
}

// Ready reports whether the thing may be tried.
func (d *Delay) Ready() bool {
	until := d.until.Load()
	return until == nil || !time.Now().Before(*until)
}

// Failures returns how many failures there were since the last success.
func (d *Delay) Failures() int { return int(d.failures.Load()) }
