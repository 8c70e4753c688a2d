package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/disk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// meter is the counters of one life of a program.
type meter struct {
	mu  sync.Mutex
	now Counts
}

func (m *meter) read() Counts {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

// sent is what happens when bytes go to Nix.
func (m *meter) sent(c Counts) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = m.now.plus(c)
}

// life opens a ledger for one life of a program, and runs it.
func life(t *testing.T, dir string, zone *time.Location) (l *Ledger, m *meter, end func()) {
	t.Helper()
	m = &meter{}
	l, err := Open(Config{Dir: dir, Read: m.read, Zone: zone})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	return l, m, func() {
		cancel()
		if err := errors.Join(<-done, l.Close()); err != nil {
			t.Error(err)
		}
	}
}

func wait(d time.Duration) { <-time.After(d); synctest.Wait() }

// TestRestarts: what was counted is there after a restart, in its hour and its day, and the
// next life adds to it.
func TestRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "history")
		zone := time.FixedZone("here", 2*3600)
		wait(21*time.Hour + 30*time.Minute) // 2000-01-01, half past eleven at night here
		l, m, end := life(t, dir, zone)
		m.sent(Counts{Store: 10, Upstream: 5, Saved: 10})
		wait(time.Minute)
		if got, want := l.Saved(), (Saved{10, 10, 10}); got != want {
			t.Errorf("saved %+v, want %+v", got, want)
		}
		end()

		wait(time.Hour) // the next day
		l, m, end = life(t, dir, zone)
		m.sent(Counts{Cache: 1, Peer: 2, Saved: 3})
		if got, want := l.Saved(), (Saved{3, 13, 13}); got != want {
			t.Errorf("saved %+v, want %+v", got, want)
		}
		hours, days := l.History()
		if len(hours) != Hours || len(days) != Days {
			t.Fatalf("%d hours, %d days", len(hours), len(days))
		}
		first, second := Counts{Store: 10, Upstream: 5, Saved: 10}, Counts{Cache: 1, Peer: 2, Saved: 3}
		for i, want := range map[int]Counts{21: {}, 22: first, 23: second} {
			if hours[i].Counts != want {
				t.Errorf("hour %d (%v): %+v, want %+v", i, hours[i].Start, hours[i].Counts, want)
			}
		}
		if days[28].Counts != first || days[29].Counts != second {
			t.Errorf("days %+v", days[27:])
		}
		if want := time.Date(2000, 1, 2, 0, 0, 0, 0, zone); !hours[23].Start.Equal(want) || !days[29].Start.Equal(want) {
			t.Errorf("begin at %v, %v, want %v", hours[23].Start, days[29].Start, want)
		}
		end()

		wait(6 * 24 * time.Hour) // the first day is out of the week
		l, _, end = life(t, dir, zone)
		if got, want := l.Saved(), (Saved{0, 3, 13}); got != want {
			t.Errorf("saved %+v, want %+v", got, want)
		}
		end()
	})
}

// TestKilled: a killed process forgets a minute, and a file that nothing changed is left alone.
func TestKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		_, m, end := life(t, dir, time.UTC)
		m.sent(Counts{Peer: 7, Saved: 7})
		wait(writeEvery + readEvery)
		text, err := os.ReadFile(filepath.Join(dir, fileName))
		if err != nil {
			t.Fatal(err)
		}
		b, err := parse(text)
		if err != nil || b.total.Peer != 7 {
			t.Errorf("%+v, %v", b, err)
		}
		if err := os.Remove(filepath.Join(dir, fileName)); err != nil {
			t.Fatal(err)
		}
		wait(10 * writeEvery)
		if _, err := os.Stat(filepath.Join(dir, fileName)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("written although nothing came: %v", err)
		}
		end()
	})
}

// TestClockJumps sets the clock to and fro: nothing is lost, nothing counted twice, and what
// stood in an hour stays in it.
func TestClockJumps(t *testing.T) {
	start := time.Date(2026, 11, 22, 15, 30, 0, 0, time.UTC)
	var b book
	var want int64
	at := func(now time.Time, n int64) { b.add(now, Counts{Peer: n, Saved: n}); want += n }
	for back := range 30 {
		at(start.AddDate(0, 0, back-30), 1000)
	}
	at(start, 100)
	for i := range 20 { // a clock without a battery, until it was set
		at(time.Unix(0, 0).Add(time.Duration(i)*time.Hour), 1)
	}
	at(time.Date(2045, 1, 1, 0, 0, 0, 0, time.UTC), 5)
	at(start.Add(10*time.Minute), 50)
	at(start.Add(-2*time.Hour), 7) // set back
	at(start.Add(20*time.Minute), 30)
	if b.total.Saved != want {
		t.Errorf("total %d, want %d", b.total.Saved, want)
	}
	if got := b.hours.get(hourOf(start)).Peer; got != 180 {
		t.Errorf("the hour has %d", got)
	}
	if got := b.hours.get(hourOf(start.Add(-2 * time.Hour))).Peer; got != 7 {
		t.Errorf("the hour that was gone back to has %d", got)
	}
	if got := b.days.get(dayOf(start.AddDate(0, 0, -29))).Peer; got != 1000 {
		t.Errorf("a day that is shown was pushed out: %d", got)
	}
	if got, err := parse(b.text()); err != nil || !reflect.DeepEqual(got, b) {
		t.Errorf("not read again: %v", err)
	}
}

// TestBounded: years of use stay a small file that is read again.
func TestBounded(t *testing.T) {
	var b book
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for range 3 * 365 * 24 {
		b.add(now, Counts{maxCount, maxCount, maxCount, maxCount, maxCount})
		now = now.Add(time.Hour)
	}
	text := b.text()
	if len(text) > maxText/2 {
		t.Errorf("%d bytes", len(text))
	}
	if got, err := parse(text); err != nil || !reflect.DeepEqual(got, b) {
		t.Errorf("not read again: %v", err)
	}
}

// TestDamaged: whatever one byte becomes, the damage is noticed, told, put aside, and counting
// begins anew.
func TestDamaged(t *testing.T) {
	var b book
	b.add(time.Unix(1e9, 0), Counts{Store: 1, Upstream: 2, Saved: 3})
	good := b.text()
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, err := parse(bad); !errors.Is(err, errDamaged) {
			t.Fatalf("byte %d: %v", i, err)
		}
		if _, err := parse(good[:i]); !errors.Is(err, errDamaged) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	for _, text := range []string{"", "\x00\x00", strings.Repeat("x", maxText+10)} {
		dir := t.TempDir()
		name := filepath.Join(dir, fileName)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		l, err := Open(Config{Dir: dir, Read: (&meter{}).read, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		if got := l.Saved(); got != (Saved{}) {
			t.Errorf("%+v", got)
		}
		if !strings.Contains(log.String(), "damaged") {
			t.Errorf("log: %s", &log)
		}
		if kept, err := os.ReadFile(name + ".damaged"); err != nil || string(kept) != text {
			t.Errorf("not put aside: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestTrouble: a directory that cannot be had is an error, a disk that fails later is not.
func TestTrouble(t *testing.T) {
	if _, err := Open(Config{}); err == nil {
		t.Error("no counters, and no error")
	}
	m := &meter{}
	dir := t.TempDir()
	l, err := Open(Config{Dir: dir, Read: m.read})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: dir, Read: m.read}); !errors.Is(err, disk.ErrLocked) {
		t.Errorf("opened twice: %v", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	m.sent(Counts{Store: 5, Saved: 5})
	if err := l.Close(); err != nil {
		t.Errorf("the disk failed: %v", err)
	}
	if got := l.Saved(); got != (Saved{5, 5, 5}) {
		t.Errorf("%+v", got)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: filepath.Join(file, "x"), Read: m.read}); err == nil {
		t.Error("a file in the way, and no error")
	}
	memory, err := Open(Config{Read: (&meter{now: Counts{Saved: 9}}).read})
	if err != nil {
		t.Fatal(err)
	}
	if got := memory.Saved(); got.Total != 9 {
		t.Errorf("in memory: %+v", got)
	}
	if err := memory.Close(); err != nil {
		t.Error(err)
	}
}

// TestCalendar: where a day has no midnight, every day is listed once.
func TestCalendar(t *testing.T) {
	for _, name := range []string{"America/Sao_Paulo", "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Apia", "Europe/Berlin"} {
		zone, err := time.LoadLocation(name)
		if err != nil {
			t.Skip(err)
		}
		l, err := Open(Config{Read: (&meter{}).read, Zone: zone})
		if err != nil {
			t.Fatal(err)
		}
		hours, days := l.History()
		for i := range days[1:] {
			if !days[i].Start.Before(days[i+1].Start) {
				t.Errorf("%s: %v, %v", name, days[i].Start, days[i+1].Start)
			}
		}
		for i := range hours[1:] {
			if hours[i+1].Start.Sub(hours[i].Start) != time.Hour {
				t.Errorf("%s: %v, %v", name, hours[i].Start, hours[i+1].Start)
			}
		}
	}
}

func TestFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f Failures
		if len(f.Last()) != 0 {
			t.Error("something from nothing")
		}
		for range 3 {
			f.Note("upstream", "went down", "", errors.New("refused"))
			time.Sleep(time.Second)
		}
		f.Note("peer", "lied", "/nix/store/x", errors.New(strings.Repeat("é", 1000)+"\xff"))
		got := f.Last()
		if len(got) != 2 || got[1].Times != 3 || got[1].Err != "refused" || time.Since(got[1].At) != time.Second {
			t.Errorf("%+v", got)
		}
		if e := got[0].Err; len(e) > maxErr+3 || strings.ToValidUTF8(e, "?") != e {
			t.Errorf("error of %d bytes: %q", len(e), e)
		}
		for i := range 100 {
			f.Note("upstream", fmt.Sprint(i), "", nil)
		}
		if got := f.Last(); len(got) != maxFailures || got[0].What != "99" || got[31].What != "68" {
			t.Errorf("%d, %+v", len(got), got[0])
		}
	})
}

func FuzzParse(f *testing.F) {
	var b book
	f.Add(b.text())
	b.add(time.Unix(1e9, 0), Counts{1, 2, 3, 4, 5})
	b.add(time.Unix(-1e9, 0), Counts{1, 2, 3, 4, maxCount})
	f.Add(b.text())
	f.Add([]byte("nixp2p-history 1\ntotal 0 0 0 0 0\nsum 00000000\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := parse(text)
		if err != nil {
			if !errors.Is(err, errDamaged) {
				t.Errorf("%v", err)
			}
			// What stands before the checksum may be anything.
			if b, err = parse(fmt.Appendf(nil, "%ssum %08x\n", text, sum(text))); err != nil {
				return
			}
			text = fmt.Appendf(nil, "%ssum %08x\n", text, sum(text))
		}
		if again := b.text(); !bytes.Equal(again, text) {
			t.Errorf("%q became %q", text, again)
		}
		if len(b.hours) > keptHours || len(b.days) > keptDays || b.total.less(Counts{}) != b.total {
			t.Errorf("%+v", b)
		}
	})
}
