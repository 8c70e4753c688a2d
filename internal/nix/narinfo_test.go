package nix

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// textOf puts a narinfo together from lines without their newlines.
func textOf(lines ...string) []byte { return []byte(strings.Join(lines, "\n") + "\n") }

var (
	base = []string{
		"StorePath: /nix/store/6lwdzpbig6zz8678blcqr5f5q1caxjw2-hello-2.12",
		"URL: nar/x.nar.xz",
		"Compression: xz",
		"FileHash: sha256:" + fileText,
		"FileSize: 40000",
		"NarHash: sha256:08n38jlm2m2wlsskaav1mcvsgp42nm7cv8x9yga84l9rgnxsz8lz",
		"NarSize: 181368",
		"References: 6lwdzpbig6zz8678blcqr5f5q1caxjw2-hello-2.12 b2hc0i92l22ir2kavnjn3z5z6mzabbvm-glibc-2.34-210",
		"Sig: " + realSig,
	}
)

// with returns base with the line of the same key replaced, or the line added.
func with(line string) []byte {
	key, _, _ := strings.Cut(line, ":")
	lines := slices.Clone(base)
	for i, l := range lines {
		if strings.HasPrefix(l, key+":") {
			lines[i] = line
			return textOf(lines...)
		}
	}
	return textOf(append(lines, line)...)
}

// without returns base without the line of a key.
func without(key string) []byte {
	return textOf(slices.DeleteFunc(slices.Clone(base), func(l string) bool { return strings.HasPrefix(l, key+":") })...)
}

func TestNarInfo(t *testing.T) {
	text := textOf(base...)
	n, err := ParseNarInfo(text)
	if err != nil {
		t.Fatal(err)
	}
	if got := n.AppendText([]byte("x")); string(got) != "x"+string(text) {
		t.Errorf("AppendText:\n%s\nwant\n%s", got, text)
	}
	if got := string(n.Fingerprint()); got != realFingerprint {
		t.Errorf("Fingerprint:\n%s\nwant\n%s", got, realFingerprint)
	}
	if !mustKey(t, realKey).Verify(n.Fingerprint(), n.Sigs[0]) {
		t.Error("does not verify")
	}
	if n.Compression != XZ || n.FileSize != 40000 || n.NarSize != 181368 || n.CA != "" {
		t.Errorf("got %+v", n)
	}
}

func TestNarInfoAccepted(t *testing.T) {
	reversed := slices.Clone(base)
	slices.Reverse(reversed)
	for name, test := range map[string]struct {
		text []byte
		ok   func(n *NarInfo) bool
	}{
		"any order":              {textOf(reversed...), func(n *NarInfo) bool { return string(n.Fingerprint()) == realFingerprint }},
		"no compression":         {without("Compression"), func(n *NarInfo) bool { return n.Compression == Bzip2 }},
		"empty compression":      {with("Compression: "), func(n *NarInfo) bool { return n.Compression == Bzip2 }},
		"brotli":                 {with("Compression: br"), func(n *NarInfo) bool { return n.Compression == Brotli }},
		"no file hash":           {without("FileHash"), func(n *NarInfo) bool { return n.FileHash == FileHash{} }},
		"no file size":           {without("FileSize"), func(n *NarInfo) bool { return n.FileSize == 0 }},
		"no references":          {without("References"), func(n *NarInfo) bool { return n.References == nil }},
		"empty references":       {with("References: "), func(n *NarInfo) bool { return n.References == nil }},
		"references and spaces":  {with("References:  " + helloBase + "  " + helloBase + " "), func(n *NarInfo) bool { return len(n.References) == 1 }},
		"empty references twice": {append(with("References: "), "References: \n"...), func(n *NarInfo) bool { return n.References == nil }},
		"unsorted references": {with("References: b2hc0i92l22ir2kavnjn3z5z6mzabbvm-glibc-2.34-210 " + helloBase), func(n *NarInfo) bool {
			return string(n.Fingerprint()) == realFingerprint
		}},
		"unknown lines": {append(textOf("Foo: bar: baz", "Deriver: /x", "System:x86_64-linux", "Foo:bar", "Foo:", ": x", ":", "", "junk", "\x00"), textOf(base...)...),
			func(n *NarInfo) bool { return string(n.AppendText(nil)) == string(textOf(base...)) }},
		"last URL counts":     {append(textOf(base...), "URL: other\n"...), func(n *NarInfo) bool { return n.URL == "other" }},
		"hex NAR hash":        {with("NarHash: sha256:" + hashHex), func(n *NarInfo) bool { return n.NarHash.Nix32() == hashNix32 }},
		"SRI NAR hash":        {with("NarHash: sha256-" + hashBase), func(n *NarInfo) bool { return n.NarHash.Nix32() == hashNix32 }},
		"wrong CA":            {with("CA: fixed:r:sha256:" + hashNix32), func(n *NarInfo) bool { return n.CA == "" }},
		"bad CA, twice":       {append(with("CA: sha256:x"), "CA: fixed:nonsense\n"...), func(n *NarInfo) bool { return n.CA == "" }},
		"no space":            {with("NarSize:_181368"), func(n *NarInfo) bool { return n.NarSize == 181368 }},
		"references cut":      {with("References:"), func(n *NarInfo) bool { return n.References == nil }},
		"no URL":              {without("URL"), func(n *NarInfo) bool { return n.URL == "" }},
		"empty URL":           {with("URL: "), func(n *NarInfo) bool { return n.URL == "" }},
		"NUL in URL":          {with("URL: nar/\x00"), func(n *NarInfo) bool { return n.URL == "" }},
		"long URL":            {with("URL: " + strings.Repeat("x", maxURL+1)), func(n *NarInfo) bool { return n.URL == "" }},
		"bad FileSize":        {with("FileSize: -1"), func(n *NarInfo) bool { return n.FileSize == 0 }},
		"bad FileHash":        {with("FileHash: sha256:x"), func(n *NarInfo) bool { return n.FileHash == FileHash{} }},
		"sha512 FileHash":     {with("FileHash: sha512:" + strings.Repeat("0", 103)), func(n *NarInfo) bool { return n.FileHash == FileHash{} }},
		"unknown compression": {with("Compression: lz4"), func(n *NarInfo) bool { return n.Compression == "lz4" }},
		"long compression":    {with("Compression: " + strings.Repeat("x", 1<<19)), func(n *NarInfo) bool { return len(n.Compression) < 200 }},
		"many signatures":     {append(textOf(base...), strings.Repeat("Sig: x\n", 1000)...), func(n *NarInfo) bool { return len(n.Sigs) == 1 }},
		"long key name":       {append(textOf(base...), "Sig: "+strings.Repeat("k", maxKeyName+1)+realSig[17:]+"\n"...), func(n *NarInfo) bool { return len(n.Sigs) == 1 }},
		"behind a signature":  {append(without("Sig"), "Sig: "+realSig+" other-1:AAAA\n"...), func(n *NarInfo) bool { return len(n.Sigs) == 1 && n.Sigs[0].String() == realSig }},
		"unpadded signature":  {append(without("Sig"), "Sig: "+strings.TrimRight(realSig, "=")+"\n"...), func(n *NarInfo) bool { return len(n.Sigs) == 1 && n.Sigs[0].String() == realSig }},
		"unsigned":            {without("Sig"), func(n *NarInfo) bool { return n.Sigs == nil }},
		"two signatures":      {append(textOf(base...), "Sig: other-1:"+realSig[18:]+"\n"...), func(n *NarInfo) bool { return len(n.Sigs) == 2 }},
		"junk signatures": {append(textOf("Sig: ", "Sig: x", "Sig: k:!!"), textOf(base...)...), func(n *NarInfo) bool {
			return len(n.Sigs) == 1 && !strings.Contains(string(n.AppendText(nil)), "!!")
		}},
	} {
		n, err := ParseNarInfo(test.text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !test.ok(n) {
			t.Errorf("%s: got %+v", name, n)
		}
	}
}

func TestNarInfoRefused(t *testing.T) {
	whole := string(textOf(base...))
	for name, text := range map[string][]byte{
		"empty":                  nil,
		"no final newline":       []byte(strings.TrimSuffix(whole, "\n")),
		"carriage returns":       []byte(strings.ReplaceAll(whole, "\n", "\r\n")),
		"tab":                    with("References: " + helloBase + "\t" + helloBase),
		"no StorePath":           without("StorePath"),
		"no NarHash":             without("NarHash"),
		"no NarSize":             without("NarSize"),
		"NarSize 0":              with("NarSize: 0"),
		"NarSize negative":       with("NarSize: -1"),
		"NarSize too large":      with("NarSize: 9223372036854775808"),
		"NarSize hex":            with("NarSize: 0x10"),
		"base name as StorePath": with("StorePath: " + helloBase),
		"other store":            with("StorePath: /gnu/store/" + helloBase),
		"path in References":     with("References: /nix/store/" + helloBase),
		"References twice":       append(textOf(base...), "References: "+helloBase+"\n"...),
		"sha1 NarHash":           with("NarHash: sha1:" + hashHex),
		"too long":               []byte(whole + "X: " + strings.Repeat("x", MaxNarInfo) + "\n"),
		"HTML":                   []byte("<html>\n<body>not here</body>\n</html>\n"),
	} {
		n, err := ParseNarInfo(text)
		if err == nil {
			t.Errorf("%s: taken for %+v", name, n)
		} else if len(err.Error()) > 500 {
			t.Errorf("%s: error of %d bytes", name, len(err.Error()))
		}
	}
}

// TestNarInfoLongLine: bufio.Scanner's 64 KiB are not the limit.
func TestNarInfoLongLine(t *testing.T) {
	var refs []string
	for i := range 3691 {
		refs = append(refs, fmt.Sprintf("6lwdzpbig6zz8678blcqr5f5q1caxjw2-texlive-package-number-%06d", i))
	}
	n, err := ParseNarInfo(with("References: " + strings.Join(refs, " ")))
	if err != nil || len(n.References) != 3691 {
		t.Fatalf("%v", err)
	}
}

// checkInverse: what was parsed re-encodes to a text that says the same, and that text
// re-encodes to itself.
func checkInverse(t *testing.T, text []byte) {
	t.Helper()
	n, err := ParseNarInfo(text)
	if err != nil {
		return
	}
	encoded := n.AppendText(nil)
	again, err := ParseNarInfo(encoded)
	if err != nil {
		t.Fatalf("%q became %q: %v", text, encoded, err)
	}
	if !reflect.DeepEqual(n, again) {
		t.Fatalf("%q: %+v became %+v", text, n, again)
	}
	if stable := again.AppendText(nil); string(stable) != string(encoded) {
		t.Fatalf("%q, then %q", encoded, stable)
	}
}

// TestNarInfoMangled changes every byte of a text.
func TestNarInfoMangled(t *testing.T) {
	whole := textOf(base...)
	key := mustKey(t, realKey)
	for i := range whole {
		for _, d := range []byte{1, 0x20, 0x80, 0xff} {
			bad := slices.Clone(whole)
			bad[i] += d
			checkInverse(t, bad)
			n, err := ParseNarInfo(bad)
			if err != nil || len(n.Sigs) == 0 || !key.Verify(n.Fingerprint(), n.Sigs[0]) {
				continue
			}
			if string(n.Fingerprint()) != realFingerprint {
				t.Errorf("byte %d changed by %d: another fingerprint verifies", i, d)
			}
		}
	}
}

func FuzzNarInfo(f *testing.F) {
	paths, err := filepath.Glob("../../verify/testdata/real-narinfo/*.narinfo")
	if err != nil || len(paths) == 0 {
		f.Fatal(paths, err)
	}
	for _, p := range paths {
		text, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		if len(text) < 10000 {
			f.Add(text)
		}
	}
	f.Add(with("CA: text:sha256:x"))
	f.Fuzz(checkInverse)
}

func BenchmarkParseNarInfo(b *testing.B) {
	text := textOf(base...)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseNarInfo(text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendText(b *testing.B) {
	n, err := ParseNarInfo(textOf(base...))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	var buf []byte
	for b.Loop() {
		buf = n.AppendText(buf[:0])
	}
}
