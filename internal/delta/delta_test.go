package delta

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// file is a file of a NAR that a test makes.
type file struct {
	name string
	data []byte
}

// makeNAR returns the NAR of a directory with files, which are in the order of their names.
func makeNAR(files ...file) []byte {
	n := 1 << 10
	for _, f := range files {
		n += len(f.data) + 300
	}
	b := make([]byte, 0, n)
	words := func(list ...string) {
		for _, w := range list {
			b = nix.AppendNARString(b, w)
		}
	}
	words(nix.NARMagic, "(", "type", "directory")
	for _, f := range files {
		words("entry", "(", "name", f.name, "node", "(", "type", "regular", "contents", string(f.data), ")", ")")
	}
	words(")")
	return b
}

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}).Read(b)
	return b
}

// edit returns b with changes, insertions, deletions and moves.
func edit(seed uint64, b []byte) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	b = bytes.Clone(b)
	for range r.IntN(20) {
		at, n := r.IntN(len(b)+1), r.IntN(200)
		end := min(at+n, len(b))
		switch r.IntN(4) {
		case 0:
			b = append(b[:at:at], append(noise(r.Uint64(), n), b[at:]...)...)
		case 1:
			b = append(b[:at:at], b[end:]...)
		case 2:
			for i := at; i < end; i += 7 {
				b[i]++
			}
		case 3:
			b = append(b[end:len(b):len(b)], b[:end]...)
		}
	}
	return b
}

func tree(t testing.TB, nar []byte) Tree {
	t.Helper()
	tr, err := Scan(bytes.NewReader(nar), int64(len(nar)))
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// roundtrip encodes and decodes, and returns the delta.
func roundtrip(t testing.TB, base, target []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if _, err := Encode(t.Context(), &out, tree(t, base), tree(t, target)); err != nil {
		t.Fatal(err)
	}
	got, err := decode(out.Bytes(), base, len(target))
	if err != nil {
		t.Fatalf("decode: %v", err)
	}
	if !bytes.Equal(got, target) {
		t.Fatalf("decoded to %d bytes, want %d; first difference at %d", len(got), len(target), commonPrefix(got, target))
	}
	return out.Bytes()
}

func decode(delta, base []byte, size int) ([]byte, error) {
	r := NewReader(bytes.NewReader(delta), bytes.NewReader(base), int64(len(base)), int64(size))
	defer r.Close()
	return io.ReadAll(r)
}

func TestRoundtrip(t *testing.T) {
	a, b, c := noise(1, 300_000), noise(2, 50_000), noise(3, 3000)
	base := makeNAR(file{"a", a}, file{"b", b}, file{"c-1.2", c}, file{"z", noise(4, 70_000)})
	for name, tt := range map[string]struct {
		target []byte
		most   int // bytes
	}{
		"same":    {base, 100},
		"changed": {makeNAR(file{"a", edit(1, a)}, file{"b", edit(2, b)}, file{"c-1.3", edit(3, c)}, file{"z", noise(4, 70_000)}), 20_000},
		"renamed": {makeNAR(file{"a", a}, file{"new", noise(4, 70_000)}), 500},
		"fewer":   {makeNAR(file{"c-1.2", c}), 300},
		"more":    {makeNAR(file{"a", a}, file{"aa", c}, file{"b", b}, file{"c-1.2", c}, file{"d", nil}), 4000},
		"new":     {makeNAR(file{"q", noise(9, 10_000)}), 10_500},
		"empty":   {makeNAR(), 100},
	} {
		t.Run(name, func(t *testing.T) {
			if d := roundtrip(t, base, tt.target); len(d) > tt.most {
				t.Errorf("%d bytes, want at most %d", len(d), tt.most)
			}
		})
	}
}

// TestLarge has a file that does not fit into the windows.
func TestLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("long")
	}
	a := noise(1, baseWindow+12345)
	shifted := append(noise(2, 6<<20), a...)
	copy(shifted[20<<20:], noise(3, 100))
	swapped := append(bytes.Clone(a[len(a)/2:]), a[:len(a)/2]...)
	base := makeNAR(file{"a", a})
	for name, tt := range map[string]struct {
		target []byte
		most   int
	}{"same": {a, 100}, "shifted": {shifted, 6<<20 + 10_000}, "swapped": {swapped, 12 << 20}} {
		t.Run(name, func(t *testing.T) {
			if d := roundtrip(t, base, makeNAR(file{"a", tt.target})); len(d) > tt.most {
				t.Errorf("%d bytes, want at most %d", len(d), tt.most)
			}
		})
	}
}

func TestCut(t *testing.T) {
	a := noise(1, 100_000)
	base, target := makeNAR(file{"a", a}), makeNAR(file{"a", edit(5, a)})
	d := roundtrip(t, base, target)
	for n := 0; n < len(d); n += 1 + n/20 {
		got, err := decode(d[:n], base, len(target))
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d of %d: %v", n, len(d), err)
		}
		if !bytes.HasPrefix(target, got) {
			t.Fatalf("cut at %d: wrong bytes", n)
		}
	}
}
