// Package localstore offers this machine's Nix store as a source: it reads the store database
// without ever writing to it, proves which rows a trusted key signed, writes NARs straight from
// the files, knows which part may be shown to others, and notices what comes and goes. Nothing
// in the store is believed: narinfos are made by verify.Keys, NAR bytes are for the caller to
// hash, and a path whose bytes turned out wrong is held back until it is replaced. It never
// asks the Nix daemon, never builds or fetches, and speaks no network protocol.
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
	"github.com/nixp2p/nixp2p/verify"
)

// Config is what Open needs.
type Config struct {
	// Root is the directory that holds nix/store and nix/var/nix/db; "" means "/". The logical
	// store directory is /nix/store whatever the root.
	Root string
	// Keys is whose word counts. Required.
	Keys *verify.Keys
	// ShareKeys names the keys whose paths may be shown to others; a name that Keys does not
	// have shares nothing.
	ShareKeys []string
	// Remembered returns the narinfo that this machine remembers for a path, or nil. It stands
	// in for the signatures that a locally built path lacks. nil means that nothing is
	// remembered. It is called by many goroutines.
	Remembered func(nix.StoreHash) *verify.Info
	// Changed is told which paths have become or ceased to be shareable, removed ones to be
	// taken before added ones: a hash in both was replaced. It is called by Run alone, one call
	// at a time, and owns the slices. nil means that nobody wants to know.
	Changed func(added, removed []nix.StoreHash)

	Log     *slog.Logger     // nil discards
	Metrics *metrics.Metrics // nil counts for nobody
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
		wake: make(chan struct{}, 1),
	}
	for _, name := range cfg.ShareKeys {
		if cfg.Keys.Has(name) {
			s.share = append(s.share, name)
		}
	}
	s.idx.reset()
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

// Name returns "store".
func (s *Store) Name() string { return "store" }

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
// its NAR is had raw. A path without such a signature, of unknown size or in quarantine is absent.
func (s *Store) Info(ctx context.Context, h nix.StoreHash) (*verify.Info, error) {
	r, err := s.lookup(ctx, h)
	if err != nil {
		return nil, err
	}
	if s.held(r.path.Hash(), r.id) {
		return nil, absent("info", h)
	}
	info, c := s.prove(r)
	s.note(r.id, h, c)
	if info == nil {
		return nil, absent("info", h)
	}
	return info, nil
}

// lookup reads the row of a store hash; absent when there is none that could be served.
func (s *Store) lookup(ctx context.Context, h nix.StoreHash) (*row, error) {
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
	case r == nil || !r.usable():
		return nil, absent("info", h)
	}
	return r, nil
}

// prove makes an Info of a row, by its own signatures or by those of a remembered narinfo
// that says the same. It returns nil and the reason when no trusted key signed it.
func (s *Store) prove(r *row) (*verify.Info, class) {
	h := r.path.Hash()
	info, err := s.keys.OpenNarInfo(r.narInfo(), h)
	if err != nil {
		info = s.vouched(r, h)
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

// vouched makes an Info of a row with the signatures of a remembered narinfo.
func (s *Store) vouched(r *row, h nix.StoreHash) *verify.Info {
	if s.remembered == nil {
		return nil
	}
	known := s.remembered(h)
	if known == nil || known.StorePath() != r.path || known.NarHash() != r.nar || known.NarSize() != r.size ||
		!slices.Equal(known.References(), r.refs) {
		return nil
	}
	text, err := nix.ParseNarInfo(known.Text())
	if err != nil {
		return nil
	}
	n := r.narInfo()
	n.Sigs = text.Sigs
	info, err := s.keys.OpenNarInfo(n, h)
	if err != nil {
		return nil
	}
	return info
}

// note brings the index up to date with what was found while answering: signatures come and
// go without a trace that the watch could see.
func (s *Store) note(id int64, h nix.StoreHash, c class) {
	if s.idx.agrees(h, c == classShared) {
		return
	}
	if s.idx.reclass(id, c) {
		s.poke()
	}
}

// poke tells Run that there is something to tell.
func (s *Store) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
