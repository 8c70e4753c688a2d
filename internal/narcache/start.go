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
func (dir *directory) start() error {
	if err := os.MkdirAll(dir.cfg.Dir, 0o700); err != nil {
		return err
	}
	var err error
	if dir.lock, err = atomicfile.Lock(dir.cfg.Dir); err != nil {
		return err
	}
	if dir.root, err = os.OpenRoot(dir.cfg.Dir); err != nil {
		return err
	}
	if err := dir.root.RemoveAll(tmpDir); err != nil {
		return err
	}
	if err := dir.root.Mkdir(tmpDir, 0o700); err != nil {
		return err
	}
	found, err := dir.readShards()
	if err != nil {
		return err
	}
	slices.SortFunc(found, func(a, b *entry) int { return cmp.Compare(a.used, b.used) })
	for _, e := range found {
		if dir.state.find(e.key) != nil { // with and without the mark that it was decoded: only somebody else does that
			if err := dir.root.Remove(e.file); err != nil {
				return err
			}
			continue
		}
		dir.state.add(e)
		dir.count(cost(e.size))
	}
	if removed := dir.trim(dir.max); len(removed) > 0 {
		dir.cfg.Log.Info("removed what exceeds the bound of the cache", "files", len(removed))
	}
	return nil
}

// readShards creates the directories that are missing and returns what is in the others.
func (dir *directory) readShards() ([]*entry, error) {
	var found [len(shardLetters)][]*entry
	var errs [len(shardLetters)]error
	var wg sync.WaitGroup
	for i := range shardLetters {
		wg.Go(func() { found[i], errs[i] = dir.readShard(shardLetters[i : i+1]) })
	}
	wg.Wait()
	return slices.Concat(found[:]...), errors.Join(errs[:]...)
}

// readShard returns the entries of one directory. A file of the wrong size was cut by the disk or
// a power failure and is removed; one with another name is not ours to remove.
func (dir *directory) readShard(letter string) (found []*entry, err error) {
	if st, err := dir.root.Lstat(letter); err == nil && !st.IsDir() {
		dir.cfg.Log.Warn("a foreign file in the place of a directory of the cache is removed", "file", letter)
		if err := dir.root.Remove(letter); err != nil {
			return nil, err
		}
	}
	if err := dir.root.Mkdir(letter, 0o700); err == nil || !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	files, err := fs.ReadDir(dir.root.FS(), letter)
	if err != nil {
		return nil, err
	}
	for _, d := range files {
		name := letter + "/" + d.Name()
		r, err := parseName(d.Name())
		if err != nil || shard(r.nar) != letter {
			dir.cfg.Log.Warn("a foreign file in the cache is left alone and not counted", "file", name)
			continue
		}
		st, err := d.Info()
		if err != nil || !st.Mode().IsRegular() || st.Size() != r.size {
			dir.cfg.Log.Warn("a file of the cache has not the size of its record and is removed", "file", name, "err", err)
			if err := dir.root.RemoveAll(name); err != nil {
				return nil, err
			}
			continue
		}
		at := st.ModTime().Unix()
		found = append(found, &entry{record: r, file: name, named: true, used: at, stamped: at})
	}
	return found, nil
}
