package update

import (
	"slices"
	"strings"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
)

func TestDictionaries(t *testing.T) {
	a, b := nix.NarHash{1}, nix.NarHash{31: 255}
	for _, list := range [][]nix.NarHash{nil, {a}, {a, b}, {b, a, {}}} {
		if got := ParseDictionaries([]string{FormatDictionaries(list)}); !slices.Equal(got, list) {
			t.Errorf("%v: %v", list, got)
		}
	}
	// The example of RFC 9842 is a SHA-256, too.
	if got := ParseDictionaries([]string{":pZGm1Av0IEBKARczz7exkNYsZb8LzaMrV7J32a2fFG4=:"}); len(got) != 1 || got[0][0] != 0xa5 {
		t.Errorf("RFC 9842: %v", got)
	}
	one := FormatDictionaries([]nix.NarHash{a})
	for text, n := range map[string]int{
		"": 0, ":": 0, "::": 0, one[1:]: 0, one[:40] + ":": 0, strings.Replace(one, "A=", "B=", 1): 0, one + one: 0,
		strings.Repeat(one+",", 1000): MaxBases, "x, " + one + ",,": 1,
	} {
		if got := ParseDictionaries([]string{text}); len(got) != n {
			t.Errorf("%.80q: %v", text, got)
		}
	}
}

// FuzzDictionaries: what is read is written again, and there is never more than may be proposed.
func FuzzDictionaries(f *testing.F) {
	f.Add(FormatDictionaries([]nix.NarHash{{1}, {2}}), "")
	f.Add(":pZGm1Av0IEBKARczz7exkNYsZb8LzaMrV7J32a2fFG4=:", "x")
	f.Fuzz(func(t *testing.T, one, two string) {
		got := ParseDictionaries([]string{one, two})
		if len(got) > MaxBases {
			t.Fatalf("%d bases", len(got))
		}
		if again := ParseDictionaries([]string{FormatDictionaries(got)}); !slices.Equal(got, again) {
			t.Fatalf("%v became %v", got, again)
		}
	})
}
