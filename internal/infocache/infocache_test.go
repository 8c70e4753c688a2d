package infocache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testKey = nixtest.NewKey("key-1")

// open opens cfg with the test key's trust unless it says otherwise; closing is left to the test.
func open(t testing.TB, cfg Config) *Cache {
	t.Helper()
	if cfg.Keys == nil {
		cfg.Keys = nixtest.Keys(t, testKey)
	}
	c, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func info(t testing.TB, name string) *verify.Info { return nixtest.NewPath(name, 10).Info(t, testKey) }

// noSync spares the disk in tests that write often and cut no power.
func noSync(*os.File) error { return nil }

func hash(i *verify.Info) nix.StoreHash { return i.StorePath().Hash() }

func has(t testing.TB, c *Cache, want *verify.Info) bool {
	t.Helper()
	got, err := c.Info(t.Context(), hash(want))
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

func TestRemembersOverRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "by-open")
	c := open(t, Config{Dir: dir})
	a, b := info(t, "a"), info(t, "b")
	if has(t, c, a) {
		t.Fatal("has what was never put")
	}
	c.Put(a)
	c.Put(b)
	if !has(t, c, a) || c.Len() != 2 {
		t.Fatalf("before writing: has %v, len %d", has(t, c, a), c.Len())
	}
	c.flush()
	if !has(t, c, a) || c.Len() != 2 {
		t.Fatal("after writing")
	}
	c.Forget(hash(b))
	if has(t, c, b) || c.Len() != 1 {
		t.Fatal("forgotten, but had")
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = open(t, Config{Dir: dir})
	if !has(t, c, a) || has(t, c, b) || c.Len() != 1 {
		t.Fatal("after a restart")
	}
	if st, _ := os.Stat(dir); st.Mode().Perm() != 0o700 {
		t.Errorf("directory mode %v", st.Mode())
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, f := range files {
		if st, _ := os.Stat(f); st.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v", f, st.Mode())
		}
	}
}

func TestKeyRemoved(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Config{Dir: dir})
	a := info(t, "a")
	c.Put(a)
	_ = c.Close()

	m := metrics.New()
	c = open(t, Config{Dir: dir, Keys: nixtest.Keys(t, nixtest.NewKey("other-1")), Metrics: m})
	if has(t, c, a) || c.Len() != 0 {
		t.Fatal("a narinfo of a removed key was given out or kept")
	}
	if n := lies(t, m); n != 0 {
		t.Errorf("a removed key counts as %d lies", n)
	}
	_ = c.Close()
	c = open(t, Config{Dir: dir})
	if has(t, c, a) {
		t.Fatal("came back with its key: it should have been deleted")
	}
}

func TestTampered(t *testing.T) {
	for _, test := range []struct {
		name   string
		rehash bool // the attacker fixes the checksums too
	}{{"disk", false}, {"attacker", true}} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			m := metrics.New()
			c := open(t, Config{Dir: dir, Metrics: m})
			a := info(t, "a")
			c.Put(a)
			c.flush()
			dat := segmentPath(dir, 0, datSuffix)
			text, err := os.ReadFile(dat)
			if err != nil {
				t.Fatal(err)
			}
			at := bytes.Index(text, []byte("NarSize: ")) + len("NarSize: ")
			text[at] ^= 1
			if err := os.WriteFile(dat, text, 0o600); err != nil {
				t.Fatal(err)
			}
			if test.rehash {
				at := c.index[hash(a)]
				at.sum = sum(text)
				c.index[hash(a)] = at
			}
			if has(t, c, a) || c.Len() != 0 {
				t.Fatal("a changed text was given out or kept")
			}
			want := 0
			if test.rehash {
				want = 1
			}
			if n := lies(t, m); n != want {
				t.Errorf("%d failures counted, want %d", n, want)
			}
		})
	}
}

func TestSecondProcess(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Config{Dir: dir})
	keys := nixtest.Keys(t, testKey)
	if _, err := Open(Config{Dir: dir, Keys: keys}); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("second: %v", err)
	}
	a := info(t, "a")
	c.Put(a)
	_ = c.Close()
	if _, err := c.Info(t.Context(), hash(a)); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("asked after Close: %v", err)
	}
	if c = open(t, Config{Dir: dir}); !has(t, c, a) {
		t.Error("not written by Close")
	}
}

// TestDamage breaks the files in every way that a disk knows. The start never fails, what is
// given out is right, and new things are remembered.
func TestDamage(t *testing.T) {
	truncate := func(suffix string, by int64) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			path := segmentPath(dir, 0, suffix)
			st, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, max(st.Size()-by, 0)); err != nil {
				t.Fatal(err)
			}
		}
	}
	flip := func(suffix string, at int) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			path := segmentPath(dir, 0, suffix)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b[at] ^= 0x40
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, test := range []struct {
		name     string
		harm     func(t *testing.T, dir string)
		least    int // of 10 are still there
		setAside bool
		warn     bool
	}{
		{"none", func(*testing.T, string) {}, 10, false, false},
		{"record cut", truncate(idxSuffix, 20), 9, false, false},
		{"records cut", truncate(idxSuffix, 3*recordSize), 7, false, false},
		{"record changed", flip(idxSuffix, recordSize+30), 9, false, true},
		{"text changed", flip(datSuffix, 30), 9, false, true},
		{"texts cut", truncate(datSuffix, 500), 8, false, true},
		{"no texts", truncate(datSuffix, 1<<30), 0, true, true},
		{"no records", truncate(idxSuffix, 1<<30), 0, false, false},
		{"records are noise", func(t *testing.T, dir string) {
			if err := os.WriteFile(segmentPath(dir, 0, idxSuffix), bytes.Repeat([]byte("noise"), 1000), 0o600); err != nil {
				t.Fatal(err)
			}
		}, 0, true, true},
		{"records are a directory", func(t *testing.T, dir string) {
			_ = os.Remove(segmentPath(dir, 0, idxSuffix))
			if err := os.Mkdir(segmentPath(dir, 0, idxSuffix), 0o700); err != nil {
				t.Fatal(err)
			}
		}, 0, true, true},
		{"texts gone", func(_ *testing.T, dir string) { _ = os.Remove(segmentPath(dir, 0, datSuffix)) }, 0, false, false},
		{"records gone", func(_ *testing.T, dir string) { _ = os.Remove(segmentPath(dir, 0, idxSuffix)) }, 0, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			c := open(t, Config{Dir: dir})
			var all []*verify.Info
			for i := range 10 {
				all = append(all, info(t, fmt.Sprint(i)))
				c.Put(all[i])
			}
			_ = c.Close()
			test.harm(t, dir)

			var log bytes.Buffer
			c = open(t, Config{Dir: dir, Log: slog.New(slog.NewTextHandler(&log, nil))})
			n := 0
			for _, i := range all {
				if has(t, c, i) {
					n++
				}
			}
			if n < test.least || test.name != "none" && n == 10 {
				t.Errorf("%d of 10 left, want %d", n, test.least)
			}
			if _, err := os.Stat(filepath.Join(dir, aside+idxSuffix)); (err == nil) != test.setAside {
				t.Errorf("set aside: %v, want %v", err == nil, test.setAside)
			}
			if got := strings.Contains(log.String(), "level=WARN"); got != test.warn {
				t.Errorf("warned: %v, want %v: %s", got, test.warn, log.String())
			}
			fresh := info(t, "fresh")
			c.Put(fresh)
			_ = c.Close()
			c = open(t, Config{Dir: dir})
			if !has(t, c, fresh) {
				t.Error("does not remember after damage")
			}
		})
	}
}

func TestBounds(t *testing.T) {
	for _, test := range []struct {
		name string
		cfg  Config
		most int
	}{
		{"entries", Config{MaxEntries: 100}, 100},
		{"bytes", Config{MaxBytes: 8 * minSegment}, 1500},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := test.cfg
			cfg.Dir = t.TempDir()
			c := open(t, cfg)
			c.sync = noSync
			used := info(t, "used")
			c.Put(used)
			var last *verify.Info
			for i := range 2000 {
				last = info(t, fmt.Sprint(i))
				c.Put(last)
				if i%50 == 0 {
					c.flush()
					if !has(t, c, used) {
						t.Fatalf("forgot what is used all the time, at %d", i)
					}
					if n := c.Len(); n > test.most {
						t.Fatalf("%d entries", n)
					}
					if n := du(t, cfg.Dir); cfg.MaxBytes > 0 && n > cfg.MaxBytes {
						t.Fatalf("%d bytes on disk, bound %d", n, cfg.MaxBytes)
					}
				}
			}
			c.flush()
			if !has(t, c, last) {
				t.Error("forgot the newest")
			}
			if c.Len() < test.most/4 {
				t.Errorf("only %d entries are left", c.Len())
			}
			n := c.Len()
			_ = c.Close()
			c = open(t, cfg)
			if !has(t, c, used) || !has(t, c, last) || c.Len() != n {
				t.Errorf("after a restart: %d entries, want %d", c.Len(), n)
			}
		})
	}
}

// lies returns how many verify failures were counted.
func lies(t testing.TB, m *metrics.Metrics) (n int) {
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

func du(t testing.TB, dir string) (n int64) {
	t.Helper()
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range names {
		st, err := d.Info()
		if err != nil {
			t.Fatal(err)
		}
		n += st.Size()
	}
	return n
}

// TestHintsChange writes one path with ever other hints: superseded texts make room, and
// nothing else goes for them.
func TestHintsChange(t *testing.T) {
	c := open(t, Config{Dir: t.TempDir(), MaxBytes: 4 * minSegment})
	c.sync = noSync
	kept := info(t, "kept")
	c.Put(kept)
	p := nixtest.NewPath("changing", 10)
	var last *verify.Info
	for i := range 800 {
		n := p.Signed(testKey)
		n.URL = fmt.Sprintf("nar/%d.nar", i)
		last, _ = nixtest.Keys(t, testKey).OpenNarInfo(n, p.Hash())
		c.Put(last)
		c.flush()
	}
	if !has(t, c, last) || !has(t, c, kept) || c.Len() != 2 {
		t.Fatalf("%d entries", c.Len())
	}
}

func TestSameAgainWritesNothing(t *testing.T) {
	c := open(t, Config{Dir: t.TempDir()})
	a := info(t, "a")
	c.Put(a)
	c.flush()
	before := du(t, c.cfg.Dir)
	for range 10 {
		c.Put(a)
		c.flush()
	}
	if after := du(t, c.cfg.Dir); after != before {
		t.Errorf("%d bytes, were %d", after, before)
	}
}

func TestThirtyDays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		used, idle := info(t, "used"), info(t, "idle")
		c := open(t, Config{Dir: dir})
		c.Put(used)
		c.Put(idle)
		c.flush()
		for range 29 {
			<-time.After(24 * time.Hour)
			if !has(t, c, used) {
				t.Fatal("forgot what is used")
			}
			c.flush()
		}
		_ = c.Close()
		c = open(t, Config{Dir: dir})
		if c.Len() != 2 {
			t.Fatal("forgot too early")
		}
		<-time.After(25 * time.Hour)
		if has(t, c, idle) || !has(t, c, used) {
			t.Fatal("30 days without use")
		}
		c.flush()
		if c.Len() != 1 {
			t.Errorf("%d entries", c.Len())
		}
	})
}

func TestRunWritesSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Config{Dir: t.TempDir()})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		c.Put(info(t, "a"))
		<-time.After(time.Second)
		synctest.Wait()
		if n := du(t, c.cfg.Dir); n == 0 {
			t.Error("nothing on disk after a second")
		}
		before := du(t, c.cfg.Dir)
		c.Put(info(t, "b"))
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if du(t, c.cfg.Dir) <= before {
			t.Error("Run left something unwritten")
		}
	})
}

func TestDiskFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		c := open(t, Config{Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(&log, nil))})
		before := info(t, "before")
		c.Put(before)
		c.flush()
		c.diskFault = func() error { return syscall.ENOSPC }
		for i := range 5 {
			c.Put(info(t, fmt.Sprint(i)))
			c.flush()
			<-time.After(20 * time.Second)
		}
		c.Forget(hash(before))
		c.flush()
		if c.Len() != 0 {
			t.Errorf("%d entries: remembers in memory what it cannot write", c.Len())
		}
		if n := strings.Count(log.String(), "level=WARN"); n != 1 {
			t.Errorf("%d warnings: %s", n, log.String())
		}
		c.diskFault = nil
		<-time.After(time.Minute)
		after := info(t, "after")
		c.Put(after)
		c.flush()
		if !has(t, c, after) || c.Len() != 1 {
			t.Error("does not remember when the disk is well again")
		}
	})
}

// TestConcurrent makes readers meet segments that are dropped under them.
func TestConcurrent(t *testing.T) {
	c := open(t, Config{Dir: t.TempDir(), MaxBytes: 4 * minSegment})
	c.sync = noSync
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	var infos []*verify.Info
	for i := range 400 {
		infos = append(infos, info(t, fmt.Sprint(i)))
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for n := range 3 * len(infos) {
				i := infos[(n*7+w*100)%len(infos)]
				switch {
				case n%50 == 49:
					c.flush()
				case n%23 == 22:
					c.Forget(hash(i))
				case n%3 == 0:
					c.Put(i)
				default:
					_ = has(t, c, i)
				}
			}
		})
	}
	wg.Wait()
	cancel()
	<-done
}

func TestPutIsBounded(t *testing.T) {
	c := open(t, Config{Dir: t.TempDir()})
	a := info(t, "a")
	for i := range 2 * maxPending {
		c.enqueue(nix.StoreHash{byte(i), byte(i >> 8), byte(i >> 16)}, &op{kind: kindPut, info: a})
	}
	if len(c.pending) != maxPending {
		t.Errorf("%d wait", len(c.pending))
	}
	clear(c.pending)
}

func FuzzRecord(f *testing.F) {
	f.Add(record{kind: kindPut, hash: nix.StoreHash{1}, off: 7, size: 8, sum: 9, used: 10}.append(nil))
	f.Add(record{kind: kindGone}.append(nil))
	f.Add(make([]byte, recordSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, ok := parseRecord(b)
		if ok && !bytes.Equal(r.append(nil), b) {
			t.Errorf("%x parses as %+v", b, r)
		}
		// The checksum keeps the fuzzer from getting far: repair it.
		if len(b) == recordSize {
			fixed := append(b[:recordSize-4:recordSize-4], le32(sum(b[:recordSize-4]))...)
			if r, ok := parseRecord(fixed); ok && !bytes.Equal(r.append(nil), fixed) {
				t.Errorf("%x parses as %+v", fixed, r)
			}
		}
	})
}

func BenchmarkInfo(b *testing.B) {
	c := open(b, Config{Dir: b.TempDir()})
	a := info(b, "a")
	c.Put(a)
	c.flush()
	for b.Loop() {
		if _, err := c.Info(b.Context(), hash(a)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPut(b *testing.B) {
	c := open(b, Config{Dir: b.TempDir()})
	a := info(b, "a")
	for b.Loop() {
		c.Put(a)
	}
}

// BenchmarkOpen starts with 100,000 narinfos.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	c := open(b, Config{Dir: dir})
	a := info(b, "a")
	for i := range 100_000 {
		c.enqueue(nix.StoreHash{byte(i), byte(i >> 8), byte(i >> 16)}, &op{kind: kindPut, info: a, used: seconds(time.Now())})
		if i%5000 == 0 {
			c.flush()
		}
	}
	_ = c.Close()
	for b.Loop() {
		c, err := Open(Config{Dir: dir, Keys: nixtest.Keys(b, testKey)})
		if err != nil || c.Len() != 100_000 {
			b.Fatal(err, c.Len())
		}
		_ = c.Close()
	}
}
