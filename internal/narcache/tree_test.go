package narcache

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
)

// TestTree: a NAR is read at any place, from its raw bytes or decoded from a file, and leaves nothing behind.
func TestTree(t *testing.T) {
	for name, n := range map[string]nar{
		"raw": rawNAR(t, "a", 300_000), "xz": fileNAR(t, "b", 300_000, nix.XZ), "zstd": fileNAR(t, "c", 300_000, nix.Zstd),
	} {
		t.Run(name, func(t *testing.T) {
			c := open(t, Config{Dir: t.TempDir(), Size: 16 * mib})
			put(t, c, n)
			before := c.Usage()
			tree, err := c.Tree(t.Context(), n.info)
			if err != nil {
				t.Fatal(err)
			}
			if extra := c.Usage() - before; (extra > 0) != (name != "raw") {
				t.Errorf("%d bytes more are counted", extra)
			}
			got := make([]byte, len(n.raw)-1000)
			if _, err := tree.ReadAt(got, 1000); err != nil || !bytes.Equal(got, n.raw[1000:]) {
				t.Errorf("read: %v", err)
			}
			files := 0
			for range tree.Files() {
				files++
			}
			if files != 1 || tree.Size() != int64(len(n.raw)) {
				t.Errorf("%d files, %d bytes", files, tree.Size())
			}
			if err := errors.Join(tree.Close(), tree.Close()); err != nil {
				t.Error(err)
			}
			if c.Usage() != before {
				t.Errorf("%d bytes are counted, not %d", c.Usage(), before)
			}
			if left, _ := os.ReadDir(filepath.Join(c.cfg.Dir, tmpDir)); len(left) > 0 {
				t.Errorf("%d files are left", len(left))
			}
		})
	}
}

// TestTreeRefused: what is not here, is wrong, or is too large beside what is kept has no tree.
func TestTreeRefused(t *testing.T) {
	c := open(t, Config{Dir: t.TempDir(), Size: 4 * mib})
	if _, err := c.Tree(t.Context(), rawNAR(t, "absent", 10).info); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
	large := fileNAR(t, "large", 1*mib, nix.XZ)
	put(t, c, large)
	if _, err := c.Tree(t.Context(), large.info); !errors.Is(err, ErrDoesNotFit) {
		t.Errorf("large: %v", err)
	}
	bad := poisoned(t, "bad", 100_000, nix.Zstd)
	put(t, c, bad)
	before := c.Usage()
	if _, err := c.Tree(t.Context(), bad.info); source.Invalid(err) == nil {
		t.Errorf("wrong: %v", err)
	}
	if len(c.Forms(bad.info.NarHash())) > 0 || c.Usage() >= before {
		t.Error("what is wrong is kept")
	}
	good := fileNAR(t, "good", 100_000, nix.Zstd)
	put(t, c, good)
	c.disk.allocate = func(*os.File, int64) error { return io.ErrShortWrite }
	before = c.Usage()
	if _, err := c.Tree(t.Context(), good.info); !errors.Is(err, ErrDegraded) {
		t.Errorf("full disk: %v", err)
	}
	if c.Usage() != before {
		t.Errorf("%d bytes are counted, not %d", c.Usage(), before)
	}
}

// TestTreesEvict: trees never take the place of what is kept, and of everything else once as much as they
// may have together: whoever asks for deltas again and again does not turn the cache over.
func TestTreesEvict(t *testing.T) {
	const size = 16 * mib
	kept := map[nix.NarHash]bool{}
	c := open(t, Config{Dir: t.TempDir(), Size: size, Kept: func(h nix.NarHash) bool { return kept[h] }})
	var packed []nar
	for i := range 4 {
		n := fileNAR(t, fmt.Sprintf("packed-%d", i), mib, nix.Zstd)
		kept[n.info.NarHash()] = true
		put(t, c, n)
		packed = append(packed, n)
	}
	fill := func() (left int) {
		for i := range 40 {
			n := rawNAR(t, fmt.Sprintf("other-%d-%d", i, left), size/32)
			if c.Usage()+cost(int64(len(n.raw))) > c.max-c.state.trees.unused() {
				break
			}
			put(t, c, n)
		}
		return len(c.Entries())
	}
	full := fill()
	for range 20 {
		for _, n := range packed {
			tree, err := c.Tree(t.Context(), n.info)
			if err != nil {
				t.Fatal(err)
			}
			if err := tree.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if now := fill(); full-now > size/treeShare/(size/32) {
			t.Fatalf("%d files went for trees of %d bytes each", full-now, mib)
		}
	}
	for h := range kept {
		if len(c.Forms(h)) == 0 {
			t.Error("a kept file went")
		}
	}
	var open []source.Tree
	for _, n := range packed { // three do not fit at once
		if tree, err := c.Tree(t.Context(), n.info); err == nil {
			open = append(open, tree)
		} else if !errors.Is(err, ErrDoesNotFit) {
			t.Error(err)
		}
	}
	if len(open) != 1 {
		t.Errorf("%d trees of %d bytes at once in a cache of %d", len(open), mib, size)
	}
	for _, tree := range open {
		_ = tree.Close()
	}
	for h := range kept {
		delete(kept, h)
	}
	for _, e := range c.Entries() { // everything is kept
		h, _ := nix.ParseNarHash(e.NarHash)
		kept[h] = true
	}
	c.KeptChanged()
	c.state.trees.most = 0
	for i := 0; c.Usage()+cost(size/64) <= c.max; i++ {
		n := rawNAR(t, fmt.Sprintf("more-%d", i), size/64-4096)
		kept[n.info.NarHash()] = true
		put(t, c, n)
	}
	if _, err := c.Tree(t.Context(), packed[0].info); !errors.Is(err, ErrDoesNotFit) {
		t.Errorf("a cache full of kept files: %v", err)
	}
}
