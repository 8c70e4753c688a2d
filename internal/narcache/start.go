package narcache

import (
	"cmp"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/nixp2p/nixp2p/internal/disk"
)

// tmpDir holds files until they have their name. All in it at a start is left over.
const tmpDir = "tmp"

// start takes the directory, removes what is left over and reads the names.
func (c *Cache) start() error {
	if err := os.MkdirAll(c.cfg.Dir, 0o700); err != nil {
		return err
	}
	var err error
	if c.lock, err = disk.Lock(c.cfg.Dir); err != nil {
		return err
	}
	tmp := filepath.Join(c.cfg.Dir, tmpDir)
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	found, err := c.readShards()
	if err != nil {
		return err
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

// readers is how many directories are read at once.
const readers = 4

// readShards makes the directories that are missing and returns what is in the others.
func (c *Cache) readShards() ([]*entry, error) {
	var found [len(shardLetters)][]*entry
	var errs [len(shardLetters)]error
	var next atomic.Int32
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(shardLetters); i = int(next.Add(1)) - 1 {
				found[i], errs[i] = c.readShard(shardLetters[i : i+1])
			}
		})
	}
	wg.Wait()
	return slices.Concat(found[:]...), errors.Join(errs[:]...)
}

// readShard returns the entries of one directory. A file of the wrong size was cut by the
// disk or a power failure and is removed; one with a foreign name is not ours to remove.
func (c *Cache) readShard(letter string) (found []*entry, err error) {
	dir := filepath.Join(c.cfg.Dir, letter)
	if err := os.Mkdir(dir, 0o700); err == nil || !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, d := range files {
		path := filepath.Join(dir, d.Name())
		k, size, err := parseFileName(d.Name())
		if err != nil || shard(k.nar) != letter {
			c.log.Warn("a foreign file in the cache is left alone and not counted", "source", name, "file", path)
			continue
		}
		st, err := d.Info()
		if err != nil || !st.Mode().IsRegular() || st.Size() != size {
			c.log.Warn("a file of the cache has not the size of its record and is removed", "source", name, "file", path, "err", err)
			if err := os.RemoveAll(path); err != nil {
				return nil, err
			}
			continue
		}
		at := st.ModTime().Unix()
		found = append(found, &entry{key: k, size: size, named: true, used: at, stamped: at})
	}
	return found, nil
}
