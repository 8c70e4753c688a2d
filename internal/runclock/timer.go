package runclock

import (
	"context"
	"sync"
	"time"
)

const (
	// step is how often a Timer looks how much time has passed.
	step = 250 * time.Millisecond
	// stopped is how late that may happen at most on a machine that is merely busy. Else this process
	// was stopped, by SIGSTOP or with its virtual machine.
	stopped = time.Second
	// awake is how long what has come meanwhile may take at least to be read.
	awake = time.Second
)

// Timer is a time.Timer with a function, for which time in which this process was stopped does not
// count: others were not silent then, nobody read what they sent. It is safe for concurrent use.
type Timer struct {
	f func()

	mu    sync.Mutex
	t     *time.Timer
	left  time.Duration // at since; 0: it does not run
	wait  time.Duration // from since to the next look
	since time.Time
	late  bool // the process was stopped since Reset
}

// NewTimer returns a timer that calls f in a goroutine of its own in d.
func NewTimer(d time.Duration, f func()) *Timer {
	t := &Timer{f: f}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.t = time.AfterFunc(t.begin(d), t.look)
	return t
}

// begin returns how long the next step takes if d is left. The caller holds mu.
func (t *Timer) begin(d time.Duration) time.Duration {
	t.left, t.wait, t.since = max(d, 1), min(max(d, 0), step), time.Now()
	return t.wait
}

// look counts the time that has passed.
func (t *Timer) look() {
	t.mu.Lock()
	if t.left == 0 { // Stop was called
		t.mu.Unlock()
		return
	}
	left := t.left - time.Since(t.since)
	if t.overdue() {
		t.late = true
		left = max(t.left-t.wait, awake)
	}
	if left > 0 {
		t.t.Reset(t.begin(left))
		t.mu.Unlock()
		return
	}
	t.left = 0
	t.mu.Unlock()
	t.f()
}

func (t *Timer) overdue() bool { return time.Since(t.since)-t.wait > stopped }

// Reset has it run out in d from now.
func (t *Timer) Reset(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.late = false
	t.t.Reset(t.begin(d))
}

// Stop keeps it from running out. A call of the function that has begun goes on.
func (t *Timer) Stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.left = 0
	t.t.Stop()
}

// Interrupted reports whether the process was stopped since the timer was begun or Reset. The
// timer runs.
func (t *Timer) Interrupted() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.late || t.left > 0 && t.overdue()
}

// WithTimeout is context.WithTimeout with a Timer. When the time is over, the cause is
// context.DeadlineExceeded; the error is that of every context that was cancelled.
func WithTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	t := NewTimer(d, func() { cancel(context.DeadlineExceeded) })
	return ctx, func() {
		t.Stop()
		cancel(context.Canceled)
	}
}
