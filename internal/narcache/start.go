package narcache

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"slices"
	"sync"

	"github.com/nixp2p/nixp2p/internal/atomicfile"
)

// tmpDir holds files until they have their name. All in it at a start is left over.
const tmpDir = "tmp"

// start locks the directory, removes what is left over and reads the names.
func (c *Cache) start() error {
	if err := os.MkdirAll(c.cfg.Dir, 0o700); err != nil {
		return err
	}
	var err error
	if c.lock, err = atomicfile.Lock(c.cfg.Dir); err != nil {
		return err
	}
	if c.root, err = os.OpenRoot(c.cfg.Dir); err != nil {
		return err
	}
	if err := c.root.RemoveAll(tmpDir); err != nil {
		return err
	}
	if err := c.root.Mkdir(tmpDir, 0o700); err != nil {
		return err
	}
	found, err := c.readShards()
	if err != nil {
		return err
	}
	slices.SortFunc(found, func(a, b *entry) int { return cmp.Compare(a.used, b.used) })
	c.mu.Lock()
	var twice []*entry // with and without the mark that it was decoded: only somebody else does that
	for _, e := range found {
		if c.state.find(e.key) != nil {
			twice = append(twice, e)
			continue
		}
		c.state.add(e)
		c.count(cost(e.size))
	}
	c.mu.Unlock()
	for _, e := range twice {
		if err := c.root.Remove(e.file); err != nil {
			return err
		}
	}
	if removed := c.trim(c.max); len(removed) > 0 {
		c.log.Info("removed what exceeds the bound of the cache", "files", len(removed))
	}
	return nil
}

// readShards creates the directories that are missing and returns what is in the others.
func (c *Cache) readShards() ([]*entry, error) {
	var found [len(shardLetters)][]*entry
	var errs [len(shardLetters)]error
	var wg sync.WaitGroup
	for i := range shardLetters {
		wg.Go(func() { found[i], errs[i] = c.readShard(shardLetters[i : i+1]) })
	}
	wg.Wait()
	return slices.Concat(found[:]...), errors.Join(errs[:]...)
}

// readShard returns the entries of one directory. A file of the wrong size was cut by the disk or
// a power failure and is removed; one with another name is not ours to remove.
func (c *Cache) readShard(dir string) (found []*entry, err error) {
	if st, err := c.root.Lstat(dir); err == nil && !st.IsDir() {
		c.log.Warn("a foreign file in the place of a directory of the cache is removed", "file", dir)
		if err := c.root.Remove(dir); err != nil {
			return nil, err
		}
	}
	if err := c.root.Mkdir(dir, 0o700); err == nil || !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	files, err := fs.ReadDir(c.root.FS(), dir)
	if err != nil {
		return nil, err
	}
	for _, d := range files {
		name := dir + "/" + d.Name()
		r, err := parseName(d.Name())
		if err != nil || shard(r.nar) != dir {
			c.log.Warn("a foreign file in the cache is left alone and not counted", "file", name)
			continue
		}
		st, err := d.Info()
		if err != nil || !st.Mode().IsRegular() || st.Size() != r.size {
			c.log.Warn("a file of the cache has not the size of its record and is removed", "file", name, "err", err)
			if err := c.root.RemoveAll(name); err != nil {
				return nil, err
			}
			continue
		}
		at := st.ModTime().Unix()
		found = append(found, &entry{record: r, file: name, named: true, used: at, stamped: at})
	}
	return found, nil
}
