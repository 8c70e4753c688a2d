package narcache

import (
	"fmt"
	"os"
)

const (
	// scratchShare is the part of the cache that all Scratches may take.
	scratchShare = 16
	// scratchStep bytes are reserved at a time.
	scratchStep = 64 << 10
)

// Scratch is a file without a name, within the size of the cache: others are evicted for it as for a download. One
// goroutine writes, and others read what was written.
type Scratch struct {
	c              *Cache
	f              *os.File
	size, reserved int64 // bytes
}

// NewScratch makes an empty file in c, which is gone when it is closed.
func NewScratch(c *Cache) (*Scratch, error) {
	if c.health.degraded() || c.place.Load() == nil {
		return nil, ErrDegraded
	}
	f, err := c.nameless(0)
	if err != nil {
		return nil, c.health.failed("create", err)
	}
	s := &Scratch{c: c, f: f}
	if err := s.reserve(1); err != nil {
		_ = f.Close() // it has no bytes
		return nil, err
	}
	return s, nil
}

// reserve makes room for size bytes in all.
func (s *Scratch) reserve(size int64) error {
	for s.reserved < size {
		if s.c.scratch.Add(scratchStep) > s.c.max/scratchShare {
			s.c.scratch.Add(-scratchStep)
			return fmt.Errorf("narcache: scratch: %w", ErrDoesNotFit)
		}
		if err := s.c.reserve(scratchStep); err != nil {
			s.c.scratch.Add(-scratchStep)
			return fmt.Errorf("narcache: scratch: %w", err)
		}
		s.reserved += scratchStep
	}
	return nil
}

// Write appends.
func (s *Scratch) Write(p []byte) (int, error) {
	if err := s.reserve(s.size + int64(len(p))); err != nil {
		return 0, err
	}
	n, err := s.f.Write(p)
	s.size += int64(n)
	if err != nil {
		err = s.c.health.failed("write", err)
	}
	return n, err
}

// ReadAt is part of io.ReaderAt.
func (s *Scratch) ReadAt(p []byte, off int64) (int, error) { return s.f.ReadAt(p, off) }

// Close gives the room back. It is called once.
func (s *Scratch) Close() error {
	s.c.scratch.Add(-s.reserved)
	s.c.mu.Lock()
	s.c.count(-s.reserved)
	s.c.mu.Unlock()
	return s.f.Close()
}
