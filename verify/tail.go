package verify

import "time"

const (
	// TailSize is the held-back tail of a stream: a client that lacks it can neither use the
	// NAR nor take it for whole.
	TailSize = 1 << 20
	// shrunkTail is the tail once the reader has waited for patience: a client that receives
	// nothing gives up at its own timeout.
	shrunkTail = 64 << 10
	patience   = 20 * time.Second
)

// Holdback says how much of a stream is held back while it is not proven. The zero value holds
// back TailSize bytes.
type Holdback struct {
	// VerifyFirst: a stream of at most this many bytes is proven whole before its first byte
	// leaves. A Guard keeps it in memory meanwhile.
	VerifyFirst int64
	// VerifyFor ends that when the reader has waited for so long, so that a slow source does not
	// keep the client waiting. If 0, the tail's own patience applies.
	VerifyFor time.Duration
	// Tail is held back of all other streams until the end. If 0, it is TailSize.
	Tail int64
	// LowMemory lets a Guard use little memory: a short tail, and little room before it.
	LowMemory bool
	// Previous is set if the stream was proven before: its bytes are compared with those, not
	// hashed, and none leaves that was not compared. VerifyFirst and Tail do not matter then.
	Previous *BlockSums
}

// tail returns what is held back of a stream that is not proven first.
func (h Holdback) tail() int64 {
	switch {
	case h.Previous != nil:
		return sumBlock
	case h.LowMemory:
		return shrunkTail
	case h.Tail > 0:
		return h.Tail
	}
	return TailSize
}

// Tail is the one rule for how many bytes of a stream a reader may see. Each reader has its own.
// The zero value holds back TailSize bytes. It is not safe for concurrent use.
type Tail struct {
	h     Holdback
	stage stage
}

// stage is how often the reader has waited in vain.
type stage uint8

const (
	initial  stage = iota // VerifyFirst applies
	tailOnly              // VerifyFor is over
	shrunk                // patience is over
)

// NewTail returns the rule for one reader.
func NewTail(h Holdback) Tail { return Tail{h: h} }

// Visible returns how many bytes from the first one on the reader may see when written of size
// bytes are here. Proven means that size and hash match.
func (t *Tail) Visible(written, size int64, proven bool) int64 {
	if proven {
		return written
	}
	return max(written-t.held(size), 0)
}

// held returns how many of the bytes that are here are held back.
func (t *Tail) held(size int64) int64 {
	switch {
	case t.h.Previous != nil:
		return t.h.tail()
	case t.stage == shrunk:
		return min(t.h.tail(), shrunkTail)
	case t.first(size):
		return size
	}
	return t.h.tail()
}

// first reports whether the stream is to be proven whole before its first byte leaves.
func (t *Tail) first(size int64) bool {
	return t.stage == initial && t.h.Previous == nil && size <= t.h.VerifyFirst
}

// timed reports whether VerifyFor ends verifying first before patience does.
func (t *Tail) timed(size int64) bool {
	return t.first(size) && 0 < t.h.VerifyFor && t.h.VerifyFor < patience && size > t.h.tail()
}

// Patience returns how long a reader that may see nothing more waits before it calls Shrink.
func (t *Tail) Patience(size int64) time.Duration {
	if t.timed(size) {
		return t.h.VerifyFor
	}
	return patience
}

// Shrink lets the reader see more, because it has waited for Patience without receiving a byte.
func (t *Tail) Shrink(size int64) {
	if t.timed(size) {
		t.stage = tailOnly
		return
	}
	t.stage = shrunk
}
