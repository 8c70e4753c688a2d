package transfer

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io"
)

var (
	errDiverged = errors.New("another source has other bytes at the beginning")
	errShort    = errors.New("the stream ended before the part that was asked for")
)

// section passes on count bytes from byte from on of what is written to it. After rewind
// the same stream comes again from its beginning, and what went out already is only
// compared.
//
// The sources of the stream hold its tail back until the whole is proven. A section that
// ends before the stream does would escape that, so the section then keeps its own end back
// until finish.
type section struct {
	w         io.Writer
	from, end int64
	kept      []byte // the end of the section, from byte keepAt of the stream on
	keepAt    int64
	pos       int64 // of the stream
	seen      int64 // how far the stream has ever come

	sum    maphash.Hash // of the stream up to seen
	replay maphash.Hash // of the stream up to pos, while pos < seen
	// sure: what is written is proven, so that it will not be compared with anything.
	sure, unsummed bool

	sent   int64
	failed error // of w
}

// keepBack is how much of its own end a section keeps: a client that lacks it cannot take
// the section for whole.
const keepBack = 64 << 10

func newSection(w io.Writer, from, count, size int64) *section {
	s := &section{w: w, from: from, end: from + count, keepAt: from + count}
	if s.end < size {
		s.keepAt -= min(count, keepBack)
	}
	// The seed is the process's own secret, so that nobody can make other bytes of the same sum.
	s.replay.SetSeed(s.sum.Seed())
	return s
}

// began tells that the client has got something.
func (s *section) began() bool { return s.sent > 0 || s.failed != nil }

func (s *section) rewind() {
	s.pos = 0
	s.replay.Reset()
	if !s.began() {
		s.seen, s.unsummed, s.kept = 0, false, nil
		s.sum.Reset()
	}
}

func (s *section) Write(p []byte) (int, error) {
	n := len(p)
	if again := min(s.seen-s.pos, int64(n)); again > 0 {
		_, _ = s.replay.Write(p[:again])
		s.pos += again
		p = p[again:]
		if s.unsummed || s.pos == s.seen && s.replay.Sum64() != s.sum.Sum64() {
			return 0, errDiverged
		}
	}
	if len(p) == 0 {
		return n, nil
	}
	if s.sure {
		s.unsummed = true
	} else {
		_, _ = s.sum.Write(p)
	}
	start := s.pos
	s.pos += int64(len(p))
	s.seen = s.pos
	if err := s.write(part(p, start, s.from, s.keepAt)); err != nil {
		return 0, err
	}
	s.kept = append(s.kept, part(p, start, s.keepAt, s.end)...)
	return n, nil
}

// part returns what of p, which begins at start, lies between two bytes of the stream.
func part(p []byte, start, from, to int64) []byte {
	lo, hi := max(from-start, 0), min(to-start, int64(len(p)))
	if lo >= hi {
		return nil
	}
	return p[lo:hi]
}

func (s *section) write(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	n, err := s.w.Write(p)
	s.sent += int64(n)
	s.failed = err
	return err
}

// finish is called when the whole stream is proven and has been written.
func (s *section) finish() error {
	if err := s.write(s.kept); err != nil {
		return err
	}
	if want := s.end - s.from; s.sent != want {
		return fmt.Errorf("%d of %d bytes: %w", s.sent, want, errShort)
	}
	return nil
}
