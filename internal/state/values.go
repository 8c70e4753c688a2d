package state

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
)

var valueBucket = []byte("values")

// Names of values.
const (
	peersName      = "peers"
	reputationName = "reputation"
	historyName    = "history"
)

// maxValue bounds a value in bytes.
const maxValue = 4 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal returns a value with the checksum of it and its key in front.
func seal(key, value []byte) []byte {
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(value)), crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value))
	return append(b, value...)
}

// unseal returns a copy of what seal was given, and whether it is unchanged.
func unseal(key, sealed []byte) ([]byte, bool) {
	if len(sealed) < 4 {
		return nil, false
	}
	value := bytes.Clone(sealed[4:]) // the memory of the database is gone after the transaction
	sum := crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
	return value, sum == binary.LittleEndian.Uint32(sealed)
}

// Blob is one value, kept as a whole. It is safe for concurrent use.
type Blob struct {
	db   *DB
	name []byte

	mu                   sync.Mutex
	value, taken, stored []byte // by Save, by the transaction, in the database
}

// blob reads a value. What is damaged counts as absent.
func (db *DB) blob(name string) *Blob {
	b := &Blob{db: db, name: []byte(name)}
	_ = db.read(func(tx *bolt.Tx) error {
		if v, ok := unseal(b.name, tx.Bucket(valueBucket).Get(b.name)); ok {
			b.value, b.stored = v, v
		}
		return nil
	})
	db.attach(b)
	return b
}

// History returns the place of the history of transfers. It is called once.
func (db *DB) History() *Blob { return db.blob(historyName) }

// Load returns the value, nil if there is none. The caller must not change it.
func (b *Blob) Load() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.value
}

// Save replaces the value. It does not block: writing happens within about a second.
func (b *Blob) Save(value []byte) {
	if len(value) > maxValue {
		return
	}
	b.mu.Lock()
	b.value = bytes.Clone(value)
	b.mu.Unlock()
	b.db.changed()
}

func (b *Blob) write(tx *bolt.Tx) error {
	b.mu.Lock()
	value, same := b.value, bytes.Equal(b.value, b.stored)
	b.taken = value
	b.mu.Unlock()
	if same {
		return nil
	}
	return tx.Bucket(valueBucket).Put(b.name, seal(b.name, value))
}

func (b *Blob) written(err error) (more bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		b.stored = b.taken
	}
	return false
}

func (b *Blob) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stored = nil
}

const (
	maxPeers   = 64
	maxAddr    = 512
	maxBlamed  = 4096
	maxReason  = 300
	maxBlameIn = 48 * time.Hour
)

// List is a list, kept as a whole.
type List[T any] struct {
	blob *Blob
	keep func([]T) []T // returns what is kept of a list
}

// Load returns the list.
func (l *List[T]) Load() (list []T) {
	if json.Unmarshal(l.blob.Load(), &list) != nil {
		return nil
	}
	return l.keep(list)
}

// Save replaces the list. It does not block.
func (l *List[T]) Save(list []T) {
	text, _ := json.Marshal(l.keep(list)) // strings and times cannot fail
	l.blob.Save(text)
}

// Peers returns the addresses of the peers of the last run, at most 64. It is called once.
func (db *DB) Peers() *List[string] { return &List[string]{db.blob(peersName), keepPeers} }

func keepPeers(addrs []string) (kept []string) {
	for _, a := range addrs[:min(len(addrs), maxPeers)] {
		if len(a) <= maxAddr {
			kept = append(kept, a)
		}
	}
	return kept
}

// Blamed is a peer that is not asked until a time. It is an alias of a plain struct, so that
// the package that decides who is blamed can declare the same without importing this one.
type Blamed = struct {
	Peer   string
	Reason string
	Until  time.Time
}

// Reputation returns the blamed peers, at most 4096. It is called once.
func (db *DB) Reputation() *List[Blamed] { return &List[Blamed]{db.blob(reputationName), keepBlamed} }

// keepBlamed drops those whose time has passed. One whose time is more than two days ahead goes,
// too: a clock that was wrong must not keep a peer out for years.
func keepBlamed(list []Blamed) (kept []Blamed) {
	now := time.Now()
	for _, x := range list {
		if x.Until.After(now) && x.Until.Before(now.Add(maxBlameIn)) && len(kept) < maxBlamed {
			x.Reason = x.Reason[:min(len(x.Reason), maxReason)]
			kept = append(kept, x)
		}
	}
	return kept
}
