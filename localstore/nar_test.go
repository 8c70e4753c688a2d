package localstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/verify"
)

// shape makes one kind of tree at a path. Entries are what real stores have, and worse.
type shape struct {
	name  string
	build func(t testing.TB, path string)
}

func write(t testing.TB, path string, size int, mode os.FileMode) {
	t.Helper()
	must(t, os.WriteFile(path, bytes.Repeat([]byte(filepath.Base(path)+"\x00"), size/2+1)[:size], mode))
}

func shapes() []shape {
	list := []shape{
		{"empty-directory", func(t testing.TB, path string) { must(t, os.Mkdir(path, 0o755)) }},
		{"executable", func(t testing.TB, path string) { write(t, path, 9, 0o555) }},
		{"executable-for-others-only", func(t testing.TB, path string) { write(t, path, 9, 0o455) }},
		{"dangling-link", func(t testing.TB, path string) { must(t, os.Symlink("no/such/thing", path)) }},
		{"links", func(t testing.TB, path string) {
			must(t, os.MkdirAll(path+"/dir/inner", 0o755))
			write(t, path+"/file", 3, 0o444)
			for name, target := range map[string]string{
				"absolute": "/etc/passwd", "to-directory": "dir", "up": "../..", "self": "self", "dangling": "x/y", "eight": "12345678",
				"long": strings.Repeat("l/", 2000) + "end",
			} {
				must(t, os.Symlink(target, path+"/"+name))
			}
		}},
		{"order", func(t testing.TB, path string) {
			must(t, os.Mkdir(path, 0o755))
			for _, name := range []string{"b", "B", "a", "A", "_", "-", "a-", "a.b", "a b", "ab", "aB", "Ä", "ä", "z", "é", "e", "~nix~case~hack~1", "x~nix~case~hack~2"} {
				write(t, path+"/"+name, len(name), 0o444)
			}
			for _, name := range []string{"a.d", "a-d", "ad", "a0"} { // a directory's name sorts without its slash
				must(t, os.Mkdir(path+"/"+name, 0o755))
				write(t, path+"/"+name+"/f", 5, 0o555)
			}
		}},
		{"not-utf8", func(t testing.TB, path string) {
			must(t, os.Mkdir(path, 0o755))
			for _, name := range []string{"\xff", "\xfe\xff", "a\x80", "\xc3", "\xc3\xa4", "\n", "\x01", "\\", strings.Repeat("n", 255), strings.Repeat("\xf0", 255)} {
				write(t, path+"/"+name, 2*len(name), 0o444)
			}
		}},
		{"deep", func(t testing.TB, path string) {
			dir := path
			for i := range 60 {
				must(t, os.Mkdir(dir, 0o755))
				write(t, dir+"/z", i, 0o444)
				if i%3 == 0 {
					write(t, dir+"/a", i, 0o555)
				}
				dir += "/d"
			}
			must(t, os.Mkdir(dir, 0o755))
			must(t, os.Symlink("../d", dir+"/l"))
		}},
		{"deeper-than-open-directories", func(t testing.TB, path string) {
			for i := range 700 {
				must(t, os.Mkdir(path, 0o755))
				if i%300 == 0 { // read on the way back, from directories that were left
					write(t, path+"/z", 9, 0o444)
				}
				path += "/d"
			}
		}},
		{"empty-directories", func(t testing.TB, path string) {
			must(t, os.MkdirAll(path+"/a/b/c", 0o755))
			must(t, os.MkdirAll(path+"/a/b/d", 0o755))
			must(t, os.MkdirAll(path+"/e", 0o755))
		}},
		{"wide", func(t testing.TB, path string) {
			must(t, os.Mkdir(path, 0o755))
			for i := range 10_000 {
				if i%5 > 0 {
					must(t, os.Symlink(fmt.Sprint(i), fmt.Sprintf("%s/%d", path, i)))
				} else {
					write(t, fmt.Sprintf("%s/%d", path, i), i%50, 0o444)
				}
			}
		}},
	}
	for _, size := range []int{0, 1, 7, 8, 9, 300_000} {
		list = append(list, shape{fmt.Sprintf("file-of-%d", size), func(t testing.TB, path string) { write(t, path, size, 0o444) }})
	}
	return list
}

func TestNARIdentity(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	for _, c := range shapes() {
		t.Run(c.name, func(t *testing.T) {
			n, want := w.tree(c.name, func(path string) { c.build(t, path) })
			s.db.refresh(time.Now())
			info := prove(t, n, w.keys())
			got, err := readAll(s, info, 0)
			must(t, err)
			if !bytes.Equal(got, want) {
				t.Fatalf("%d bytes differ from the %d wanted", len(got), len(want))
			}
			offsets := []int64{1, 8, info.NarSize() - 1, info.NarSize()}
			step := max(info.NarSize()/50, 1)
			if len(want) < 3000 {
				step = 1
			}
			for off := int64(0); off < info.NarSize(); off += step {
				offsets = append(offsets, off)
			}
			if len(want) > 1<<20 {
				offsets = offsets[:6]
			}
			for _, off := range offsets {
				got, err := readAll(s, info, off)
				must(t, err)
				if !bytes.Equal(got, want[off:]) {
					t.Fatalf("from %d: %d bytes differ from the %d wanted", off, len(got), len(want[off:]))
				}
			}
		})
	}
}

// Reads of any size give the same bytes.
func TestNARReader(t *testing.T) {
	w := newWorld(t)
	n, want := w.tree("deep", func(path string) { shapes()[7].build(t, path) })
	s := w.open()
	info := prove(t, n, w.keys())
	claim, err := s.NAR(t.Context(), info, nix.Raw, 0)
	must(t, err)
	if err := iotest.TestReader(onlyReader{claim.Body}, want); err != nil {
		t.Error(err)
	}
	must(t, claim.Body.Close())
	if _, err := claim.Body.Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	must(t, claim.Body.Close())
}

type onlyReader struct{ io.Reader }

// One Read goes on until the buffer is full: those who read 256 KiB get them.
func TestReadFills(t *testing.T) {
	w := newWorld(t)
	n, want := w.tree("wide", func(path string) {
		must(t, os.Mkdir(path, 0o755))
		for i := range 200 {
			write(t, fmt.Sprintf("%s/%d", path, i), 2000, 0o444)
		}
	})
	s := w.open()
	claim, err := s.NAR(t.Context(), prove(t, n, w.keys()), nix.Raw, 0)
	must(t, err)
	defer claim.Body.Close()
	buf := make([]byte, 256<<10)
	got, err := claim.Body.Read(buf)
	if got != len(buf) || err != nil || !bytes.Equal(buf, want[:len(buf)]) {
		t.Errorf("read %d, %v", got, err)
	}
}

func TestNARAbsent(t *testing.T) {
	w := newWorld(t)
	p := nixtest.NewPath("p", 100)
	w.add(p, shareKey)
	s := w.open()
	info := p.Info(t, shareKey)
	_, err := s.NAR(t.Context(), info, nix.Form{Compression: nix.XZ, File: nix.FileHash{1}}, 0)
	wantAbsent(t, err)
	_, err = s.NAR(t.Context(), nixtest.NewPath("q", 1).Info(t, shareKey), nix.Raw, 0)
	wantAbsent(t, err)
	other := p
	other.NAR = nixtest.FileNAR([]byte("other bytes under the same path"))
	_, err = s.NAR(t.Context(), other.Info(t, shareKey), nix.Raw, 0)
	wantAbsent(t, err)
	for _, off := range []int64{-1, info.NarSize() + 1} {
		_, err = s.NAR(t.Context(), info, nix.Raw, off)
		wantUnavailable(t, err)
	}
	if len(s.bad.list()) != 0 {
		t.Error("quarantined")
	}
}

// Files on the disk count for nothing without a row.
func TestFileWithoutRow(t *testing.T) {
	w := newWorld(t)
	w.openDB()
	p := nixtest.NewPath("p", 100)
	must(t, os.WriteFile(w.physical(p.StorePath), p.Contents, 0o444))
	s := w.open()
	_, err := s.NAR(t.Context(), p.Info(t, shareKey), nix.Raw, 0)
	wantAbsent(t, err)
}

// Trees that cannot be the NAR that was signed.
func TestDamagedTree(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(t *testing.T, path string)
		size   bool // proven by the size
		held   bool
	}{
		"longer file":          {func(t *testing.T, path string) { write(t, path+"/f", 5000, 0o644) }, true, true},
		"shorter file":         {func(t *testing.T, path string) { must(t, os.Truncate(path+"/f", 10)) }, true, true},
		"one more":             {func(t *testing.T, path string) { write(t, path+"/g", 5, 0o644) }, true, true},
		"one less":             {func(t *testing.T, path string) { must(t, os.Remove(path+"/f")) }, true, true},
		"no longer executable": {func(t *testing.T, path string) { must(t, os.Chmod(path+"/x", 0o444)) }, true, true},
		"socket": {func(t *testing.T, path string) {
			t.Chdir(path) // the name of a socket must be short
			l, err := net.Listen("unix", "s")
			must(t, err)
			l.(*net.UnixListener).SetUnlinkOnClose(false)
			must(t, l.Close())
		}, false, true},
		"fifo": {func(t *testing.T, path string) {
			must(t, os.Remove(path+"/f"))
			must(t, syscall.Mkfifo(path+"/f", 0o644))
		}, false, true},
		"gone": {func(t *testing.T, path string) { must(t, os.RemoveAll(path)) }, false, true},
		"link in its place": {func(t *testing.T, path string) {
			must(t, os.Rename(path, path+"-moved"))
			must(t, os.Symlink(path+"-moved", path))
		}, true, true},
		"deeper": {func(t *testing.T, path string) {
			for range 100 {
				path += "/d"
				must(t, os.Mkdir(path, 0o755))
			}
		}, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			n, _ := w.tree("tree", func(path string) {
				must(t, os.Mkdir(path, 0o755))
				write(t, path+"/f", 1000, 0o644)
				write(t, path+"/x", 1000, 0o755)
			})
			s := w.watched()
			s.look(t.Context())
			info := prove(t, n, w.keys())
			h := n.StorePath.Hash()
			c.damage(t, w.physical(n.StorePath))
			_, err := s.NAR(t.Context(), info, nix.Raw, 0)
			var lie *verify.InvalidError
			if got := errors.As(err, &lie) && lie.Reason == verify.ReasonSize; got != c.size || err == nil {
				t.Errorf("got %v, want a lie: %v", err, c.size)
			}
			if !c.size {
				wantUnavailable(t, err)
			}
			_, err = s.Info(t.Context(), h)
			wantAbsent(t, err)
			_, err = s.NAR(t.Context(), info, nix.Raw, 0)
			wantAbsent(t, err)
			if _, removed := s.look(t.Context()); !slices.Equal(removed, []string{h.String()}) {
				t.Errorf("removed %v", removed)
			}
			if s.Census().Quarantined != 1 || len(s.bad.list()) != 1 {
				t.Error("not counted")
			}
		})
	}
}

// TestCaseHack: names that Nix wrote with an appendix, as it does on macOS, are in the NAR without it.
// Names that really end so stay as they are.
func TestCaseHack(t *testing.T) {
	const hack = "~nix~case~hack~"
	rename := func(from, to string) func(t *testing.T, path string) {
		return func(t *testing.T, path string) { must(t, os.Rename(path+"/"+from, path+"/"+to)) }
	}
	for name, c := range map[string]struct {
		names []string // "x/": a directory with a file, "x@": a link
		store func(t *testing.T, path string)
		wrong bool
	}{
		"file":              {[]string{"Thunar", "thunar"}, rename("thunar", "thunar"+hack+"1"), false},
		"the first one":     {[]string{"Thunar", "thunar"}, rename("Thunar", "Thunar"+hack+"1"), false},
		"in another order":  {[]string{"B", "b", "b-", "b0", "bb", "b~a"}, rename("b", "b"+hack+"12"), false},
		"directory":         {[]string{"Dir/", "dir/", "dir0"}, rename("dir", "dir"+hack+"1"), false},
		"link":              {[]string{"L@", "l@", "m"}, rename("l", "l"+hack+"1"), false},
		"no number":         {[]string{"a", "b"}, rename("a", "a"+hack), false},
		"cut at the first":  {[]string{"a", "b"}, rename("a", "a"+hack+"1"+hack+"2"), false},
		"its real name":     {[]string{"a", "a" + hack + "1"}, func(*testing.T, string) {}, false},
		"nothing before it": {[]string{hack + "1", "a"}, func(*testing.T, string) {}, false},
		"twice the same": {[]string{"a", "b"}, func(t *testing.T, path string) {
			rename("b", "a"+hack+"1")(t, path)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			n, want := w.tree("tree", func(path string) {
				must(t, os.Mkdir(path, 0o755))
				for i, name := range c.names {
					at := path + "/" + strings.TrimRight(name, "/@")
					switch {
					case strings.HasSuffix(name, "/"):
						must(t, os.Mkdir(at, 0o755))
						write(t, at+"/f", i, 0o444)
					case strings.HasSuffix(name, "@"):
						must(t, os.Symlink("to-"+name, at))
					default:
						write(t, at, 100+i, 0o444)
					}
				}
			})
			s := w.open()
			c.store(t, w.physical(n.StorePath))
			got, err := readAll(s, prove(t, n, w.keys()), 0)
			if c.wrong {
				if err == nil {
					t.Error("served")
				}
				return
			}
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, want %d: %v", len(got), len(want), err)
			}
		})
	}
}

// What changes under a reader ends the stream, it never makes it hang or invent bytes.
func TestChangesWhileReading(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, path string){
		"later file gone":     func(t *testing.T, path string) { must(t, os.Remove(path+"/d/z")) },
		"directory gone":      func(t *testing.T, path string) { must(t, os.RemoveAll(path+"/d")) },
		"all gone":            func(t *testing.T, path string) { must(t, os.RemoveAll(path)) },
		"later file shorter":  func(t *testing.T, path string) { must(t, os.Truncate(path+"/d/z", 5)) },
		"later file longer":   func(t *testing.T, path string) { must(t, os.Truncate(path+"/d/z", 500_000)) },
		"this file shorter":   func(t *testing.T, path string) { must(t, os.Truncate(path+"/a", 1000)) },
		"a link in its place": func(t *testing.T, path string) { replaceByLink(t, path+"/d/z", "/etc/passwd") },
		"a link for directory": func(t *testing.T, path string) {
			must(t, os.Rename(path+"/d", path+"/e"))
			must(t, os.Symlink("e", path+"/d"))
		},
		"a fifo in its place": func(t *testing.T, path string) {
			must(t, os.Remove(path+"/d/z"))
			must(t, syscall.Mkfifo(path+"/d/z", 0o644))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			n, want := w.tree("tree", func(path string) {
				must(t, os.MkdirAll(path+"/d", 0o755))
				write(t, path+"/a", 100_000, 0o644)
				write(t, path+"/d/z", 100_000, 0o644)
			})
			s := w.open()
			claim, err := s.NAR(t.Context(), prove(t, n, w.keys()), nix.Raw, 0)
			must(t, err)
			defer claim.Body.Close()
			head := make([]byte, 50_000)
			_, err = io.ReadFull(claim.Body, head)
			must(t, err)
			change(t, w.physical(n.StorePath))
			rest, err := io.ReadAll(claim.Body)
			wantUnavailable(t, err)
			if got := append(head, rest...); !bytes.HasPrefix(want, got) {
				t.Error("wrong bytes before the error")
			}
			if len(s.bad.list()) != 0 {
				t.Error("quarantined by a change that may be a garbage collection")
			}
		})
	}
}

func replaceByLink(t *testing.T, path, target string) {
	must(t, os.Remove(path))
	must(t, os.Symlink(target, path))
}

// An open file can be read to its end after it was deleted.
func TestDeletedFile(t *testing.T) {
	w := newWorld(t)
	p := nixtest.NewPath("p", 500_000)
	w.add(p, shareKey)
	s := w.open()
	claim, err := s.NAR(t.Context(), p.Info(t, shareKey), nix.Raw, 0)
	must(t, err)
	defer claim.Body.Close()
	must(t, os.Remove(w.physical(p.StorePath)))
	got, err := io.ReadAll(claim.Body)
	must(t, err)
	if !bytes.Equal(got, p.NAR) {
		t.Error("wrong bytes")
	}
}

// Rows that go while the tree is laid out make the path absent, whatever was found of it.
func TestCollectedMeanwhile(t *testing.T) {
	w := newWorld(t)
	p := nixtest.NewPath("p", 500)
	w.add(p, shareKey)
	s := w.open()
	must(t, os.Remove(w.physical(p.StorePath)))
	w.exec(`DELETE FROM ValidPaths`)
	_, err := s.NAR(t.Context(), p.Info(t, shareKey), nix.Raw, 0)
	wantAbsent(t, err)
	if len(s.bad.list()) != 0 {
		t.Error("quarantined")
	}
}

func TestInvalid(t *testing.T) {
	w := newWorld(t)
	p := nixtest.NewPath("p", 1000)
	w.add(p, shareKey)
	s := w.watched()
	s.look(t.Context())
	info := p.Info(t, shareKey)
	s.Invalid(info, nix.Raw, errors.New("never read")) // nothing came from here
	flipped := slices.Clone(p.Contents)
	flipped[500] ^= 1
	path := w.physical(p.StorePath)
	must(t, os.Remove(path))
	must(t, os.WriteFile(path, flipped, 0o444))

	lie := serve(t, s.Store, info)
	if lie == nil || lie.Reason != verify.ReasonHash {
		t.Fatalf("the flipped byte went unnoticed: %v", lie)
	}
	s.Invalid(info, nix.Form{Compression: nix.XZ}, lie)
	if _, err := s.Public(t.Context(), p.Hash()); err != nil {
		t.Fatalf("another form's conviction counted: %v", err)
	}
	s.Invalid(info, nix.Raw, lie)
	s.Invalid(info, nix.Raw, lie)
	for range 2 {
		_, err := s.Info(t.Context(), p.Hash())
		wantAbsent(t, err)
		_, err = s.Public(t.Context(), p.Hash())
		wantAbsent(t, err)
		_, err = s.Public(t.Context(), p.Hash())
		wantAbsent(t, err)
		_, err = s.NAR(t.Context(), info, nix.Raw, 0)
		wantAbsent(t, err)
		s.look(t.Context())
	}
	if q := s.bad.list(); len(q) != 1 || q[0].path != p.StorePath {
		t.Errorf("quarantine %v", q)
	}

	// Replaced by renaming, as Nix repairs, with the row kept.
	must(t, os.WriteFile(path+".new", p.Contents, 0o444))
	must(t, os.Rename(path+".new", path))
	if added, _ := s.look(t.Context()); !slices.Equal(added, texts(p)) {
		t.Errorf("added %v", added)
	}
	if lie := serve(t, s.Store, info); lie != nil {
		t.Error(lie)
	}
	if len(s.bad.list()) != 0 {
		t.Error("still quarantined")
	}
}

// A path that is registered anew is another one, also when nobody looked meanwhile.
func TestQuarantineEndsWithRow(t *testing.T) {
	for _, gone := range []bool{false, true} {
		w := newWorld(t)
		p := nixtest.NewPath("p", 1000)
		n := w.add(p, shareKey)
		s := w.watched()
		s.look(t.Context())
		info := p.Info(t, shareKey)
		must(t, os.Remove(w.physical(p.StorePath)))
		_, err := s.NAR(t.Context(), info, nix.Raw, 0)
		wantUnavailable(t, err)
		w.exec(`DELETE FROM ValidPaths`)
		if gone {
			s.look(t.Context())
			if len(s.bad.list()) != 0 {
				t.Error("what is no longer there is still quarantined")
			}
		}
		must(t, os.WriteFile(w.physical(p.StorePath), p.Contents, 0o444))
		w.register(n)
		s.look(t.Context())
		_, err = s.Public(t.Context(), p.Hash())
		must(t, err)
		if lie := serve(t, s.Store, info); lie != nil {
			t.Error(lie)
		}
	}
}

// The conviction hits what was read, not what has been put in its place since.
func TestRepairedBeforeReport(t *testing.T) {
	w := newWorld(t)
	p := nixtest.NewPath("p", 1000)
	w.add(p, shareKey)
	s := w.watched()
	s.look(t.Context())
	info := p.Info(t, shareKey)
	must(t, serveErr(t, s.Store, info))
	path := w.physical(p.StorePath)
	must(t, os.WriteFile(path+".new", p.Contents, 0o444))
	must(t, os.Rename(path+".new", path))
	s.Invalid(info, nix.Raw, errors.New("was wrong"))
	_, err := s.Info(t.Context(), p.Hash())
	must(t, err)
}

func serveErr(t *testing.T, s *Store, info *verify.Info) error {
	if lie := serve(t, s, info); lie != nil {
		return lie
	}
	return nil
}

// serve reads a NAR as the resolver does and returns its lie.
func serve(t *testing.T, s *Store, info *verify.Info) *verify.InvalidError {
	t.Helper()
	claim, err := s.NAR(t.Context(), info, nix.Raw, 0)
	must(t, err)
	defer claim.Body.Close()
	proof := verify.NewProof(info.Digest(nix.Raw, 0))
	_, err = io.Copy(proof, claim.Body)
	if err == nil {
		err = proof.Check()
	}
	var lie *verify.InvalidError
	if err != nil && !errors.As(err, &lie) {
		t.Fatal(err)
	}
	return lie
}

func TestLayoutCancelled(t *testing.T) {
	w := newWorld(t)
	n, _ := w.tree("tree", func(path string) { must(t, os.Mkdir(path, 0o755)) })
	top, err := openRootEntry(w.physical(n.StorePath))
	must(t, err)
	defer top.close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := makeLayout(ctx, top, 1000); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
