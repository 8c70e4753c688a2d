// Package ledger remembers over restarts what this machine sent to Nix by hour and by day and
// how much of it did not have to cross the uplink, and the last things that went wrong. It
// reads counters that others keep, so that no number has two definitions; it counts no byte
// itself.
package ledger

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/disk"
)

// Counts are NAR bytes sent to Nix by source, and those that did not cross the uplink.
type Counts struct {
	Store, Cache, Peer, Upstream, Saved int64
}

// Bucket is an hour or a day.
type Bucket struct {
	Start time.Time
	Counts
}

// Saved are bytes that did not cross the uplink. Days are those of the local calendar.
type Saved struct {
	Today, Week, Total int64
}

// Config is what Open needs.
type Config struct {
	// Dir is kept to this process and gets one file. Empty: nothing is kept over a restart.
	Dir string
	// Read returns counters that never fall, all of them zero when the program starts.
	Read func() Counts  // required
	Zone *time.Location // nil means local time
	Log  *slog.Logger   // nil discards
}

const (
	// Hours and Days are how many buckets History returns.
	Hours = 24
	Days  = 30

	// More are kept than are shown: a clock that was wrong for a while takes some.
	keptHours = 3 * Hours
	keptDays  = 3 * Days

	// readEvery bounds how much of an hour is counted to the next.
	readEvery = 10 * time.Second
	// writeEvery bounds what a killed process forgets, and how often a disk is woken up.
	writeEvery = time.Minute

	fileName = "history"
)

// Ledger is the memory. It is safe for concurrent use.
type Ledger struct {
	cfg  Config
	lock io.Closer // nil without a directory

	mu      sync.Mutex
	seen    Counts // what Read said last
	book    book
	changed bool // since the last write
	ill     bool // the last write failed
}

// Open reads what was kept. A file that is damaged is put aside with a warning, and counting
// begins anew. The caller runs Run and calls Close.
func Open(cfg Config) (*Ledger, error) {
	if cfg.Read == nil {
		return nil, errors.New("ledger: no counters to read")
	}
	if cfg.Zone == nil {
		cfg.Zone = time.Local
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l := &Ledger{cfg: cfg}
	if cfg.Dir == "" {
		return l, nil
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	lock, err := disk.Lock(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	l.lock = lock
	if err := l.load(); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("ledger: %w", err)
	}
	return l, nil
}

func (l *Ledger) path() string { return filepath.Join(l.cfg.Dir, fileName) }

func (l *Ledger) load() error {
	f, err := os.Open(l.path())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxText+1))
	if err != nil {
		return err
	}
	if l.book, err = parse(text); err != nil {
		l.cfg.Log.Warn("history of transfers is damaged, counting begins anew", "file", l.path(), "err", err)
		_ = os.Rename(l.path(), l.path()+".damaged")
	}
	return nil
}

// Run reads the counters and writes the file until ctx ends.
func (l *Ledger) Run(ctx context.Context) error {
	tick := time.NewTicker(readEvery)
	defer tick.Stop()
	written := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		l.mu.Lock()
		l.read()
		if l.changed && time.Since(written) >= writeEvery {
			l.write()
			written = time.Now()
		}
		l.mu.Unlock()
	}
}

// Close reads the counters a last time, writes, and gives up the directory.
func (l *Ledger) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.read()
	if l.changed {
		l.write()
	}
	if l.lock == nil {
		return nil
	}
	lock := l.lock
	l.lock = nil
	return lock.Close()
}

// read books what came since the last time. What the clock says decides where, never whether:
// each byte is booked once however the clock was set.
func (l *Ledger) read() {
	now, last := l.cfg.Read(), l.seen
	l.seen = now
	d := now.less(last)
	if d == (Counts{}) {
		return
	}
	l.changed = true
	l.book.add(time.Now().In(l.cfg.Zone), d)
}

// write keeps the book. A disk that fails is told of once, and tried again with the next
// change: the numbers in memory are right.
func (l *Ledger) write() {
	if l.lock == nil {
		return
	}
	err := disk.Replace(l.path(), l.book.text())
	if err != nil && !l.ill {
		l.cfg.Log.Warn("history of transfers cannot be written", "err", err)
	}
	l.ill = err != nil
	l.changed = err != nil
}

// Saved returns what did not cross the uplink.
func (l *Ledger) Saved() (s Saved) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.read()
	today := time.Now().In(l.cfg.Zone)
	for back := range 7 {
		n := l.book.days.get(dayOf(today.AddDate(0, 0, -back))).Saved
		if back == 0 {
			s.Today = n
		}
		s.Week += n
	}
	s.Total = l.book.total.Saved
	return s
}

// History returns the last hours and days, the present ones last, without gaps.
func (l *Ledger) History() (hours, days []Bucket) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.read()
	now := time.Now().In(l.cfg.Zone)
	for back := Hours - 1; back >= 0; back-- {
		h := hourOf(now) - int64(back)
		hours = append(hours, Bucket{time.Unix(h*3600, 0).In(l.cfg.Zone), l.book.hours.get(h)})
	}
	for back := Days - 1; back >= 0; back-- {
		// Noon: some days have no midnight, and none lacks its noon.
		y, m, d := now.Date()
		day := time.Date(y, m, d-back, 12, 0, 0, 0, l.cfg.Zone)
		y, m, d = day.Date()
		days = append(days, Bucket{time.Date(y, m, d, 0, 0, 0, 0, l.cfg.Zone), l.book.days.get(dayOf(day))})
	}
	return hours, days
}
