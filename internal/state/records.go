package state

import (
	"bytes"
	"fmt"
	"maps"
	"sync"

	bolt "go.etcd.io/bbolt"
)

// The buckets of records, each under its name.
var (
	generationBucket = []byte("generations")
	unwrittenBucket  = []byte("unwritten")
)

// Records are named values of any size. Each is written as a whole; what is put and deleted
// together is written together. They are safe for concurrent use.
type Records struct {
	db     *DB
	bucket []byte

	mu      sync.Mutex
	all     map[string][]byte
	pending map[string]bool // differs from the database
	writing map[string][]byte
}

// Generations returns what is remembered of followed lists. It is called once.
func (db *DB) Generations() *Records { return db.records(generationBucket) }

// Unwritten returns what waits to be written to the bucket of the site. It is called once.
func (db *DB) Unwritten() *Records { return db.records(unwrittenBucket) }

// records reads a bucket. What is damaged counts as absent.
func (db *DB) records(bucket []byte) *Records {
	r := &Records{db: db, bucket: bucket, all: make(map[string][]byte), pending: make(map[string]bool)}
	_ = db.read(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucket)
		if b == nil {
			return nil // an older version
		}
		return b.ForEach(func(k, v []byte) error {
			if value, ok := unseal(k, v); ok {
				r.all[string(k)] = value
			} else {
				r.pending[string(k)] = true
			}
			return nil
		})
	})
	db.attach(r)
	return r
}

// Load returns all values by their names. The caller must not change them.
func (r *Records) Load() map[string][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.all)
}

// Put sets a value. It does not block: writing happens within about a second.
func (r *Records) Put(name string, value []byte) {
	r.mu.Lock()
	r.all[name], r.pending[name] = bytes.Clone(value), true
	r.mu.Unlock()
	r.db.changed()
}

// Delete drops a value.
func (r *Records) Delete(name string) {
	r.mu.Lock()
	delete(r.all, name)
	r.pending[name] = true
	r.mu.Unlock()
	r.db.changed()
}

func (r *Records) write(tx *bolt.Tx) error {
	r.mu.Lock()
	r.writing = make(map[string][]byte, len(r.pending))
	for name := range r.pending {
		r.writing[name] = r.all[name]
	}
	changes := r.writing
	r.mu.Unlock()
	if len(changes) == 0 {
		return nil
	}
	b, err := tx.CreateBucketIfNotExists(r.bucket)
	if err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	for name, value := range changes {
		if value == nil {
			err = b.Delete([]byte(name))
		} else {
			err = b.Put([]byte(name), seal([]byte(name), value))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// written ends a transaction. What changed meanwhile, or could not be written, is written again.
func (r *Records) written(err error) (more bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, value := range r.writing {
		if now := r.all[name]; err == nil && (now == nil) == (value == nil) && (now == nil || &now[0] == &value[0]) {
			delete(r.pending, name)
		}
	}
	r.writing = nil
	return false
}

// reset has everything written again, into the new database.
func (r *Records) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range r.all {
		r.pending[name] = true
	}
}
