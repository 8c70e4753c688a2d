package sourcetest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/verify"
)

// Download and Reader are those of the resolver, for packages that may not import it.
type (
	Download = resolve.Download
	Reader   = resolve.Reader
)

// Downloads is a cache under test.
type Downloads struct {
	Create func(nar nix.NarHash, form nix.Form, size int64) (Download, error)
	Held   func(nar nix.NarHash) (raw bool, files []nix.Form)
}

// RunDownloads holds a cache's downloads against the contract. open returns an empty cache with
// room for some 50 MiB.
func RunDownloads(t *testing.T, open func(t *testing.T) Downloads) {
	d := &downloads{open(t)}
	t.Run("Commit", d.commit)
	t.Run("Tail", d.tail)
	t.Run("Abort", d.abort)
	t.Run("Twice", d.twice)
	t.Run("Followers", d.followers)
	t.Run("CloseReader", d.closeReader)
	t.Run("Filled", d.filled)
	t.Run("TooMuch", d.tooMuch)
}

type downloads struct{ Downloads }

// thing returns bytes that are another for each test.
func thing(t *testing.T, size int) (nix.NarHash, []byte) {
	t.Helper()
	b := append([]byte(t.Name()), Noise(size)...)[:size]
	return sha256.Sum256(b), b
}

func (d *downloads) begin(t *testing.T, nar nix.NarHash, size int) Download {
	t.Helper()
	dl, err := d.Create(nar, nix.Raw, int64(size))
	if err != nil {
		t.Fatal(err)
	}
	return dl
}

func write(t *testing.T, dl Download, b []byte) {
	t.Helper()
	for len(b) > 0 {
		n, err := dl.Write(b[:min(len(b), 100_000)])
		if err != nil || n == 0 {
			t.Fatalf("Write: %d, %v", n, err)
		}
		b = b[n:]
	}
}

// within reads what there is to the end, or fails the test when that takes too long.
func within(t *testing.T, r Reader) ([]byte, error) {
	t.Helper()
	stuck := time.AfterFunc(20*time.Second, func() { _ = r.Close() })
	defer stuck.Stop()
	return io.ReadAll(struct{ io.Reader }{r})
}

func (d *downloads) commit(t *testing.T) {
	for _, size := range []int{1, verify.TailSize, 3<<20 + 1} {
		nar, b := thing(t, size)
		dl := d.begin(t, nar, size)
		early := dl.Reader(0)
		write(t, dl, b)
		if raw, _ := d.Held(nar); raw {
			t.Error("held before Commit")
		}
		if err := dl.Commit(); err != nil {
			t.Fatal(err)
		}
		if raw, files := d.Held(nar); !raw || len(files) != 0 {
			t.Error("not held when Commit has returned")
		}
		dl.Abort(errors.New("does nothing any more"))
		for what, r := range map[string]Reader{"early": early, "late": dl.Reader(0)} {
			if got, err := within(t, r); err != nil || !bytes.Equal(got, b) {
				t.Errorf("%s reader of %d: %d bytes, error %v", what, size, len(got), err)
			}
			_ = r.Close()
		}
		for _, off := range []int64{1, int64(size) / 2, int64(size)} {
			r := dl.Reader(off)
			if got, err := within(t, r); err != nil || !bytes.Equal(got, b[off:]) {
				t.Errorf("reader of %d from %d: %d bytes, error %v", size, off, len(got), err)
			}
			_ = r.Close()
		}
	}
}

// tail: what is not proven is held back from those who follow.
func (d *downloads) tail(t *testing.T) {
	const size = 2 << 20
	nar, b := thing(t, size)
	dl := d.begin(t, nar, size)
	r := dl.Reader(0)
	defer r.Close()
	const first = verify.TailSize + 1000
	write(t, dl, b[:first])
	got := make([]byte, 1000)
	if _, err := io.ReadFull(struct{ io.Reader }{r}, got); err != nil || !bytes.Equal(got, b[:1000]) {
		t.Fatal("what may be seen is not seen", err)
	}
	more := make(chan []byte)
	go func() {
		rest, _ := within(t, r)
		more <- rest
	}()
	select {
	case rest := <-more:
		t.Fatalf("%d bytes more, and the end", len(rest))
	case <-time.After(20 * time.Millisecond):
	}
	dl.Abort(errors.New("so"))
	if rest := <-more; len(rest) != 0 {
		t.Errorf("%d bytes of the tail were seen", len(rest))
	}
}

func (d *downloads) abort(t *testing.T) {
	const size = 3 << 20
	nar, b := thing(t, size)
	for _, n := range []int{0, 1000, size} {
		dl := d.begin(t, nar, size)
		early := dl.Reader(0)
		write(t, dl, b[:n])
		why := errors.New("the reason")
		dl.Abort(why)
		dl.Abort(errors.New("another"))
		late := dl.Reader(0)
		for what, r := range map[string]Reader{"early": early, "late": late} {
			got, err := within(t, r)
			if !errors.Is(err, why) || len(got) > 0 {
				t.Errorf("%s reader: %d of %d bytes after Abort, error %v", what, len(got), n, err)
			}
			_ = r.Close()
		}
		if _, err := dl.Write(b[:1]); err == nil {
			t.Error("written after Abort")
		}
		if raw, _ := d.Held(nar); raw {
			t.Error("held after Abort")
		}
	}
	dl := d.begin(t, nar, size) // it is free again
	dl.Abort(errors.New("so"))
}

// twice: the same cannot be begun again while it is under way or there, and can after an Abort.
func (d *downloads) twice(t *testing.T) {
	nar, b := thing(t, 1000)
	dl := d.begin(t, nar, len(b))
	if _, err := d.Create(nar, nix.Raw, int64(len(b))); err == nil {
		t.Error("begun twice at once")
	}
	file := nix.Form{Compression: nix.XZ, File: nix.FileHash{7}}
	other, err := d.Create(nar, file, 500)
	if err != nil {
		t.Errorf("another form of it: %v", err)
	} else {
		other.Abort(errors.New("so"))
	}
	write(t, dl, b)
	if err := dl.Commit(); err != nil {
		t.Error(err)
	}
	if _, err := d.Create(nar, nix.Raw, int64(len(b))); err == nil {
		t.Error("begun although it is there")
	}
}

func (d *downloads) followers(t *testing.T) {
	const size = 3 << 20
	nar, b := thing(t, size)
	dl := d.begin(t, nar, size)
	var group sync.WaitGroup
	for i := range 20 {
		group.Go(func() {
			off := int64(i) * 100_000
			r := dl.Reader(off)
			defer r.Close()
			if got, err := within(t, r); err != nil || !bytes.Equal(got, b[off:]) {
				t.Errorf("from %d: %d bytes, error %v", off, len(got), err)
			}
		})
	}
	write(t, dl, b)
	if err := dl.Commit(); err != nil {
		t.Error(err)
	}
	group.Wait()
}

// closeReader: Close ends a Read that waits.
func (d *downloads) closeReader(t *testing.T) {
	nar, b := thing(t, 1000)
	dl := d.begin(t, nar, len(b))
	defer dl.Abort(errors.New("so"))
	r := dl.Reader(0)
	ended := make(chan error)
	go func() {
		_, err := r.Read(make([]byte, 10))
		ended <- err
	}()
	_ = r.Close()
	if err := <-ended; err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a closed reader says %v", err)
	}
	_ = r.Close()
	if n, err := r.Read(make([]byte, 10)); n > 0 || err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a closed reader reads %d bytes, error %v", n, err)
	}
}

// filled: the filler sees all that it wrote, and then the end.
func (d *downloads) filled(t *testing.T) {
	nar, b := thing(t, 200_000)
	dl := d.begin(t, nar, len(b))
	for _, n := range []int{0, 100_000, 200_000} {
		if n > 0 {
			write(t, dl, b[n-100_000:n])
		}
		r := dl.Filled()
		if got, err := within(t, r); err != nil || !bytes.Equal(got, b[:n]) {
			t.Errorf("%d of %d bytes, error %v", len(got), n, err)
		}
		_ = r.Close()
	}
	dl.Abort(errors.New("so"))
}

// tooMuch: what was not reserved is not taken, and what is not whole is not committed.
func (d *downloads) tooMuch(t *testing.T) {
	nar, b := thing(t, 1000)
	dl := d.begin(t, nar, 999)
	if n, err := dl.Write(b); err == nil {
		t.Errorf("took %d bytes of 999", n)
	}
	dl.Abort(errors.New("so"))
	dl = d.begin(t, nar, len(b))
	write(t, dl, b[:999])
	if err := dl.Commit(); err == nil {
		t.Error("committed what is not whole")
	}
	dl.Abort(errors.New("so"))
	if raw, _ := d.Held(nar); raw {
		t.Error("held")
	}
}
