package nix

import (
	"strings"
	"testing"
)

const (
	storeText = "6lwdzpbig6zz8678blcqr5f5q1caxjw2"
	fileText  = "08n38jlm2m2wlsskaav1mcvsgp42nm7cv8x9yga84l9rgnxsz8lz"
)

func TestNARName(t *testing.T) {
	store, err := ParseStoreHash(storeText)
	if err != nil {
		t.Fatal(err)
	}
	nar, err := ParseNarHash32(hashNix32)
	if err != nil {
		t.Fatal(err)
	}
	file, err := ParseFileHash32(fileText)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]NARName{
		storeText + "-" + hashNix32 + ".nar":                             {store, nar, Raw},
		storeText + "-" + hashNix32 + "-" + fileText + ".nar.xz":         {store, nar, Form{XZ, file}},
		storeText + "-" + hashNix32 + "-" + fileText + ".nar.zst":        {store, nar, Form{Zstd, file}},
		storeText + "-" + hashNix32 + "-" + zero52(t) + ".nar.xz":        {store, nar, Form{XZ, FileHash{}}},
		strings.Repeat("0", 32) + "-" + strings.Repeat("0", 52) + ".nar": {},
	} {
		got, err := ParseNARName(text)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
		if got.String() != text || got.URL() != "nar/"+text {
			t.Errorf("%s became %s", text, got)
		}
	}
}

func zero52(t *testing.T) string {
	t.Helper()
	return FileHash{}.Nix32()
}

func TestNARNameRefused(t *testing.T) {
	raw := storeText + "-" + hashNix32
	file := raw + "-" + fileText
	for _, s := range []string{
		"", ".nar", ".nar.xz", "-.nar", "--.nar.xz", raw, file, raw + ".nar.xz", raw + ".nar.zst", file + ".nar",
		raw + ".nar.", raw + ".nar.gz", raw + ".NAR", raw + ".nar.nar", raw + ".nar?x", "nar/" + raw + ".nar", raw + "-.nar.xz",
		file + "-" + fileText + ".nar.xz", storeText + ".nar", hashNix32 + "-" + storeText + ".nar", strings.ToUpper(raw) + ".nar",
		raw[1:] + ".nar", storeText + "-2" + hashNix32[1:] + ".nar", raw + "-2" + fileText[1:] + ".nar.xz", file + ".nar.xz.zst",
		raw + ".nar\n", " " + raw + ".nar", strings.Repeat("-", 1<<16) + ".nar",
	} {
		if n, err := ParseNARName(s); err == nil {
			t.Errorf("%.200q was taken for %v", s, n)
		} else if n != (NARName{}) {
			t.Errorf("%.200q: %+v and an error", s, n)
		}
	}
}

func TestFormString(t *testing.T) {
	file, _ := ParseFileHash32(fileText)
	if Raw.String() != "raw" || !Raw.IsRaw() {
		t.Error("raw")
	}
	if f := (Form{XZ, file}); f.String() != "xz:"+fileText || f.IsRaw() {
		t.Errorf("got %s", f)
	}
}

func FuzzNARName(f *testing.F) {
	f.Add(storeText + "-" + hashNix32 + ".nar")
	f.Add(storeText + "-" + hashNix32 + "-" + fileText + ".nar.xz")
	f.Add(storeText + "-" + hashNix32 + "-" + fileText + ".nar.zst")
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := ParseNARName(s); err == nil && n.String() != s {
			t.Fatalf("%q became %q", s, n)
		}
	})
}
