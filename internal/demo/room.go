package demo

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/nixp2p/nixp2p/internal/disk"
)

// dirPrefix begins the names of the directories of runs.
const dirPrefix = "nixp2p-demo-"

// staleAge keeps a run from taking the directory of another one that begins at the same moment
// for left behind.
const staleAge = time.Minute

// room is the directory of a run. All that the run writes lies in it.
type room struct {
	dir  string
	lock *os.File
}

// openRoom makes the directory, and removes those of runs that were killed and could not.
func openRoom(within string, needed int64) (*room, error) {
	sweep(within)
	if free, err := freeBytes(within); err == nil && free < needed {
		return nil, fmt.Errorf("%w in %s: %s are free, up to %s are needed", ErrNoRoom, within, FormatMB(free), FormatMB(needed))
	}
	dir, err := os.MkdirTemp(within, dirPrefix)
	if err != nil {
		return nil, fmt.Errorf("directory for the run: %w", err)
	}
	r := &room{dir: dir}
	if r.lock, err = disk.Lock(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("directory for the run: %w", err), removeAll(dir))
	}
	return r, nil
}

// close removes the directory with all that is in it.
func (r *room) close() error {
	err := removeAll(r.dir)
	_ = r.lock.Close()
	return err
}

// sweep removes what earlier runs of this user left behind. Who is there still holds the lock.
func sweep(within string) {
	old, err := filepath.Glob(filepath.Join(within, dirPrefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range old {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || time.Since(info.ModTime()) < staleAge {
			continue
		}
		if sys, ok := info.Sys().(*syscall.Stat_t); !ok || int(sys.Uid) != os.Geteuid() {
			continue
		}
		if lock, err := disk.Lock(dir); err == nil {
			_ = removeAll(dir)
			_ = lock.Close()
		}
	}
}

// removeAll removes a tree that may contain a Nix store, whose directories are read-only also
// for their owner.
func removeAll(dir string) error {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(path, 0o700) // what cannot be removed is told below
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// freeBytes returns how much an ordinary user can write there.
func freeBytes(dir string) (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * int64(s.Bsize), nil
}
