package standing

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// gave notes a piece as a transfer does, in reads of odd lengths.
func gave(e *Evidence, peer string, from int, b []byte) Given {
	h := e.Hash()
	for rest := b; len(rest) > 0; {
		k := min(len(rest), 7)
		_, _ = h.Write(rest[:k])
		rest = rest[k:]
	}
	return Given{Peer: peer, From: int64(from), To: int64(from + len(b)), Sum: h.Sum64()}
}

func TestEvidence(t *testing.T) {
	right := bytes.Repeat([]byte("0123456789"), 100)
	wrong := func(at int) []byte {
		b := bytes.Clone(right)
		b[at] ^= 1
		return b
	}
	long := append(bytes.Clone(right), 'x')
	for _, c := range []struct {
		name             string
		given            func(e *Evidence) []Given
		guilty, innocent []string
		misled           []string
	}{
		{"the first", func(e *Evidence) []Given {
			return []Given{gave(e, "a", 0, wrong(5)[:300]), gave(e, "b", 300, right[300:])}
		}, []string{"a"}, []string{"b"}, nil},
		{"the last byte", func(e *Evidence) []Given {
			return []Given{gave(e, "a", 0, right[:300]), gave(e, "b", 300, wrong(999)[300:])}
		}, []string{"b"}, []string{"a"}, nil},
		{"the byte before the border", func(e *Evidence) []Given {
			b := wrong(299)
			return []Given{gave(e, "a", 0, b[:300]), gave(e, "b", 300, b[300:])}
		}, []string{"a"}, []string{"b"}, nil},
		{"two of three", func(e *Evidence) []Given {
			b := wrong(10)
			b[990] ^= 1
			return []Given{gave(e, "a", 0, b[:300]), gave(e, "b", 300, b[300:600]), gave(e, "c", 600, b[600:])}
		}, []string{"a", "c"}, []string{"b"}, nil},
		{"one of its two pieces", func(e *Evidence) []Given {
			b := wrong(700)
			return []Given{gave(e, "a", 0, b[:300]), gave(e, "b", 300, b[300:600]), gave(e, "a", 600, b[600:])}
		}, []string{"a"}, []string{"b"}, nil},
		{"overlapping transfers", func(e *Evidence) []Given {
			b := wrong(10)
			return []Given{gave(e, "a", 0, b[:300]), gave(e, "b", 0, right), gave(e, "c", 200, right[200:800])}
		}, []string{"a"}, []string{"b", "c"}, nil},
		{"none of these", func(e *Evidence) []Given {
			return []Given{gave(e, "a", 0, right[:300]), gave(e, "b", 300, right[300:400])}
		}, nil, []string{"a", "b"}, nil},
		{"passed on", func(e *Evidence) []Given {
			b := wrong(10)
			passed := gave(e, "a", 0, b[:300])
			passed.Relayed = true
			return []Given{passed, gave(e, "b", 300, b[300:])}
		}, nil, []string{"b"}, []string{"a"}},
		{"passed on, and lied", func(e *Evidence) []Given {
			b := wrong(10)
			passed := gave(e, "a", 0, b[:300])
			passed.Relayed = true
			return []Given{passed, gave(e, "a", 0, b)}
		}, []string{"a"}, nil, nil},
		{"more than there is", func(e *Evidence) []Given {
			return []Given{gave(e, "a", 0, right[:300]), gave(e, "b", 300, long[300:])}
		}, []string{"b"}, []string{"a"}, nil},
	} {
		for _, step := range []int{1, 13, 1000} {
			t.Run(fmt.Sprint(c.name, step), func(t *testing.T) {
				e, k := &Evidence{}, Stream{Nar: nix.NarHash{1}}
				if e.Compare(k) != nil {
					t.Fatal("something is kept")
				}
				e.Keep(k, c.given(e))
				if e.Compare(Stream{Nar: nix.NarHash{2}}) != nil {
					t.Error("something is kept of another NAR")
				}
				cmp := e.Compare(k)
				for part := range slices.Chunk(right, step) {
					_, _ = cmp.Write(part)
				}
				guilty, misled, innocent := cmp.Verdict()
				if !slices.Equal(guilty, c.guilty) || !slices.Equal(innocent, c.innocent) || !slices.Equal(misled, c.misled) {
					t.Errorf("guilty %q, misled %q, innocent %q; want %q, %q, %q", guilty, misled, innocent, c.guilty, c.misled, c.innocent)
				}
				if e.Compare(k) != nil {
					t.Error("the file is not closed")
				}
			})
		}
	}
}

func TestEvidenceBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &Evidence{}
		for i := range 2 * maxFiles {
			k := Stream{Nar: nix.NarHash{byte(i), byte(i >> 8)}}
			for j := range 2 * maxGiven {
				e.Keep(k, []Given{{Peer: "a", From: int64(j), To: int64(j + 1)}})
			}
			<-time.After(time.Second)
		}
		i := 2*maxFiles - 1
		last := Stream{Nar: nix.NarHash{byte(i), byte(i >> 8)}}
		if len(e.kept) > maxFiles || len(e.kept[last].given) != maxGiven || e.Compare(Stream{Nar: nix.NarHash{0}}) != nil {
			t.Errorf("%d files, %d pieces", len(e.kept), len(e.kept[last].given))
		}
		<-time.After(AvoidFor)
		if e.Compare(last) != nil {
			t.Error("kept for ever")
		}
	})
}

// A contributor's bytes are summed as they come.
func BenchmarkEvidenceHash(b *testing.B) {
	e, buf := &Evidence{}, make([]byte, 64<<10)
	h := e.Hash()
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		_, _ = h.Write(buf)
	}
}
