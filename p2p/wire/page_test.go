package wire

import (
	"bytes"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
)

func TestPage(t *testing.T) {
	some := source.SharedPage{First: 7, Next: 3, Paths: []source.SharedPath{
		{Store: nix.StoreHash{1}, Nar: nix.NarHash{2}, Size: 120},
		{Store: nix.StoreHash{3}, Nar: nix.NarHash{4}, Size: 1 << 40},
	}}
	good := AppendPage(nil, some)
	change := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	for what, c := range map[string]struct {
		bytes []byte
		ok    bool
	}{
		"two paths":                {good, true},
		"none":                     {AppendPage(nil, source.SharedPage{}), true},
		"the last":                 {change(15, 0), true},
		"nothing":                  {nil, false},
		"half a path":              {good[:len(good)-1], false},
		"goes up":                  {change(15, 8), false},
		"paths without a number":   {change(7, 0), false},
		"none, and yet more":       {AppendPage(nil, source.SharedPage{Next: 1}), false},
		"a number and no path":     {AppendPage(nil, source.SharedPage{First: 1}), false},
		"a size that is negative":  {change(pageHead+pageEntry-8, 0x80), false},
		"more than fit one page":   {AppendPage(nil, source.SharedPage{First: 1, Paths: make([]source.SharedPath, MaxPage+1)}), false},
		"as many as fit into one":  {AppendPage(nil, source.SharedPage{First: 1, Paths: make([]source.SharedPath, MaxPage)}), true},
		"a byte behind the last":   {append(bytes.Clone(good), 0), false},
		"less than a page's begin": {good[:pageHead-1], false},
	} {
		p, err := ParsePage(c.bytes)
		if ok := err == nil; ok != c.ok {
			t.Errorf("%s: %v", what, err)
		} else if ok && !bytes.Equal(AppendPage(nil, p), c.bytes) {
			t.Errorf("%s: does not encode to what was read", what)
		}
	}
}

func FuzzPagePath(f *testing.F) {
	for _, s := range []string{"/shared", "/shared/1", "/shared/0", "/shared/01", "/shared/18446744073709551616", "/nar/1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if before, ok := ParsePagePath(s); ok && PagePath(before) != s {
			t.Errorf("%q is read as %d", s, before)
		}
	})
}

func FuzzPage(f *testing.F) {
	f.Add(AppendPage(nil, source.SharedPage{}))
	f.Add(AppendPage(nil, source.SharedPage{First: 2, Next: 1, Paths: make([]source.SharedPath, 1)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := ParsePage(b); err == nil && !bytes.Equal(AppendPage(nil, p), b) {
			t.Error("does not encode to what was read")
		}
	})
}
