package wire

import (
	"strings"
	"testing"
)

func TestZone(t *testing.T) {
	for s, ok := range map[string]bool{
		"": true, "eu-central-1a": true, "rack_7.B": true, strings.Repeat("a", MaxZone): true,
		strings.Repeat("a", MaxZone+1): false, "a b": false, "a\n": false, "zone/1": false, "\xff": false, "é": false,
	} {
		got, err := ParseZone(s)
		if (err == nil) != ok || ok && got != s {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	}
}

func FuzzZone(f *testing.F) {
	f.Add("eu-central-1a")
	f.Fuzz(func(t *testing.T, s string) {
		if z, err := ParseZone(s); err == nil && (z != s || len(z) > MaxZone) {
			t.Errorf("%q is read as %q", s, z)
		}
	})
}
