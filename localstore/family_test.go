package localstore

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nixp2p/nixp2p/internal/delta"
	"github.com/nixp2p/nixp2p/internal/nixtest"
)

func TestFamilyOf(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		same bool
	}{
		{"openssl-3.0.14-dev", "openssl-3.0.15-dev", true},
		{"openssl-3.0.14-dev", "openssl-3.0.14", false},
		{"python3.12-requests-2.32.3", "python3.13-requests-2.33", true},
		{"glibc-2.40-66", "glibc-2.42-7", true},
		{"hello-unstable-2024-01-02", "hello-unstable-2025-11-30", true},
		{"linux-6.12.9-modules", "linux-6.12.10-modules", true},
		{"source", "source", true},
		{"nixpkgs-1a2b3c4d5e", "nixpkgs-ffee00aa11", true},
		{"decade", "facade", false},
		{"x-1.", "x-1", false},
	} {
		if same := familyOf(tt.a) == familyOf(tt.b); same != tt.same {
			t.Errorf("%s and %s: same is %v", tt.a, tt.b, same)
		}
	}
}

// TestTree reads the NARs of real trees at random places, and compares with what reading from
// the beginning gives.
func TestTree(t *testing.T) {
	w := newWorld(t)
	n, want := w.tree("app-1.0", func(path string) {
		for name, text := range map[string]string{"bin/app": strings.Repeat("code", 3000), "bin/b": "", "lib/x/y/z.so": "short", "readme": "text\n"} {
			must(t, os.MkdirAll(filepath.Join(path, filepath.Dir(name)), 0o755))
			must(t, os.WriteFile(filepath.Join(path, name), []byte(text), 0o644))
		}
		must(t, os.Symlink("bin/app", filepath.Join(path, "zlink")))
	})
	s := w.open()
	info, err := s.Info(t.Context(), n.StorePath.Hash())
	must(t, err)
	tree, err := s.Tree(t.Context(), info)
	must(t, err)
	defer tree.Close()
	if tree.Size() != int64(len(want)) {
		t.Fatalf("size %d, want %d", tree.Size(), len(want))
	}
	r := rand.New(rand.NewPCG(1, 1))
	for range 500 {
		off := r.IntN(len(want))
		b := make([]byte, 1+r.IntN(300))
		n, err := tree.ReadAt(b, int64(off))
		if end := off + len(b); end <= len(want) && err != nil || end > len(want) && err != io.EOF {
			t.Fatalf("%d bytes at %d: %v", len(b), off, err)
		}
		if !bytes.Equal(b[:n], want[off:min(off+len(b), len(want))]) {
			t.Fatalf("wrong bytes at %d", off)
		}
	}
	if _, err := tree.ReadAt(make([]byte, 1), tree.Size()); err != io.EOF {
		t.Errorf("beyond the end: %v", err)
	}
	scanned, err := delta.Scan(bytes.NewReader(want), int64(len(want)))
	must(t, err)
	if a, b := slices.Collect(tree.Files()), slices.Collect(scanned.Files()); !slices.Equal(a, b) || len(a) == 0 {
		t.Errorf("files %v\nwant %v", a, b)
	}
	must(t, tree.Close())
	if _, err := tree.ReadAt(make([]byte, 1), 0); err == nil {
		t.Error("read after Close")
	}
}

func TestBases(t *testing.T) {
	w := newWorld(t)
	paths := map[string]nixtest.Path{}
	for name, size := range map[string]int{"app-1.0": 1000, "app-1.1": 1100, "app-1.2": 1600, "app-1.0-dev": 1000, "app-2": 9000, "other-1.0": 1000} {
		paths[name] = nixtest.NewPath(name, size)
		w.add(paths[name], shareKey)
	}
	w.add(nixtest.NewPath("app-1.3", 1001), trustedKey) // is not for others
	s := w.watched()
	bases := func() (names []string) {
		info, err := s.Info(t.Context(), paths["app-1.0"].Hash())
		must(t, err)
		for _, b := range s.Bases(info, 16) {
			for name, p := range paths {
				if p.Hash() == b.Store && p.NarHash() == b.Nar {
					names = append(names, name)
				}
			}
		}
		return names
	}
	s.look(t.Context())
	if got := bases(); !slices.Equal(got, []string{"app-1.1", "app-1.2"}) {
		t.Errorf("bases %q", got)
	}
	w.exec("DELETE FROM ValidPaths WHERE path = ?", paths["app-1.1"].StorePath.String())
	s.look(t.Context())
	if got := bases(); !slices.Equal(got, []string{"app-1.2"}) {
		t.Errorf("bases after one has gone: %q", got)
	}
}
