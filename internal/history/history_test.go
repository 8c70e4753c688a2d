package history

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/source"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// meter is the counters of one run of a program.
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

func saved(h *History) Spans {
	saved, _ := h.Saved()
	return saved
}

// shelf is a Storage in memory.
type shelf struct {
	mu    sync.Mutex
	text  []byte
	saves int
}

func (s *shelf) Load() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text
}

func (s *shelf) Save(text []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = text
	s.saves++
}

// run starts a history as a program does.
func run(t *testing.T, s *shelf, zone *time.Location) (h *History, m *meter, end func()) {
	t.Helper()
	m = &meter{}
	h = New(Config{Storage: s, Read: m.read, Zone: zone})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- h.Run(ctx) }()
	return h, m, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func wait(d time.Duration) { time.Sleep(d); synctest.Wait() }

// TestRestarts: what was counted is there after a restart, in its hour and its day, and the
// next run adds to it.
func TestRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shelf{}
		zone := time.FixedZone("here", 2*3600)
		wait(21*time.Hour + 30*time.Minute) // 2000-01-01, half past eleven at night here
		h, m, end := run(t, s, zone)
		m.sent(Counts{Store: 10, Upstream: 5, Saved: 10})
		wait(time.Minute)
		if got, want := saved(h), (Spans{10, 10, 10}); got != want {
			t.Errorf("saved %+v, want %+v", got, want)
		}
		end()

		wait(time.Hour) // the next day
		h, m, end = run(t, s, zone)
		m.sent(Counts{Cache: 1, Peer: 2, Saved: 3, Estimated: 2})
		if got, want := saved(h), (Spans{3, 13, 13}); got != want {
			t.Errorf("saved %+v, want %+v", got, want)
		}
		hours, days := h.Buckets()
		if len(hours) != Hours || len(days) != Days {
			t.Fatalf("%d hours, %d days", len(hours), len(days))
		}
		first, second := Counts{Store: 10, Upstream: 5, Saved: 10}, Counts{Cache: 1, Peer: 2, Saved: 3, Estimated: 2}
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
		h, _, end = run(t, s, zone)
		if got, want := saved(h), (Spans{0, 3, 13}); got != want {
			t.Errorf("saved %+v, want %+v", got, want)
		}
		end()
	})
}

// TestKilled: a killed process forgets a minute, and nothing is saved while nothing changes.
func TestKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shelf{}
		_, m, end := run(t, s, time.UTC)
		m.sent(Counts{Peer: 7, Saved: 7})
		wait(saveEvery + readEvery)
		if b, err := parse(s.Load()); err != nil || b.Total.Peer != 7 {
			t.Errorf("%+v, %v", b, err)
		}
		wait(10 * saveEvery)
		end()
		if s.saves != 1 {
			t.Errorf("saved %d times", s.saves)
		}
	})
}

// TestClockJumps sets the clock back and forth: nothing is lost, nothing counted twice, and what
// was in an hour stays in it.
func TestClockJumps(t *testing.T) {
	start := time.Date(2026, 11, 22, 15, 30, 0, 0, time.UTC)
	b := book{Version: bookVersion}
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
	if b.Total.Saved != want {
		t.Errorf("total %d, want %d", b.Total.Saved, want)
	}
	if got := b.Hours.get(hourOf(start)).Peer; got != 180 {
		t.Errorf("the hour has %d", got)
	}
	if got := b.Hours.get(hourOf(start.Add(-2 * time.Hour))).Peer; got != 7 {
		t.Errorf("the hour that the clock was set back to has %d", got)
	}
	if got := b.Days.get(dayOf(start.AddDate(0, 0, -29))).Peer; got != 1000 {
		t.Errorf("a day that is shown was pushed out: %d", got)
	}
}

// TestBounded: years of use stay small and can be read again.
func TestBounded(t *testing.T) {
	b := book{Version: bookVersion}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for range 3 * 365 * 24 {
		b.add(now, Counts{maxCount, maxCount, maxCount, maxCount, maxCount, maxCount})
		now = now.Add(time.Hour)
	}
	text, err := json.Marshal(&b)
	if err != nil || len(text) > 64<<10 {
		t.Errorf("%d bytes, %v", len(text), err)
	}
	if got, err := parse(text); err != nil || !reflect.DeepEqual(got, b) {
		t.Errorf("not read again: %v", err)
	}
}

func TestDamaged(t *testing.T) {
	for _, text := range []string{
		"", "\x00\x00", "[]", `{"Version":1,"Total":{"Peer":-1}}`, `{"Version":1,"Days":[{"Number":1,"Saved":9223372036854775807}]}`,
		`{"Version":1,"Hours":[` + strings.Repeat("{},", keptHours) + `{}]}`,
	} {
		var log bytes.Buffer
		h := New(Config{Storage: &shelf{text: []byte(text)}, Read: (&meter{}).read, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if got := saved(h); got != (Spans{}) {
			t.Errorf("%q: %+v", text, got)
		}
		if !strings.Contains(log.String(), "damaged") {
			t.Errorf("%q: log: %s", text, &log)
		}
	}
	memory := New(Config{Read: (&meter{now: Counts{Saved: 9}}).read})
	if got := saved(memory); got.Total != 9 {
		t.Errorf("without storage: %+v", got)
	}
}

// TestCalendar: where a day has no midnight, every day is listed once.
func TestCalendar(t *testing.T) {
	for _, name := range []string{"America/Sao_Paulo", "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Apia", "Europe/Berlin"} {
		zone, err := time.LoadLocation(name)
		if err != nil {
			t.Skip(err)
		}
		hours, days := New(Config{Read: (&meter{}).read, Zone: zone}).Buckets()
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
		events := source.Events(f.Note)
		for range 3 {
			events.Send(source.Event{Kind: source.CacheDown, Source: source.Upstream, Err: errors.New("refused")})
			time.Sleep(time.Second)
		}
		events.Send(source.Event{Kind: source.WrongBytes, Source: source.Peer, StorePath: "/nix/store/x", Err: errors.New(strings.Repeat("é", 1000) + "\xff")})
		got := f.Last()
		if len(got) != 2 || got[1].Times != 3 || got[1].Err != "refused" || time.Since(got[1].At) != time.Second || got[1].What() != "cannot be reached" {
			t.Errorf("%+v", got)
		}
		if e := got[0].Err; len(e) > maxErr+3 || strings.ToValidUTF8(e, "?") != e {
			t.Errorf("error of %d bytes: %q", len(e), e)
		}
		for i := range 100 {
			f.Note(source.Event{Kind: source.EndedEarly, StorePath: fmt.Sprint(i)})
		}
		if got := f.Last(); len(got) != maxFailures || got[0].StorePath != "99" || got[31].StorePath != "68" {
			t.Errorf("%d, %+v", len(got), got[0])
		}
	})
	for kind := source.WrongBytes; kind <= source.CacheRecovered; kind++ {
		if (&Failure{Event: source.Event{Kind: kind}}).What() == "" {
			t.Errorf("event %d has no text", kind)
		}
	}
}

func FuzzParse(f *testing.F) {
	b := book{Version: bookVersion}
	b.add(time.Unix(1e9, 0), Counts{1, 2, 3, 4, 5, 6})
	text, _ := json.Marshal(&b)
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := parse(text)
		if err != nil {
			return
		}
		b.add(time.Unix(1e9, 0), Counts{1, 2, 3, 4, maxCount, 5})
		again, err := json.Marshal(&b)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := parse(again); err != nil || c.Total != b.Total {
			t.Errorf("%q cannot be read again: %v", again, err)
		}
	})
}
