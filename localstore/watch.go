package localstore

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// poll is how often the database is asked whether anything was committed: a microsecond's
	// question for which Nix keeps no other answer.
	poll = time.Second
	// chunk is how many rows are read in one go: a read transaction that is held for long keeps
	// Nix from trimming its write-ahead log.
	chunk = 256
	// yieldEvery is after how many rows that were verified the processor is offered to others: one
	// takes about 50 µs, and a narinfo must not wait a millisecond for them.
	yieldEvery = 8
	// reconsider is how often unsigned rows are compared with what is remembered by now.
	reconsider = 10 * time.Minute
	// scanShare bounds the share of time that goes into reading all ids, which a large store
	// under garbage collection would need every second.
	scanShare = 10
)

// watcher is what Run knows between two looks.
type watcher struct {
	s       *Store
	seen    *session
	version int64
	stale   bool // the last look did not see all
	noScan  time.Time
	again   time.Time // when to reconsider
}

// Run keeps the index true to the database and tells Config.Changed, until ctx ends. It opens the
// database when there is one at last, and anew when it was replaced.
func (s *Store) Run(ctx context.Context) error {
	w := &watcher{s: s, again: time.Now().Add(reconsider)}
	ticks := time.NewTicker(poll)
	defer ticks.Stop()
	for {
		w.look(ctx)
		s.notifyChanged()
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-ticks.C:
		}
	}
}

// notifyChanged passes on what has changed.
func (s *Store) notifyChanged() {
	added, removed := s.idx.takeChanges()
	s.metrics.StorePathsShared.Set(float64(s.SharedCount()))
	if s.changed != nil && len(added)+len(removed) > 0 {
		s.changed(added, removed)
	}
}

// look compares the index with the database where that may have changed.
func (w *watcher) look(ctx context.Context) {
	s := w.s
	now := time.Now()
	s.db.refresh(now)
	s.db.sweep()
	cur := s.db.cur.Load()
	if cur == nil {
		if s.db.missing() && w.seen != nil {
			s.idx.clear()
			w.seen = nil
		}
		return
	}
	version, err := cur.version()
	if err != nil {
		cur.broken.Store(true)
		return
	}
	if cur != w.seen || version != w.version || w.stale {
		if w.seen != nil && (w.seen.found.ino != cur.found.ino || w.seen.found.dev != cur.found.dev) {
			s.idx.clear() // another database in its place: its ids mean other rows
		}
		w.seen, w.version = cur, version
		w.stale = !w.sync(ctx)
	}
	s.review()
	if now.After(w.again) {
		w.again = now.Add(reconsider)
		w.reconsider(ctx)
	}
}

// sync reads new rows and drops vanished ones. It returns false when it has to be done again.
func (w *watcher) sync(ctx context.Context) bool {
	s := w.s
	seq, err := s.db.number(ctx, sqlSeq)
	if err != nil {
		return false
	}
	if seq < s.idx.highest() {
		s.idx.clear() // filled anew in place
	}
	// Rows come while others are read: counting is right only when nothing came in between.
	for range 3 {
		if !w.readNew(ctx) {
			return false
		}
		count, err := s.db.number(ctx, sqlCount)
		if err != nil {
			return false
		}
		live := s.idx.complete()
		if count == int64(live) {
			return true
		}
		if count < int64(live) {
			break
		}
	}
	return w.scan(ctx)
}

// readNew reads and judges the rows that were not seen yet.
func (w *watcher) readNew(ctx context.Context) bool {
	s := w.s
	told := time.Now()
	for {
		var rows []*row
		last := s.idx.highest()
		if s.db.read(ctx, func(c *conn) (err error) { rows, err = c.after(last, chunk); return err }) != nil {
			return false
		}
		batch := s.judgeAll(ctx, rows)
		if ctx.Err() != nil {
			return false
		}
		s.idx.add(batch)
		if time.Since(told) > poll { // a first load takes seconds: others need not wait for its end
			s.notifyChanged()
			told = time.Now()
		}
		if len(rows) < chunk {
			return true
		}
	}
}

// judgeAll judges rows on all processors: a first load of 100,000 is seconds of signatures, and
// until its end the neighbours do not know what is here. It ends early with ctx.
func (s *Store) judgeAll(ctx context.Context, rows []*row) []entry {
	batch := make([]entry, len(rows))
	var next atomic.Int64
	var workers sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), (len(rows)+yieldEvery-1)/yieldEvery) {
		workers.Go(func() {
			for ctx.Err() == nil {
				from := int(next.Add(yieldEvery)) - yieldEvery
				if from >= len(rows) {
					return
				}
				for i := from; i < min(from+yieldEvery, len(rows)); i++ {
					batch[i] = s.judge(rows[i])
				}
				runtime.Gosched()
			}
		})
	}
	workers.Wait()
	return batch
}

// judge makes the index entry of a row.
func (s *Store) judge(r *row) entry {
	e := entry{id: r.id, class: r.class}
	if r.class != classUnsigned {
		return e
	}
	_, e.class = s.prove(r)
	e.size, e.nar, e.store, e.family = r.size, r.nar, r.path.Hash(), familyOf(r.path.Name())
	e.held = s.held(e.store, r.id)
	return e
}

// scan reads all ids to find out which rows have vanished.
func (w *watcher) scan(ctx context.Context) bool {
	start := time.Now()
	if start.Before(w.noScan) {
		return false
	}
	s := w.s
	var ids []int64
	room := s.idx.complete() + chunk
	if s.db.read(ctx, func(c *conn) (err error) { ids, err = c.ids(room); return err }) != nil {
		return false
	}
	s.idx.retain(ids)
	if took := time.Since(start); took > poll/scanShare {
		w.noScan = start.Add(scanShare * took)
	}
	return true
}

// reconsider looks whether a narinfo that is remembered by now speaks for an unsigned row.
func (w *watcher) reconsider(ctx context.Context) {
	s := w.s
	if s.remembered == nil {
		return
	}
	for _, u := range s.idx.unsigned() {
		if ctx.Err() != nil {
			return
		}
		runtime.Gosched()
		if known := s.remembered(u.Store); known == nil || known.NarHash() != u.Nar {
			continue
		}
		_, _ = s.Info(ctx, u.Store) // what it finds it notes
	}
}

// review looks whether the paths in quarantine are still what they were.
func (s *Store) review() {
	for _, x := range s.bad.list() {
		switch {
		case s.idx.lacks(x.version.id):
			s.release(x)
		case s.held(x.path.Hash(), x.version.id):
			s.idx.hold(x.version.id, true) // it may have entered the index a moment later
		}
	}
}

// lacks reports whether a row is known to be gone.
func (x *index) lacks(id int64) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.find(id) == nil && x.loaded && id <= x.last
}

// highest returns the highest id seen.
func (x *index) highest() int64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.last
}

// complete says that all rows there were have been seen, and returns how many are known.
func (x *index) complete() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.loaded = true
	return len(x.entries)
}

// unsigned returns the rows that no trusted key has signed yet.
func (x *index) unsigned() (list []Share) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for i := range x.entries {
		switch e := &x.entries[i]; e.class {
		case classUnsigned, classUntrusted, classCA:
			list = append(list, Share{Store: e.store, Nar: e.nar})
		}
	}
	return list
}
