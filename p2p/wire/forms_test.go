package wire

import (
	"slices"
	"strings"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
)

func TestForms(t *testing.T) {
	xz := nix.Form{Compression: nix.XZ, File: nix.FileHash{1}}
	list := []Present{{nix.Raw, 5, 5}, {xz, 0, 7}, {nix.Form{Compression: nix.Zstd, File: nix.FileHash{2}}, 3, 9}}
	got, err := ParseForms(FormatForms(list))
	if err != nil || !slices.Equal(got, list) {
		t.Errorf("%v, %v", got, err)
	}
	if got[0].Whole() != true || got[1].Whole() {
		t.Error("whole")
	}
	if got, err := ParseForms("br:x=5; raw=1"); err != nil || len(got) != 1 {
		t.Errorf("a newer compression: %v, %v", got, err)
	}
	for _, bad := range []string{
		"raw", "raw=", "raw=-1", "raw=01", "raw=5/4", "raw=5/5", "raw=1;raw=1", "xz=1", ":=1", "xz:" + strings.Repeat("0", 52) + "=1", "xz:short=1",
		strings.Repeat("raw=1; ", maxForms) + "raw=1",
	} {
		if got, err := ParseForms(bad); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

func FuzzForms(f *testing.F) {
	f.Add("raw=5; xz:" + nix.FileHash{1}.Nix32() + "=0/7")
	f.Fuzz(func(t *testing.T, s string) {
		list, err := ParseForms(s)
		if err != nil {
			return
		}
		again, err := ParseForms(FormatForms(list))
		if err != nil || !slices.Equal(list, again) {
			t.Errorf("%q: %v, then %v, %v", s, list, again, err)
		}
	})
}
