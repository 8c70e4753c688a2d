// Package state keeps what this machine remembers over restarts in one database file in the
// state directory: narinfos, the peers of the last run, blamed peers, and the history of
// transfers.
package state

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"time"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// ErrLocked says that another process uses the database.
var ErrLocked = errors.New("another process uses the database")

// DB is the database. It is safe for concurrent use.
type DB struct{}

// Open opens or creates the database in dir. With an error (it wraps ErrLocked if another
// process uses the database) the DB that is returned works too, but keeps nothing on disk.
func Open(dir string, log *slog.Logger) (*DB, error) { return &DB{}, nil }

// Run writes in the background until ctx ends, and what is left then.
func (db *DB) Run(ctx context.Context) error { return nil }

// Close closes the database. Run must have ended.
func (db *DB) Close() error { return nil }

// Infos returns the narinfos, each of which is opened with keys when it is read. Those that a
// key named in shareKeys signed are public.
func (db *DB) Infos(keys *verify.Keys, shareKeys []string, m *metrics.Metrics) *Infos { return &Infos{} }

// Infos remembers narinfos.
type Infos struct{}

var _ source.InfoCache = (*Infos)(nil)

// Info returns the narinfo of h.
func (i *Infos) Info(ctx context.Context, h nix.StoreHash) (*verify.Info, error) { return nil, nil }

// Public is Info among those that a share key signed.
func (i *Infos) Public(ctx context.Context, h nix.StoreHash) (*verify.Info, error) { return nil, nil }

// Put remembers info. It does not block.
func (i *Infos) Put(info *verify.Info) {}

// Forget drops the narinfo of a path.
func (i *Infos) Forget(h nix.StoreHash) {}

// Len returns how many narinfos are remembered.
func (i *Infos) Len() int { return 0 }

// Each returns the narinfos whose NAR hash keep accepts, each opened anew.
func (i *Infos) Each(ctx context.Context, keep func(nix.NarHash) bool) iter.Seq[*verify.Info] {
	return nil
}

// Peers is the addresses of peers of the last run.
type Peers struct{}

// Peers returns the saved peers.
func (db *DB) Peers() *Peers { return &Peers{} }

// Load returns the addresses, at most 64.
func (p *Peers) Load() []string { return nil }

// Save replaces the addresses. It does not block.
func (p *Peers) Save(addrs []string) {}

// Blamed is a peer that is not asked until a time. It is an alias of a plain struct so that
// package reputation can declare the same without importing this one.
type Blamed = struct {
	Peer   string
	Reason string
	Until  time.Time
}

// Reputation is the blamed peers.
type Reputation struct{}

// Reputation returns the blamed peers.
func (db *DB) Reputation() *Reputation { return &Reputation{} }

// Load returns those whose time has not passed.
func (r *Reputation) Load() []Blamed { return nil }

// Save replaces the list. It does not block.
func (r *Reputation) Save(list []Blamed) {}

// Blob is one value, kept as a whole.
type Blob struct{}

// History returns the place of the history of transfers.
func (db *DB) History() *Blob { return &Blob{} }

// Load returns the value, nil if there is none.
func (b *Blob) Load() []byte { return nil }

// Save replaces the value. It does not block.
func (b *Blob) Save(value []byte) {}
