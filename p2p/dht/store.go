package dht

import (
	"context"
	"strings"
	"sync"
	"unique"

	ds "github.com/ipfs/go-datastore"
	dsq "github.com/ipfs/go-datastore/query"
)

// maxRecords bounds what others can make this node hold: some 160 bytes each.
const maxRecords = 1 << 20

// store is the datastore of provider records, "/providers/<multihash>/<peer>" with a time,
// found by their parent key. Only what package records uses of it is fast.
type store struct {
	mu      sync.RWMutex
	parents map[string][]record
	n       int
}

// record is one child of a key. Peers repeat in thousands of records.
type record struct {
	name  unique.Handle[string]
	value string
}

func newStore() *store { return &store{parents: make(map[string][]record)} }

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

// Put is part of datastore.Datastore. What is too much is dropped without a word: the one
// who sent it has no right to know, and the one who asks finds another record.
func (s *store) Put(_ context.Context, k ds.Key, value []byte) error {
	parent, name := split(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.parents[parent]
	if i := find(list, name); i >= 0 {
		list[i].value = string(value)
		return nil
	}
	if s.n >= maxRecords {
		return nil
	}
	s.n++
	s.parents[parent] = append(list, record{unique.Make(name), string(value)})
	return nil
}

// Delete is part of datastore.Datastore.
func (s *store) Delete(_ context.Context, k ds.Key) error {
	parent, name := split(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.parents[parent]
	i := find(list, name)
	if i < 0 {
		return nil
	}
	s.n--
	if len(list) == 1 {
		delete(s.parents, parent)
		return nil
	}
	last := len(list) - 1
	list[i], list[last] = list[last], record{}
	s.parents[parent] = list[:last]
	return nil
}

// Query is part of datastore.Datastore.
func (s *store) Query(_ context.Context, q dsq.Query) (dsq.Results, error) {
	prefix := strings.TrimSuffix(ds.NewKey(q.Prefix).String(), "/")
	var entries []dsq.Entry
	add := func(parent string, list []record) {
		for _, r := range list {
			entries = append(entries, dsq.Entry{Key: parent + "/" + r.name.Value(), Value: []byte(r.value), Size: len(r.value)})
		}
	}
	s.mu.RLock()
	if list, ok := s.parents[prefix]; ok {
		add(prefix, list)
	} else if strings.Count(prefix, "/") < 2 { // not a key's own: the sweep for old records
		for parent, list := range s.parents {
			if strings.HasPrefix(parent, prefix+"/") || parent == prefix {
				add(parent, list)
			}
		}
	}
	s.mu.RUnlock()
	q.Prefix = ""
	return dsq.NaiveQueryApply(q, dsq.ResultsWithEntries(q, entries)), nil
}

// Sync is part of datastore.Datastore.
func (s *store) Sync(context.Context, ds.Key) error { return nil }

// Close is part of datastore.Datastore.
func (s *store) Close() error { return nil }

// Batch is part of datastore.Batching.
func (s *store) Batch(context.Context) (ds.Batch, error) { return ds.NewBasicBatch(s), nil }
