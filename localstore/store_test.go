package localstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql/driver"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/verify"
)

func TestOpenNeedsKeys(t *testing.T) {
	if _, err := Open(Config{Root: t.TempDir()}); err == nil {
		t.Fatal("opened without keys")
	}
}

func TestInfo(t *testing.T) {
	w := newWorld(t)
	dep := nixtest.NewPath("dep", 10)
	w.add(dep, shareKey)
	p := nixtest.NewPath("main", 1000, dep.StorePath)
	n := p.Signed(otherKey, shareKey, trustedKey)
	n.CA = "fixed:sha256:0000000000000000000000000000000000000000000000000000" // not of this path
	n.References = nix.SortPaths(append(n.References, p.StorePath))            // itself
	n.Sigs = nil
	for _, k := range []nixtest.Key{otherKey, shareKey, trustedKey} {
		k.Sign(n)
	}
	w.register(n)
	w.exec(`INSERT OR IGNORE INTO Refs SELECT id, id FROM ValidPaths WHERE path = ?`, p.StorePath.String())
	s := w.open()

	info, err := s.Info(t.Context(), p.Hash())
	must(t, err)
	want := verify.Hints{
		URL:         nix.NARName{Store: p.Hash(), Nar: p.NarHash()}.URL(),
		Compression: nix.None, FileHash: nix.FileHash(p.NarHash()), FileSize: int64(len(p.NAR)),
	}
	if info.Hints() != want {
		t.Errorf("hints %+v, want %+v", info.Hints(), want)
	}
	if got := info.Signers(); !slices.Equal(got, []string{"share-1", "trusted-1"}) {
		t.Errorf("signers %v", got)
	}
	n.URL, n.FileHash, n.FileSize, n.CA = want.URL, want.FileHash, want.FileSize, ""
	n.Sigs = n.Sigs[1:] // only those of trusted keys
	if got, want := string(info.Text()), string(n.AppendText(nil)); got != want {
		t.Errorf("text\n%swant\n%s", got, want)
	}
}

func TestInfoAbsent(t *testing.T) {
	w := newWorld(t)
	w.openDB()
	unsigned, untrusted, forged := nixtest.NewPath("unsigned", 1), nixtest.NewPath("untrusted", 2), nixtest.NewPath("forged", 3)
	noSize, addressed, badHash := nixtest.NewPath("nosize", 4), nixtest.NewPath("addressed", 5), nixtest.NewPath("badhash", 6)
	w.add(unsigned)
	w.add(untrusted, otherKey)
	n := forged.Signed(shareKey)
	n.Sigs[0].Data[7] ^= 1
	w.register(n)
	w.add(noSize, shareKey)
	w.exec(`UPDATE ValidPaths SET narSize = NULL WHERE path = ?`, noSize.StorePath.String())
	n = addressed.NarInfo()
	n.CA = "text:sha256:x"
	w.register(n)
	w.add(badHash, shareKey)
	w.exec(`UPDATE ValidPaths SET hash = 'md5:abc' WHERE path = ?`, badHash.StorePath.String())
	trusted := nixtest.NewPath("trusted", 7)
	w.add(trusted, trustedKey)
	shared := nixtest.NewPath("shared", 7)
	w.add(shared, shareKey, otherKey)

	s := w.watched()
	for _, p := range []nixtest.Path{unsigned, untrusted, forged, noSize, addressed, badHash, nixtest.NewPath("nowhere", 1)} {
		_, err := s.Info(t.Context(), p.Hash())
		wantAbsent(t, err)
	}
	added, _ := s.look(t.Context())
	if !slices.Equal(added, texts(shared)) {
		t.Errorf("shared %v, want %v", added, texts(shared))
	}
	want := Census{Mode: "live", Complete: true, Rows: 8, Shared: 1, Trusted: 1, Unsigned: 1, Untrusted: 2, Addressed: 1, NoSize: 1, Invalid: 1}
	if got := s.Census(); got != want {
		t.Errorf("census %+v, want %+v", got, want)
	}
	_, err := s.Public(t.Context(), trusted.Hash())
	wantAbsent(t, err)
	info, err := s.Public(t.Context(), shared.Hash())
	must(t, err)
	if info.StorePath() != shared.StorePath {
		t.Errorf("got %s", info.StorePath())
	}
}

// What Public says of what is not shared must not need the database.
func TestPublicAsksMemory(t *testing.T) {
	w := newWorld(t)
	private, shared := nixtest.NewPath("private", 1), nixtest.NewPath("shared", 1)
	w.add(private, trustedKey)
	w.add(shared, shareKey)
	s := w.watched()
	s.look(t.Context())
	must(t, s.Close())
	for _, p := range []nixtest.Path{private, nixtest.NewPath("nowhere", 1)} {
		_, err := s.Public(t.Context(), p.Hash())
		wantAbsent(t, err)
	}
	_, err := s.Public(t.Context(), shared.Hash())
	wantUnavailable(t, err)
	_, err = s.Info(t.Context(), shared.Hash())
	wantUnavailable(t, err)
}

func TestRemembered(t *testing.T) {
	dep, other := nixtest.NewPath("dep", 10), nixtest.NewPath("other", 10)
	p := nixtest.NewPath("built-here", 1000, dep.StorePath)
	right := p.Signed(shareKey)
	right.URL, right.Compression = "nar/xyz.nar.xz", nix.XZ
	refs := nixtest.NewPath("built-here", 1000, other.StorePath).Signed(shareKey)
	longer := p.NarInfo()
	longer.NarSize++
	shareKey.Sign(longer)
	bytes := p.NarInfo()
	bytes.NarHash[0] ^= 1
	shareKey.Sign(bytes)

	for _, c := range []struct {
		name       string
		remembered *nix.NarInfo
		want       bool
	}{{"nothing", nil, false}, {"same", right, true}, {"references", refs, false}, {"size", longer, false}, {"hash", bytes, false}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.add(dep)
			w.add(other)
			w.add(p)
			s := w.watched(func(cfg *Config) {
				cfg.Remembered = func(h nix.StoreHash) *verify.Info {
					if h != p.Hash() || c.remembered == nil {
						return nil
					}
					return prove(t, c.remembered, w.keys())
				}
			})
			info, err := s.Info(t.Context(), p.Hash())
			if !c.want {
				wantAbsent(t, err)
			} else {
				must(t, err)
				if h := info.Hints(); h.Compression != nix.None || !strings.HasSuffix(h.URL, ".nar") {
					t.Errorf("hints %+v", h)
				}
			}
			if added, _ := s.look(t.Context()); len(added) != 0 != c.want {
				t.Errorf("shared %v", added)
			}
		})
	}
}

// A narinfo that is remembered later makes a row shared: at the first question, or by itself.
func TestRememberedLater(t *testing.T) {
	for _, asked := range []bool{true, false} {
		w := newWorld(t)
		p := nixtest.NewPath("built-here", 1000)
		w.add(p)
		var known *verify.Info
		s := w.watched(func(cfg *Config) {
			cfg.Remembered = func(nix.StoreHash) *verify.Info { return known }
		})
		if added, _ := s.look(t.Context()); added != nil {
			t.Fatalf("shared %v", added)
		}
		known = p.Info(t, shareKey)
		if asked {
			_, err := s.Info(t.Context(), p.Hash())
			must(t, err)
		} else {
			s.w.reconsider(t.Context())
		}
		if added, _ := s.look(t.Context()); !slices.Equal(added, texts(p)) {
			t.Errorf("asked %v: shared %v", asked, added)
		}
		known = nil
		_, err := s.Public(t.Context(), p.Hash())
		wantAbsent(t, err)
		if _, removed := s.look(t.Context()); !slices.Equal(removed, texts(p)) {
			t.Errorf("asked %v: removed %v", asked, removed)
		}
	}
}

// A row whose signatures change keeps its id.
func TestSignatureTakenAway(t *testing.T) {
	w := newWorld(t)
	p := nixtest.NewPath("p", 1000)
	w.add(p, shareKey)
	s := w.watched()
	s.look(t.Context())
	_, err := s.Public(t.Context(), p.Hash())
	must(t, err)
	n := p.Signed(trustedKey)
	w.exec(`UPDATE ValidPaths SET sigs = ?`, n.Sigs[0].String())
	_, err = s.Public(t.Context(), p.Hash())
	wantAbsent(t, err)
	if _, removed := s.look(t.Context()); !slices.Equal(removed, texts(p)) {
		t.Errorf("removed %v", removed)
	}
	if s.SharedCount() != 0 {
		t.Error("still counted")
	}
}

func TestSameNarTwice(t *testing.T) {
	w := newWorld(t)
	contents := nixtest.NewPath("a", 100)
	var paths []nixtest.Path
	for _, name := range []string{"a", "b", "c"} {
		p := nixtest.NewPath(name, 100)
		p.Contents, p.NAR = contents.Contents, contents.NAR
		w.add(p, shareKey)
		paths = append(paths, p)
	}
	s := w.watched()
	s.look(t.Context())
	for _, gone := range []int{1, 0, 2} { // from the middle, the end, the last
		if x, ok := s.Listed(paths[gone].Hash()); !ok || x.Nar != contents.NarHash() {
			t.Fatalf("listed %v, %v", x, ok)
		}
		w.exec(`DELETE FROM ValidPaths WHERE path = ?`, paths[gone].StorePath.String())
		if _, removed := s.look(t.Context()); !slices.Equal(removed, texts(paths[gone])) {
			t.Errorf("removed %v", removed)
		}
	}
	if n := s.SharedCount(); n != 0 {
		t.Errorf("%d left", n)
	}
}

func TestShares(t *testing.T) {
	w := newWorld(t)
	w.openDB()
	var want []Share
	for i := range 3000 {
		p := nixtest.NewPath("p"+string(rune('a'+i%26))+strings.Repeat("x", i/26), 8)
		n := p.Signed(shareKey)
		if i%3 == 0 {
			n.Sigs = nil
		} else {
			want = append(want, Share{Store: p.Hash(), Nar: p.NarHash(), Size: int64(len(p.NAR))})
		}
		if i == 0 {
			w.exec("BEGIN")
		}
		w.register(n)
	}
	w.exec("COMMIT")
	s := w.watched()
	s.look(t.Context())
	if got := slices.Collect(s.Shares()); !slices.Equal(got, want) {
		t.Errorf("%d shares, want %d", len(got), len(want))
	}
	if s.SharedCount() != len(want) {
		t.Errorf("count %d", s.SharedCount())
	}
	w.exec(`DELETE FROM ValidPaths WHERE id % 2 = 0 OR id < 2000`)
	s.look(t.Context())
	s.idx.mu.Lock()
	if len(s.idx.entries) != 500 {
		t.Errorf("%d entries", len(s.idx.entries))
	}
	s.idx.mu.Unlock()
	got := slices.Collect(s.Shares())
	if len(got) == 0 || len(got) != s.SharedCount() {
		t.Errorf("%d shares, count %d", len(got), s.SharedCount())
	}
	for _, x := range got {
		if _, err := s.Public(t.Context(), x.Store); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCancelledContext(t *testing.T) {
	w := newWorld(t)
	p := nixtest.NewPath("p", 10)
	w.add(p, shareKey)
	s := w.open()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Info(ctx, p.Hash())
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	_, err = s.Info(t.Context(), p.Hash())
	must(t, err)
}

// Damaged databases make an empty store, not a broken one, until they are whole.
func TestUnreadableDatabase(t *testing.T) {
	p := nixtest.NewPath("p", 10)
	good := newWorld(t)
	good.add(p, shareKey)
	good.closeDB()
	whole, err := os.ReadFile(good.dbPath())
	must(t, err)
	otherSchema := newWorld(t)
	otherSchema.openDB()
	otherSchema.exec(`ALTER TABLE ValidPaths RENAME COLUMN hash TO somethingElse`)
	otherSchema.closeDB()
	other, err := os.ReadFile(otherSchema.dbPath())
	must(t, err)

	for name, contents := range map[string][]byte{
		"junk": bytes.Repeat([]byte("junk"), 5000), "empty": {}, "cut": whole[:len(whole)/2], "other schema": other,
		"header": append([]byte("SQLite format 4\x00"), whole[16:]...),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			must(t, os.WriteFile(w.dbPath(), contents, 0o644))
			s := w.watched()
			s.look(t.Context())
			if _, err := s.Info(t.Context(), p.Hash()); err == nil {
				t.Error("found a path")
			}
			must(t, os.WriteFile(w.dbPath()+".new", whole, 0o644))
			must(t, os.Rename(w.dbPath()+".new", w.dbPath()))
			if added, _ := s.look(t.Context()); !slices.Equal(added, texts(p)) {
				t.Errorf("added %v after the repair", added)
			}
			_, err = s.Info(t.Context(), p.Hash())
			must(t, err)
		})
	}
}

func TestNoDatabase(t *testing.T) {
	w := newWorld(t)
	s := w.watched()
	p := nixtest.NewPath("p", 10)
	_, err := s.Info(t.Context(), p.Hash())
	wantAbsent(t, err)
	_, err = s.NAR(t.Context(), p.Info(t, shareKey), nix.Raw, 0)
	wantAbsent(t, err)
	s.look(t.Context())
	w.add(p, shareKey)
	if added, _ := s.look(t.Context()); !slices.Equal(added, texts(p)) {
		t.Errorf("added %v", added)
	}
	w.closeDB()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(w.dbPath() + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if _, removed := s.look(t.Context()); !slices.Equal(removed, texts(p)) {
		t.Errorf("removed %v", removed)
	}
}

func FuzzRow(f *testing.F) {
	p := nixtest.NewPath("p", 10)
	n := p.Signed(shareKey)
	f.Add(n.StorePath.String(), n.NarHash.String(), int64(7), n.Sigs[0].String(), "fixed:x", n.StorePath.String())
	f.Add("/nix/store/x", "sha256:00", int64(-1), "a:b c", "text:\nSig: x", "  ")
	f.Add(n.StorePath.String(), "sha256:"+strings.Repeat("0", 64), int64(7), "", "", "")
	f.Fuzz(func(t *testing.T, path, hash string, size int64, sigs, ca, refs string) {
		r := parseRow([]driver.Value{int64(1), path, hash, size, sigs, ca, refs})
		if !r.usable() {
			return
		}
		want := r.narInfo()
		want.CA = nix.CheckCA(want.CA, want.StorePath, want.References) // as verify does
		got, err := nix.ParseNarInfo(want.AppendText(nil))
		if err != nil {
			t.Fatalf("the text of a row is no narinfo: %v", err)
		}
		if a, b := sha256.Sum256(got.AppendText(nil)), sha256.Sum256(want.AppendText(nil)); a != b || got.StorePath != r.path {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	})
}
