package narcache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
)

// poisoned is a file whose FileHash is right and that holds another NAR than the narinfo that
// names it: what a lying HTTP cache sends.
func poisoned(t testing.TB, name string, size int, c nix.Compression) nar {
	t.Helper()
	n, other := rawNAR(t, name, size), nixtest.NewPath(name+"-other", size)
	n.data = nixtest.Compress(t, c, other.NAR).Bytes
	n.form = nix.Form{Compression: c, File: sha256.Sum256(n.data)}
	return n
}

// TestPoisonedFile: a file that does not hold the NAR is given to nobody after its download, not
// to a second client, not to a peer, not after a restart; and the one who asks learns of it.
func TestPoisonedFile(t *testing.T) {
	for _, compression := range []nix.Compression{nix.XZ, nix.Zstd} {
		ask := map[string]func(c *Cache, n nar) error{
			"file": func(c *Cache, n nar) error { _, err := c.NAR(t.Context(), n.info, n.form, 0); return err },
			"file from the middle": func(c *Cache, n nar) error {
				_, err := c.NAR(t.Context(), n.info, n.form, int64(len(n.data))-1)
				return err
			},
			"prove": func(c *Cache, n nar) error { return c.Prove(t.Context(), n.info, n.form) },
		}
		for name, ask := range ask {
			for _, restart := range []bool{false, true} {
				t.Run(fmt.Sprint(compression, " ", name, " restarted ", restart), func(t *testing.T) {
					dir, m := t.TempDir(), metrics.New()
					var events []source.Event
					cfg := Config{Dir: dir, Metrics: m, Events: func(e source.Event) { events = append(events, e) }}
					c := open(t, cfg)
					n := poisoned(t, "a", 300_000, compression)
					put(t, c, n)
					if c.Proven(n.info.NarHash(), n.form) {
						t.Error("proven by its download")
					}
					if restart {
						_ = c.Close()
						c = open(t, cfg)
					}
					if err := ask(c, n); !isInvalid(err) || errors.Is(err, fs.ErrNotExist) {
						t.Errorf("got %v", err)
					}
					if has(c, n) || c.Usage() != 0 || exists(n.file(c)) {
						t.Error("kept")
					}
					if len(events) != 1 || events[0].Kind != source.WrongFile || events[0].StorePath != n.info.StorePath().String() {
						t.Errorf("events %v", events)
					}
					if v := value(t, m, "nixp2p_verify_failures_total"); v != 1 {
						t.Errorf("counted %v times", v)
					}
					if err := ask(c, n); !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("the next one got %v", err)
					}
				})
			}
		}
	}
}

// TestPoisonedRaw: raw that is decoded from a poisoned file is for its reader to check; when it
// reports it, the file goes.
func TestPoisonedRaw(t *testing.T) {
	c := open(t, Config{Dir: t.TempDir()})
	n := poisoned(t, "a", 300_000, nix.Zstd)
	put(t, c, n)
	if b := get(t, c, n, nix.Raw, 0); bytes.Equal(b, n.raw) {
		t.Fatal("not poisoned")
	}
	c.Invalid(n.info, nix.Raw, errors.New("wrong"))
	if has(c, n) {
		t.Error("kept")
	}
}

// TestPoisonedPeerReader: another machine that follows while the file comes, or has just come,
// sees it as it is (and checks FileHash); later none begins to read it.
func TestPoisonedPeerReader(t *testing.T) {
	c := open(t, Config{Dir: t.TempDir()})
	n := poisoned(t, "a", 3*mib, nix.Zstd)
	d := create(t, c, n)
	if _, err := d.Write(n.data); err != nil {
		t.Fatal(err)
	}
	during := d.PeerReader(0)
	defer during.Close()
	if d.Readable() != int64(len(n.data))-peerTail || during.have() != d.Readable() {
		t.Errorf("readable %d, %d", d.Readable(), during.have())
	}
	if err := d.Commit(); err != nil {
		t.Fatal(err)
	}
	if got := c.Downloads(n.info.NarHash()); len(got) != 1 || got[0] != d {
		t.Errorf("a moment after its end: %v", got)
	}
	c.mu.Lock()
	d.entry.ended = d.entry.ended.Add(-peersFollow - time.Second)
	c.mu.Unlock()
	if got := c.Downloads(n.info.NarHash()); len(got) != 0 {
		t.Errorf("later: %v", got)
	}
	late := d.PeerReader(0)
	if _, err := late.Read(make([]byte, 1)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("afterwards: %v", err)
	}
	_ = late.Close()
	own := d.ClientReader(0) // it came for the download
	if b, err := io.ReadAll(own); err != nil || !bytes.Equal(b, n.data) {
		t.Errorf("a client: %v", err)
	}
	_ = own.Close()
	good := fileNAR(t, "b", 100_000, nix.Zstd)
	d = create(t, c, good)
	_, _ = d.Write(good.data)
	_ = d.Commit()
	if err := c.Prove(t.Context(), good.info, good.form); err != nil {
		t.Fatal(err)
	}
	late = d.PeerReader(0)
	defer late.Close()
	if b, err := io.ReadAll(late); err != nil || !bytes.Equal(b, good.data) {
		t.Errorf("proven: %v", err)
	}
}

// TestProvenStays: a file is decoded once; that it was is known after a restart, whether it was
// proven before or after it got its name.
func TestProvenStays(t *testing.T) {
	for _, early := range []bool{true, false} {
		dir := t.TempDir()
		c := open(t, Config{Dir: dir})
		n := fileNAR(t, "a", 300_000, nix.XZ)
		d := create(t, c, n)
		_, _ = d.Write(n.data)
		_ = d.Commit()
		if !early {
			persistAll(c)
		}
		if c.Proven(n.info.NarHash(), n.form) {
			t.Error("proven by its download")
		}
		if err := c.Prove(t.Context(), n.info, n.form); err != nil || !c.Proven(n.info.NarHash(), n.form) {
			t.Fatal(err)
		}
		if !bytes.Equal(get(t, c, n, n.form, 0), n.data) {
			t.Error("not served")
		}
		_ = c.Close()
		if !strings.HasSuffix(n.file(c), "-ok.nar.xz") {
			t.Errorf("named %s", n.file(c))
		}
		c = open(t, Config{Dir: dir})
		if c.Proven(n.info.NarHash(), n.form) {
			t.Error("proven after a restart without being read")
		}
		// With another NAR it cannot have been decoded again.
		if err := c.Prove(t.Context(), rawNAR(t, "a", 300_000).info, n.form); err != nil || !c.Proven(n.info.NarHash(), n.form) {
			t.Error(err)
		}
		_ = c.Close()
	}
}

// TestProveBounded: only so many files are decoded at once; others wait, and may leave.
func TestProveBounded(t *testing.T) {
	c := open(t, Config{Dir: t.TempDir()})
	n := fileNAR(t, "a", 300_000, nix.XZ)
	put(t, c, n)
	for range cap(c.decodes) {
		c.decodes <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() { left <- c.Prove(ctx, n.info, n.form) }()
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) || c.Proven(n.info.NarHash(), n.form) || !has(c, n) {
		t.Errorf("%v, proven %v", err, c.Proven(n.info.NarHash(), n.form))
	}
	go func() { left <- c.Prove(t.Context(), n.info, n.form) }()
	<-c.decodes
	if err := <-left; err != nil || !c.Proven(n.info.NarHash(), n.form) {
		t.Error(err)
	}
}

// TestProveShared: many ask at once, and one is cancelled.
func TestProveShared(t *testing.T) {
	for name, n := range map[string]nar{"good": fileNAR(t, "a", 3*mib, nix.Zstd), "poisoned": poisoned(t, "b", 3*mib, nix.Zstd)} {
		t.Run(name, func(t *testing.T) {
			m := metrics.New()
			c := open(t, Config{Dir: t.TempDir(), Metrics: m})
			put(t, c, n)
			gone, cancel := context.WithCancel(t.Context())
			cancel()
			if err := c.Prove(gone, n.info, n.form); !errors.Is(err, context.Canceled) || !has(c, n) {
				t.Errorf("cancelled: %v, has %v", err, has(c, n))
			}
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					if i%3 == 0 {
						go cancel()
					}
					err := c.Prove(ctx, n.info, n.form)
					switch {
					case errors.Is(err, context.Canceled):
					case name == "good" && err != nil, name == "poisoned" && !isInvalid(err) && !errors.Is(err, fs.ErrNotExist):
						t.Errorf("%d: %v", i, err)
					}
				})
			}
			wg.Wait()
			if name == "poisoned" {
				if v := value(t, m, "nixp2p_verify_failures_total"); v != 1 || has(c, n) {
					t.Errorf("counted %v times, has %v", v, has(c, n))
				}
			}
		})
	}
}

// TestBomb: a file that decodes to more than the NAR is found wrong at that byte.
func TestBomb(t *testing.T) {
	c := open(t, Config{Dir: t.TempDir()})
	n := rawNAR(t, "a", 100)
	n.data = nixtest.Compress(t, nix.Zstd, make([]byte, 64*mib)).Bytes
	n.form = nix.Form{Compression: nix.Zstd, File: sha256.Sum256(n.data)}
	put(t, c, n)
	if err := c.Prove(t.Context(), n.info, n.form); !isInvalid(err) || has(c, n) {
		t.Errorf("%v, has %v", err, has(c, n))
	}
}

// TestCreateBoundsSizes: no size that somebody names empties the cache for a small NAR.
func TestCreateBoundsSizes(t *testing.T) {
	c := open(t, Config{Dir: t.TempDir(), Size: 4 * mib})
	kept, n := rawNAR(t, "kept", 100_000), rawNAR(t, "a", 50_000)
	put(t, c, kept)
	file := nix.Form{Compression: nix.Zstd, File: nix.FileHash{1}}
	size := int64(len(n.raw))
	for _, test := range []struct {
		form nix.Form
		size int64
		ok   bool
	}{
		{nix.Raw, size - 1, false},
		{nix.Raw, size + 1, false},
		{nix.Raw, size, true},
		{file, 0, false},
		{file, -1, false},
		{file, 3_900_000, false},
		{file, 1 << 62, false},
		{file, size + containerRoom(size) + 1, false},
		{file, size + containerRoom(size), true},
		{file, 1, true},
	} {
		d, err := c.Create(n.info, test.form, test.size)
		if (err == nil) != test.ok {
			t.Errorf("%s of %d bytes: %v", test.form, test.size, err)
		}
		if err == nil {
			if d.Form() != test.form || d.Size() != test.size {
				t.Errorf("says %s, %d bytes", d.Form(), d.Size())
			}
			d.Abort(nil)
		}
	}
	if !has(c, kept) {
		t.Error("emptied")
	}
	// The containers that we write ourselves are as large as any.
	for _, compression := range []nix.Compression{nix.XZ, nix.Zstd} {
		for _, size := range []int{1, 1000, 3 * mib} {
			f := fileNAR(t, "f", size, compression)
			d, err := open(t, Config{Dir: t.TempDir()}).Create(f.info, f.form, int64(len(f.data)))
			if err != nil {
				t.Fatal(err)
			}
			d.Abort(nil)
		}
	}
}

func TestDownloads(t *testing.T) {
	c := open(t, Config{Dir: t.TempDir()})
	raw, xz, other := rawNAR(t, "a", 5000), fileNAR(t, "a", 5000, nix.XZ), rawNAR(t, "b", 10)
	if got := c.Downloads(raw.info.NarHash()); len(got) != 0 {
		t.Errorf("%d downloads", len(got))
	}
	a, b, o := create(t, c, xz), create(t, c, raw), create(t, c, other)
	if got := c.Downloads(raw.info.NarHash()); len(got) != 2 || got[0] != b || got[1] != a {
		t.Errorf("downloads %v", got)
	}
	for _, d := range []*Download{a, b, o} {
		d.Abort(nil)
	}
}

// TestFilesChanged flips, swaps, links, grows, cuts and zeroes files of the cache between starts
// and while it runs. No whole answer is wrong, and no link leads out of the directory.
func TestFilesChanged(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	kinds := map[string]func(t *testing.T, file, other string){
		"flip": func(t *testing.T, file, _ string) {
			b := must(os.ReadFile(file))(t)
			b[len(b)/2] ^= 1
			try(t, os.WriteFile(file, b, 0o600))
		},
		"swap": func(t *testing.T, file, other string) {
			try(t, os.WriteFile(file, must(os.ReadFile(other))(t), 0o600))
		},
		"link out": func(t *testing.T, file, _ string) {
			try(t, os.WriteFile(outside, must(os.ReadFile(file))(t), 0o600))
			try(t, os.Remove(file))
			try(t, os.Symlink(outside, file))
		},
		"link to another": func(t *testing.T, file, other string) {
			try(t, os.Remove(file))
			try(t, os.Symlink(other, file))
		},
		"grow": func(t *testing.T, file, _ string) {
			try(t, os.WriteFile(file, append(must(os.ReadFile(file))(t), 'x'), 0o600))
		},
		"cut": func(t *testing.T, file, _ string) { try(t, os.Truncate(file, 1000)) },
		"zero": func(t *testing.T, file, _ string) {
			try(t, os.WriteFile(file, make([]byte, len(must(os.ReadFile(file))(t))), 0o600))
		},
		"gone": func(t *testing.T, file, _ string) { try(t, os.Remove(file)) },
	}
	for kind, harm := range kinds {
		for _, form := range []string{"raw", "xz"} {
			for _, running := range []bool{false, true} {
				t.Run(fmt.Sprint(kind, " ", form, " running ", running), func(t *testing.T) {
					dir := t.TempDir()
					c := open(t, Config{Dir: dir})
					n, other := rawNAR(t, "a", 200_000), rawNAR(t, "b", 200_000)
					if form == "xz" {
						n, other = fileNAR(t, "a", 200_000, nix.XZ), fileNAR(t, "b", 200_000, nix.XZ)
					}
					for _, n := range []nar{n, other} {
						put(t, c, n)
						try(t, c.Prove(t.Context(), n.info, n.form))
					}
					file, otherFile := n.file(c), other.file(c)
					if !running {
						_ = c.Close()
					}
					harm(t, file, otherFile)
					if !running {
						c = open(t, Config{Dir: dir})
					}
					for range 2 {
						wantAbsentOrRight(t, c, n, running)
					}
					if _, err := os.Stat(outside); kind == "link out" && err != nil {
						t.Error("the target of the link was removed")
					}
				})
			}
		}
	}
}

// wantAbsentOrRight reads n and reports it as its readers do.
func wantAbsentOrRight(t *testing.T, c *Cache, n nar, running bool) {
	t.Helper()
	u, err := c.NAR(t.Context(), n.info, n.form, 0)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("got %v", err)
		}
		return
	}
	b, err := io.ReadAll(u.Body)
	_ = u.Body.Close()
	if err != nil || bytes.Equal(b, n.data) {
		return
	}
	if !running { // else every NAR that leaves is hashed by its reader
		t.Errorf("%d wrong bytes", len(b))
	}
	c.Invalid(n.info, n.form, errors.New("wrong"))
	if has(c, n) {
		t.Error("kept although it was reported")
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		try(t, err)
		return v
	}
}

func try(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestLinksLeadNowhere: `nixp2p gc` runs as root in a directory of the service, which may have put
// links in the place of anything. Nothing outside is created, emptied or removed.
func TestLinksLeadNowhere(t *testing.T) {
	n := rawNAR(t, "a", 10_000)
	for name, put := range map[string]func(dir, outside string) error{
		"lock": func(dir, outside string) error {
			return os.Symlink(filepath.Join(outside, "new"), filepath.Join(dir, "lock"))
		},
		"lock to a file": func(dir, outside string) error {
			return os.Symlink(filepath.Join(outside, "mine"), filepath.Join(dir, "lock"))
		},
		"tmp": func(dir, outside string) error { return os.Symlink(outside, filepath.Join(dir, tmpDir)) },
		"shard": func(dir, outside string) error {
			return os.Symlink(outside, filepath.Join(dir, shard(n.info.NarHash())))
		},
		"file": func(dir, outside string) error {
			s := filepath.Join(dir, shard(n.info.NarHash()))
			return errors.Join(os.Mkdir(s, 0o700), os.Symlink(filepath.Join(outside, "mine"), filepath.Join(dir, n.record().name())))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, outside := t.TempDir(), t.TempDir()
			names := []string{"mine", filepath.Base(n.record().name())}
			for _, name := range names {
				try(t, os.WriteFile(filepath.Join(outside, name), n.data, 0o600))
			}
			try(t, put(dir, outside))
			_, err := GC(dir, 0, nil)
			if strings.HasPrefix(name, "lock") != (err != nil) {
				t.Errorf("gc: %v", err)
			}
			entries, _ := os.ReadDir(outside)
			if len(entries) != len(names) {
				t.Errorf("outside: %v", entries)
			}
			for _, name := range names {
				if b, _ := os.ReadFile(filepath.Join(outside, name)); !bytes.Equal(b, n.data) {
					t.Errorf("%s was changed", name)
				}
			}
		})
	}
}

// TestEventsMayAsk: what receives events may ask the cache.
func TestEventsMayAsk(t *testing.T) {
	var c *Cache
	asked := 0
	cfg := Config{Dir: t.TempDir(), Events: func(source.Event) {
		asked++
		_, _ = c.Usage(), c.Entries()
	}}
	c = open(t, cfg)
	n := poisoned(t, "a", 1000, nix.XZ)
	put(t, c, n)
	_ = c.Prove(t.Context(), n.info, n.form)
	_ = c.health.failed("write", errors.New("EIO"))
	if asked != 2 {
		t.Errorf("%d events", asked)
	}
}

// TestOpenDuringRename: a file that is opened between its renaming on disk and in memory is
// found, and not taken for damaged.
func TestOpenDuringRename(t *testing.T) {
	c := open(t, Config{Dir: t.TempDir()})
	n := fileNAR(t, "a", 10_000, nix.Zstd)
	put(t, c, n)
	persistAll(c)
	c.mu.Lock()
	e := c.state.find(key{n.info.NarHash(), n.form})
	from, refs := e.file, e.refs
	c.mu.Unlock()
	to := from + ".renamed"
	c.naming.Lock()
	try(t, c.place.Load().Rename(from, to))
	opened := make(chan error)
	go func() {
		f, err := c.openEntry(e)
		if err == nil {
			_ = f.Close()
			c.release(e)
		}
		opened <- err
	}()
	for began := false; !began; runtime.Gosched() {
		c.mu.Lock()
		began = e.refs > refs || e.gone
		c.mu.Unlock()
	}
	select {
	case err := <-opened:
		t.Fatalf("opened during the renaming: %v", err)
	default:
	}
	c.mu.Lock()
	e.file = to
	c.mu.Unlock()
	c.naming.Unlock()
	if err := <-opened; err != nil {
		t.Error(err)
	}
	if !has(c, n) {
		t.Error("the file was dropped")
	}
}
