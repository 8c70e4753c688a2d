package localstore

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
)

const nobody = 65534

// besides lists what lies beside the database, with sizes and modification times.
func (w *world) besides() string {
	w.t.Helper()
	entries, err := os.ReadDir(filepath.Dir(w.dbPath()))
	must(w.t, err)
	var b strings.Builder
	for _, e := range entries {
		st, err := e.Info()
		must(w.t, err)
		fmt.Fprintf(&b, "%s %d %d\n", e.Name(), st.Size(), st.ModTime().UnixNano())
	}
	return b.String()
}

// The states of the database files that versions of Nix leave, read by root and by nobody. No
// reader may make, change or remove a file.
func TestDatabaseStates(t *testing.T) {
	a, b, c, d := nixtest.NewPath("a", 1), nixtest.NewPath("b", 1), nixtest.NewPath("c", 1), nixtest.NewPath("d", 1)
	for _, uid := range []int{os.Getuid(), nobody} {
		t.Run(fmt.Sprintf("uid %d", uid), func(t *testing.T) {
			w := newWorld(t)
			r := w.read(uint32(uid))
			expect := func(what, want string, ask ...nixtest.Path) {
				t.Helper()
				before := w.besides()
				if got := r.look(ask...); got != want {
					t.Errorf("%s: %q, want %q", what, got, want)
				}
				if after := w.besides(); after != before {
					t.Errorf("%s: the reader changed files:\n%swere\n%s", what, after, before)
				}
			}
			expect("no database", "none: ")
			w.add(a, shareKey)
			w.closeDB()
			if strings.Contains(w.besides(), "-wal") {
				t.Fatal("the fixture leaves -wal behind")
			}
			expect("closed, no -wal", "snapshot: a", a)
			w.openDB()
			w.add(b, shareKey)
			expect("writer with rows in the -wal", "live: a b", b)
			w.closeDB()
			expect("the writer left, the reader stayed", "live: a b", b)
			w.add(c, shareKey)
			expect("another writer", "live: a b c", c)
			r.stop()
			w.closeDB()

			r = w.read(uint32(uid))
			expect("closed again", "snapshot: a b c", c)
			w.add(d, shareKey)
			w.closeDB()
			expect("a writer came and went", "snapshot: a b c d", d)
			w.openDB()
			w.exec(`DELETE FROM ValidPaths WHERE path = ?`, b.StorePath.String())
			w.closeDB()
			expect("one that deleted", "snapshot: a c d")
			r.stop()
		})
	}
}

// Since 2.23 Nix leaves -wal and -shm behind, with rows that are nowhere else.
func TestPersistentWAL(t *testing.T) {
	a, b, c := nixtest.NewPath("a", 1), nixtest.NewPath("b", 1), nixtest.NewPath("c", 1)
	for _, uid := range []int{os.Getuid(), nobody} {
		w := newWorld(t)
		w.add(a, shareKey)
		w.exec(`PRAGMA wal_checkpoint(TRUNCATE)`)
		w.add(b, shareKey)
		// As if the writer had ended: files that nobody has open.
		copied := newWorld(t)
		for _, suffix := range []string{"", "-wal", "-shm"} {
			data, err := os.ReadFile(w.dbPath() + suffix)
			must(t, err)
			must(t, os.WriteFile(copied.dbPath()+suffix, data, 0o644))
		}
		r := copied.read(uint32(uid))
		before := copied.besides()
		if got, want := r.look(b), "live: a b"; got != want {
			t.Errorf("uid %d: %q, want %q", uid, got, want)
		}
		if after := copied.besides(); after != before {
			t.Errorf("uid %d: the reader changed files:\n%swere\n%s", uid, after, before)
		}
		copied.add(c, shareKey)
		if got, want := r.look(c), "live: a b c"; got != want {
			t.Errorf("uid %d: %q, want %q", uid, got, want)
		}
		r.stop()
		if after := copied.besides(); !strings.Contains(after, "-wal") {
			t.Errorf("uid %d: the reader removed -wal: %s", uid, after)
		}
	}
}

// With use-sqlite-wal = false there is a rollback journal.
func TestRollbackJournal(t *testing.T) {
	a, b := nixtest.NewPath("a", 1), nixtest.NewPath("b", 1)
	w := newWorld(t)
	w.add(a, shareKey)
	w.exec(`PRAGMA journal_mode = truncate`)
	w.closeDB()
	r := w.read(nobody)
	if got, want := r.look(), "live: a"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	var err error
	w.db, err = openPlain(w.dbPath())
	must(t, err)
	w.add(b, shareKey)
	if got, want := r.look(), "live: a b"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	r.stop()
}

// A reader that may not see the files keeps trying.
func TestForbiddenDatabase(t *testing.T) {
	a := nixtest.NewPath("a", 1)
	w := newWorld(t)
	w.add(a, shareKey)
	r := w.read(nobody)
	must(t, os.Chmod(w.dbPath()+"-shm", 0o600))
	must(t, os.Chmod(w.dbPath(), 0o600))
	if got, want := r.look(a), "none: "; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	w.exec(`PRAGMA wal_checkpoint(TRUNCATE)`)
	must(t, os.Chmod(w.dbPath(), 0o644)) // -shm still forbidden: what the file alone holds
	if got, want := r.look(a), "snapshot: a"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	r.stop()
}

func TestChanges(t *testing.T) {
	w := newWorld(t)
	w.openDB()
	var paths []nixtest.Path
	for i := range 6 {
		p := nixtest.NewPath(fmt.Sprintf("p%d", i), 10)
		paths = append(paths, p)
		if i < 3 {
			w.add(p, shareKey)
		}
	}
	s := w.watched()
	step := func(what string, wantAdded, wantRemoved []string) {
		t.Helper()
		added, removed := s.look(t.Context())
		if !slices.Equal(added, wantAdded) || !slices.Equal(removed, wantRemoved) {
			t.Errorf("%s: added %v, removed %v; want %v and %v", what, added, removed, wantAdded, wantRemoved)
		}
	}
	remove := func(p nixtest.Path) { w.exec(`DELETE FROM ValidPaths WHERE path = ?`, p.StorePath.String()) }

	step("first", texts(paths[:3]...), nil)
	step("nothing", nil, nil)
	w.add(paths[3], shareKey)
	w.add(nixtest.NewPath("private", 1), trustedKey)
	step("one new", texts(paths[3]), nil)
	remove(paths[3])
	step("newest vanished", nil, texts(paths[3]))
	remove(paths[0])
	w.add(paths[4], shareKey)
	step("one vanished, one new", texts(paths[4]), texts(paths[0]))
	remove(paths[1])
	w.add(paths[1], shareKey)
	step("registered anew", texts(paths[1]), texts(paths[1]))
	if _, err := s.Public(t.Context(), paths[1].Hash()); err != nil {
		t.Error(err)
	}
	w.add(paths[5], shareKey)
	remove(paths[5])
	step("came and went", nil, nil)
	if s.SharedCount() != 3 {
		t.Errorf("%d shared, want 3", s.SharedCount())
	}

	// Another database in the same place, with the same ids for other rows.
	w.closeDB()
	other := newWorld(t)
	other.add(paths[5], shareKey)
	other.add(paths[4], shareKey)
	other.closeDB()
	must(t, os.Rename(other.dbPath(), w.dbPath()))
	_ = os.Remove(w.dbPath() + "-wal")
	_ = os.Remove(w.dbPath() + "-shm")
	var added, removed []string
	for range 2 {
		a, r := s.look(t.Context())
		added, removed = append(added, a...), append(removed, r...)
	}
	if s.SharedCount() != 2 || !slices.Contains(added, texts(paths[5])[0]) || !slices.Contains(removed, texts(paths[1])[0]) {
		t.Errorf("replaced: added %v, removed %v, %d shared", added, removed, s.SharedCount())
	}
}

// Run notices within two seconds, without and with a writer, and ends with its context.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var mu sync.Mutex
		known := make(map[string]bool)
		s := w.open(func(c *Config) {
			c.Changed = func(added, removed []nix.StoreHash) {
				mu.Lock()
				defer mu.Unlock()
				for _, h := range removed {
					delete(known, h.String())
				}
				for _, h := range added {
					known[h.String()] = true
				}
			}
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		expect := func(what string, paths ...nixtest.Path) {
			t.Helper()
			time.Sleep(2 * time.Second) //nolint:forbidigo // on the bubble's clock
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(known) != len(paths) {
				t.Errorf("%s: %v", what, known)
			}
			for _, p := range paths {
				if !known[p.Hash().String()] {
					t.Errorf("%s: lacks %s", what, p.StorePath)
				}
			}
		}
		a, b, c := nixtest.NewPath("a", 1), nixtest.NewPath("b", 1), nixtest.NewPath("c", 1)
		expect("nothing")
		w.add(a, shareKey)
		w.closeDB()
		expect("a database", a)
		w.add(b, shareKey)
		w.closeDB()
		expect("a writer that left", a, b)
		w.add(c, shareKey)
		expect("a writer that stays", a, b, c)
		w.exec(`DELETE FROM ValidPaths WHERE path = ?`, b.StorePath.String())
		expect("vanished", a, c)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		must(t, s.Close())
		w.closeDB()
	})
}

// Questions are answered while the database is opened anew beneath them.
func TestConcurrentReopen(t *testing.T) {
	w := newWorld(t)
	var paths []nixtest.Path
	for i := range 8 {
		p := nixtest.NewPath(fmt.Sprintf("p%d", i), 10)
		paths = append(paths, p)
		w.add(p, shareKey)
	}
	w.closeDB()
	s := w.watched()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for n := i; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := s.Info(t.Context(), paths[n%len(paths)].Hash()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 20 {
		w.add(nixtest.NewPath(fmt.Sprintf("q%d", i), 10), shareKey)
		if i%2 == 0 {
			s.look(t.Context())
		}
		w.closeDB()
		s.look(t.Context())
	}
	close(stop)
	wg.Wait()
}

// Descriptors and memory of replaced sessions must not pile up.
func TestReopenLeaksNothing(t *testing.T) {
	w := newWorld(t)
	w.add(nixtest.NewPath("p", 10), shareKey)
	w.closeDB()
	s := w.watched()
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		return len(entries)
	}
	s.look(t.Context())
	before := count()
	for i := range 10 {
		w.add(nixtest.NewPath(fmt.Sprintf("q%d", i), 10), shareKey)
		w.closeDB()
		s.look(t.Context())
	}
	if after := count(); after > before+2 {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// lookTool skips a test that needs a program.
func lookTool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("skipped without %s", name)
	}
	return path
}
