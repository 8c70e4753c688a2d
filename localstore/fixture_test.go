package localstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/verify"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(child())
	}
	goleak.VerifyTestMain(m)
}

// schema has the tables, columns and indexes of a Nix database.
const schema = `
CREATE TABLE ValidPaths (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, path TEXT UNIQUE NOT NULL, hash TEXT NOT NULL,
	registrationTime INTEGER NOT NULL, deriver TEXT, narSize INTEGER, ultimate INTEGER, sigs TEXT, ca TEXT);
CREATE TABLE Refs (referrer INTEGER NOT NULL, reference INTEGER NOT NULL, PRIMARY KEY (referrer, reference),
	FOREIGN KEY (referrer) REFERENCES ValidPaths(id) ON DELETE CASCADE,
	FOREIGN KEY (reference) REFERENCES ValidPaths(id) ON DELETE RESTRICT);
CREATE INDEX IndexReferrer ON Refs(referrer);
CREATE INDEX IndexReference ON Refs(reference);`

// world is a store root that a test writes to.
type world struct {
	t    testing.TB
	root string
	db   *sql.DB // nil while no writer has the database open
}

var (
	shareKey   = nixtest.NewKey("share-1")
	trustedKey = nixtest.NewKey("trusted-1")
	otherKey   = nixtest.NewKey("other-1")
)

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, root: t.TempDir()}
	must(t, os.MkdirAll(filepath.Join(w.root, "nix/store"), 0o755))
	must(t, os.MkdirAll(filepath.Join(w.root, "nix/var/nix/db"), 0o755))
	t.Cleanup(w.closeDB)
	return w
}

func (w *world) dbPath() string { return filepath.Join(w.root, "nix/var/nix/db/db.sqlite") }

// openDB opens the database for writing, as Nix does, and makes it if need be.
func (w *world) openDB() {
	w.t.Helper()
	if w.db != nil {
		return
	}
	_, err := os.Stat(w.dbPath())
	fresh := errors.Is(err, fs.ErrNotExist)
	w.db, err = sql.Open("sqlite", "file:"+w.dbPath()+"?_pragma=journal_mode(wal)&_pragma=foreign_keys(1)&_pragma=synchronous(0)")
	must(w.t, err)
	w.db.SetMaxOpenConns(1)
	if fresh {
		w.exec(schema)
	}
}

// closeDB ends the last writer: -wal and -shm go, unless a reader holds them.
func (w *world) closeDB() {
	if w.db != nil {
		must(w.t, w.db.Close())
		w.db = nil
	}
}

func (w *world) exec(query string, args ...any) {
	w.t.Helper()
	_, err := w.db.Exec(query, args...)
	must(w.t, err)
}

// register adds a row for n, without files, and returns its id.
func (w *world) register(n *nix.NarInfo) int64 {
	w.t.Helper()
	w.openDB()
	var sigs []string
	for _, s := range n.Sigs {
		sigs = append(sigs, s.String())
	}
	orNil := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	res, err := w.db.Exec(`INSERT INTO ValidPaths (path, hash, registrationTime, narSize, ultimate, sigs, ca) VALUES (?,?,1,?,NULL,?,?)`,
		n.StorePath.String(), "sha256:"+hex.EncodeToString(n.NarHash[:]), n.NarSize,
		orNil(strings.Join(sigs, " ")), orNil(n.CA))
	must(w.t, err)
	id, err := res.LastInsertId()
	must(w.t, err)
	for _, ref := range n.References {
		w.exec(`INSERT INTO Refs SELECT ?, id FROM ValidPaths WHERE path = ?`, id, ref.String())
	}
	return id
}

// add registers a file and writes it into the store.
func (w *world) add(p nixtest.Path, keys ...nixtest.Key) *nix.NarInfo {
	w.t.Helper()
	n := p.Signed(keys...)
	w.register(n)
	must(w.t, os.WriteFile(w.physical(p.StorePath), p.Contents, 0o444))
	return n
}

// tree registers what build puts into place as a store path, signed by shareKey.
func (w *world) tree(name string, build func(path string)) (*nix.NarInfo, []byte) {
	w.t.Helper()
	seed := sha256.Sum256([]byte(name))
	path, err := nix.ParseBaseName(nix.StoreHash(seed[:20]).String() + "-" + name)
	must(w.t, err)
	build(w.physical(path))
	var b bytes.Buffer
	dump(w.t, &b, w.physical(path))
	n := &nix.NarInfo{StorePath: path, URL: "x", Compression: nix.None, NarHash: sha256.Sum256(b.Bytes()), NarSize: int64(b.Len())}
	shareKey.Sign(n)
	w.register(n)
	return n, b.Bytes()
}

func (w *world) physical(p nix.StorePath) string { return filepath.Join(w.root, "nix/store", p.Base()) }

// keys trusts share-1 and trusted-1.
func (w *world) keys() *verify.Keys { return nixtest.Keys(w.t, shareKey, trustedKey) }

// open opens the store without running it.
func (w *world) open(more ...func(*Config)) *Store {
	w.t.Helper()
	cfg := Config{
		Root: w.root, Keys: w.keys(), ShareKeys: []string{"share-1", "nobody-1"},
		Log: slog.New(slog.NewTextHandler(w.t.Output(), nil)), Metrics: metrics.New(),
	}
	for _, f := range more {
		f(&cfg)
	}
	s, err := Open(cfg)
	must(w.t, err)
	w.t.Cleanup(func() { must(w.t, s.Close()) })
	return s
}

// watched is a store whose watch is driven by hand.
type watched struct {
	*Store
	w *watcher

	mu             sync.Mutex
	added, removed []string
}

func (w *world) watched(more ...func(*Config)) *watched {
	w.t.Helper()
	x := &watched{}
	x.Store = w.open(append(more, func(c *Config) {
		c.Changed = func(added, removed []nix.StoreHash) {
			x.mu.Lock()
			defer x.mu.Unlock()
			x.added = append(x.added, hashTexts(added)...)
			x.removed = append(x.removed, hashTexts(removed)...)
		}
	})...)
	x.w = &watcher{s: x.Store}
	x.w.again = x.w.again.AddDate(9999, 0, 0)
	return x
}

// look makes one look as Run does and returns what was told.
func (x *watched) look(ctx context.Context) (added, removed []string) {
	x.w.look(ctx)
	x.notifyChanged()
	x.mu.Lock()
	defer x.mu.Unlock()
	added, removed = x.added, x.removed
	x.added, x.removed = nil, nil
	slices.Sort(added)
	slices.Sort(removed)
	return added, removed
}

func hashTexts(hashes []nix.StoreHash) (texts []string) {
	for _, h := range hashes {
		texts = append(texts, h.String())
	}
	return texts
}

func texts(paths ...nixtest.Path) (texts []string) {
	for _, p := range paths {
		texts = append(texts, p.Hash().String())
	}
	slices.Sort(texts)
	return texts
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantAbsent(t testing.TB, err error) {
	t.Helper()
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got error %v, want absent", err)
	}
}

// wantUnavailable checks for the kind of error that says nothing about the path.
func wantUnavailable(t testing.TB, err error) {
	t.Helper()
	var lie *verify.InvalidError
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, fs.ErrNotExist) || errors.As(err, &lie) {
		t.Errorf("got error %v, want unavailable", err)
	}
}

// prove opens n as the client of a store would have it.
func prove(t testing.TB, n *nix.NarInfo, keys *verify.Keys) *verify.Info {
	t.Helper()
	info, err := keys.Open(n.AppendText(nil), n.StorePath.Hash())
	must(t, err)
	return info
}

// readAll reads the NAR from off on with reads of various sizes.
func readAll(s *Store, info *verify.Info, off int64) ([]byte, error) {
	claim, err := s.NAR(context.Background(), info, nix.Raw, off)
	if err != nil {
		return nil, err
	}
	defer claim.Body.Close()
	if claim.Size != info.NarSize() {
		return nil, fmt.Errorf("size %d, want %d", claim.Size, info.NarSize())
	}
	return io.ReadAll(claim.Body)
}

// dump writes the NAR of path: written anew and simply, to compare with.
func dump(t testing.TB, w io.Writer, path string) {
	str := func(s string) {
		var n [8]byte
		for i := range n {
			n[i] = byte(len(s) >> (8 * i))
		}
		_, _ = io.WriteString(w, string(n[:])+s+strings.Repeat("\x00", (8-len(s)%8)%8))
	}
	var node func(path string)
	node = func(path string) {
		st, err := os.Lstat(path)
		must(t, err)
		str("(")
		str("type")
		switch {
		case st.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			must(t, err)
			str("symlink")
			str("target")
			str(target)
		case st.IsDir():
			str("directory")
			f, err := os.Open(path)
			must(t, err)
			names, err := f.Readdirnames(-1)
			must(t, err)
			must(t, f.Close())
			slices.Sort(names)
			for _, name := range names {
				str("entry")
				str("(")
				str("name")
				str(name)
				str("node")
				node(path + "/" + name)
				str(")")
			}
		default:
			str("regular")
			if st.Mode()&0o100 != 0 {
				str("executable")
				str("")
			}
			str("contents")
			b, err := os.ReadFile(path)
			must(t, err)
			str(string(b))
		}
		str(")")
	}
	str("nix-archive-1")
	node(path)
}

// openPlain opens a database for writing in the journal mode that it has.
func openPlain(path string) (*sql.DB, error) {
	db, err := sql.Open("sqlite", "file:"+path)
	if err == nil {
		db.SetMaxOpenConns(1)
	}
	return db, err
}
