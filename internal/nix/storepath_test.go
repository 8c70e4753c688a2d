package nix

import (
	"strings"
	"testing"
)

const helloBase = "6lwdzpbig6zz8678blcqr5f5q1caxjw2-hello-2.12"

func TestStorePath(t *testing.T) {
	p, err := ParseStorePath("/nix/store/" + helloBase)
	if err != nil {
		t.Fatal(err)
	}
	if p.Base() != helloBase || p.Name() != "hello-2.12" || p.String() != "/nix/store/"+helloBase ||
		p.Hash().String() != helloBase[:32] || p.IsZero() {
		t.Errorf("got %q, %q, %q, %s", p.Base(), p.Name(), p, p.Hash())
	}
	if q, err := ParseBaseName(helloBase); err != nil || q != p {
		t.Errorf("ParseBaseName: %v, %v", q, err)
	}
	var zero StorePath
	if !zero.IsZero() || zero.String() != "" || zero.Base() != "" || zero.Name() != "" || zero.Hash() != (StoreHash{}) {
		t.Error("the zero value is not empty")
	}
}

func TestStorePathNames(t *testing.T) {
	const hash = "6lwdzpbig6zz8678blcqr5f5q1caxjw2-"
	for name, want := range map[string]bool{
		"a": true, "0": true, "hello-2.12": true, "A+b._?=-z": true, ".config": true, "..x": true, "...": true, "-": true, "a..b": true,
		strings.Repeat("a", 211): true, strings.Repeat("a", 212): false,
		"": false, ".": false, "..": false, ".-x": false, "..-x": false, ".-": false,
		"a/b": false, "a b": false, "a\x00": false, "a\n": false, "a%2f": false, "ä": false, "a~": false, "a:b": false, "../x": false,
	} {
		_, err := ParseBaseName(hash + name)
		if (err == nil) != want {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestStorePathRefused(t *testing.T) {
	for _, s := range []string{
		"", "/", "/nix/store", "/nix/store/", helloBase, "/gnu/store/" + helloBase, "/nix/store//" + helloBase,
		"/nix/store/" + helloBase + "/bin", "/nix/store/" + helloBase[1:], "/nix/store/" + helloBase[:32],
		"/nix/store/" + helloBase[:33], "/nix/store/e" + helloBase[1:], "/nix/store/" + strings.ToUpper(helloBase),
		"/nix/store/" + strings.Replace(helloBase, "-", "_", 1), "/nix/store/../store/" + helloBase,
	} {
		if p, err := ParseStorePath(s); err == nil {
			t.Errorf("%q was taken for %q", s, p)
		}
	}
}

func FuzzStorePath(f *testing.F) {
	f.Add("/nix/store/" + helloBase)
	f.Add("/nix/store/" + helloBase[:33] + ".-")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParseStorePath(s)
		if err != nil {
			if !p.IsZero() {
				t.Fatalf("%q: %v and an error", s, p)
			}
			return
		}
		if p.String() != s || "/nix/store/"+p.Base() != s || p.Hash().String()+"-"+p.Name() != p.Base() {
			t.Fatalf("%q became %q", s, p)
		}
		if strings.ContainsAny(p.Base(), "/\x00% \n") || len(p.Base()) > 244 {
			t.Fatalf("%q is no file name", p.Base())
		}
	})
}
