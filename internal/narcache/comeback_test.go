package narcache

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
)

// TestComesBack: a cache whose directory cannot be opened, or is removed or replaced while it is
// used, takes nothing, says so once, and works again when the cause is gone.
func TestComesBack(t *testing.T) {
	for _, c := range []struct {
		what          string
		before        func(dir string) error // before the start
		during, after func(dir string) error // breaks it, mends it
	}{
		{what: "a file in its place at the start",
			before: func(dir string) error { return os.WriteFile(dir, nil, 0o600) }, after: os.Remove},
		{what: "removed", during: os.RemoveAll},
		{what: "replaced by another one", during: func(dir string) error {
			return errors.Join(os.Rename(dir, dir+".old"), os.Mkdir(dir, 0o700))
		}},
		{what: "its parent replaced by a file", during: func(dir string) error {
			return errors.Join(os.RemoveAll(filepath.Dir(dir)), os.WriteFile(filepath.Dir(dir), nil, 0o600))
		}, after: func(dir string) error { return os.Remove(filepath.Dir(dir)) }},
		{what: "replaced by a file", during: func(dir string) error {
			return errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600))
		}, after: os.Remove},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "cache", "nar")
				do := func(f func(string) error) {
					t.Helper()
					if f != nil {
						if err := f(dir); err != nil {
							t.Fatal(err)
						}
					}
				}
				if err := os.Mkdir(filepath.Dir(dir), 0o700); err != nil {
					t.Fatal(err)
				}
				do(c.before)
				var board source.Conditions
				cache, err := Open(Config{Dir: dir, Size: 8 * mib, Conditions: &board})
				if (err != nil) != (c.before != nil) {
					t.Fatal(err)
				}
				a, b := rawNAR(t, "a", 1000), rawNAR(t, "b", 2000)
				if err == nil {
					put(t, cache, a)
				}
				do(c.during)
				cache.comeBack()
				if has(cache, a) {
					t.Error("what is gone is offered")
				}
				if c.after != nil {
					if _, err := cache.Create(signed(t, nix.NarHash{1}, 10), nix.Raw, 10); !errors.Is(err, ErrDegraded) {
						t.Fatalf("taken: %v", err)
					}
					if len(board.List()) != 1 {
						t.Errorf("%v", board.List())
					}
				}
				do(c.after)
				time.Sleep(degradedFor + time.Second)
				cache.comeBack()
				put(t, cache, b)
				if !has(cache, b) || len(board.List()) != 0 {
					t.Errorf("has it: %v; %v", has(cache, b), board.List())
				}
				if err := cache.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
