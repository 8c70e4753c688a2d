package compress

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// TestStreamWindow: what is encoded on the way may not ask for more memory than MaxStreamWindow;
// a file may.
func TestStreamWindow(t *testing.T) {
	plain := bytes.Repeat([]byte("window "), 100_000)
	zstdWith := func(window int) []byte {
		var b bytes.Buffer
		w, err := zstd.NewWriter(&b, zstd.WithWindowSize(window))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write(plain)
		_ = w.Flush() // no content size in the header, so that the window counts
		_ = w.Close()
		return b.Bytes()
	}
	brotliWith := func(bits int) []byte {
		var b bytes.Buffer
		w := brotli.NewWriterOptions(&b, brotli.WriterOptions{Quality: 4, LGWin: bits})
		_, _ = w.Write(plain)
		_ = w.Close()
		return b.Bytes()
	}
	for name, c := range map[string]struct {
		compression nix.Compression
		coded       []byte
		stream      error // nil: decodes
	}{
		"zstd, 1 MiB":     {nix.Zstd, zstdWith(1 << 20), nil},
		"zstd, 8 MiB":     {nix.Zstd, zstdWith(8 << 20), nil},
		"zstd, 16 MiB":    {nix.Zstd, zstdWith(16 << 20), ErrTooLarge},
		"zstd, 128 MiB":   {nix.Zstd, zstdWith(128 << 20), ErrTooLarge},
		"brotli, 4 MiB":   {nix.Brotli, brotliWith(22), nil},
		"brotli, 64 KiB":  {nix.Brotli, brotliWith(16), nil},
		"brotli, 128 KiB": {nix.Brotli, brotliWith(17), nil},
		"brotli, 1 KiB":   {nix.Brotli, brotliWith(10), nil},
		"brotli, 16 MiB":  {nix.Brotli, brotliWith(24), ErrTooLarge},
	} {
		for _, stream := range []bool{true, false} {
			open, want := NewReader, error(nil)
			if stream {
				open, want = NewStreamReader, c.stream
			}
			r, err := open(c.compression, bytes.NewReader(c.coded))
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			_ = r.Close()
			if want != nil && !errors.Is(err, want) || want == nil && (err != nil || !bytes.Equal(got, plain)) {
				t.Errorf("%s, stream %v: %d bytes, %v, want %v", name, stream, len(got), err, want)
			}
		}
	}
	if _, err := NewStreamReader(nix.XZ, nil); !errors.Is(err, ErrUnknown) {
		t.Errorf("xz is no content coding: %v", err)
	}
}
