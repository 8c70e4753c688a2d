package narcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// du returns the bytes that dir takes on disk, as du(1) counts.
func du(t testing.TB, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return ignoreGone(err)
		}
		st, err := d.Info()
		if err != nil {
			return ignoreGone(err)
		}
		n += st.Sys().(*syscall.Stat_t).Blocks * 512
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func TestEvictsLeastRecentlyUsed(t *testing.T) {
	var all []nar
	for i := range 5 {
		all = append(all, rawNAR(t, fmt.Sprint(i), mib))
	}
	c := open(t, Config{Dir: t.TempDir(), Size: 4*cost(int64(len(all[0].data))) + dirBytes})
	for _, n := range all[:4] {
		put(t, c, n)
	}
	_ = get(t, c, all[0], nix.Raw, 0)
	put(t, c, all[4])
	for i, want := range []bool{true, false, true, true, true} {
		if has(c, all[i]) != want {
			t.Errorf("%d: has %v", i, !want)
		}
	}
}

// TestScan streams twenty times the cache through it: what is used again and again stays.
func TestScan(t *testing.T) {
	var hot []nar
	for i := range 5 {
		hot = append(hot, rawNAR(t, fmt.Sprint("hot", i), 10_000))
	}
	c := open(t, Config{Dir: t.TempDir(), Size: 20*cost(int64(len(hot[0].data))) + dirBytes})
	c.disk.sync = func(*os.File) error { return nil } // no power is cut here
	for _, n := range hot {
		put(t, c, n)
		for range 3 {
			_ = get(t, c, n, nix.Raw, 0)
		}
	}
	for i := range 400 {
		n := rawNAR(t, fmt.Sprint("scan", i), 10_000)
		put(t, c, n)
		_ = get(t, c, n, nix.Raw, 0)
	}
	for i, n := range hot {
		if !has(c, n) {
			t.Errorf("hot %d was flushed", i)
		}
	}
	if n := len(c.Entries()); n != 20 {
		t.Errorf("%d entries", n)
	}
	// But what was hot does not stay for ever when others are used again and again.
	for i := range 40 {
		n := rawNAR(t, fmt.Sprint("new", i), 10_000)
		put(t, c, n)
		for range 3 {
			_ = get(t, c, n, nix.Raw, 0)
		}
	}
	for i, n := range hot {
		if has(c, n) {
			t.Errorf("hot %d stays for ever", i)
		}
	}
}

// TestTooLarge evicts nobody for what cannot fit anyway.
func TestTooLarge(t *testing.T) {
	c := open(t, Config{Dir: t.TempDir(), Size: 4*mib + dirBytes})
	small := rawNAR(t, "small", 10)
	put(t, c, small)
	busy := create(t, c, rawNAR(t, "busy", 2*mib))
	for _, size := range []int64{1 << 62, 5 * mib, 3 * mib} {
		if _, err := c.Create(signed(t, nix.NarHash{1}, max(size, 1)), nix.Raw, max(size, 1)); !errors.Is(err, ErrDoesNotFit) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	if !has(c, small) {
		t.Error("evicted in vain")
	}
	busy.Abort(nil)
}

// TestBoundAlways has many goroutines fill, follow, read, abort and blame while the disk is
// measured.
func TestBoundAlways(t *testing.T) {
	const size = 6*mib + dirBytes
	dir := t.TempDir()
	// Walking a directory while files move counts some twice; a file system of its own knows
	// at each moment, and counts what is removed but still open.
	onDisk := func() int64 { return 0 }
	if mountTmpfs(t, dir, "64m") == nil {
		onDisk = func() int64 {
			var st syscall.Statfs_t
			if err := syscall.Statfs(dir, &st); err != nil {
				t.Error(err)
			}
			return int64(st.Blocks-st.Bfree) * st.Bsize
		}
	} else {
		t.Log("without the right to mount only the count is watched")
	}
	c := open(t, Config{Dir: dir, Size: size})
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error)
	go func() { ran <- c.Run(ctx) }()
	var nars []nar
	for i := range 40 {
		nars = append(nars, rawNAR(t, fmt.Sprint(i), 1000+i*i*1000))
	}
	measured := make(chan struct{})
	var samples atomic.Int64
	go func() {
		defer close(measured)
		for ctx.Err() == nil {
			if n := onDisk(); n > size {
				t.Errorf("%d bytes on disk, bound %d", n, size)
			}
			if n := c.Usage(); n > size-dirBytes {
				t.Errorf("counts %d bytes, bound %d", n, size)
			}
			samples.Add(1)
		}
	}()
	var offered atomic.Int64
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			for range 150 {
				if useOnce(t, c, nars[rand.IntN(len(nars))]) {
					offered.Add(1)
				}
			}
		})
	}
	wg.Wait()
	cancel()
	<-measured
	<-ran
	if samples.Load() < 10 || offered.Load() < 10 {
		t.Errorf("%d samples, %d offered: shows nothing", samples.Load(), offered.Load())
	}
	persistAll(c)
	c.mu.Lock()
	var sum int64
	s := &c.state
	for e := range s.policy.all() {
		sum += cost(e.size)
	}
	if sum != s.used || s.idle != s.used || len(s.downloads) != 0 || len(s.removing) != 0 {
		t.Errorf("entries have %d bytes; counted %d, idle %d, %d downloads, removing %d", sum, s.used, s.idle, len(s.downloads), len(s.removing))
	}
	c.mu.Unlock()
	if files, _ := os.ReadDir(filepath.Join(dir, tmpDir)); len(files) != 0 {
		t.Errorf("%d temporary files", len(files))
	}
}

// useOnce does one random thing with n and tells whether it was offered.
func useOnce(t *testing.T, c *Cache, n nar) bool {
	switch rand.IntN(8) {
	case 0:
		c.Invalid(n.info, n.form, nil)
	case 1, 2:
		claim, err := c.NAR(t.Context(), n.info, n.form, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return false
		}
		if err != nil {
			t.Error(err)
			return false
		}
		defer claim.Body.Close()
		if rand.IntN(3) == 0 {
			_ = claim.Body.Close()
			return false
		}
		if b, err := io.ReadAll(claim.Body); err != nil || !bytes.Equal(b, n.data) {
			t.Errorf("%d of %d bytes: %v", len(b), len(n.data), err)
		}
		return true
	default:
		d, err := c.Create(n.info, n.form, int64(len(n.data)))
		if errors.Is(err, ErrDoesNotFit) || errors.Is(err, errExists) {
			return false
		}
		if err != nil {
			t.Error(err)
			return false
		}
		fillOnce(t, d, n)
	}
	return false
}

func fillOnce(t *testing.T, d *Download, n nar) {
	var wg sync.WaitGroup
	why := errors.New("why")
	for i := range rand.IntN(3) {
		r := d.ClientReader(0)
		wg.Go(func() {
			defer r.Close()
			if i == 1 {
				return
			}
			if b, err := io.ReadAll(r); !errors.Is(err, why) && (err != nil || !bytes.Equal(b, n.data)) {
				t.Errorf("follower: %d of %d bytes: %v", len(b), len(n.data), err)
			}
		})
	}
	abort := rand.IntN(4) == 0
	for at := 0; at < len(n.data); {
		to := min(at+100_000, len(n.data))
		if _, err := d.Write(n.data[at:to]); err != nil {
			t.Error(err)
		}
		at = to
		if abort && at > len(n.data)/2 {
			break
		}
	}
	if abort {
		d.Abort(why)
	} else if err := d.Commit(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

// mountTmpfs mounts a file system of this size on dir until the test ends.
func mountTmpfs(t *testing.T, dir, size string) error {
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size)
	if err == nil {
		t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	}
	return err
}

// TestFullDisk fills a small file system.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := mountTmpfs(t, dir, "4m"); err != nil {
		t.Skip("needs the right to mount: ", err)
	}
	for _, ahead := range []bool{true, false} {
		t.Run(fmt.Sprint("allocates ahead ", ahead), func(t *testing.T) {
			log, text := textLog()
			c := open(t, Config{Dir: filepath.Join(dir, fmt.Sprint(ahead)), Size: 64 * mib, Log: log})
			if !ahead {
				c.disk.allocate = func(*os.File, int64) error { return nil }
			}
			small, large := rawNAR(t, "small", 100_000), rawNAR(t, "large", 8*mib)
			put(t, c, small)
			d, err := c.Create(large.info, large.form, int64(len(large.data)))
			if err == nil {
				for at := 0; at < len(large.data) && err == nil; at += mib {
					_, err = d.Write(large.data[at:min(at+mib, len(large.data))])
				}
			}
			if !errors.Is(err, ErrDegraded) || !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("a full disk: %v", err)
			}
			if !bytes.Contains(text.Bytes(), []byte("level=WARN")) {
				t.Error("does not say so")
			}
			if !bytes.Equal(get(t, c, small, nix.Raw, 0), small.data) {
				t.Error("what was there before is lost")
			}
			var st syscall.Statfs_t
			if err := syscall.Statfs(dir, &st); err != nil || int64(st.Bfree)*st.Bsize < 3*mib {
				t.Errorf("%d bytes are free again: %v", int64(st.Bfree)*st.Bsize, err)
			}
			_ = c.Close()
			if err := os.RemoveAll(c.cfg.Dir); err != nil {
				t.Fatal(err)
			}
		})
	}
}

const (
	childDir   = "NIXP2P_TEST_NARCACHE_DIR"
	killRounds = "NIXP2P_TEST_KILLS" // default 50
	childSize  = 2*mib + dirBytes
)

func crashNARs(t testing.TB) (nars []nar) {
	for i := range 30 {
		if i%2 == 0 {
			nars = append(nars, rawNAR(t, fmt.Sprint(i), 1000+i*5000))
		} else {
			nars = append(nars, fileNAR(t, fmt.Sprint(i), 1000+i*5000, nix.Zstd))
		}
	}
	return nars
}

// TestKilledChild is the process that TestKill9 kills.
func TestKilledChild(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		t.Skip("run by TestKill9")
	}
	nars := crashNARs(t)
	c := open(t, Config{Dir: dir, Size: childSize})
	go func() { _ = c.Run(context.Background()) }()
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for {
				fmt.Print(".")
				_ = useOnce(t, c, nars[rand.IntN(len(nars))])
			}
		})
	}
	wg.Wait()
}

// TestKill9 kills a process at work at random moments: what the next one offers is whole and
// right, and the bound holds.
func TestKill9(t *testing.T) {
	rounds := 50
	if n, err := strconv.Atoi(os.Getenv(killRounds)); err == nil {
		rounds = n
	}
	dir := t.TempDir()
	nars := crashNARs(t)
	offered := 0
	for range rounds {
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledChild$")
		child.Env = append(os.Environ(), childDir+"="+dir)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, out, 1+rand.Int64N(300)); err != nil {
			t.Fatal(err)
		}
		_ = child.Process.Kill()
		_ = child.Wait()
		if n := du(t, dir); n > childSize {
			t.Errorf("%d bytes on disk after the kill, bound %d", n, childSize)
		}
		log, text := textLog()
		c := open(t, Config{Dir: dir, Size: childSize, Log: log})
		for _, n := range nars {
			for _, form := range []nix.Form{n.form, nix.Raw} {
				b := get(t, c, n, form, 0)
				want := n.data
				if form.IsRaw() {
					want = n.raw
				}
				if b != nil && !bytes.Equal(b, want) {
					t.Fatal("offered wrong bytes")
				}
				if b != nil {
					offered++
				}
			}
		}
		if text.Len() > 0 {
			t.Errorf("a killed process left: %s", text)
		}
		_ = c.Close()
	}
	if offered < rounds {
		t.Errorf("only %d offers in %d rounds", offered, rounds)
	}
}

func FuzzName(f *testing.F) {
	raw := record{key: key{nar: nix.NarHash{1}}, size: 1}
	xz := record{key: key{nix.NarHash{1}, nix.Form{Compression: nix.XZ, File: nix.FileHash{2}}}, size: 12345}
	zstd := record{key: key{nix.NarHash{1}, nix.Form{Compression: nix.Zstd, File: nix.FileHash{3}}}, size: 1 << 62, decoded: true}
	ofBase := record{key: key{nix.NarHash{1}, nix.Form{Compression: packed, File: nix.FileHash{4}}}, size: 5, packing: packing{6, 7, 8}}
	for _, r := range []record{raw, xz, zstd, ofBase} {
		f.Add(filepath.Base(r.name()))
		if got, err := parseName(filepath.Base(r.name())); err != nil || got != r {
			f.Errorf("%+v became %+v, %v", r, got, err)
		}
	}
	f.Add("0-0.nar")
	f.Add("../../etc/passwd")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parseName(s)
		if err == nil && (filepath.Base(r.name()) != s || r.size <= 0 || filepath.Base(s) != s) {
			t.Errorf("%q parses as %+v", s, r)
		}
	})
}

// BenchmarkOpen starts with 100,000 files.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	c := open(b, Config{Dir: dir, Size: 10 << 30})
	_ = c.Close()
	for i := range 100_000 {
		var h nix.NarHash
		for j := range h {
			h[j] = byte(rand.Uint32())
		}
		f, err := os.Create(filepath.Join(dir, record{key: key{nar: h}, size: int64(i + 1)}.name()))
		if err != nil {
			b.Fatal(err)
		}
		_ = f.Truncate(int64(i + 1))
		_ = f.Close()
	}
	for b.Loop() {
		c, err := Open(Config{Dir: dir, Size: 10 << 30})
		if err != nil || len(c.Entries()) != 100_000 {
			b.Fatal(err, len(c.Entries()))
		}
		_ = c.Close()
	}
}

// BenchmarkPass brings a NAR in and reads it behind the writer.
func BenchmarkPass(b *testing.B) {
	for _, size := range []int{10_000, 16 * mib} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			c := open(b, Config{Dir: b.TempDir(), Size: 1 << 30})
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan error)
			go func() { done <- c.Run(ctx) }()
			data := make([]byte, size)
			b.SetBytes(int64(size))
			i := 0
			for b.Loop() {
				i++
				d, err := c.Create(signed(b, nix.NarHash{byte(i), byte(i >> 8), byte(i >> 16)}, int64(size)), nix.Raw, int64(size))
				if err != nil {
					b.Fatal(err)
				}
				r := d.ClientReader(0)
				read := make(chan error)
				go func() {
					_, err := io.Copy(struct{ io.Writer }{io.Discard}, r)
					_ = r.Close()
					read <- err
				}()
				for at := 0; at < size; at += verify.TailSize / 4 {
					if _, err := d.Write(data[at:min(at+verify.TailSize/4, size)]); err != nil {
						b.Fatal(err)
					}
				}
				if err := d.Commit(); err != nil {
					b.Fatal(err)
				}
				if err := <-read; err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			cancel()
			<-done
		})
	}
}

func TestShardIsLastDigit(t *testing.T) {
	for range 100 {
		h := nix.NarHash{byte(rand.Uint32()), byte(rand.Uint32())}
		if s := h.Nix32(); shard(h) != s[len(s)-1:] {
			t.Fatalf("%s lies in %s", s, shard(h))
		}
	}
}
