package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testKey, privateKey = nixtest.NewKey("key-1"), nixtest.NewKey("private-1")

// memory is a database with its narinfos.
type memory struct {
	*DB
	*Infos
	log *bytes.Buffer
}

// open opens dir; the test need not close it.
func open(t testing.TB, dir string) memory { return openWith(t, dir, nil, "key-1") }

func openWith(t testing.TB, dir string, m *metrics.Metrics, share ...string) memory {
	t.Helper()
	var log bytes.Buffer
	db, err := Open(dir, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return memory{db, db.Infos(nixtest.Keys(t, testKey, privateKey), share, m), &log}
}

func (m memory) warnings() int { return strings.Count(m.log.String(), "level=WARN") }

func info(t testing.TB, name string) *verify.Info { return nixtest.NewPath(name, 10).Info(t, testKey) }

func private(t testing.TB, name string) *verify.Info {
	p := nixtest.NewPath(name, 10)
	i, err := nixtest.Keys(t, privateKey).OpenNarInfo(p.Signed(privateKey), p.Hash())
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func hash(i *verify.Info) nix.StoreHash { return i.StorePath().Hash() }

func (m memory) has(t testing.TB, want *verify.Info) bool {
	t.Helper()
	return found(t, m.Info, want)
}

func found(t testing.TB, ask func(context.Context, nix.StoreHash) (*verify.Info, error), want *verify.Info) bool {
	t.Helper()
	got, err := ask(t.Context(), hash(want))
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Text(), want.Text()) {
		t.Fatalf("got\n%swant\n%s", got.Text(), want.Text())
	}
	return true
}

// count returns how many narinfos are written, which Infos has counted, too.
func (m memory) count(t testing.TB) int {
	t.Helper()
	n := 0
	if err := m.read(func(tx *bolt.Tx) error {
		for _, b := range [...][]byte{textBucket, useBucket} {
			n = 0
			_ = tx.Bucket(b).ForEach(func(_, _ []byte) error { n++; return nil })
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	m.Infos.mu.Lock()
	defer m.Infos.mu.Unlock()
	if !m.counted.IsZero() && int(m.sum.entries) != n {
		t.Errorf("%d narinfos, counted as %d", n, m.sum.entries)
	}
	return n
}

func fileOf(dir string) string { return filepath.Join(dir, fileName) }

func TestRemembersOverRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "by-open")
	m := open(t, dir)
	a, b := info(t, "a"), info(t, "b")
	if m.has(t, a) {
		t.Fatal("has what was never put")
	}
	m.Put(a)
	m.Put(b)
	if !m.has(t, a) {
		t.Fatal("before writing")
	}
	m.flush()
	if !m.has(t, a) || m.count(t) != 2 {
		t.Fatal("after writing")
	}
	m.Forget(hash(b))
	if m.has(t, b) {
		t.Fatal("forgotten, but found")
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if m.has(t, a) {
		t.Error("found after Close")
	}
	m = open(t, dir)
	if !m.has(t, a) || m.has(t, b) || m.count(t) != 1 {
		t.Fatal("after a restart")
	}
	for name, mode := range map[string]os.FileMode{dir: 0o700, fileOf(dir): 0o600} {
		if st, _ := os.Stat(name); st.Mode().Perm() != mode {
			t.Errorf("%s: mode %v", name, st.Mode())
		}
	}
	if m.warnings() != 0 {
		t.Error(m.log)
	}
}

func TestKeyRemoved(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir)
	a := info(t, "a")
	m.Put(a)
	_ = m.Close()

	counts := metrics.New()
	m = open(t, dir)
	m.Infos = m.DB.Infos(nixtest.Keys(t, nixtest.NewKey("other-1")), nil, counts)
	if m.has(t, a) {
		t.Fatal("a narinfo of a removed key was given out")
	}
	if n := failures(t, counts); n != 0 {
		t.Errorf("a removed key counts as %d failures", n)
	}
	_ = m.Close()
	if m = open(t, dir); m.has(t, a) {
		t.Fatal("came back with its key: it should have been deleted")
	}
}

// TestTampered changes a narinfo in the file, as a disk does it and as one does who makes the
// checksum right.
func TestTampered(t *testing.T) {
	for _, test := range []struct {
		name   string
		reseal bool
	}{{"disk", false}, {"checksum is right", true}} {
		t.Run(test.name, func(t *testing.T) {
			counts := metrics.New()
			m := openWith(t, t.TempDir(), counts, "key-1")
			a := info(t, "a")
			m.Put(a)
			m.flush()
			h := hash(a)
			if err := m.bolt.Load().Update(func(tx *bolt.Tx) error {
				b := bytes.Clone(tx.Bucket(textBucket).Get(h[:]))
				b[bytes.Index(b, []byte("NarSize: "))+len("NarSize: ")] ^= 1
				if test.reseal {
					b = seal(h[:], b[4:])
				}
				return tx.Bucket(textBucket).Put(h[:], b)
			}); err != nil {
				t.Fatal(err)
			}
			if m.has(t, a) {
				t.Fatal("a changed text was given out")
			}
			m.flush()
			if m.count(t) != 0 || m.warnings() != 1 {
				t.Errorf("%d kept, log: %s", m.count(t), m.log)
			}
			want := 0
			if test.reseal {
				want = 1
			}
			if n := failures(t, counts); n != want {
				t.Errorf("%d failures counted, want %d", n, want)
			}
		})
	}
}

// failures returns how many verify failures were counted.
func failures(t testing.TB, m *metrics.Metrics) (n int) {
	t.Helper()
	families, err := m.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "nixp2p_verify_failures_total" {
			for _, series := range f.GetMetric() {
				n += int(series.GetCounter().GetValue())
			}
		}
	}
	return n
}

func TestSecondProcess(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir)
	a := info(t, "a")
	m.Put(a)
	second, err := Open(dir, nil)
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) || second.Err() == nil {
		t.Fatalf("second: %v", err)
	}
	// It can be used, and keeps nothing.
	infos := second.Infos(nixtest.Keys(t, testKey), nil, nil)
	infos.Put(a)
	second.Peers().Save([]string{"x"})
	second.flush()
	if _, err := infos.Info(t.Context(), hash(a)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in the second: %v", err)
	}
	_ = second.Close()
	_ = m.Close()
	if m = open(t, dir); !m.has(t, a) || len(m.Peers().Load()) != 0 {
		t.Error("not written by Close, or written by the second")
	}
}

// TestDamage breaks the file in every way that a disk knows. The start never fails, what is
// given out is right, and new things are remembered.
func TestDamage(t *testing.T) {
	overwrite := func(b []byte, at int64) func(t *testing.T, file string) {
		return func(t *testing.T, file string) {
			f, err := os.OpenFile(file, os.O_RDWR, 0)
			if err == nil {
				_, err = f.WriteAt(b, at)
			}
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	size := int64(0)
	for _, test := range []struct {
		name  string
		harm  func(t *testing.T, file string)
		aside bool // at the start or with the first use
	}{
		{"none", func(*testing.T, string) {}, false},
		{"empty", func(t *testing.T, f string) { _ = os.Truncate(f, 0) }, false},
		{"one byte", func(t *testing.T, f string) { _ = os.Truncate(f, 1) }, true},
		{"cut", func(t *testing.T, f string) { _ = os.Truncate(f, size/8) }, true},
		{"one meta page", overwrite(make([]byte, 4096), 0), false},
		{"both meta pages", overwrite(make([]byte, 8192), 0), true},
		{"noise", func(t *testing.T, f string) {
			_ = os.WriteFile(f, bytes.Repeat([]byte("noise"), 100_000), 0o600)
		}, true},
		{"a directory", func(t *testing.T, f string) {
			_ = os.Remove(f)
			_ = os.MkdirAll(filepath.Join(f, "x"), 0o700)
		}, true},
		{"a link", func(t *testing.T, f string) {
			_ = os.Remove(f)
			_ = os.Symlink(filepath.Join(filepath.Dir(f), "elsewhere"), f)
		}, true},
		{"a later version", func(t *testing.T, f string) {
			b, err := bolt.Open(f, 0o600, nil)
			if err == nil {
				err = b.Update(func(tx *bolt.Tx) error { return tx.Bucket(metaBucket).Put(versionKey, []byte("2")) })
			}
			if err := errors.Join(err, b.Close()); err != nil {
				t.Fatal(err)
			}
		}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			m := open(t, dir)
			var all []*verify.Info
			for i := range 200 {
				all = append(all, info(t, fmt.Sprint(i)))
				m.Put(all[i])
			}
			_ = m.Close()
			st, _ := os.Stat(fileOf(dir))
			size = st.Size()
			test.harm(t, fileOf(dir))

			m = open(t, dir)
			n := 0
			for _, i := range all {
				if m.has(t, i) {
					n++
				}
			}
			if test.name == "none" && n != len(all) {
				t.Errorf("%d of %d left", n, len(all))
			}
			_, err := os.Lstat(filepath.Join(dir, damagedName))
			if (err == nil) != test.aside || (m.warnings() > 0) != test.aside || m.warnings() > 1 {
				t.Errorf("put aside: %v, want %v; log: %s", err == nil, test.aside, m.log)
			}
			if _, err := os.Lstat(filepath.Join(dir, "elsewhere")); err == nil {
				t.Error("the target of a link was created")
			}
			fresh := info(t, "fresh")
			m.Put(fresh)
			_ = m.Close()
			if m = open(t, dir); !m.has(t, fresh) {
				t.Error("does not remember after the damage")
			}
		})
	}
}

// TestEachPageDamaged overwrites one page at a time with noise, zeros or another page, while the
// database is closed. Nothing wrong is given out, nothing panics, and new things are remembered.
func TestEachPageDamaged(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir)
	var all []*verify.Info
	for i := range 60 {
		all = append(all, info(t, fmt.Sprint(i)))
		m.Put(all[i])
	}
	m.Peers().Save([]string{"/ip4/10.0.0.1/tcp/1"})
	_ = m.Close()
	whole, err := os.ReadFile(fileOf(dir))
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	step := page
	if testing.Short() {
		step = 7 * page
	}
	for at := 0; at < len(whole); at += step {
		for name, put := range map[string][]byte{
			"noise": bytes.Repeat([]byte{0xa5}, page), "zeros": make([]byte, page), "the first page": whole[:page],
			"the next page": whole[(at+page)%len(whole):][:page],
		} {
			b := bytes.Clone(whole)
			copy(b[at:], put)
			if err := os.WriteFile(fileOf(dir), b, 0o600); err != nil {
				t.Fatal(err)
			}
			m := open(t, dir)
			for _, i := range all {
				_ = m.has(t, i) // which fails for what is wrong
			}
			fresh := info(t, "fresh")
			m.Put(fresh)
			m.flush()
			for range m.Each(t.Context(), func(nix.StoreHash, nix.NarHash) bool { return true }) {
			}
			if !m.has(t, fresh) {
				t.Errorf("page %d, %s: does not remember; log: %s", at/page, name, m.log)
			}
			_ = m.Close()
			_ = os.Remove(fileOf(dir))
		}
	}
}

// TestBounds: whatever is put, the file is bounded, and what is used stays.
func TestBounds(t *testing.T) {
	for _, test := range []struct {
		name           string
		entries, bytes int64
	}{{"entries", 100, 1 << 30}, {"bytes", 1 << 30, 100_000}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				m := open(t, dir)
				m.maxEntries, m.maxBytes = test.entries, test.bytes
				used := info(t, "used")
				m.Put(used)
				var last *verify.Info
				for i := range 1000 {
					last = info(t, fmt.Sprint(i))
					m.Put(last)
					if i%20 == 0 {
						m.flush()
						time.Sleep(touchEvery)
						if !m.has(t, used) {
							t.Fatalf("forgot what is used all the time, at %d", i)
						}
						if n := m.count(t); int64(n) > test.entries {
							t.Fatalf("%d entries", n)
						}
					}
				}
				m.flush()
				if !m.has(t, last) {
					t.Error("forgot the newest")
				}
				if n := m.count(t); n < 75 {
					t.Errorf("only %d entries are left", n)
				}
				if st, _ := os.Stat(fileOf(dir)); test.bytes < 1<<30 && st.Size() > 4*test.bytes+64*4096 {
					t.Errorf("the file has %d bytes, for %d", st.Size(), test.bytes)
				}
			})
		})
	}
}

// TestHintsChange writes one path with ever other hints: nothing else goes for them.
func TestHintsChange(t *testing.T) {
	m := open(t, t.TempDir())
	kept := info(t, "kept")
	m.Put(kept)
	p := nixtest.NewPath("changing", 10)
	var last *verify.Info
	for i := range 50 {
		n := p.Signed(testKey)
		n.URL = fmt.Sprintf("nar/%d.nar", i)
		last, _ = nixtest.Keys(t, testKey).OpenNarInfo(n, p.Hash())
		m.Put(last)
		m.flush()
	}
	if !m.has(t, last) || !m.has(t, kept) || m.count(t) != 2 {
		t.Fatalf("%d entries", m.count(t))
	}
}

func TestThirtyDays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		used, idle := info(t, "used"), info(t, "idle")
		m := open(t, dir)
		m.Put(used)
		m.Put(idle)
		m.flush()
		for range 29 {
			time.Sleep(24 * time.Hour)
			if !m.has(t, used) {
				t.Fatal("forgot what is used")
			}
			m.flush()
		}
		_ = m.Close()
		if m = open(t, dir); m.count(t) != 2 {
			t.Fatal("forgot too early")
		}
		time.Sleep(25 * time.Hour)
		if m.has(t, idle) || !m.has(t, used) {
			t.Fatal("30 days without use")
		}
		m.flush()
		if n := m.count(t); n != 1 {
			t.Errorf("%d entries", n)
		}
	})
}

func TestRunWritesSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := open(t, t.TempDir())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		m.Put(info(t, "a"))
		time.Sleep(time.Second)
		synctest.Wait()
		if n := m.count(t); n != 1 {
			t.Error("nothing on disk after a second")
		}
		m.Put(info(t, "b"))
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := m.count(t); n != 2 {
			t.Error("Run left something unwritten")
		}
	})
}

// TestDiskFull: a disk that refuses is reported once, and what it refused is not kept in memory,
// but for what is to be forgotten and for values that are one.
func TestDiskFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		m := open(t, dir)
		peers := m.Peers()
		var full atomic.Bool
		m.fault = func(*bolt.Tx) error {
			if full.Load() {
				return syscall.ENOSPC
			}
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		before, wrong := info(t, "before"), info(t, "wrong")
		m.Put(before)
		m.Put(wrong)
		time.Sleep(time.Second)
		full.Store(true)
		m.Forget(hash(wrong))
		peers.Save([]string{"a"})
		for i := range 5 {
			m.Put(info(t, fmt.Sprint(i)))
			time.Sleep(20 * time.Second)
		}
		m.Infos.mu.Lock()
		waiting := len(m.pending)
		m.Infos.mu.Unlock()
		if waiting > 1 || m.has(t, wrong) || !m.has(t, before) || !errors.Is(m.Err(), syscall.ENOSPC) {
			t.Errorf("%d waiting, has the wrong one %v, error %v", waiting, m.has(t, wrong), m.Err())
		}
		if m.warnings() != 1 {
			t.Errorf("log: %s", m.log)
		}
		full.Store(false)
		time.Sleep(time.Minute)
		after := info(t, "after")
		m.Put(after)
		time.Sleep(time.Second)
		if !m.has(t, after) || m.Err() != nil || m.warnings() != 1 {
			t.Errorf("does not work when the disk works again: %v", m.Err())
		}
		cancel()
		<-done
		_ = m.Close()
		if m = open(t, dir); m.has(t, wrong) || !m.has(t, after) || !slices.Equal(m.Peers().Load(), []string{"a"}) {
			t.Error("not written after the disk worked again")
		}
	})
}

// TestNoDirectory: what cannot be created at the start is tried again.
func TestNoDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		parent := filepath.Join(t.TempDir(), "parent")
		if err := os.WriteFile(parent, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		m := open(t, filepath.Join(parent, "state"))
		a := info(t, "a")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		m.Put(a)
		time.Sleep(5 * time.Minute)
		if m.Err() == nil || m.warnings() != 1 || m.has(t, a) {
			t.Errorf("%v, log: %s", m.Err(), m.log)
		}
		_ = os.Remove(parent)
		time.Sleep(2 * time.Minute)
		if m.Err() != nil {
			t.Error(m.Err())
		}
		m.Put(a)
		time.Sleep(time.Second)
		if m.count(t) != 1 {
			t.Error("does not remember")
		}
		cancel()
		<-done
		_ = m.Close()
	})
}

// TestPublic: only what a share key signed is public, written or not, also after the share keys
// have changed.
func TestPublic(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir)
	a, b := info(t, "a"), private(t, "b")
	m.Put(a)
	m.Put(b)
	check := func(when string, wantA, wantB bool) {
		t.Helper()
		if !m.has(t, a) || !m.has(t, b) {
			t.Errorf("%s: not remembered", when)
		}
		if gotA, gotB := found(t, m.Public, a), found(t, m.Public, b); gotA != wantA || gotB != wantB {
			t.Errorf("%s: public %v, %v, want %v, %v", when, gotA, gotB, wantA, wantB)
		}
	}
	check("before writing", true, false)
	m.flush()
	check("written", true, false)
	_ = m.Close()
	m = openWith(t, dir, nil, "private-1")
	if found(t, m.Public, a) {
		t.Error("the old share key still counts")
	}
	check("other share keys, read once", false, true)
	m.flush()
	check("other share keys, written", false, true)
	m.Forget(hash(b))
	if found(t, m.Public, b) {
		t.Error("forgotten, but public")
	}
	m.flush()
	if found(t, m.Public, b) || m.count(t) != 1 {
		t.Error("forgotten, but public in the database")
	}
}

func TestEach(t *testing.T) {
	m := open(t, t.TempDir())
	a, b := info(t, "a"), info(t, "b")
	m.Put(a)
	m.Put(b)
	m.flush()
	var got []string
	for i := range m.Each(t.Context(), func(_ nix.StoreHash, nar nix.NarHash) bool { return nar == b.NarHash() }) {
		m.Forget(hash(i)) // a write meanwhile
		m.flush()
		got = append(got, i.StorePath().Name())
	}
	if !slices.Equal(got, []string{"b"}) || m.has(t, b) {
		t.Errorf("got %v", got)
	}
}

func TestValues(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir)
	peers, blamed, history := m.Peers(), m.Reputation(), m.History()
	if peers.Load() != nil || blamed.Load() != nil || history.Load() != nil {
		t.Error("something in a new database")
	}
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprint(i))
	}
	peers.Save(append([]string{strings.Repeat("x", maxAddr+1)}, many...))
	history.Save([]byte("old"))
	history.Save([]byte("new"))
	now := time.Now().Round(time.Second)
	blamed.Save([]Blamed{
		{"past", "", now.Add(-time.Second)}, {"now", strings.Repeat("r", 1000), now.Add(24 * time.Hour)},
		{"wrong clock", "", now.AddDate(3, 0, 0)},
	})
	check := func(when string) {
		t.Helper()
		if got := peers.Load(); !slices.Equal(got, many[:maxPeers-1]) {
			t.Errorf("%s: peers %v", when, got)
		}
		if got := history.Load(); string(got) != "new" {
			t.Errorf("%s: history %q", when, got)
		}
		if got := blamed.Load(); len(got) != 1 || got[0].Peer != "now" || len(got[0].Reason) != maxReason || !got[0].Until.Equal(now.Add(24*time.Hour)) {
			t.Errorf("%s: blamed %v", when, got)
		}
	}
	check("before writing")
	_ = m.Close()
	m = open(t, dir)
	peers, blamed, history = m.Peers(), m.Reputation(), m.History()
	check("after a restart")
	if err := m.bolt.Load().Update(func(tx *bolt.Tx) error {
		return tx.Bucket(valueBucket).Put([]byte(historyName), []byte("abcdnew"))
	}); err != nil {
		t.Fatal(err)
	}
	_ = m.Close()
	if m = open(t, dir); m.History().Load() != nil {
		t.Error("a damaged value was given out")
	}
}

// TestDamageWhileRunning: what is in memory goes into the new database.
func TestDamageWhileRunning(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir)
	peers := m.Peers()
	peers.Save([]string{"a"})
	m.flush()
	m.fault = func(*bolt.Tx) error { m.fault = nil; panic("assertion failed: page 7") }
	b := info(t, "b")
	m.Put(b)
	m.flush()
	if m.warnings() != 1 || !m.has(t, b) || m.Err() != nil {
		t.Errorf("%v, log: %s", m.Err(), m.log)
	}
	_ = m.Close()
	if m = open(t, dir); !m.has(t, b) || !slices.Equal(m.Peers().Load(), []string{"a"}) {
		t.Error("lost what was in memory")
	}
}

// TestLastVersion: what the last version left in the directory goes. Files that are not ours stay.
func TestLastVersion(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	for _, name := range []string{
		filepath.Join(outside, "mine"), filepath.Join(dir, "peers.json"), filepath.Join(dir, "standing.json"),
		filepath.Join(dir, "identity.key"), filepath.Join(dir, "narinfo/0.dat"), filepath.Join(dir, "history/history"),
	} {
		_ = os.MkdirAll(filepath.Dir(name), 0o700)
		if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(dir, "narinfo", "link")); err != nil {
		t.Fatal(err)
	}
	m := open(t, dir)
	if m.warnings() > 0 || m.Peers().Load() != nil {
		t.Error(m.log)
	}
	_ = m.Close()
	left, _ := filepath.Glob(filepath.Join(dir, "*"))
	if !slices.Equal(left, []string{filepath.Join(dir, "identity.key"), fileOf(dir)}) {
		t.Errorf("left: %v", left)
	}
	if _, err := os.Stat(filepath.Join(outside, "mine")); err != nil {
		t.Error("a link was followed")
	}
}

func TestPutIsBounded(t *testing.T) {
	m := open(t, t.TempDir())
	a := info(t, "a")
	for i := range 2 * maxPending {
		m.enqueue(nix.StoreHash{byte(i), byte(i >> 8), byte(i >> 16)}, &change{kind: put, info: a})
	}
	if len(m.pending) != maxPending {
		t.Errorf("%d wait", len(m.pending))
	}
	big := make([]byte, 1<<20)
	for i := range maxPending {
		m.enqueue(nix.StoreHash{byte(i), byte(i >> 8), byte(i >> 16)}, &change{kind: put, info: a, text: big})
	}
	if m.bytes > maxPendingBytes {
		t.Errorf("%d bytes wait", m.bytes)
	}
	clear(m.pending)
}

func TestConcurrent(t *testing.T) {
	m := open(t, t.TempDir())
	m.maxEntries = 100
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()
	var infos []*verify.Info
	for i := range 200 {
		infos = append(infos, info(t, fmt.Sprint(i)))
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for n := range 600 {
				i := infos[(n*7+w*50)%len(infos)]
				switch {
				case n%50 == 49:
					m.flush()
				case n%23 == 22:
					m.Forget(hash(i))
				case n%3 == 0:
					m.Put(i)
				case n%11 == 0:
					_ = found(t, m.Public, i)
				default:
					_ = m.has(t, i)
				}
			}
		})
	}
	wg.Wait()
	cancel()
	<-done
}

func FuzzParse(f *testing.F) {
	f.Add(use{1, 2, true, nix.NarHash{3}}.append(nil))
	f.Add(seal([]byte("k"), []byte("v")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if u, ok := parseUse(b); ok && !bytes.Equal(u.append(nil), b) {
			t.Errorf("%x parses as %+v", b, u)
		}
		if v, ok := unseal([]byte("k"), b); ok && !bytes.Equal(seal([]byte("k"), v), b) {
			t.Errorf("%x unseals as %q", b, v)
		}
	})
}
