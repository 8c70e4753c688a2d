package demo

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newClosure(t *testing.T, paths int, size int64) (*closure, *verify.Keys) {
	t.Helper()
	c, err := makeClosure(t.Context(), paths, size)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := verify.ParseKeys([]string{c.publicKey})
	if err != nil {
		t.Fatal(err)
	}
	return c, keys
}

// What is made up is what a cache has: signed narinfos, files that are what those say, all
// reached from the top, and of about the size that was asked for.
func TestClosure(t *testing.T) {
	const paths, size = 80, 3 << 20
	c, keys := newClosure(t, paths, size)
	byPath := map[nix.StorePath]*made{}
	var nars, files int64
	for i := range c.paths {
		p := &c.paths[i]
		byPath[p.path] = p
		info, err := keys.Open(p.info, p.path.Hash())
		if err != nil {
			t.Fatal(err)
		}
		form, ok := info.FileForm()
		if !ok || form.File != sha256.Sum256(p.file) || "/"+info.Hints().URL != p.url() {
			t.Errorf("%s is not offered as the file that it has", p.path)
		}
		dec, err := compress.NewReader(nix.Zstd, bytes.NewReader(p.file))
		if err != nil {
			t.Fatal(err)
		}
		proof := verify.NewProof(info.Want(nix.Raw, 0))
		_, err = io.Copy(proof, dec)
		if err = errors.Join(err, proof.Check(), dec.Close()); err != nil {
			t.Errorf("%s: %v", p.path, err)
		}
		nars += p.narSize
		files += int64(len(p.file))
	}
	if len(byPath) != paths || nars != c.narBytes || files != c.fileBytes {
		t.Errorf("%d paths of %d and %d bytes; it says %d and %d", len(byPath), nars, files, c.narBytes, c.fileBytes)
	}
	if nars < size || nars > size*6/5 || files < nars*2/5 || files > nars*3/5 {
		t.Errorf("%d bytes of NARs in files of %d, for a size of %d", nars, files, size)
	}
	reached := map[nix.StorePath]bool{}
	var walk func(p nix.StorePath)
	walk = func(p nix.StorePath) {
		if reached[p] {
			return
		}
		reached[p] = true
		info, err := keys.Open(byPath[p].info, p.Hash())
		if err != nil {
			t.Fatal(err)
		}
		for _, ref := range info.References() {
			walk(ref)
		}
	}
	if walk(c.top); len(reached) != paths {
		t.Errorf("%d of %d paths are reached from the top", len(reached), paths)
	}
}

// Each run has the same paths, and a key of its own.
func TestClosureRepeats(t *testing.T) {
	a, _ := newClosure(t, 10, 100e3)
	b, _ := newClosure(t, 10, 100e3)
	for i := range a.paths {
		if a.paths[i].path != b.paths[i].path || a.paths[i].narHash != b.paths[i].narHash {
			t.Errorf("%s became %s", a.paths[i].path, b.paths[i].path)
		}
	}
	if a.publicKey == b.publicKey {
		t.Error("two runs have one key")
	}
}

// The same tree has the same NAR, made up and on disk, and another one another.
func TestHashOnDisk(t *testing.T) {
	s := sketch{size: 5000}
	var err error
	if s.path, err = nix.ParseBaseName(strings.Repeat("1", 32) + "-thing-1.0"); err != nil {
		t.Fatal(err)
	}
	s.refs = []nix.StorePath{s.path}
	root := filepath.Join(t.TempDir(), "x")
	put(t, root, s.tree())
	var nar bytes.Buffer
	if err := writeNAR(&nar, s.tree()); err != nil {
		t.Fatal(err)
	}
	hash, size, err := hashOnDisk(root)
	if err != nil || hash != sha256.Sum256(nar.Bytes()) || size != int64(nar.Len()) {
		t.Errorf("%v, %d bytes, not %d: %v", hash, size, nar.Len(), err)
	}
	if err := os.Chmod(filepath.Join(root, "bin", s.path.Name()), 0o644); err != nil {
		t.Fatal(err)
	}
	if other, _, err := hashOnDisk(root); err != nil || other == hash {
		t.Errorf("a program that is none any more has the same hash (%v)", err)
	}
}

func put(t *testing.T, at string, e entry) {
	t.Helper()
	var err error
	switch e.kind {
	case kindDir:
		err = os.Mkdir(at, 0o755)
		for _, c := range e.children {
			put(t, filepath.Join(at, c.name), c)
		}
	case kindLink:
		err = os.Symlink(e.target, at)
	case kindExec:
		err = os.WriteFile(at, e.data, 0o755)
	default:
		err = os.WriteFile(at, e.data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// The built-in client gets all of a good upstream; of one that lies, all but that path.
func TestBuiltin(t *testing.T) {
	c, _ := newClosure(t, 20, 200e3)
	for _, lie := range []bool{false, true} {
		u, err := startUpstream(t.Context(), c, 1e9, lie)
		if err != nil {
			t.Fatal(err)
		}
		got, again, err := builtin{}.fetch(t.Context(), u.url, c)
		u.stop()
		wrong := c.paths[len(c.paths)/2].path
		switch {
		case !lie && (err != nil || len(got) != 20 || again != 0 || u.narBytes.Load() != c.fileBytes || u.narRequests.Load() != 20):
			t.Errorf("%d paths, %d again, %d of %d bytes: %v", len(got), again, u.narBytes.Load(), c.fileBytes, err)
		case lie && (err == nil || got[wrong] || again != attempts-1):
			t.Errorf("a lie: %d paths, %d again: %v", len(got), again, err)
		}
	}
}

// A signature of another key does not count.
func TestBuiltinKey(t *testing.T) {
	c, _ := newClosure(t, 3, 10e3)
	other, _ := newClosure(t, 3, 10e3)
	u, err := startUpstream(t.Context(), c, 1e9, false)
	if err != nil {
		t.Fatal(err)
	}
	defer u.stop()
	if got, _, err := (builtin{}).fetch(t.Context(), u.url, other); err == nil || len(got) > 0 {
		t.Errorf("%d paths: %v", len(got), err)
	}
}

// The upstream keeps to its rate, over all responses together.
func TestPace(t *testing.T) {
	c, _ := newClosure(t, 4, 400e3)
	u, err := startUpstream(t.Context(), c, 500e3, false)
	if err != nil {
		t.Fatal(err)
	}
	defer u.stop()
	began := time.Now()
	if _, _, err := (builtin{}).fetch(t.Context(), u.url, c); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began).Seconds()
	if least := float64(c.fileBytes-uplinkBurst) / 500e3; took < least*0.9 {
		t.Errorf("%d bytes took %.2f s, at least %.2f are due", c.fileBytes, took, least)
	}
}

func TestUpstreamAbsent(t *testing.T) {
	c, _ := newClosure(t, 2, 10e3)
	u, err := startUpstream(t.Context(), c, 1e9, false)
	if err != nil {
		t.Fatal(err)
	}
	defer u.stop()
	for at, want := range map[string]int{
		"/" + strings.Repeat("1", 32) + ".narinfo": http.StatusNotFound, "/nar/x": http.StatusNotFound, "/": http.StatusNotFound, "/nix-cache-info": http.StatusOK,
	} {
		res, err := newHTTPClient().Get(u.url + at)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %s", at, res.Status)
		}
	}
}

// What was left behind by a run that is dead is removed; what is in use, fresh, or not of a run
// stays.
func TestSweep(t *testing.T) {
	within := t.TempDir()
	old := time.Now().Add(-time.Hour)
	mk := func(name string, age time.Time) string {
		d := filepath.Join(within, name)
		if err := os.MkdirAll(filepath.Join(d, "nix", "store"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(d, "nix"), 0o500); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(d, age, age); err != nil {
			t.Fatal(err)
		}
		return d
	}
	stale, fresh, other := mk(dirPrefix+"1", old), mk(dirPrefix+"2", time.Now()), mk("nixp2p-1", old)
	r, err := openRoom(within, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(r.dir, old, old); err != nil {
		t.Fatal(err)
	}
	second, err := openRoom(within, 0)
	if err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]bool{stale: false, fresh: true, other: true, r.dir: true, second.dir: true} {
		if _, err := os.Lstat(dir); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", filepath.Base(dir), err, want)
		}
	}
	for _, r := range []*room{r, second} {
		if err := r.close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(r.dir); err == nil {
			t.Errorf("%s is still there", r.dir)
		}
	}
	if err := removeAll(fresh); err != nil {
		t.Error(err)
	}
	if err := removeAll(other); err != nil {
		t.Error(err)
	}
}

// A machine that cannot hold it is told before anything is begun, and a node that does not
// start is the reason.
func TestRunFails(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  Config
		is   error
		want string
	}{
		{"room", Config{Node: []string{"/bin/false"}, Size: 1 << 50}, ErrNoRoom, "no room in "},
		{"node", Config{Node: []string{"/bin/sh", "-c", "echo the reason >&2; exit 3"}, Size: 1e5}, nil, "node A ended by itself (exit status 3): the reason"},
		{"command", Config{Node: []string{"/no/such/program"}, Size: 1e5}, os.ErrNotExist, "node A: "},
		{"directory", Config{Node: []string{"/bin/false"}, Size: 1e5, TempDir: "/no/such/dir"}, os.ErrNotExist, "directory for the run"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.cfg.WithoutNix = true; c.cfg.TempDir == "" {
				c.cfg.TempDir = t.TempDir()
			}
			res, err := Run(t.Context(), c.cfg)
			if err == nil || res.OK || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%+v: %v, want %q", res, err, c.want)
			}
			if left, _ := filepath.Glob(filepath.Join(c.cfg.TempDir, "*")); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}
