package admin

import "testing"

// FuzzParseAsked: what a person types is a store path, a hash or an error.
func FuzzParseAsked(f *testing.F) {
	for _, s := range []string{"/nix/store/6lwdzpbig6zz8678blcqr5f5q1caxjw2-hello-2.12/bin", "6lwdzpbig6zz8678blcqr5f5q1caxjw2", "", "/", "/nix/store/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h, err := ParseAsked(s)
		if err != nil {
			return
		}
		again, err := ParseAsked(h.String())
		if err != nil || again != h {
			t.Errorf("%q: %v, %v", s, again, err)
		}
	})
}
