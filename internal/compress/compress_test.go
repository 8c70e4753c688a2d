package compress

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/nix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sample is the text that the files in testdata hold, made by the xz, zstd and bzip2 tools.
var sample = sync.OnceValue(func() []byte {
	var b []byte
	for i := 0; len(b) < 300000; i++ {
		b = fmt.Appendf(b, "line %d of the sample, which repeats itself\n", i)
		if i%40 == 0 {
			h := sha256.Sum256(fmt.Append(nil, i))
			b = append(b, h[:]...)
		}
	}
	return b[:300000]
})

// byEncoder compresses with libraries where there is an encoder.
func byEncoder(t testing.TB, c nix.Compression, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	switch c {
	case nix.Zstd:
		var err error
		if w, err = zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1)); err != nil {
			t.Fatal(err)
		}
	case nix.Gzip:
		w = gzip.NewWriter(&b)
	case nix.Brotli:
		w = brotli.NewWriter(&b)
	default:
		t.Fatalf("no encoder for %s", c)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type file struct {
	name  string
	c     nix.Compression
	bytes []byte
}

func testFile(t testing.TB, name string) file {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return file{name, map[string]nix.Compression{
		".xz": nix.XZ, ".zst": nix.Zstd, ".bz2": nix.Bzip2,
		".lz4": nix.LZ4, ".lz": nix.Lzip, ".lzma": nix.LZMA, ".Z": nix.LZW,
	}[filepath.Ext(name)], b}
}

// largeWindowFiles hold the sample too, but every decoder of them takes the most memory
// that is allowed.
func largeWindowFiles(t testing.TB) []file {
	t.Helper()
	return []file{testFile(t, "dict64m.xz"), testFile(t, "long27.zst")}
}

// goodFiles all hold the sample.
func goodFiles(t testing.TB) (files []file) {
	t.Helper()
	for _, name := range []string{
		"default.xz", "nocheck.xz", "sha256.xz", "blocks.xz", "x86.xz", "streams.xz",
		"default.bz2", "streams.bz2", "default.zst", "frames.zst",
		// Made by libarchive, as Nix does, and by the lz4 and lzma tools.
		"default.lz4", "linked.lz4", "frames.lz4", "default.lz", "members.lz", "default.lzma", "props.lzma", "default.Z",
	} {
		files = append(files, testFile(t, name))
	}
	for _, c := range []nix.Compression{nix.Zstd, nix.Gzip, nix.Brotli} {
		files = append(files, file{"library." + string(c), c, byEncoder(t, c, sample())})
	}
	for _, c := range []nix.Compression{nix.XZ, nix.Zstd} {
		files = append(files, file{"stored." + string(c), c, store(t, c, sample())})
	}
	return files
}

func decode(t testing.TB, c nix.Compression, src io.Reader) ([]byte, error) {
	t.Helper()
	r, err := NewReader(c, src)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err2 := r.Close(); err2 != nil {
		t.Errorf("Close: %v", err2)
	}
	return b, err
}

func TestDecode(t *testing.T) {
	want := sample()
	for _, f := range append(goodFiles(t), largeWindowFiles(t)...) {
		t.Run(f.name, func(t *testing.T) {
			for name, src := range map[string]io.Reader{
				"at once":       bytes.NewReader(f.bytes),
				"byte by byte":  iotest.OneByteReader(bytes.NewReader(f.bytes)),
				"data with EOF": iotest.DataErrReader(bytes.NewReader(f.bytes)),
			} {
				got, err := decode(t, f.c, src)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %d bytes, error %v; want %d", name, len(got), err, len(want))
				}
			}
		})
	}
}

// TestDecodeNamedWrong: a file is decoded as what it is, whatever it is called; those without a mark are what
// they are called.
func TestDecodeNamedWrong(t *testing.T) {
	for _, f := range goodFiles(t) {
		for _, name := range []nix.Compression{nix.XZ, nix.Zstd, nix.Bzip2, nix.LZMA} {
			r, err := NewReader(name, bytes.NewReader(f.bytes))
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			_ = r.Close()
			marked := f.c != nix.Brotli && f.c != nix.LZMA || f.c == name
			if ok := err == nil && bytes.Equal(got, sample()); ok != marked {
				t.Errorf("%s called %s: %d bytes, %v", f.name, name, len(got), err)
			}
		}
	}
}

func TestDecodeNone(t *testing.T) {
	got, err := decode(t, nix.None, iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("ab"))))
	if string(got) != "a" || err != iotest.ErrTimeout { //nolint:errorlint // unchanged
		t.Errorf("got %q, %v", got, err)
	}
}

func TestDecodeUnknown(t *testing.T) {
	for _, c := range []nix.Compression{"", "lzop", "grzip", "lrzip", "XZ"} {
		if _, err := NewReader(c, strings.NewReader("")); !errors.Is(err, ErrUnknown) {
			t.Errorf("%q: error %v", c, err)
		}
	}
}

// cuts returns where a file of n bytes is cut: everywhere near its ends, here and there
// in between.
func cuts(n int) (at []int) {
	for i := range n {
		if i < 14 || n-i <= 14 || i%(n/8) == 0 {
			at = append(at, i)
		}
	}
	return at
}

// TestDecodeCut: a cut is no lie.
func TestDecodeCut(t *testing.T) {
	for _, f := range goodFiles(t) {
		t.Run(f.name, func(t *testing.T) {
			switch f.name { // the first of several streams is whole by itself
			case "streams.xz", "streams.bz2", "frames.zst", "frames.lz4", "members.lz":
				return
			case "default.Z": // has no end mark
				return
			}
			for _, at := range cuts(len(f.bytes)) {
				got, err := decode(t, f.c, bytes.NewReader(f.bytes[:at]))
				if !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrCorrupt) {
					t.Errorf("cut at %d of %d: %d bytes, error %v", at, len(f.bytes), len(got), err)
				}
				if !bytes.HasPrefix(sample(), got) {
					t.Errorf("cut at %d: wrong bytes before the error", at)
				}
			}
		})
	}
}

// TestDecodeFlipped holds for containers with a checksum over everything. In others a
// flipped bit may change the bytes only, which is for the NAR's hash to find.
func TestDecodeFlipped(t *testing.T) {
	for _, f := range goodFiles(t) {
		switch f.name {
		case "default.xz", "sha256.xz", "default.zst", "default.bz2", "library.gzip", "default.lz4", "default.lz":
		default:
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			for i, at := range cuts(len(f.bytes)) {
				if i%3 > 0 || f.c == nix.Gzip && at < 10 { // times, names and the like
					continue
				}
				bad := bytes.Clone(f.bytes)
				bad[at] ^= 0x10
				got, err := decode(t, f.c, bytes.NewReader(bad))
				if err == nil && !bytes.Equal(got, sample()) {
					t.Errorf("flipped at %d: wrong bytes without an error", at)
				}
			}
		})
	}
}

func TestDecodeGarbage(t *testing.T) {
	garbage := bytes.Repeat([]byte("<html>no such file</html>\n"), 200)
	for c := range codecs {
		got, err := decode(t, c, bytes.NewReader(garbage))
		sized := c == nix.LZMA && errors.Is(err, ErrTooLarge) // it has no mark: the text is taken for a size
		if !errors.Is(err, ErrCorrupt) && !sized || len(got) > 0 && c != nix.Brotli {
			t.Errorf("%s: %d bytes, error %v", c, len(got), err)
		}
		if !strings.HasPrefix(err.Error(), "compress: decode "+string(c)+": ") {
			t.Errorf("%s: text %q", c, err)
		}
		if got, err := decode(t, c, strings.NewReader("")); !errors.Is(err, io.ErrUnexpectedEOF) || len(got) > 0 {
			t.Errorf("%s: nothing at all: %d bytes, error %v", c, len(got), err)
		}
	}
}

// TestDecodeTrailing: junk behind a file is an error; behind brotli it is not seen, and compress
// decodes it.
func TestDecodeTrailing(t *testing.T) {
	for _, f := range goodFiles(t) {
		_, err := decode(t, f.c, io.MultiReader(bytes.NewReader(f.bytes), strings.NewReader("trailing junk")))
		if err == nil && f.c != nix.Brotli && f.c != nix.LZW {
			t.Errorf("%s: no error", f.name)
		}
	}
}

func TestDecodeTooLarge(t *testing.T) {
	for name, c := range map[string]nix.Compression{"toolarge.xz": nix.XZ, "toolarge.zst": nix.Zstd} {
		if _, err := decode(t, c, bytes.NewReader(testFile(t, name).bytes)); !errors.Is(err, ErrTooLarge) || errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	// A single segment's window is its size, which costs the sender nothing.
	bomb := []byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0}
	if _, err := decode(t, nix.Zstd, bytes.NewReader(bomb)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("single segment of 1 TiB: error %v", err)
	}
}

// TestDecodeSourceError: what the source reports must never look like somebody's lie.
func TestDecodeSourceError(t *testing.T) {
	broken := errors.New("connection reset")
	for _, f := range goodFiles(t) {
		for _, at := range []int{0, 1, 20, len(f.bytes) / 2, len(f.bytes) - 1} {
			src := io.MultiReader(bytes.NewReader(f.bytes[:at]), iotest.ErrReader(broken))
			_, err := decode(t, f.c, src)
			if !errors.Is(err, broken) || errors.Is(err, ErrCorrupt) {
				t.Errorf("%s broken at %d: error %v", f.name, at, err)
			}
		}
	}
}

// emptyReads returns nothing n times before each byte.
type emptyReads struct {
	src io.Reader
	n   int
	i   int
}

func (r *emptyReads) Read(p []byte) (int, error) {
	if r.i++; r.i%(r.n+1) != 0 || len(p) == 0 {
		return 0, nil
	}
	return r.src.Read(p[:1])
}

func TestDecodeEmptyReads(t *testing.T) {
	for _, f := range goodFiles(t) {
		got, err := decode(t, f.c, &emptyReads{src: bytes.NewReader(f.bytes), n: 2})
		if err != nil || !bytes.Equal(got, sample()) {
			t.Errorf("%s: %d bytes, error %v", f.name, len(got), err)
		}
		if _, err := decode(t, f.c, &emptyReads{src: bytes.NewReader(f.bytes), n: 1 << 30}); !errors.Is(err, io.ErrNoProgress) {
			t.Errorf("%s: never a byte: error %v", f.name, err)
		}
	}
}

// TestDecoderReuse: what became of one stream is not felt by the next.
func TestDecoderReuse(t *testing.T) {
	want := sample()
	for round := range 3 {
		for _, f := range goodFiles(t) {
			r, err := NewReader(f.c, bytes.NewReader(f.bytes))
			if err != nil {
				t.Fatal(err)
			}
			switch round { // leave it in the middle, or after an error
			case 0:
				_, _ = io.CopyN(io.Discard, r, 1000)
			case 1:
				r, _ = NewReader(f.c, strings.NewReader("junk, junk, junk, junk, junk, junk, junk"))
				_, _ = io.Copy(io.Discard, r)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			if n, err := r.Read(make([]byte, 10)); n != 0 || err == nil || err == io.EOF && round == 0 { //nolint:errorlint // exact
				t.Errorf("%s: read after Close: %d, %v", f.name, n, err)
			}
			got, err := decode(t, f.c, bytes.NewReader(f.bytes))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s round %d: %d bytes, error %v", f.name, round, len(got), err)
			}
		}
	}
}

type crashing struct{}

func (crashing) Reset(io.Reader) error { return nil }
func (crashing) Read(p []byte) (int, error) {
	return int(p[len(p)]), nil //nolint:gosec // out of range is the point
}

func TestDecoderCrash(t *testing.T) {
	r := &reader{compression: nix.XZ, codec: &codec{open: func() (decoder, error) { return crashing{}, nil }}}
	for range 2 {
		if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, ErrCorrupt) {
			t.Errorf("got %d, %v", n, err)
		}
	}
	defer func() {
		if _, ok := recover().(runtime.Error); !ok {
			t.Error("the panic of the source was swallowed")
		}
	}()
	s, err := NewReader(nix.XZ, crashing{})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = s.Read(make([]byte, 1))
}

func FuzzDecode(f *testing.F) {
	names := []nix.Compression{nix.XZ, nix.Zstd, nix.Bzip2, nix.Brotli, nix.Gzip}
	small := sample()[:3000]
	for i, b := range [][]byte{
		testFile(f, "small.xz").bytes, testFile(f, "small.zst").bytes, testFile(f, "small.bz2").bytes,
		byEncoder(f, nix.Brotli, small), byEncoder(f, nix.Gzip, small),
	} {
		if got, err := decode(f, names[i], bytes.NewReader(b)); err != nil || !bytes.Equal(got, small) {
			f.Fatalf("%s: %d bytes, error %v", names[i], len(got), err)
		}
		f.Add(uint8(i), b)
	}
	f.Add(uint8(0), store(f, nix.XZ, small))
	f.Add(uint8(1), store(f, nix.Zstd, small))
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		c := names[int(which)%len(names)]
		for _, open := range []func(nix.Compression, io.Reader) (io.ReadCloser, error){NewReader, NewStreamReader} {
			r, err := open(c, bytes.NewReader(b))
			if errors.Is(err, ErrUnknown) {
				continue // no content coding
			} else if err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(io.Discard, io.LimitReader(r, 1<<20))
			if err == nil && n < 1<<20 && len(b) == 0 {
				t.Fatal("nothing was taken for a file")
			}
			_ = r.Close()
		}
	})
}
