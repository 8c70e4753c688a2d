// Package state keeps what this machine remembers over restarts in one database file in the
// state directory: narinfos, the peers of the last run, blamed peers, and the history of
// transfers. Reading needs no lock that a writer holds; writing happens in the background, many
// changes at a time. Nothing that is read is trusted: each value has a checksum, each narinfo is
// opened again with today's keys, and a database that cannot be read is put aside and replaced.
package state

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/nixp2p/nixp2p/internal/atomicfile"
	"github.com/nixp2p/nixp2p/internal/backoff"
)

const (
	fileName = "state.db"
	// damagedName is where a database goes that cannot be read: kept for whoever wants to know
	// why, until the next one.
	damagedName = "state.db.damaged"
	// maxReplaced is how many databases one process gives up. A disk that damages more is not
	// written to any more. Each one given up keeps its memory mapping and descriptor.
	maxReplaced = 4

	// batchFor is how long changes gather before they are written together: what a power
	// failure may cost.
	batchFor = 500 * time.Millisecond
	// retryAfter is how long nothing is written after the disk failed.
	retryAfter = 30 * time.Second
	// lockWait is how long a process that is about to end may still hold the database.
	lockWait = 300 * time.Millisecond
)

// ErrLocked says that another process uses the database.
var ErrLocked = atomicfile.ErrLocked

var (
	errDamaged = errors.New("the database is damaged")
	errClosed  = errors.New("the database is not open")
	errRemoved = errors.New("the database was removed or replaced")
)

// DB is the database. It is safe for concurrent use.
type DB struct {
	dir     string
	log     *slog.Logger
	maxFile int64 // bytes

	bolt atomic.Pointer[bolt.DB] // nil while there is none

	// writing is held by the one who writes: Run or Close. It guards what follows.
	writing  sync.Mutex
	views    []view // what writes
	closed   bool
	retry    backoff.Delay
	replaced int                   // databases given up
	file     os.FileInfo           // of the open database
	damage   atomic.Pointer[error] // why a reader or writer gave up the last one, until it is put aside

	mu     sync.Mutex
	failed error // since the last success

	wake  chan struct{}           // capacity 1: something is to be written
	fault func(tx *bolt.Tx) error // tests only: an error instead of the next commit
}

// view is a part of the database as its users see it.
type view interface {
	// write brings tx up to date with what has changed. It may be called again with another
	// transaction if that fails.
	write(tx *bolt.Tx) error
	// written tells how the transaction ended, and reports whether there is more to write at once.
	written(err error) (more bool)
	// reset says that the database is new and empty: what is in memory is to be written.
	reset()
}

// Open opens or creates the database in dir, which is created with mode 0700 if it does not
// exist. A database that cannot be read is kept under another name and replaced. If the disk
// cannot be written to, or another process uses the database, Run opens it as soon as it can; Err
// says why it is not open. The DB can be used with an error too, which wraps ErrLocked. It starts
// no goroutine.
func Open(dir string, log *slog.Logger) (*DB, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	db := &DB{
		dir: dir, log: log, maxFile: maxFile, wake: make(chan struct{}, 1),
		retry: backoff.Delay{First: retryAfter, Most: retryAfter},
	}
	err := db.ensureOpen()
	switch {
	case errors.Is(err, ErrLocked):
		db.degraded(err)
		return db, fmt.Errorf("state: %w", err)
	case err != nil:
		db.degraded(err)
	}
	for _, old := range [...]string{"peers.json", "standing.json", "narinfo", "history"} { // of the last version
		_ = os.RemoveAll(db.path(old))
	}
	return db, nil
}

// Run writes what has changed until ctx ends, and what is left then.
func (db *DB) Run(ctx context.Context) error {
	batch := time.NewTimer(batchFor)
	defer batch.Stop()
	again := time.NewTicker(retryAfter)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			db.flush()
			return nil
		case <-again.C:
			if db.Err() == nil && !db.giveUpRemoved() {
				continue
			}
		case <-db.wake:
			batch.Reset(batchFor)
			select {
			case <-ctx.Done():
			case <-batch.C:
			}
		}
		db.flush()
	}
}

// giveUpRemoved closes a database whose file was removed or replaced, and reports whether it did:
// what is written to it would be lost. The next one gets all that is in memory.
func (db *DB) giveUpRemoved() bool {
	db.writing.Lock()
	defer db.writing.Unlock()
	b := db.bolt.Load()
	if b == nil || db.closed {
		return false
	}
	is, err := os.Stat(b.Path())
	if err == nil && os.SameFile(is, db.file) || err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return false
	}
	if !db.bolt.CompareAndSwap(b, nil) {
		return false
	}
	_ = guarded(b.Close) // waits for those who read it
	db.degraded(errRemoved)
	db.retry.Succeed()
	for _, v := range db.views {
		v.reset()
	}
	return true
}

// Err returns why nothing is kept at the moment, nil if all is well.
func (db *DB) Err() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.failed
}

// Close writes what is left and closes the database. Run must have ended.
func (db *DB) Close() error {
	db.flush()
	db.writing.Lock()
	defer db.writing.Unlock()
	db.closed = true
	if b := db.bolt.Swap(nil); b != nil {
		if err := guarded(b.Close); err != nil {
			return fmt.Errorf("state: %w", err)
		}
	}
	return nil
}

// changed tells Run that there is something to write.
func (db *DB) changed() {
	select {
	case db.wake <- struct{}{}:
	default:
	}
}

func (db *DB) attach(v view) {
	db.writing.Lock()
	defer db.writing.Unlock()
	db.views = append(db.views, v)
}

// flush writes all that has changed.
func (db *DB) flush() {
	for db.flushSome() {
	}
}

// flushSome writes what has changed in one transaction, and reports whether there is more.
func (db *DB) flushSome() (more bool) {
	db.writing.Lock()
	defer db.writing.Unlock()
	err := errClosed
	if !db.closed && db.retry.Ready() {
		// A second time only if the first found damage: what is in memory goes into the new one.
		for range 2 {
			if err = db.ensureOpen(); err != nil {
				break
			}
			if err = db.use(db.write); !errors.Is(err, errDamaged) {
				break
			}
		}
	}
	for _, v := range db.views {
		more = v.written(err) || more
	}
	switch {
	case err == nil:
		db.recovered()
	case !errors.Is(err, errClosed):
		db.degraded(err)
	}
	return more
}

// write runs one transaction over all views.
func (db *DB) write(b *bolt.DB) error {
	return b.Update(func(tx *bolt.Tx) error {
		for _, v := range db.views {
			if err := v.write(tx); err != nil {
				return err
			}
		}
		if db.fault != nil {
			return db.fault(tx)
		}
		return nil
	})
}

// read calls f with the database as it was last written.
func (db *DB) read(f func(*bolt.Tx) error) error {
	return db.use(func(b *bolt.DB) error { return b.View(f) })
}

// use calls f with the database. One that turns out to be damaged is given up, and put aside by
// who writes next. It is not closed: others may be reading it, and its locks are in no known state.
func (db *DB) use(f func(*bolt.DB) error) error {
	b := db.bolt.Load()
	if b == nil {
		return errClosed
	}
	err := guarded(func() error { return f(b) })
	if errors.Is(err, errDamaged) && db.bolt.CompareAndSwap(b, nil) {
		db.damage.Store(&err)
		db.changed()
	}
	return err
}

// guarded turns what a damaged database does to its reader into an error: its pages are mapped
// memory, so one that is missing or leads elsewhere is a fault, and one that says nonsense a panic.
func guarded(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if fault := recover(); fault != nil {
			err = fmt.Errorf("%w: %v", errDamaged, fault)
		}
	}()
	return f()
}

func (db *DB) path(name string) string { return filepath.Join(db.dir, name) }

// ensureOpen opens the database if it is not open. One that cannot be read it puts aside.
func (db *DB) ensureOpen() error {
	if db.bolt.Load() != nil {
		return nil
	}
	if err := os.MkdirAll(db.dir, 0o700); err != nil {
		return err
	}
	for range 2 {
		if damage := db.damage.Load(); damage != nil {
			if err := db.putAside(*damage); err != nil {
				return err
			}
		}
		b, err := openBolt(db.path(fileName), db.maxFile)
		switch {
		case err == nil:
			db.file, _ = os.Stat(db.path(fileName))
			db.bolt.Store(b)
			return nil
		case errors.Is(err, bolterrors.ErrTimeout):
			return fmt.Errorf("%s: %w", db.path(fileName), ErrLocked)
		case !isUnreadable(err):
			return err
		}
		db.damage.Store(&err)
	}
	return *db.damage.Load()
}

// putAside renames whatever is in the place of the database.
func (db *DB) putAside(why error) error {
	if db.replaced == maxReplaced {
		return errDamaged
	}
	db.replaced++
	to := db.path(damagedName)
	_ = os.RemoveAll(to)
	if err := os.Rename(db.path(fileName), to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return errors.Join(why, err)
	}
	db.log.Warn("the state database is damaged; it is kept under another name and a new one begins", "file", to, "err", why)
	db.damage.Store(nil)
	for _, v := range db.views {
		v.reset()
	}
	return nil
}

// isUnreadable reports whether the error is one of the file, not of the disk or the process.
func isUnreadable(err error) bool {
	return !slices.ContainsFunc([]error{
		syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOENT, syscall.ENOTDIR,
	}, func(e error) bool { return errors.Is(err, e) })
}

var (
	metaBucket  = []byte("format")
	versionKey  = []byte("version")
	versionText = []byte("1")
)

// openBolt opens a database and checks what can be checked without reading all of it.
func openBolt(path string, maxSize int64) (*bolt.DB, error) {
	var b *bolt.DB
	err := guarded(func() (err error) {
		b, err = bolt.Open(path, 0o600, &bolt.Options{
			Timeout: lockWait, FreelistType: bolt.FreelistMapType, MaxSize: int(maxSize), NoStatistics: true,
			OpenFile: atomicfile.Open,
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := guarded(func() error { return prepare(b, path) }); err != nil {
		if !errors.Is(err, errDamaged) {
			_ = b.Close()
		}
		return nil, err
	}
	return b, nil
}

// prepare makes the buckets and looks whether the file is whole and of this version.
func prepare(b *bolt.DB, path string) error {
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	ready := false
	err = b.View(func(tx *bolt.Tx) error {
		if tx.Size() > st.Size() {
			return fmt.Errorf("%w: %d of %d bytes", errDamaged, st.Size(), tx.Size())
		}
		meta := tx.Bucket(metaBucket)
		if meta == nil {
			return nil
		}
		if v := meta.Get(versionKey); string(v) != string(versionText) {
			return fmt.Errorf("%w: version %q", errDamaged, v)
		}
		ready = true
		return nil
	})
	if err != nil || ready {
		return err
	}
	return b.Update(func(tx *bolt.Tx) error {
		for _, name := range [...][]byte{metaBucket, textBucket, useBucket, publicBucket, valueBucket, generationBucket, unwrittenBucket} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return tx.Bucket(metaBucket).Put(versionKey, versionText)
	})
}

// degraded notes that the disk failed, and says so once until it works again.
func (db *DB) degraded(err error) {
	db.retry.Fail()
	db.mu.Lock()
	first := db.failed == nil
	db.failed = err
	db.mu.Unlock()
	if first {
		db.log.Warn("the state database cannot be written; what is new is not kept over a restart",
			"file", db.path(fileName), "err", err)
	}
}

// recovered notes that the disk works.
func (db *DB) recovered() {
	db.retry.Succeed()
	db.mu.Lock()
	again := db.failed != nil
	db.failed = nil
	db.mu.Unlock()
	if again {
		db.log.Info("the state database is written again", "file", db.path(fileName))
	}
}
