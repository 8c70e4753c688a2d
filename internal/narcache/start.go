package narcache

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// tmpDir holds files until they have their name. All in it at a start is left over.
const tmpDir = "tmp"

// start takes the directory, removes what is left over and reads the names.
func (c *Cache) start() error {
	if err := os.MkdirAll(c.cfg.Dir, 0o700); err != nil {
		return err
	}
	var err error
	if c.lock, err = lockDir(c.cfg.Dir); err != nil {
		return err
	}
	tmp := filepath.Join(c.cfg.Dir, tmpDir)
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	var found []*entry
	for _, letter := range shardLetters {
		dir := filepath.Join(c.cfg.Dir, string(letter))
		if err := os.Mkdir(dir, 0o700); err == nil {
			continue
		} else if !errors.Is(err, os.ErrExist) {
			return err
		}
		if found, err = c.readShard(dir, found); err != nil {
			return err
		}
	}
	slices.SortFunc(found, func(a, b *entry) int { return cmp.Compare(a.used, b.used) })
	c.mu.Lock()
	for _, e := range found {
		c.add(e)
		c.count(cost(e.size))
	}
	c.mu.Unlock()
	if removed := c.Trim(c.max); len(removed) > 0 {
		c.log.Info("removed what is above the bound of the cache", "source", name, "files", len(removed))
	}
	return nil
}

// readShard appends the entries of one directory. A file of the wrong size was cut by the
// disk or a power failure and is removed; one with a foreign name is not ours to remove.
func (c *Cache) readShard(dir string, found []*entry) ([]*entry, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, d := range files {
		k, size, err := parseFileName(d.Name())
		if err != nil || shard(k.nar) != filepath.Base(dir) {
			c.log.Warn("a foreign file in the cache is left alone and not counted", "source", name, "file", filepath.Join(dir, d.Name()))
			continue
		}
		st, err := d.Info()
		if err != nil || !st.Mode().IsRegular() || st.Size() != size {
			c.log.Warn("a file of the cache has not the size of its record and is removed", "source", name, "file", filepath.Join(dir, d.Name()), "err", err)
			if err := os.RemoveAll(filepath.Join(dir, d.Name())); err != nil {
				return nil, err
			}
			continue
		}
		at := st.ModTime().Unix()
		found = append(found, &entry{key: k, size: size, named: true, used: at, stamped: at})
	}
	return found, nil
}

// lockDir takes the directory for this process until the file is closed or the process ends.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}
