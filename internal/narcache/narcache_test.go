package narcache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testKey = nixtest.NewKey("key-1")

const mib = 1 << 20

// nar is a NAR in one form, and its proof.
type nar struct {
	info *verify.Info
	form nix.Form
	data []byte // in form
	raw  []byte
}

func rawNAR(t testing.TB, name string, size int) nar {
	p := nixtest.NewPath(name, size)
	return nar{p.Info(t, testKey), nix.Raw, p.NAR, p.NAR}
}

// fileNAR is the NAR of the same name in a stored container.
func fileNAR(t testing.TB, name string, size int, c nix.Compression) nar {
	t.Helper()
	n := rawNAR(t, name, size)
	var file bytes.Buffer
	w, err := compress.NewStored(c, &file, int64(len(n.raw)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(n.raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	n.data = file.Bytes()
	n.form = nix.Form{Compression: c, File: sha256.Sum256(n.data)}
	return n
}

func (n nar) record() record {
	return record{key: key{n.info.NarHash(), n.form}, size: int64(len(n.data))}
}

// file returns where the file of n lies: proven if there is such a file, else not.
func (n nar) file(c *Cache) string {
	r := n.record()
	r.decoded = !n.form.IsRaw()
	if name := filepath.Join(c.cfg.Dir, r.name()); exists(name) {
		return name
	}
	return filepath.Join(c.cfg.Dir, n.record().name())
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// signed returns a narinfo of a NAR with this hash and size.
func signed(t testing.TB, nar nix.NarHash, size int64) *verify.Info {
	t.Helper()
	p := nixtest.NewPath("a", 1)
	n := p.NarInfo()
	n.NarHash, n.NarSize, n.FileHash, n.FileSize = nar, size, nix.FileHash(nar), size
	testKey.Sign(n)
	info, err := nixtest.Keys(t, testKey).OpenNarInfo(n, p.Hash())
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func isInvalid(err error) bool { return source.Invalid(err) != nil }

// open opens cfg; the test need not close it.
func open(t testing.TB, cfg Config) *Cache {
	t.Helper()
	if cfg.Size == 0 {
		cfg.Size = 64 * mib
	}
	c, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func create(t testing.TB, c *Cache, n nar) *Download {
	t.Helper()
	d, err := c.Create(n.info, n.form, int64(len(n.data)))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// put brings n into the cache and gives it its name.
func put(t testing.TB, c *Cache, n nar) {
	t.Helper()
	d := create(t, c, n)
	if _, err := d.Write(n.data); err != nil {
		t.Fatal(err)
	}
	if err := d.Commit(); err != nil {
		t.Fatal(err)
	}
	persistAll(c)
}

// persistAll does what Run does for committed files.
func persistAll(c *Cache) {
	for e := c.nextPending(); e != nil; e = c.nextPending() {
		c.persist(e)
	}
}

// get returns what the cache has of n in the given form from off on, nil when absent.
func get(t testing.TB, c *Cache, n nar, form nix.Form, off int64) []byte {
	t.Helper()
	claim, err := c.NAR(t.Context(), n.info, form, off)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer claim.Body.Close()
	b, err := io.ReadAll(claim.Body)
	if err != nil {
		t.Fatal(err)
	}
	if claim.Size != off+int64(len(b)) {
		t.Fatalf("claims %d bytes, gives %d from %d on", claim.Size, len(b), off)
	}
	return b
}

// have returns how many bytes from the first one on r can read without waiting.
func (r *Reader) have() int64 {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	return r.visibleLocked()
}

func has(c *Cache, n nar) bool {
	return slices.Contains(c.Forms(n.info.NarHash()), n.form)
}

// textLog returns a logger and what it wrote.
func textLog() (*slog.Logger, *bytes.Buffer) {
	var b bytes.Buffer
	return slog.New(slog.NewTextHandler(&b, nil)), &b
}

func value(t testing.TB, m *metrics.Metrics, name string) (sum float64) {
	t.Helper()
	families, err := m.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, s := range f.GetMetric() {
				sum += s.GetCounter().GetValue() + s.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func TestForms(t *testing.T) {
	for _, n := range []nar{
		rawNAR(t, "small", 10), rawNAR(t, "large", 3*mib),
		fileNAR(t, "xz", 2*mib, nix.XZ), fileNAR(t, "zstd", 2*mib, nix.Zstd),
	} {
		t.Run(n.form.String()[:3], func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "made", "by-open")
			c := open(t, Config{Dir: dir})
			if get(t, c, n, n.form, 0) != nil || has(c, n) {
				t.Fatal("has what was never put")
			}
			put(t, c, n)
			check := func(when string) {
				t.Helper()
				for _, off := range []int64{0, 1, int64(len(n.raw)) / 2, int64(len(n.raw))} {
					if got := get(t, c, n, nix.Raw, off); !bytes.Equal(got, n.raw[off:]) {
						t.Fatalf("%s: raw from %d differs", when, off)
					}
					if got := get(t, c, n, n.form, off); !bytes.Equal(got, n.data[off:]) {
						t.Fatalf("%s: from %d differs", when, off)
					}
				}
				if !has(c, n) {
					t.Fatalf("%s: not held", when)
				}
			}
			check("written")
			if other := (nix.Form{Compression: nix.XZ, File: nix.FileHash{1}}); get(t, c, n, other, 0) != nil {
				t.Error("gives a form that it does not have")
			}
			if _, err := c.NAR(t.Context(), n.info, nix.Raw, int64(len(n.raw))+1); err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("from beyond the end: %v", err)
			}
			usage := c.Usage()
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			c = open(t, Config{Dir: dir})
			check("after a restart")
			if c.Usage() != usage {
				t.Errorf("uses %d, before the restart %d", c.Usage(), usage)
			}
			if st, _ := os.Stat(n.file(c)); st.Mode().Perm() != 0o600 {
				t.Errorf("mode %v", st.Mode())
			}
		})
	}
}

// TestServedBeforeNamed reads, from the cache and behind the download, what no disk has
// confirmed.
func TestServedBeforeNamed(t *testing.T) {
	c := open(t, Config{Dir: t.TempDir()})
	n := rawNAR(t, "a", 100)
	d := create(t, c, n)
	_, _ = d.Write(n.data)
	if has(c, n) || get(t, c, n, nix.Raw, 0) != nil {
		t.Fatal("visible before Commit")
	}
	if !slices.Equal(c.Downloads(n.info.NarHash()), []*Download{d}) {
		t.Fatal("not shown as in progress")
	}
	if err := d.Commit(); err != nil {
		t.Fatal(err)
	}
	if len(c.Downloads(n.info.NarHash())) != 0 {
		t.Fatal("shown as in progress after Commit")
	}
	for range 2 {
		late, _ := io.ReadAll(d.ClientReader(0))
		if !bytes.Equal(get(t, c, n, nix.Raw, 0), n.data) || !bytes.Equal(late, n.data) {
			t.Fatal("not readable after Commit")
		}
		persistAll(c) // and after it has its name
	}
	if _, err := os.Stat(n.file(c)); err != nil {
		t.Error(err)
	}
}

// TestCommitDoesNotWait commits 800 files on a disk that never finishes to write one through.
func TestCommitDoesNotWait(t *testing.T) {
	c := open(t, Config{Dir: t.TempDir()})
	stuck := make(chan struct{})
	c.disk.sync = func(*os.File) error { <-stuck; return nil }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	proto := rawNAR(t, "a", 100)
	for i := range 800 {
		d, err := c.Create(signed(t, nix.NarHash{byte(i), byte(i >> 8)}, int64(len(proto.data))), nix.Raw, int64(len(proto.data)))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = d.Write(proto.data)
		if err := d.Commit(); err != nil {
			t.Fatal(err)
		}
		r := d.ClientReader(0)
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, proto.data) {
			t.Fatalf("%d: %v", i, err)
		}
		_ = r.Close()
	}
	close(stuck)
	cancel()
	<-done
	_ = c.Close()
	c = open(t, Config{Dir: c.cfg.Dir})
	if n := len(c.Entries()); n != 800 {
		t.Errorf("%d entries after a restart", n)
	}
}

func TestIncompleteCommit(t *testing.T) {
	c := open(t, Config{Dir: t.TempDir()})
	n := rawNAR(t, "a", 100)
	d := create(t, c, n)
	_, _ = d.Write(n.data[:50])
	if err := d.Commit(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("commit of half: %v", err)
	}
	d = create(t, c, n)
	_, _ = d.Write(n.data[:50])
	if _, err := d.Write(n.data); err == nil {
		t.Error("writes beyond the size")
	}
	d.Abort(nil)
	if err := d.Commit(); err == nil {
		t.Error("commit after Abort")
	}
	if has(c, n) || c.Usage() != 0 {
		t.Errorf("has %v, uses %d", has(c, n), c.Usage())
	}
}

func TestOneDownloadAForm(t *testing.T) {
	c := open(t, Config{Dir: t.TempDir()})
	n := rawNAR(t, "a", 100)
	d := create(t, c, n)
	size := int64(len(n.data))
	if _, err := c.Create(n.info, n.form, size); !errors.Is(err, errExists) {
		t.Errorf("while in progress: %v", err)
	}
	_, _ = d.Write(n.data)
	_ = d.Commit()
	if _, err := c.Create(n.info, n.form, size); !errors.Is(err, errExists) {
		t.Errorf("when there: %v", err)
	}
	d, err := c.Create(n.info, nix.Form{Compression: nix.XZ, File: nix.FileHash{1}}, 100)
	if err != nil {
		t.Fatalf("another form: %v", err)
	}
	d.Abort(nil)
}

func TestSecondProcess(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Config{Dir: dir})
	if _, err := Open(Config{Dir: dir, Size: mib}); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("second: %v", err)
	}
	if _, err := GC(dir, -1, nil); !errors.Is(err, ErrLocked) {
		t.Fatalf("gc beside the daemon: %v", err)
	}
	_ = c.Close()
	open(t, Config{Dir: dir})
}

// TestStart finds all that a crash, a bad disk or somebody else may leave.
func TestStart(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Config{Dir: dir})
	good, cut, long := rawNAR(t, "good", 10_000), rawNAR(t, "cut", 10_000), rawNAR(t, "long", 10_000)
	for _, n := range []nar{good, cut, long} {
		put(t, c, n)
	}
	_ = c.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Truncate(cut.file(c), 9_000))
	must(os.Truncate(long.file(c), 20_000))
	must(os.WriteFile(filepath.Join(dir, tmpDir, "17"), []byte("left over"), 0o600))
	foreign := filepath.Join(filepath.Dir(good.file(c)), "notes.txt")
	must(os.WriteFile(foreign, []byte("mine"), 0o600))
	wrongPlace := filepath.Join(dir, tmpDir, filepath.Base(good.file(c)))
	must(os.WriteFile(wrongPlace, good.data, 0o600))

	log, text := textLog()
	c = open(t, Config{Dir: dir, Log: log})
	if !has(c, good) || has(c, cut) || has(c, long) {
		t.Errorf("has good %v, cut %v, long %v", has(c, good), has(c, cut), has(c, long))
	}
	if c.Usage() != cost(int64(len(good.data))) {
		t.Errorf("uses %d", c.Usage())
	}
	for _, gone := range []string{cut.file(c), long.file(c), filepath.Join(dir, tmpDir, "17"), wrongPlace} {
		if _, err := os.Stat(gone); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", gone, err)
		}
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Error("removed a file that is not ours")
	}
	if n := strings.Count(text.String(), "level=WARN"); n != 3 {
		t.Errorf("%d warnings: %s", n, text)
	}
}

// TestHashedBeforeOffered changes bytes while the cache is closed.
func TestHashedBeforeOffered(t *testing.T) {
	for _, n := range []nar{rawNAR(t, "raw", 100_000), fileNAR(t, "file", 100_000, nix.XZ)} {
		t.Run(n.form.String()[:3], func(t *testing.T) {
			dir := t.TempDir()
			c := open(t, Config{Dir: dir})
			put(t, c, n)
			_ = c.Close()
			b := bytes.Clone(n.data)
			b[50_000] ^= 1
			if err := os.WriteFile(n.file(c), b, 0o600); err != nil {
				t.Fatal(err)
			}
			log, text := textLog()
			m := metrics.New()
			c = open(t, Config{Dir: dir, Log: log, Metrics: m})
			done := make(chan []byte)
			for range 4 {
				go func() {
					claim, err := c.NAR(context.Background(), n.info, nix.Raw, 0)
					if err == nil {
						b, _ := io.ReadAll(claim.Body)
						_ = claim.Body.Close()
						done <- b
						return
					}
					done <- nil
				}()
			}
			for range 4 {
				if b := <-done; b != nil {
					t.Error("offered wrong bytes")
				}
			}
			if has(c, n) || c.Usage() != 0 {
				t.Error("kept")
			}
			if _, err := os.Stat(n.file(c)); !errors.Is(err, fs.ErrNotExist) {
				t.Error("its file is still there")
			}
			if v := value(t, m, "nixp2p_verify_failures_total"); v != 1 {
				t.Errorf("counted %v times", v)
			}
			if n := strings.Count(text.String(), "level=WARN"); n != 1 {
				t.Errorf("%d warnings: %s", n, text)
			}
			put(t, c, n)
			if !bytes.Equal(get(t, c, n, nix.Raw, 0), n.raw) {
				t.Error("does not come back")
			}
		})
	}
}

// TestProveCancelled has a caller leave while the file is hashed: the next one does it.
func TestProveCancelled(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Config{Dir: dir})
	n := rawNAR(t, "a", mib)
	put(t, c, n)
	_ = c.Close()
	c = open(t, Config{Dir: dir})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.NAR(ctx, n.info, nix.Raw, 0); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
	if !bytes.Equal(get(t, c, n, nix.Raw, 0), n.raw) {
		t.Error("lost")
	}
}

func TestInvalid(t *testing.T) {
	m := metrics.New()
	c := open(t, Config{Dir: t.TempDir(), Metrics: m})
	wrong := &verify.InvalidError{Reason: verify.ReasonHash, Err: errors.New("wrong")}
	raw, file, other := rawNAR(t, "a", 100), fileNAR(t, "a", 100, nix.XZ), rawNAR(t, "b", 100)
	put(t, c, raw)
	put(t, c, file)
	put(t, c, other)
	c.Invalid(raw.info, nix.Raw, wrong)
	if has(c, raw) || !has(c, file) || !has(c, other) {
		t.Error("raw: the wrong one went")
	}
	c.Invalid(raw.info, nix.Raw, wrong) // which was decoded from the file
	if has(c, file) || !has(c, other) {
		t.Error("decoded: the wrong one went")
	}
	c.Invalid(other.info, nix.Raw, nil)
	if has(c, other) || c.Usage() != 0 {
		t.Error("without blame: did not go")
	}
	if v := value(t, m, "nixp2p_verify_failures_total"); v != 2 {
		t.Errorf("counted %v", v)
	}
}

// TestUndecodable has a file whose hash is right and that is no xz.
func TestUndecodable(t *testing.T) {
	m := metrics.New()
	c := open(t, Config{Dir: t.TempDir(), Metrics: m})
	n := rawNAR(t, "a", 100_000)
	n.form = nix.Form{Compression: nix.XZ, File: sha256.Sum256(n.data)}
	put(t, c, n)
	claim, err := c.NAR(t.Context(), n.info, nix.Raw, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.ReadAll(claim.Body)
	_ = claim.Body.Close()
	if !isInvalid(err) || has(c, n) || value(t, m, "nixp2p_verify_failures_total") != 1 {
		t.Errorf("%v, has %v", err, has(c, n))
	}
	put(t, c, n)
	if _, err := c.NAR(t.Context(), n.info, nix.Raw, 5000); !isInvalid(err) || has(c, n) {
		t.Errorf("from 5000 on: %v", err)
	}
}

// TestDropDuplicates drops what the store has too, ten minutes after its last use.
func TestDropDuplicates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stored, private, streamed := rawNAR(t, "stored", 100), rawNAR(t, "private", 100), rawNAR(t, "streamed", 100)
		c := open(t, Config{Dir: t.TempDir(), InStore: func(h nix.NarHash) bool { return h != private.info.NarHash() }})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		for _, n := range []nar{stored, private, streamed} {
			put(t, c, n)
		}
		claim, err := c.NAR(t.Context(), streamed.info, nix.Raw, 0)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		_ = get(t, c, stored, nix.Raw, 0)
		time.Sleep(9 * time.Minute)
		if !has(c, stored) {
			t.Error("dropped within ten minutes of its last use")
		}
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if has(c, stored) || !has(c, private) || !has(c, streamed) {
			t.Errorf("has stored %v, private %v, streamed %v", has(c, stored), has(c, private), has(c, streamed))
		}
		b, err := io.ReadAll(claim.Body)
		if err != nil || !bytes.Equal(b, streamed.raw) {
			t.Error("stream broke")
		}
		_ = claim.Body.Close()
		time.Sleep(12 * time.Minute)
		synctest.Wait()
		if has(c, streamed) {
			t.Error("kept after its stream")
		}
		cancel()
		<-done
	})
}

func TestGC(t *testing.T) {
	dir := t.TempDir()
	if _, err := GC(filepath.Join(dir, "none"), -1, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	c := open(t, Config{Dir: dir})
	for i := range 10 {
		n := rawNAR(t, fmt.Sprint(i), 10_000)
		put(t, c, n)
		if err := os.Chtimes(n.file(c), time.Time{}, time.Unix(int64(1000*i), 0)); err != nil {
			t.Fatal(err)
		}
	}
	_ = c.Close()
	r, err := GC(dir, -1, nil)
	if err != nil || len(r.Kept) != 10 || len(r.Removed) != 0 || r.BytesAfter != r.BytesBefore || r.BytesBefore != 10*cost(10_120) {
		t.Fatalf("list: %+v, %v", r, err)
	}
	r, err = GC(dir, r.BytesBefore/2, nil)
	if err != nil || len(r.Kept) != 5 || len(r.Removed) != 5 || r.BytesAfter != r.BytesBefore/2 {
		t.Fatalf("trim: %+v, %v", r, err)
	}
	for i, item := range append(r.Removed, r.Kept...) {
		want := nix.NarHash(nixtest.NewPath(fmt.Sprint(i), 10_000).NarHash()).String()
		if item.NarHash != want || !item.LastUse.Equal(time.Unix(int64(1000*i), 0)) || item.Form != "raw" {
			t.Errorf("%d: %+v", i, item)
		}
	}
}

// TestDiskFails makes the disk fail at each step: the error says so, and after a while the cache
// works again.
func TestDiskFails(t *testing.T) {
	for _, test := range []struct {
		name string
		fail func(c *Cache, n nar) error
	}{
		{"create", func(c *Cache, n nar) error {
			c.disk.allocate = func(*os.File, int64) error { return syscall.ENOSPC }
			_, err := c.Create(n.info, n.form, int64(len(n.data)))
			return err
		}},
		{"write", func(c *Cache, n nar) error {
			d, err := c.Create(n.info, n.form, int64(len(n.data)))
			if err != nil {
				return err
			}
			follower := d.ClientReader(0)
			defer follower.Close()
			_ = d.file.Close() // what the next write meets is as bad as EIO
			_, err = d.Write(n.data)
			if _, e := follower.Read(make([]byte, 10)); !errors.Is(e, ErrDegraded) {
				return fmt.Errorf("the follower got %w", e)
			}
			d.Abort(errors.New("again"))
			return err
		}},
		{"write through", func(c *Cache, n nar) error {
			c.disk.sync = func(*os.File) error { return syscall.EIO }
			d, err := c.Create(n.info, n.form, int64(len(n.data)))
			if err != nil {
				return err
			}
			_, _ = d.Write(n.data)
			if err := d.Commit(); err != nil {
				return err
			}
			follower := d.ClientReader(0)
			defer follower.Close()
			persistAll(c)
			if b, err := io.ReadAll(follower); err != nil || !bytes.Equal(b, n.data) {
				return fmt.Errorf("the follower got %d bytes, %w", len(b), err)
			}
			_, err = c.Create(signed(t, nix.NarHash{1}, 10), nix.Raw, 10)
			return err
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, text := textLog()
				m := metrics.New()
				c := open(t, Config{Dir: t.TempDir(), Log: log, Metrics: m})
				n := rawNAR(t, "a", 100_000)
				for range 3 {
					if err := test.fail(c, n); !errors.Is(err, ErrDegraded) {
						t.Fatalf("says %v", err)
					}
					if has(c, n) || c.Usage() != 0 {
						t.Fatalf("has %v, uses %d", has(c, n), c.Usage())
					}
					if v := value(t, m, "nixp2p_cache_degraded"); v != 1 {
						t.Fatalf("degraded %v", v)
					}
					if _, err := c.Create(signed(t, nix.NarHash{1}, 10), nix.Raw, 10); !errors.Is(err, ErrDegraded) {
						t.Fatalf("a moment later: %v", err)
					}
					time.Sleep(degradedFor + time.Second)
				}
				if n := strings.Count(text.String(), "level=WARN"); n != 1 {
					t.Errorf("%d warnings: %s", n, text)
				}
				c.disk = device{allocate, (*os.File).Sync}
				put(t, c, n)
				if v := value(t, m, "nixp2p_cache_degraded"); v != 0 || !has(c, n) {
					t.Errorf("well again: degraded %v, has %v", v, has(c, n))
				}
			})
		})
	}
}

func TestZeroSize(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Config{Dir: dir})
	put(t, c, rawNAR(t, "a", 100))
	_ = c.Close()
	c, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Create(signed(t, nix.NarHash{1}, 1), nix.Raw, 1); !errors.Is(err, ErrDoesNotFit) {
		t.Errorf("takes something: %v", err)
	}
	if c.Usage() != 0 || len(c.Entries()) != 0 {
		t.Errorf("uses %d", c.Usage())
	}
}

func TestCloseEndsDownloads(t *testing.T) {
	c := open(t, Config{Dir: t.TempDir()})
	d := create(t, c, rawNAR(t, "a", 100))
	r := d.ClientReader(0)
	got := make(chan error)
	go func() {
		_, err := r.Read(make([]byte, 1))
		got <- err
	}()
	_ = c.Close()
	if err := <-got; !errors.Is(err, errClosed) {
		t.Errorf("the follower got %v", err)
	}
	_ = r.Close()
	if err := d.Commit(); err == nil {
		t.Error("commit after Close")
	}
	if _, err := c.Create(signed(t, nix.NarHash{1}, 1), nix.Raw, 1); !errors.Is(err, errClosed) {
		t.Errorf("create after Close: %v", err)
	}
}
