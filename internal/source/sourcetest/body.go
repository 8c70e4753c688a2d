package sourcetest

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// Action is what a body does at a byte.
type Action int

// The actions.
const (
	Nothing  Action = iota
	Die             // fails
	End             // ends as if that were all
	Flip            // gives a wrong byte
	Hang            // gives no further byte until the context ends or the body is closed
	Wait            // gives no further byte until the fault's Until is closed
	Misread         // says that its own file cannot be decoded
	Overflow        // goes on after the end; At does not matter
)

// Fault is how the bytes of a source are wrong.
type Fault struct {
	Do    Action
	At    int64 // byte of the form
	Until <-chan struct{}
	Times int       // so many NARs meet it, 0 is all
	Only  *nix.Form // if nil, all forms meet it
}

// take returns the faults that the next NAR of this form meets, and those that are left.
func take(faults []*Fault, form nix.Form) (met []Fault, left []*Fault) {
	for _, fault := range faults {
		if fault.Only != nil && *fault.Only != form {
			left = append(left, fault)
			continue
		}
		met = append(met, *fault)
		if fault.Times--; fault.Times != 0 {
			left = append(left, fault)
		}
	}
	return met, left
}

// step is the most that is given at once: small, so that faults lie between reads.
const step = 32 << 10

// body is one NAR being read.
type body struct {
	done    <-chan struct{} // of the context that the body is bound to
	why     func() error
	data    []byte
	pos     int64
	rate    int64 // bytes a second, 0 is at once
	slice   int64 // most bytes at once
	faults  []Fault
	onRead  func(n int) // -1: the first read begins
	onClose func()
	first   sync.Once
	once    sync.Once
	closed  chan struct{}
}

func newBody(ctx context.Context, data []byte, off, rate int64) *body {
	b := &body{done: ctx.Done(), why: ctx.Err, data: data, pos: off, rate: rate, slice: step, closed: make(chan struct{})}
	if rate > 0 {
		b.slice = max(1, min(step, rate/16))
	}
	return b
}

var errClosed = errors.New("sourcetest: the body is closed")

// pause waits for d, or until a channel is closed, and reports whether d has passed.
func pause(d time.Duration, done, closed <-chan struct{}) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-done:
	case <-closed:
	}
	return false
}

func (b *body) Read(p []byte) (int, error) {
	b.first.Do(func() { b.onRead(-1) })
	select {
	case <-b.closed:
		return 0, errClosed
	case <-b.done:
		return 0, b.why()
	default:
	}
	end := min(int64(len(b.data)), b.pos+min(b.slice, int64(len(p))))
	for _, fault := range b.faults {
		if fault.Do == Nothing || fault.Do == Flip || fault.Do == Overflow {
			continue
		}
		if fault.At == b.pos {
			if n, err, done := b.act(fault); done {
				return n, err
			}
		} else if fault.At > b.pos {
			end = min(end, fault.At)
		}
	}
	if b.pos == int64(len(b.data)) {
		for _, fault := range b.faults {
			if fault.Do == Overflow && len(p) > 0 {
				p[0] = 0
				return 1, nil
			}
		}
		return 0, io.EOF
	}
	if b.rate > 0 && !pause(time.Duration(end-b.pos)*time.Second/time.Duration(b.rate), b.done, b.closed) {
		return 0, errors.Join(errClosed, b.why())
	}
	n := copy(p, b.data[b.pos:end])
	for _, fault := range b.faults {
		if fault.Do == Flip && fault.At >= b.pos && fault.At < b.pos+int64(n) {
			p[fault.At-b.pos] ^= 0x40
		}
	}
	b.pos += int64(n)
	b.onRead(n)
	return n, nil
}

func (b *body) act(fault Fault) (int, error, bool) {
	var until <-chan struct{}
	switch fault.Do {
	case Die:
		return 0, ErrDied, true
	case End:
		return 0, io.EOF, true
	case Misread:
		return 0, &verify.InvalidError{Reason: verify.ReasonEncoding, Err: errors.New("sourcetest: not what it says")}, true
	case Wait:
		until = fault.Until
	}
	select {
	case <-until:
		return 0, nil, false
	case <-b.done:
		return 0, b.why(), true
	case <-b.closed:
		return 0, errClosed, true
	}
}

func (b *body) Close() error {
	b.once.Do(func() {
		close(b.closed)
		b.onClose()
	})
	return nil
}
