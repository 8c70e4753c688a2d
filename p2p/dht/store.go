package dht

import (
	"context"
	"encoding/base32"
	"strings"
	"sync"
	"unique"

	ds "github.com/ipfs/go-datastore"
	dsq "github.com/ipfs/go-datastore/query"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/nixp2p/nixp2p/p2p/machine"
)

// maxRecords bounds what others can make this node hold: some 160 bytes each. When there are
// so many, a record of the machine with the most gives way, and of its peers one of that with
// the most.
const maxRecords = 1 << 18

// store is the datastore of provider records, "/providers/<multihash>/<peer>" with a time,
// found by their parent key. Only what package records uses of it is fast.
type store struct {
	most    int
	machine func(peer.ID) machine.ID // may be nil: all peers are on one

	mu        sync.RWMutex
	parents   map[string][]record
	n         int
	byPeer    map[unique.Handle[string]]*owner
	byMachine map[machine.ID]int
}

// owner is a peer that announced something.
type owner struct {
	machine machine.ID
	n       int // records
}

// record is one child of a key. Peers repeat in thousands of records.
type record struct {
	name  unique.Handle[string]
	value string
}

func newStore(of func(peer.ID) machine.ID) *store {
	return &store{
		most: maxRecords, machine: of, parents: make(map[string][]record),
		byPeer: make(map[unique.Handle[string]]*owner), byMachine: make(map[machine.ID]int),
	}
}

// machineOf returns the machine of the peer that a record names.
func (s *store) machineOf(name string) machine.ID {
	id, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(name)
	if err != nil || s.machine == nil {
		return machine.ID{}
	}
	return s.machine(peer.ID(id))
}

func split(k ds.Key) (parent, name string) {
	s := k.String()
	i := strings.LastIndexByte(s, '/')
	return s[:max(i, 0)], s[i+1:]
}

func find(list []record, name string) int {
	h := unique.Make(name)
	for i, r := range list {
		if r.name == h {
			return i
		}
	}
	return -1
}

// Get is part of datastore.Datastore.
func (s *store) Get(_ context.Context, k ds.Key) ([]byte, error) {
	parent, name := split(k)
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := s.parents[parent]
	if i := find(list, name); i >= 0 {
		return []byte(list[i].value), nil
	}
	return nil, ds.ErrNotFound
}

// Has is part of datastore.Datastore.
func (s *store) Has(ctx context.Context, k ds.Key) (bool, error) { return ds.GetBackedHas(ctx, s, k) }

// GetSize is part of datastore.Datastore.
func (s *store) GetSize(ctx context.Context, k ds.Key) (int, error) {
	return ds.GetBackedSize(ctx, s, k)
}

// Put is part of datastore.Datastore. A record too many is dropped without an error: its sender
// need not know.
func (s *store) Put(_ context.Context, k ds.Key, value []byte) error {
	parent, name := split(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.parents[parent]
	if i := find(list, name); i >= 0 {
		list[i].value = string(value)
		return nil
	}
	h := unique.Make(name)
	o := s.byPeer[h]
	if o == nil {
		o = &owner{machine: s.machineOf(name)}
	}
	if o.n >= maxAnnounced || s.n >= s.most && !s.makeRoom(o) {
		return nil
	}
	s.n++
	s.byPeer[h] = o
	o.n++
	s.byMachine[o.machine]++
	s.parents[parent] = append(s.parents[parent], record{h, string(value)})
	return nil
}

// makeRoom drops a record of the peer that has the most on the machine that has the most,
// unless that is hardly more than o has. The caller holds mu.
func (s *store) makeRoom(o *owner) bool {
	m := o.machine
	for x, n := range s.byMachine {
		if n > s.byMachine[m]+1 {
			m = x
		}
	}
	var victim unique.Handle[string]
	least, found := 0, false
	if m == o.machine {
		least = o.n + 1
	}
	for h, x := range s.byPeer {
		if x.machine == m && x.n > least {
			victim, least, found = h, x.n, true
		}
	}
	if !found {
		return false
	}
	// The order of a map is random, and the victim has a good part of all records.
	for parent, list := range s.parents {
		for i, r := range list {
			if r.name == victim {
				s.drop(parent, list, i)
				return true
			}
		}
	}
	return false
}

// drop removes a record. The caller holds mu.
func (s *store) drop(parent string, list []record, i int) {
	h := list[i].name
	s.n--
	if o := s.byPeer[h]; o != nil {
		if o.n--; o.n == 0 {
			delete(s.byPeer, h)
		}
		if s.byMachine[o.machine]--; s.byMachine[o.machine] == 0 {
			delete(s.byMachine, o.machine)
		}
	}
	if len(list) == 1 {
		delete(s.parents, parent)
		return
	}
	last := len(list) - 1
	list[i], list[last] = list[last], record{}
	s.parents[parent] = list[:last]
}

// Delete is part of datastore.Datastore.
func (s *store) Delete(_ context.Context, k ds.Key) error {
	parent, name := split(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.parents[parent]
	if i := find(list, name); i >= 0 {
		s.drop(parent, list, i)
	}
	return nil
}

// Query is part of datastore.Datastore.
func (s *store) Query(_ context.Context, q dsq.Query) (dsq.Results, error) {
	prefix := strings.TrimSuffix(ds.NewKey(q.Prefix).String(), "/")
	s.mu.RLock()
	parents := []string{}
	if _, ok := s.parents[prefix]; ok {
		parents = append(parents, prefix)
	} else if strings.Count(prefix, "/") < 2 { // not a key's own: the sweep for old records
		for parent := range s.parents {
			if strings.HasPrefix(parent, prefix+"/") || parent == prefix {
				parents = append(parents, parent)
			}
		}
	}
	s.mu.RUnlock()
	// The sweep goes through all records: they are read key by key, not copied at once.
	var entries []dsq.Entry
	next := func() (dsq.Result, bool) {
		for len(entries) == 0 {
			if len(parents) == 0 {
				return dsq.Result{}, false
			}
			entries, parents = s.children(entries, parents[0]), parents[1:]
		}
		e := entries[0]
		entries = entries[1:]
		return dsq.Result{Entry: e}, true
	}
	q.Prefix = ""
	return dsq.NaiveQueryApply(q, dsq.ResultsFromIterator(q, dsq.Iterator{Next: next})), nil
}

// children appends the records of a key.
func (s *store) children(entries []dsq.Entry, parent string) []dsq.Entry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, r := range s.parents[parent] {
		entries = append(entries, dsq.Entry{Key: parent + "/" + r.name.Value(), Value: []byte(r.value), Size: len(r.value)})
	}
	return entries
}

// Sync is part of datastore.Datastore.
func (s *store) Sync(context.Context, ds.Key) error { return nil }

// Close is part of datastore.Datastore.
func (s *store) Close() error { return nil }

// Batch is part of datastore.Batching.
func (s *store) Batch(context.Context) (ds.Batch, error) { return ds.NewBasicBatch(s), nil }
