package localstore

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// readers is how many questions are answered at once: each takes tens of microseconds.
	readers = 4
	// settle is how old a database file must be for its modification time to tell it from what
	// it becomes next: clocks of file systems tick in milliseconds, on some in seconds.
	settle = 2 * time.Second
	// retryLive is how often a database with a writer that cannot be read live is tried again.
	retryLive = 5 * time.Second
)

var (
	errSessionOver = errors.New("store database was reopened")
	errUnsteady    = errors.New("store database keeps changing")
	errClosed      = errors.New("store is closed")
	errNone        = errors.New("store has no database that can be read")
)

// files is what stat says of the database file and of what lies beside it.
type files struct {
	dev, ino uint64
	size     int64
	mtime    int64  // unix nanoseconds
	wal      uint64 // inode of -wal
	pair     bool   // -wal and -shm both exist: a writer is there, or left them
}

func statFiles(path string) (f files, err error) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Stat(path, &st) }); err != nil {
		return files{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	f.dev, f.ino, f.size, f.mtime = uint64(st.Dev), st.Ino, st.Size, st.Mtim.Nano()
	if retry(func() error { return unix.Stat(path+"-wal", &st) }) == nil {
		f.wal = st.Ino
		f.pair = retry(func() error { return unix.Stat(path+"-shm", &st) }) == nil
	}
	return f, nil
}

// session is the database as it was found at one moment. Its connections are never replaced by
// others: opening one more may not be right any longer.
type session struct {
	found  files
	live   bool      // sees commits of others; otherwise the file as it was when opened
	renew  time.Time // when to open it anew even if nothing seems to have changed; zero = never
	broken atomic.Bool

	opened int
	conns  chan *conn // closed when the session is over

	mu    sync.Mutex
	watch *conn // data_version compares with what this one connection saw last
}

// openSession opens the database in the way that its files allow.
func openSession(path string, found files, now time.Time) (*session, error) {
	if found.pair {
		if s, err := openMode(path, openLive, found); err == nil {
			return s, nil
		}
		// A reader that may not write is refused in states that only a writer can end: what the
		// file holds by itself is better than nothing until then.
	}
	s, err := openMode(path, openSnapshot, found)
	if err != nil {
		return nil, err
	}
	format, err := s.watch.scalar(sqlFormat)
	switch {
	case err != nil:
		return nil, errors.Join(err, s.close())
	case found.pair:
		s.renew = now.Add(retryLive)
	case text(format) != formatWAL: // with a rollback journal an ordinary reader needs nothing beside the file
		if err := s.close(); err != nil {
			return nil, err
		}
		return openMode(path, openLive, found)
	case now.Sub(time.Unix(0, found.mtime)) < settle:
		s.renew = now.Add(settle / 2)
	}
	return s, nil
}

func openMode(path, how string, found files) (_ *session, err error) {
	s := &session{found: found, live: how == openLive, conns: make(chan *conn, readers)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.watch, err = openConn(path, how); err != nil {
		return nil, err
	}
	if _, err = s.watch.number(sqlCount); err != nil {
		return nil, err
	}
	for range readers {
		c, err := openConn(path, how)
		if err != nil {
			return nil, err
		}
		s.opened++
		s.conns <- c
	}
	return s, nil
}

// fits reports whether the session still shows the database that is there now.
func (s *session) fits(now files) bool {
	if s.live {
		now.size, now.mtime = s.found.size, s.found.mtime
	}
	return s.found == now
}

// mode names the way in which the database is read.
func (s *session) mode() string {
	switch {
	case s == nil:
		return "none"
	case s.live:
		return "live"
	default:
		return "snapshot"
	}
}

// use lends a connection to f.
func (s *session) use(ctx context.Context, f func(*conn) error) error {
	select {
	case c, ok := <-s.conns:
		if !ok {
			return errSessionOver
		}
		defer func() { s.conns <- c }()
		return f(c)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// version changes with every commit that the session can see.
func (s *session) version() (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watch == nil {
		return 0, errSessionOver
	}
	return s.watch.number(sqlData)
}

// close waits for those who use a connection and closes all.
func (s *session) close() (err error) {
	s.mu.Lock()
	if s.watch != nil {
		err = s.watch.close()
		s.watch = nil
	}
	s.mu.Unlock()
	for range s.opened {
		c := <-s.conns
		err = errors.Join(err, c.close())
	}
	close(s.conns)
	return err
}

// database is the store database through all its states.
type database struct {
	path string
	log  *slog.Logger
	cur  atomic.Pointer[session] // nil while there is nothing to read

	mu     sync.Mutex
	old    []*session // replaced, to be closed by Run or Close: that may wait for a long scan
	said   string     // what was logged last
	gone   bool       // there is no database file
	closed bool
}

// read calls f with a connection; f may be called again after it has returned and must then
// forget what it saw before. errNone means that there is nothing to read.
func (d *database) read(ctx context.Context, f func(*conn) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for range 4 {
		s := d.cur.Load()
		if s == nil {
			return d.none()
		}
		if !s.live && d.outdated(s) {
			continue
		}
		err := s.use(ctx, f)
		switch {
		case errors.Is(err, errSessionOver):
			continue
		case err != nil:
			if ctx.Err() == nil {
				s.broken.Store(true)
			}
			return err
		case !s.live && d.outdated(s): // it may have seen half of a change
			continue
		}
		return nil
	}
	return errUnsteady
}

// number reads the number that a statement returns.
func (d *database) number(ctx context.Context, sql string) (n int64, err error) {
	err = d.read(ctx, func(c *conn) (err error) { n, err = c.number(sql); return err })
	return n, err
}

// none is the answer without a database.
func (d *database) none() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errClosed
	}
	return errNone
}

// outdated reports whether a snapshot no longer shows the file, and replaces it then.
func (d *database) outdated(s *session) bool {
	now, err := statFiles(d.path)
	if err == nil && s.fits(now) {
		return false
	}
	d.refresh(time.Now())
	return true
}

// refresh opens the database if there is no session or the one there is shows something else.
func (d *database) refresh(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	found, err := statFiles(d.path)
	s := d.cur.Load()
	if s != nil && err == nil && s.fits(found) && !s.broken.Load() && (s.renew.IsZero() || now.Before(s.renew)) {
		return
	}
	var next *session
	if err == nil {
		next, err = openSession(d.path, found, now)
	}
	d.gone = errors.Is(err, fs.ErrNotExist)
	d.cur.Store(next)
	if s != nil {
		d.old = append(d.old, s)
	}
	d.logState(next, err)
}

// logState logs a state of the database when it is another than before. That a database is read now
// live and now as a snapshot is daily life with old versions of Nix.
func (d *database) logState(s *session, err error) {
	said := s.mode()
	if err != nil {
		said = err.Error()
	}
	if said == d.said {
		return
	}
	again := d.said == "live" || d.said == "snapshot"
	d.said = said
	switch {
	case d.gone:
		d.log.Info("store has no database yet", "path", d.path)
	case err != nil:
		d.log.Warn("store database cannot be read, the store counts as empty", "path", d.path, "err", err)
	case again:
		d.log.Debug("reading store database", "path", d.path, "mode", said)
	default:
		d.log.Info("reading store database", "path", d.path, "mode", said)
	}
}

// missing reports whether there is no database file at all.
func (d *database) missing() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.gone
}

// sweep closes the sessions that were replaced.
func (d *database) sweep() {
	d.mu.Lock()
	old := d.old
	d.old = nil
	d.mu.Unlock()
	for _, s := range old {
		if err := s.close(); err != nil {
			d.log.Debug("closing store database", "err", err)
		}
	}
}

func (d *database) close() {
	d.mu.Lock()
	d.closed = true
	if s := d.cur.Swap(nil); s != nil {
		d.old = append(d.old, s)
	}
	d.mu.Unlock()
	d.sweep()
}

// retry repeats a system call that a signal interrupted, as network file systems allow.
func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
