package narcache

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/nixp2p/nixp2p/internal/atomicfile"
)

// tmpDir holds files until they have their name. All in it at a start is left over.
const tmpDir = "tmp"

// lookEvery is how often it is looked whether the directory is still where it was.
const lookEvery = 10 * time.Second

var errMoved = errors.New("the directory of the cache was removed or replaced")

// comeBack opens the directory if that was not possible so far, or if there is another one in its
// place. What it held before is gone then.
func (dir *directory) comeBack() {
	p := dir.place.Load()
	if p != nil {
		is, err := os.Stat(dir.cfg.Dir)
		was, werr := p.Stat(".")
		if err == nil && werr == nil && os.SameFile(is, was) || err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return
		}
		_ = dir.health.failed("look", errMoved)
		dir.forget()
	}
	if err := dir.start(); err != nil {
		_ = dir.health.failed("open", err)
		return
	}
	_ = p.close()
	dir.health.reopened()
}

// forget drops all entries without their files.
func (dir *directory) forget() {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	s := &dir.state
	for _, e := range slices.Collect(s.policy.all()) {
		s.detach(e)
		delete(s.removing, e.key)
		e.unlinked = true
		if e.refs == 0 { // else its last user stops counting it
			dir.count(-cost(e.size))
		}
	}
	s.queue = nil
}

// start locks the directory, removes what is left over and reads the names.
func (dir *directory) start() (err error) {
	if err := os.MkdirAll(dir.cfg.Dir, 0o700); err != nil {
		return err
	}
	p := &place{}
	if p.lock, err = atomicfile.Lock(dir.cfg.Dir); err != nil {
		return err
	}
	if p.Root, err = os.OpenRoot(dir.cfg.Dir); err != nil {
		return errors.Join(err, p.lock.Close())
	}
	if err := dir.read(p); err != nil {
		return errors.Join(err, p.close())
	}
	dir.place.Store(p)
	if removed := dir.trim(dir.max); len(removed) > 0 {
		dir.cfg.Log.Info("removed what exceeds the bound of the cache", "files", len(removed))
	}
	return nil
}

// read removes what is left over and takes in what is there.
func (dir *directory) read(p *place) error {
	if err := p.RemoveAll(tmpDir); err != nil {
		return err
	}
	if err := p.Mkdir(tmpDir, 0o700); err != nil {
		return err
	}
	found, err := dir.readShards(p)
	if err != nil {
		return err
	}
	dir.mu.Lock()
	defer dir.mu.Unlock()
	slices.SortFunc(found, func(a, b *entry) int { return cmp.Compare(a.used, b.used) })
	for _, e := range found {
		if dir.state.find(e.key) != nil { // with and without the mark that it was decoded: only somebody else does that
			if err := p.Remove(e.file); err != nil {
				return err
			}
			continue
		}
		dir.state.add(e)
		dir.count(cost(e.size))
	}
	return dir.joinAll(p, found)
}

// joinAll binds deltas to their bases. Without its base, a delta is nothing. The caller holds mu.
func (dir *directory) joinAll(p *place, found []*entry) error {
	s := &dir.state
	for _, e := range found {
		if !e.packed() || s.find(e.key) != e {
			continue
		}
		if base := s.whole(e.baseNar()); base != nil && !base.gone {
			s.join(e, base)
			continue
		}
		dir.cfg.Log.Warn("a delta of the cache has no base and is removed", "file", e.file)
		s.detach(e)
		delete(s.removing, e.key)
		if err := p.Remove(e.file); err != nil {
			return err
		}
		dir.count(-cost(e.size))
	}
	dir.count(0) // shows the deltas
	return nil
}

// readShards creates the directories that are missing and returns what is in the others.
func (dir *directory) readShards(p *place) ([]*entry, error) {
	var found [len(shardLetters)][]*entry
	var errs [len(shardLetters)]error
	var wg sync.WaitGroup
	for i := range shardLetters {
		wg.Go(func() { found[i], errs[i] = dir.readShard(p, shardLetters[i:i+1]) })
	}
	wg.Wait()
	return slices.Concat(found[:]...), errors.Join(errs[:]...)
}

// readShard returns the entries of one directory. A file of the wrong size was cut by the disk or
// a power failure and is removed; one with another name is not ours to remove.
func (dir *directory) readShard(p *place, letter string) (found []*entry, err error) {
	if st, err := p.Lstat(letter); err == nil && !st.IsDir() {
		dir.cfg.Log.Warn("a foreign file in the place of a directory of the cache is removed", "file", letter)
		if err := p.Remove(letter); err != nil {
			return nil, err
		}
	}
	if err := p.Mkdir(letter, 0o700); err == nil || !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	files, err := fs.ReadDir(p.FS(), letter)
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
			if err := p.RemoveAll(name); err != nil {
				return nil, err
			}
			continue
		}
		at := st.ModTime().Unix()
		found = append(found, &entry{record: r, file: name, named: true, used: at, stamped: at})
	}
	return found, nil
}
