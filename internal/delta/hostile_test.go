package delta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/nixp2p/nixp2p/internal/compress"
)

// pack compresses segments.
func pack(t testing.TB, segments ...[]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := compress.NewZstdDelta(&out)
	defer z.Release()
	for _, s := range segments {
		if _, err := z.Write(s); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// lists makes a segment.
func lists(ops, runs, changes, inserts []byte) []byte {
	var b []byte
	for _, l := range [][]byte{ops, runs, changes, inserts} {
		b = binary.AppendUvarint(b, uint64(len(l)))
	}
	return bytes.Join([][]byte{b, ops, runs, changes, inserts}, nil)
}

func op(c, m uint64, move int64) []byte {
	b := binary.AppendUvarint(binary.AppendUvarint(nil, c), m)
	return binary.AppendVarint(b, move)
}

func TestSegments(t *testing.T) {
	base := []byte("0123456789")
	uv := func(n ...uint64) (b []byte) {
		for _, x := range n {
			b = binary.AppendUvarint(b, x)
		}
		return b
	}
	for name, tt := range map[string]struct {
		segments [][]byte
		size     int
		want     string // "" for corrupt
	}{
		"copy":             {[][]byte{lists(op(3, 0, 0), nil, nil, nil)}, 3, "012"},
		"move and insert":  {[][]byte{lists(append(op(0, 0, 4), op(2, 1, 0)...), nil, nil, []byte("x"))}, 3, "45x"},
		"changes":          {[][]byte{lists(op(4, 0, 0), uv(1, 2), []byte{1, 255}, nil)}, 4, "0213"[:1] + "213"},
		"place is kept":    {[][]byte{lists(op(3, 0, 1), nil, nil, nil), lists(op(2, 0, 0), nil, nil, nil)}, 5, "01245"},
		"back":             {[][]byte{lists(append(op(3, 0, -2), op(1, 0, 0)...), nil, nil, nil)}, 4, "0121"},
		"beyond the base":  {[][]byte{lists(op(11, 0, 0), nil, nil, nil)}, 11, ""},
		"before the base":  {[][]byte{lists(append(op(0, 0, -1), op(1, 0, 0)...), nil, nil, nil)}, 1, ""},
		"wild moves":       {[][]byte{lists(op(0, 0, 1<<40), nil, nil, nil)}, 1, ""},
		"missing insert":   {[][]byte{lists(op(0, 2, 0), nil, nil, []byte("x"))}, 2, ""},
		"spare insert":     {[][]byte{lists(op(0, 1, 0), nil, nil, []byte("xy"))}, 1, ""},
		"spare changes":    {[][]byte{lists(op(1, 0, 0), nil, []byte{1}, nil)}, 1, ""},
		"unfinished run":   {[][]byte{lists(op(1, 0, 0), uv(0, 2), []byte{1, 1}, nil)}, 1, ""},
		"run of nothing":   {[][]byte{lists(op(1, 0, 0), uv(0, 0), nil, nil)}, 1, ""},
		"too long":         {[][]byte{lists(op(3, 0, 0), nil, nil, nil)}, 2, ""},
		"more segments":    {[][]byte{lists(op(3, 0, 0), nil, nil, nil), lists(op(0, 0, 0), nil, nil, nil)}, 3, ""},
		"no ops":           {[][]byte{lists(nil, nil, nil, []byte("x"))}, 1, ""},
		"cut op":           {[][]byte{lists(op(1, 0, 0)[:2], nil, nil, nil)}, 1, ""},
		"huge list":        {[][]byte{uv(1 << 62)}, 1, ""},
		"lists too long":   {[][]byte{uv(maxLists, maxLists, maxLists, maxLists)}, 1, ""},
		"huge copy":        {[][]byte{lists(op(1<<63, 0, 0), nil, nil, nil)}, 1 << 20, ""},
		"copies of a byte": {[][]byte{lists(bytes.Repeat(op(1, 0, -1), 2*opsFree), nil, nil, nil)}, 1 << 20, ""},
		"ops of nothing":   {[][]byte{lists(bytes.Repeat(op(0, 0, 0), 2*opsFree), nil, nil, nil)}, 1 << 20, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := decode(pack(t, tt.segments...), base, tt.size)
			switch {
			case tt.want == "" && !errors.Is(err, ErrCorrupt):
				t.Errorf("got %q, %v; want ErrCorrupt", got, err)
			case tt.want != "" && (err != nil || string(got) != tt.want):
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

// brokenBase fails to read.
type brokenBase struct{}

func (brokenBase) ReadAt([]byte, int64) (int, error) { return 0, errors.New("bad disk") }

func TestBaseError(t *testing.T) {
	d := pack(t, lists(op(3, 0, 0), nil, nil, nil))
	r := NewReader(bytes.NewReader(d), brokenBase{}, 10, 3)
	defer r.Close()
	_, err := io.ReadAll(r)
	var be *BaseError
	if !errors.As(err, &be) || errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}

func TestNotZstd(t *testing.T) {
	if _, err := decode([]byte(strings.Repeat("x", 100)), nil, 5); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}

func TestScan(t *testing.T) {
	nar := makeNAR(file{"a", []byte("hello")}, file{"b", nil}, file{"c", noise(1, 20_000)})
	var names []string
	for f := range tree(t, nar).Files() {
		names = append(names, f.Path)
	}
	if got := strings.Join(names, " "); got != "a c" {
		t.Errorf("files %q", got)
	}
	for n := range len(nar) {
		if n > 700 && n%997 != 0 {
			continue
		}
		if _, err := Scan(bytes.NewReader(nar[:n]), int64(n)); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
}

func TestShape(t *testing.T) {
	for _, tt := range [][2]string{
		{"lib/libfoo.so.1.2.3", "lib/libfoo.so.1.2.4"},
		{"x/0a1b2c3d4e", "x/ffeedd"},
		{"a12", "a7"},
	} {
		if shape(tt[0]) != shape(tt[1]) {
			t.Errorf("%q: %q, %q: %q", tt[0], shape(tt[0]), tt[1], shape(tt[1]))
		}
	}
	if shape("bin/face") == shape("bin/bead") {
		t.Error("words are taken for numbers")
	}
}

// FuzzRead decodes segments of anybody.
func FuzzRead(f *testing.F) {
	base := noise(1, 5000)
	f.Add(lists(op(100, 3, 7), []byte{5, 1}, []byte{9}, []byte("abc")), uint16(103))
	f.Add([]byte{0, 0, 0, 0}, uint16(1))
	f.Fuzz(func(t *testing.T, segments []byte, size uint16) {
		got, err := decode(pack(t, segments), base, int(size))
		if err == nil && len(got) != int(size) || len(got) > int(size) {
			t.Fatalf("%d bytes of %d: %v", len(got), size, err)
		}
		_, _ = decode(segments, base, int(size))
	})
}

// FuzzRoundtrip codes files with edits.
func FuzzRoundtrip(f *testing.F) {
	f.Add([]byte("some text of a file"), []byte("some other text"), uint64(1), uint16(3000))
	f.Add([]byte{}, []byte{0}, uint64(7), uint16(60000))
	f.Fuzz(func(t *testing.T, a, b []byte, seed uint64, n uint16) {
		x := noise(seed, int(n))
		base := makeNAR(file{"a", a}, file{"b-1", x}, file{"c", append(bytes.Clone(a), b...)})
		target := makeNAR(file{"a", b}, file{"b-2", edit(seed, append(x, a...))}, file{"c", edit(seed+1, bytes.Repeat(b, 1+int(n%64)))})
		roundtrip(t, base, target)
	})
}

// FuzzScan reads NARs of anybody.
func FuzzScan(f *testing.F) {
	f.Add(makeNAR(file{"a", []byte("x")}))
	f.Fuzz(func(t *testing.T, nar []byte) {
		tr, err := Scan(bytes.NewReader(nar), int64(len(nar)))
		if err != nil {
			return
		}
		end := int64(0)
		for f := range tr.Files() {
			if f.Off < end || f.N <= 0 || f.end() > int64(len(nar)) {
				t.Fatalf("file %+v of %d bytes", f, len(nar))
			}
			end = f.end()
		}
	})
}
