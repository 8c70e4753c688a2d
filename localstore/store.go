// Package localstore offers this machine's Nix store as a source: it reads the store database
// without ever writing to it, verifies which rows a trusted key signed, writes NARs straight from
// the files, knows which part may be shown to others, and notices what comes and goes. Nothing
// in the store is trusted: narinfos are made by verify.Keys, NAR bytes are for the caller to
// hash, and a path whose bytes turned out wrong is not served until it is replaced.
package localstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// Config is what Open needs.
type Config struct {
	// Root is the directory that holds nix/store and nix/var/nix/db; "" means "/". The logical
	// store directory is /nix/store whatever the root.
	Root string
	// Keys are the trusted keys. Required.
	Keys *verify.Keys
	// ShareKeys names the keys whose paths may be shown to others; a name that Keys does not
	// have shares nothing.
	ShareKeys []string
	// Remembered returns the narinfo that this machine remembers for a path, or nil. Its
	// signatures count for a locally built path that has none. If nil, nothing is remembered.
	// It is called by many goroutines.
	Remembered func(nix.StoreHash) *verify.Info
	// Changed receives the paths that have become or ceased to be shareable, removed ones to be
	// taken before added ones: a hash in both was replaced. It is called by Run alone, one call
	// at a time, and owns the slices. If nil, nobody is told.
	Changed func(added, removed []nix.StoreHash)

	Log     *slog.Logger     // if nil, nothing is logged
	Metrics *metrics.Metrics // if nil, nothing is counted
}

// Store is the Nix store of this machine. It is safe for concurrent use.
type Store struct {
	keys       *verify.Keys
	share      []string
	remembered func(nix.StoreHash) *verify.Info
	changed    func(added, removed []nix.StoreHash)
	log        *slog.Logger
	metrics    *metrics.Metrics

	dir string // physical directory of the store
	db  database
	idx index
	bad quarantine

	wake chan struct{} // capacity 1: Run has changes to tell
}

var _ source.LocalStore = (*Store)(nil)

// Open returns the store under cfg.Root. A database that is missing, unreadable, damaged or of
// another schema is no error: the store is empty until Run finds one that can be read.
// The caller closes the store after Run has returned.
func Open(cfg Config) (*Store, error) {
	if cfg.Keys == nil {
		return nil, errors.New("localstore: no keys")
	}
	if cfg.Root == "" {
		cfg.Root = "/"
	}
	root, err := filepath.Abs(cfg.Root)
	if err != nil {
		return nil, fmt.Errorf("localstore: %w", err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = metrics.New()
	}
	s := &Store{
		keys: cfg.Keys, remembered: cfg.Remembered, changed: cfg.Changed,
		log: cfg.Log, metrics: cfg.Metrics,
		dir:  filepath.Join(root, nix.StoreDir),
		wake: make(chan struct{}, 1), bad: newQuarantine(),
	}
	for _, name := range cfg.ShareKeys {
		if cfg.Keys.Has(name) {
			s.share = append(s.share, name)
		}
	}
	s.idx.changes = make(map[nix.StoreHash]bool)
	s.idx.clear()
	s.db.log = cfg.Log
	s.db.path = filepath.Join(root, "nix/var/nix/db/db.sqlite")
	s.db.refresh(time.Now())
	return s, nil
}

// Close releases the database. Questions asked afterwards are answered unavailable; NARs
// that are being read are not disturbed.
func (s *Store) Close() error {
	s.db.close()
	return nil
}

// absent is the answer to a question for what this store does not have or may not say.
func absent(op string, what fmt.Stringer) error {
	return fmt.Errorf("localstore: %s %s: %w", op, what, fs.ErrNotExist)
}

// unavailable is the answer when the store could not say. It never wraps fs.ErrNotExist: that a
// file is not there is no word about the path.
func unavailable(op string, what fmt.Stringer, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		err = errors.New(err.Error())
	}
	return fmt.Errorf("localstore: %s %s: %w", op, what, err)
}

// Info returns the narinfo of a valid path that a trusted key signed, with hints that say that
// its NAR is available raw. A path without such a signature, of unknown size or in quarantine is absent.
func (s *Store) Info(ctx context.Context, h nix.StoreHash) (*verify.Info, error) {
	var r *row
	err := s.db.read(ctx, func(c *conn) (err error) {
		r, err = c.byHash(h)
		return err
	})
	switch {
	case errors.Is(err, errNone):
		return nil, absent("info", h)
	case err != nil:
		return nil, unavailable("info", h, err)
	case r == nil, !r.usable(), s.held(h, r.id):
		return nil, absent("info", h)
	}
	info, c := s.prove(r)
	s.note(r.id, h, c)
	if info == nil {
		return nil, absent("info", h)
	}
	return info, nil
}

// prove makes an Info of a row, by its own signatures or by those of a remembered narinfo
// that says the same. It returns nil and the reason when no trusted key signed it.
func (s *Store) prove(r *row) (*verify.Info, class) {
	h := r.path.Hash()
	info, err := s.keys.OpenNarInfo(r.narInfo(), h)
	if err != nil {
		info = s.signedByMemory(r, h)
	}
	switch {
	case info == nil:
		return nil, r.whyUnsigned()
	case info.SignedByAny(s.share):
		return info, classShared
	default:
		return info, classTrusted
	}
}

// signedByMemory makes an Info of a row with the signatures of a remembered narinfo.
func (s *Store) signedByMemory(r *row, h nix.StoreHash) *verify.Info {
	if s.remembered == nil {
		return nil
	}
	known := s.remembered(h)
	if known == nil || known.StorePath() != r.path || known.NarHash() != r.nar || known.NarSize() != r.size ||
		!slices.Equal(known.References(), r.refs) {
		return nil
	}
	n := r.narInfo()
	n.Sigs = known.Signatures()
	info, err := s.keys.OpenNarInfo(n, h)
	if err != nil {
		return nil
	}
	return info
}

// note brings the index up to date with what was found while answering: signatures come and
// go without a trace that the watch could see.
func (s *Store) note(id int64, h nix.StoreHash, c class) {
	if s.idx.shared(h) == (c == classShared) {
		return // an entry in quarantine is that one's business
	}
	if s.idx.reclass(id, c) {
		s.wakeRun()
	}
}

// wakeRun tells Run that there is something to tell.
func (s *Store) wakeRun() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
