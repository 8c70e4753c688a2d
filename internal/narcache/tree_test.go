package narcache

import (
	"bytes"
	"errors"
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
