package nix

import (
	"bytes"
	"strings"
	"testing"
)

func TestNARFraming(t *testing.T) {
	if got := AppendNARString([]byte("x"), "type"); string(got) != "x\x04\x00\x00\x00\x00\x00\x00\x00type\x00\x00\x00\x00" {
		t.Errorf("got %q", got)
	}
	for n := range int64(20) {
		s := strings.Repeat("a", int(n))
		whole := AppendNARString(nil, s)
		streamed := AppendNARPadding(append(AppendNARLength(nil, n), s...), n)
		if !bytes.Equal(whole, streamed) || NARStringSize(n) != int64(len(whole)) || len(whole)%8 != 0 {
			t.Errorf("%d: %q, %q, %d", n, whole, streamed, NARStringSize(n))
		}
	}
}

// TestNARSizes compares with what nix-store --dump makes of the smallest trees.
func TestNARSizes(t *testing.T) {
	for want, words := range map[int][]string{
		96:  {NARMagic, "(", "type", "directory", ")"},
		112: {NARMagic, "(", "type", "regular", "contents", "", ")"},
		120: {NARMagic, "(", "type", "symlink", "target", "x", ")"},
	} {
		var b []byte
		for _, w := range words {
			b = AppendNARString(b, w)
		}
		if len(b) != want {
			t.Errorf("%v: %d bytes, want %d", words, len(b), want)
		}
	}
}
