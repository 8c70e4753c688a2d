// Package history counts over restarts what this machine sent to Nix by hour and by day and how
// much of it did not cross the uplink, and lists what went wrong lately. It reads counters that
// others keep, so that no number has two definitions.
package history

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// Counts are the NARs sent to Nix by source, in bytes as they are unpacked, and the bytes of files
// that did not cross the uplink, with the part of them that is an estimate.
type Counts struct {
	Store, Cache, Peer, Upstream, Saved, Estimated int64
}

// Bucket is an hour or a day.
type Bucket struct {
	Start time.Time
	Counts
}

// Spans are bytes by days of the local calendar.
type Spans struct {
	Today, Week, Total int64
}

// Storage keeps one value over restarts.
type Storage interface {
	// Load returns the value, nil if there is none.
	Load() []byte
	// Save replaces it. It does not block.
	Save([]byte)
}

// Config is what New needs.
type Config struct {
	Storage Storage // if nil, nothing is kept over a restart
	// Read returns counters that never fall, all of them zero when the program starts.
	Read func() Counts
	Zone *time.Location // if nil, local time
	Log  *slog.Logger   // if nil, nothing is logged
}

const (
	// Hours and Days are how many buckets Buckets returns.
	Hours = 24
	Days  = 30

	// More are kept than are shown: a clock that was wrong for a while takes some.
	keptHours = 3 * Hours
	keptDays  = 3 * Days

	// readEvery bounds how much of an hour is counted to the next.
	readEvery = 10 * time.Second
	// saveEvery bounds what a killed process forgets, and how often a disk is woken up.
	saveEvery = time.Minute
)

// History is the counts. It is safe for concurrent use.
type History struct {
	cfg Config

	mu      sync.Mutex
	seen    Counts // what Read returned last
	book    book
	changed bool // since the last Save
}

// New returns the history as it was saved. One that cannot be read begins at zero, with a
// warning. The caller runs Run.
func New(cfg Config) *History {
	if cfg.Zone == nil {
		cfg.Zone = time.Local
	}
	h := &History{cfg: cfg}
	if cfg.Storage == nil {
		return h
	}
	text := cfg.Storage.Load()
	if text == nil {
		return h
	}
	var err error
	if h.book, err = parse(text); err != nil && cfg.Log != nil {
		cfg.Log.Warn("history of transfers is damaged, counting begins at zero", "err", err)
	}
	return h
}

// Run reads the counters and saves them until ctx ends, and once more then.
func (h *History) Run(ctx context.Context) error {
	tick := time.NewTicker(readEvery)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			h.save()
			return nil
		case <-tick.C:
		}
		if n%int(saveEvery/readEvery) == 0 {
			h.save()
			continue
		}
		h.mu.Lock()
		h.read()
		h.mu.Unlock()
	}
}

// save reads the counters and saves the book if anything has changed.
func (h *History) save() {
	h.mu.Lock()
	h.read()
	changed := h.changed
	h.changed = false
	h.book.Version = bookVersion
	text, _ := json.Marshal(&h.book) // numbers cannot fail
	h.mu.Unlock()
	if changed && h.cfg.Storage != nil {
		h.cfg.Storage.Save(text)
	}
}

// read books what came since the last time. The clock decides where, never whether: each byte is
// booked once however the clock was set. The caller holds mu.
func (h *History) read() {
	now, last := h.cfg.Read(), h.seen
	h.seen = now
	d := now.less(last)
	if d == (Counts{}) {
		return
	}
	h.changed = true
	h.book.add(time.Now().In(h.cfg.Zone), d)
}

// Saved returns what did not cross the uplink, and the part of it that is an estimate.
func (h *History) Saved() (saved, estimated Spans) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.read()
	today := time.Now().In(h.cfg.Zone)
	for back := range 7 {
		n := h.book.Days.get(dayOf(today.AddDate(0, 0, -back)))
		if back == 0 {
			saved.Today, estimated.Today = n.Saved, n.Estimated
		}
		saved.Week, estimated.Week = saved.Week+n.Saved, estimated.Week+n.Estimated
	}
	saved.Total, estimated.Total = h.book.Total.Saved, h.book.Total.Estimated
	return saved, estimated
}

// Buckets returns the last hours and days, the present ones last, without gaps.
func (h *History) Buckets() (hours, days []Bucket) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.read()
	now := time.Now().In(h.cfg.Zone)
	for back := Hours - 1; back >= 0; back-- {
		n := hourOf(now) - int64(back)
		hours = append(hours, Bucket{time.Unix(n*3600, 0).In(h.cfg.Zone), h.book.Hours.get(n)})
	}
	for back := Days - 1; back >= 0; back-- {
		// Noon: some days have no midnight, and none lacks its noon.
		y, m, d := now.Date()
		day := time.Date(y, m, d-back, 12, 0, 0, 0, h.cfg.Zone)
		y, m, d = day.Date()
		days = append(days, Bucket{time.Date(y, m, d, 0, 0, 0, 0, h.cfg.Zone), h.book.Days.get(dayOf(day))})
	}
	return hours, days
}

// book is what is kept: all bytes ever, and those of the last hours and days.
type book struct {
	Version     int // bookVersion
	Total       Counts
	Hours, Days series
}

// bookVersion says what the numbers mean. Others are not taken over: up to version 0, raw bytes
// counted as saved.
const bookVersion = 1

// series has buckets in the order in which they were begun, which a clock that was set may make
// another one than that of time. The bound falls on those begun first: what a wrong clock adds
// pushes out the oldest and nothing else.
type series []entry

// entry is a bucket under its number: hours since 1970, days as year, month and day in decimal
// digits, so that a day stays what it was called where the machine was then.
type entry struct {
	Number int64
	Counts
}

func hourOf(t time.Time) int64 { return t.Truncate(time.Hour).Unix() / 3600 }

func dayOf(t time.Time) int64 {
	y, m, d := t.Date()
	return int64(y)*10000 + int64(m)*100 + int64(d)
}

func (b *book) add(now time.Time, c Counts) {
	b.Total = b.Total.plus(c)
	b.Hours.add(hourOf(now), c, keptHours)
	b.Days.add(dayOf(now), c, keptDays)
}

func (s *series) add(number int64, c Counts, bound int) {
	for i := len(*s) - 1; i >= 0; i-- {
		if e := &(*s)[i]; e.Number == number {
			e.Counts = e.plus(c)
			return
		}
	}
	*s = append(*s, entry{number, c})
	if len(*s) > bound {
		*s = append((*s)[:0], (*s)[len(*s)-bound:]...)
	}
}

func (s series) get(number int64) Counts {
	for _, e := range s {
		if e.Number == number {
			return e.Counts
		}
	}
	return Counts{}
}

// maxCount is an exbibyte: two of them added do not overflow.
const maxCount = 1 << 60

// merge applies f to each number of c and d.
func (c Counts) merge(d Counts, f func(a, b int64) int64) Counts {
	return Counts{f(c.Store, d.Store), f(c.Cache, d.Cache), f(c.Peer, d.Peer), f(c.Upstream, d.Upstream), f(c.Saved, d.Saved), f(c.Estimated, d.Estimated)}
}

// plus adds. Above maxCount it stays there, so that what was saved can always be read again.
func (c Counts) plus(d Counts) Counts {
	return c.merge(d, func(a, b int64) int64 { return min(a+b, maxCount) })
}

// less returns what was added since before; a counter that fell was started again.
func (c Counts) less(before Counts) Counts {
	return c.merge(before, func(a, b int64) int64 { return min(max(a-b, 0), maxCount) })
}

var errRange = errors.New("numbers out of range")

// parse reads what was saved. The storage has checked that it is whole; this bounds what a later
// or an earlier version may have meant by it.
func parse(text []byte) (b book, err error) {
	if err := json.Unmarshal(text, &b); err != nil {
		return book{}, err
	}
	if b.Version != bookVersion {
		return book{Version: bookVersion}, nil
	}
	all := []Counts{b.Total}
	for _, e := range append(b.Hours[:len(b.Hours):len(b.Hours)], b.Days...) {
		all = append(all, e.Counts)
	}
	for _, c := range all {
		if c.less(Counts{}) != c {
			return book{}, errRange
		}
	}
	if len(b.Hours) > keptHours || len(b.Days) > keptDays {
		return book{}, errRange
	}
	return b, nil
}
