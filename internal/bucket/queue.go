package bucket

import (
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// queue is what waits to be written. It is kept over restarts: a machine that goes down does not
// owe the bucket what it fetched. It is guarded by Bucket.mu.
type queue struct {
	waiting []*job
	known   map[nix.StoreHash]bool // those that wait or are being written
	storage Storage
}

// job is one path to be written.
type job struct {
	name  nix.NARName
	info  *verify.Info // if nil, Infos has it
	tries int
}

// load reads what waited when the program ended.
func (q *queue) load(storage Storage) {
	q.storage, q.known = storage, make(map[nix.StoreHash]bool)
	for key, value := range storage.Load() {
		name, err := nix.ParseNARName(string(value))
		if err != nil || len(q.waiting) >= maxWaiting {
			storage.Delete(key)
			continue
		}
		q.known[name.Store] = true
		q.waiting = append(q.waiting, &job{name: name})
	}
}

// add appends a path, unless it is there. It reports whether there was room.
func (q *queue) add(info *verify.Info, form nix.Form) bool {
	name := nix.NARName{Store: info.StorePath().Hash(), Nar: info.NarHash(), Form: form}
	if q.known[name.Store] {
		return true
	}
	if len(q.waiting) >= maxWaiting {
		return false
	}
	if len(q.waiting) >= maxInfos {
		info = nil
	}
	q.known[name.Store] = true
	q.waiting = append(q.waiting, &job{name: name, info: info})
	q.storage.Put(name.Store.String(), []byte(name.String()))
	return true
}

// next takes the first path out. It returns nil if there is none.
func (q *queue) next() *job {
	if len(q.waiting) == 0 {
		return nil
	}
	j := q.waiting[0]
	q.waiting[0], q.waiting = nil, q.waiting[1:]
	return j
}

// end forgets a path that next returned.
func (q *queue) end(j *job) {
	delete(q.known, j.name.Store)
	q.storage.Delete(j.name.Store.String())
}
