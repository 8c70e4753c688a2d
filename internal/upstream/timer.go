package upstream

import (
	"sync"
	"time"
)

const (
	// overdue is how late a timer runs out at least if this process was stopped meanwhile.
	overdue = time.Second
	// awake is how long what has come meanwhile may take to be read.
	awake = time.Second
)

// timer is a time.Timer with a function. It does not take it for silence of the other side that this
// process was stopped, by SIGSTOP or with its virtual machine: what came meanwhile is read first.
type timer struct {
	f func()

	mu  sync.Mutex
	t   *time.Timer
	due time.Time
}

// newTimer returns a timer that calls f in d.
func newTimer(d time.Duration, f func()) *timer {
	t := &timer{f: f, due: time.Now().Add(d)}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.t = time.AfterFunc(d, t.fire)
	return t
}

func (t *timer) fire() {
	t.mu.Lock()
	if time.Since(t.due) > overdue {
		t.due = time.Now().Add(awake)
		t.t.Reset(awake)
		t.mu.Unlock()
		return
	}
	t.mu.Unlock()
	t.f()
}

// Reset has it run out in d from now.
func (t *timer) Reset(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.due = time.Now().Add(d)
	t.t.Reset(d)
}

// Stop keeps it from running out. A call of the function that has begun goes on.
func (t *timer) Stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.t.Stop()
}
