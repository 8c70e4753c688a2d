package narcache

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestScratch: a file without a name counts as long as it is open, and all of them have a part of the cache.
func TestScratch(t *testing.T) {
	c := open(t, Config{Dir: t.TempDir(), Size: 16 * mib})
	for i := range 20 { // it is full
		put(t, c, rawNAR(t, string(rune('a'+i)), 1*mib))
	}
	before := c.Usage()
	s, err := NewScratch(c)
	if err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte("delta"), 20_000)
	if _, err := s.Write(content); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(content)-7)
	if _, err := s.ReadAt(got, 7); err != nil || !bytes.Equal(got, content[7:]) {
		t.Errorf("read: %v", err)
	}
	if c.Usage() > c.max || c.scratch.Load() < int64(len(content)) {
		t.Errorf("%d bytes are counted, %d of them scratch", c.Usage(), c.scratch.Load())
	}
	other, err := NewScratch(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Write(make([]byte, c.max/scratchShare)); !errors.Is(err, ErrDoesNotFit) {
		t.Errorf("more than its part: %v", err)
	}
	if err := errors.Join(s.Close(), other.Close()); err != nil {
		t.Error(err)
	}
	if c.Usage() > before || c.scratch.Load() != 0 {
		t.Errorf("%d bytes are counted, %d of them scratch", c.Usage(), c.scratch.Load())
	}
	if left, _ := os.ReadDir(filepath.Join(c.cfg.Dir, tmpDir)); len(left) > 0 {
		t.Errorf("%d files are left", len(left))
	}
}
