package compress

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os/exec"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
)

var storedKinds = []nix.Compression{nix.XZ, nix.Zstd}

func store(t testing.TB, c nix.Compression, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewStored(c, &b, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := w.Write(data); n != len(data) || err != nil {
		t.Fatalf("Write: %d, %v", n, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// storedSizes lie around the edges of pieces, buffers and the index's variable integers.
func storedSizes() (sizes []int) {
	for _, edge := range []int{0, 4, 112, 128, 16384 - 16, 64 << 10, 128 << 10, 192 << 10, 256 << 10, 512 << 10, 1 << 20} {
		for d := -5; d <= 5; d++ {
			if edge+d >= 0 {
				sizes = append(sizes, edge+d)
			}
		}
	}
	return append(sizes, 2097152-40, 3<<20+12345)
}

func TestStored(t *testing.T) {
	data := noise(4 << 20)
	for _, c := range storedKinds {
		for _, size := range storedSizes() {
			b := store(t, c, data[:size])
			if got := StoredSize(c, int64(size)); got != int64(len(b)) {
				t.Errorf("%s of %d: StoredSize %d, written %d", c, size, got, len(b))
			}
			got, err := decode(t, c, bytes.NewReader(b))
			if err != nil || !bytes.Equal(got, data[:size]) {
				t.Errorf("%s of %d: decoded %d bytes, error %v", c, size, len(got), err)
			}
		}
	}
}

// TestStoredPieces: the file does not depend on how the bytes come.
func TestStoredPieces(t *testing.T) {
	data := noise(700_001)
	for _, c := range storedKinds {
		want := store(t, c, data)
		for _, step := range []int{1, 3, 32 << 10, 64 << 10, 65537, 256 << 10, 300_000} {
			var b bytes.Buffer
			w, err := NewStored(c, &b, int64(len(data)))
			if err != nil {
				t.Fatal(err)
			}
			for rest := data; len(rest) > 0; rest = rest[min(step, len(rest)):] {
				if _, err := w.Write(rest[:min(step, len(rest))]); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b.Bytes(), want) {
				t.Errorf("%s in steps of %d: another file", c, step)
			}
		}
	}
}

type countingWriter struct{ writes, bytes int }

func (w *countingWriter) Write(p []byte) (int, error) {
	w.writes++
	w.bytes += len(p)
	return len(p), nil
}

// TestStoredWrites: a large piece costs one write, and what was written has left.
func TestStoredWrites(t *testing.T) {
	data := noise(256 << 10)
	for _, c := range storedKinds {
		var dst countingWriter
		w, err := NewStored(c, &dst, 4*int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 4 {
			if _, err := w.Write(data); err != nil {
				t.Fatal(err)
			}
			if dst.writes != i+1 || dst.bytes < (i+1)*len(data) {
				t.Errorf("%s: %d writes, %d bytes after %d", c, dst.writes, dst.bytes, i+1)
			}
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestStoredMisuse(t *testing.T) {
	for _, c := range []nix.Compression{"", nix.None, nix.Gzip} {
		if _, err := NewStored(c, io.Discard, 1); !errors.Is(err, ErrUnknown) {
			t.Errorf("%q: error %v", c, err)
		}
		if got := StoredSize(c, 1); got != -1 {
			t.Errorf("%q: StoredSize %d", c, got)
		}
	}
	for _, c := range storedKinds {
		if _, err := NewStored(c, io.Discard, -1); err == nil {
			t.Errorf("%s: a negative size was taken", c)
		}
		var b bytes.Buffer
		w, err := NewStored(c, &b, 3)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("ab")); err != nil {
			t.Fatal(err)
		}
		before := b.Len()
		for range 2 {
			if err := w.Close(); !errors.Is(err, errStoredShort) {
				t.Errorf("%s: Close: %v", c, err)
			}
		}
		if b.Len() != before {
			t.Errorf("%s: Close wrote an end all the same", c)
		}
		w, _ = NewStored(c, io.Discard, 3)
		if _, err := w.Write([]byte("abcd")); !errors.Is(err, errStoredLong) {
			t.Errorf("%s: too many bytes: %v", c, err)
		}
		_ = w.Close()
		w, _ = NewStored(c, io.Discard, 1)
		_, _ = w.Write([]byte("a"))
		if err := w.Close(); err != nil {
			t.Errorf("%s: Close: %v", c, err)
		}
		if _, err := w.Write([]byte("b")); err == nil {
			t.Errorf("%s: Write after Close", c)
		}
	}
}

type failingWriter struct{ left int }

var errFull = errors.New("full")

func (w *failingWriter) Write(p []byte) (int, error) {
	if w.left < len(p) {
		return w.left, errFull
	}
	w.left -= len(p)
	return len(p), nil
}

func TestStoredDstError(t *testing.T) {
	data := noise(600_000)
	for _, c := range storedKinds {
		for _, left := range []int{0, 100, 300_000, int(StoredSize(c, int64(len(data)))) - 1} {
			w, err := NewStored(c, &failingWriter{left}, int64(len(data)))
			if err != nil {
				t.Fatal(err)
			}
			_, writeErr := w.Write(data)
			if _, again := w.Write(nil); !errors.Is(again, writeErr) {
				t.Errorf("%s: the error %v was forgotten: %v", c, writeErr, again)
			}
			if err := w.Close(); !errors.Is(err, errFull) {
				t.Errorf("%s with room for %d: Close: %v", c, left, err)
			}
		}
	}
}

// TestStoredTools: the reference implementations read the files.
func TestStoredTools(t *testing.T) {
	for _, c := range storedKinds {
		t.Run(string(c), func(t *testing.T) {
			tool, err := exec.LookPath(string(c))
			if err != nil {
				t.Skip("no such tool here")
			}
			for _, size := range []int{0, 1, 112, 64<<10 - 1, 64 << 10, 64<<10 + 1, 128 << 10, 128<<10 + 1, 3<<20 + 8} {
				data := noise(size)
				cmd := exec.CommandContext(t.Context(), tool, "-dcq")
				cmd.Stdin = bytes.NewReader(store(t, c, data))
				if out, err := cmd.Output(); err != nil || !bytes.Equal(out, data) {
					t.Errorf("-dcq of %d: %d bytes, error %v", size, len(out), err)
				}
			}
			// More than the window that decoders allow by default.
			const large = 129 << 20
			cmd := exec.CommandContext(t.Context(), tool, "-tq")
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			w, err := NewStored(c, stdin, large)
			if err != nil {
				t.Fatal(err)
			}
			piece := noise(1 << 20)
			for range large >> 20 {
				if _, err := w.Write(piece); err != nil {
					t.Error(err)
					break
				}
			}
			_ = w.Close()
			_ = stdin.Close()
			if err := cmd.Wait(); err != nil {
				t.Errorf("-tq of %d: %v", large, err)
			}
		})
	}
}

func TestStoredAllocs(t *testing.T) {
	data := noise(256 << 10)
	for _, c := range storedKinds {
		w, err := NewStored(c, io.Discard, 1<<40)
		if err != nil {
			t.Fatal(err)
		}
		if n := testing.AllocsPerRun(20, func() { _, _ = w.Write(data) }); n > 0 {
			t.Errorf("%s: %v allocations per write", c, n)
		}
		_ = w.Close()
	}
}

func BenchmarkStored(b *testing.B) {
	data := noise(256 << 10)
	for _, c := range storedKinds {
		b.Run(string(c), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			w, err := NewStored(c, io.Discard, 1<<60)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				_, _ = w.Write(data)
			}
			_ = w.Close()
		})
	}
}
