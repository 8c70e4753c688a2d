package verify_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/verify"
)

var (
	alice = nixtest.NewKey("alice-1")
	bob   = nixtest.NewKey("bob-1")
	hello = nixtest.NewPath("hello", 1000, nixtest.NewPath("glibc", 1).StorePath)
	other = nixtest.NewPath("other", 1000)
)

func TestParseKeys(t *testing.T) {
	keys, err := verify.ParseKeys([]string{bob.Public(), alice.Public(), bob.Public()})
	if err != nil {
		t.Fatal(err)
	}
	if got := keys.Names(); !slices.Equal(got, []string{"alice-1", "bob-1"}) {
		t.Errorf("Names: %v", got)
	}
	if !keys.Has("alice-1") || keys.Has("alice") || keys.Has("") {
		t.Error("Has")
	}
	none, err := verify.ParseKeys(nil)
	if err != nil || len(none.Names()) != 0 {
		t.Errorf("no keys: %v, %v", none, err)
	}
	for name, texts := range map[string][]string{
		"one name for two keys": {alice.Public(), "alice-1" + strings.TrimPrefix(bob.Public(), "bob-1")},
		"junk":                  {alice.Public(), "junk"},
		"empty":                 {""},
		"two in one":            {alice.Public() + " " + bob.Public()},
	} {
		if keys, err := verify.ParseKeys(texts); err == nil {
			t.Errorf("%s: taken for %v", name, keys.Names())
		}
	}
}

// reasonOf returns the reason of err, "" for no error.
func reasonOf(t *testing.T, err error) verify.Reason {
	t.Helper()
	if err == nil {
		return ""
	}
	var invalid *verify.InvalidError
	if !errors.As(err, &invalid) {
		t.Fatalf("not an InvalidError: %v", err)
	}
	return invalid.Reason
}

// signed returns hello's text by alice after change, which happens behind her back.
func signed(change func(n *nix.NarInfo)) []byte {
	n := hello.Signed(alice)
	change(n)
	return n.AppendText(nil)
}

// forgeries are Sig lines under a name, all different.
func forgeries(name string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "Sig: %s\n", nix.Signature{KeyName: name, Data: [64]byte{byte(i), byte(i >> 8), 1}})
	}
	return b.String()
}

func TestOpen(t *testing.T) {
	keep := func(*nix.NarInfo) {}
	sigOf := func(p nixtest.Path, k nixtest.Key) nix.Signature { return p.Signed(k).Sigs[0] }
	for name, test := range map[string]struct {
		text []byte
		want verify.Reason
	}{
		"good":              {signed(keep), ""},
		"good and junk":     {append([]byte("Sig: alice-1:junk\nSig: \nSig: alice-1\n"), signed(keep)...), ""},
		"good and unknown":  {hello.Signed(bob, alice).AppendText(nil), ""},
		"good after forged": {signed(func(n *nix.NarInfo) { n.Sigs = []nix.Signature{sigOf(other, alice), n.Sigs[0]} }), ""},
		"good 64th": {signed(func(n *nix.NarInfo) {
			n.Sigs = append(slices.Repeat([]nix.Signature{sigOf(other, alice)}, 63), n.Sigs...)
		}), ""},
		"good with wrong CA": {signed(func(n *nix.NarInfo) { n.CA = "fixed:r:sha256:" + n.NarHash.Nix32() }), ""},
		"unsigned hints changed": {signed(func(n *nix.NarInfo) {
			n.URL, n.Compression, n.FileHash, n.FileSize = "http://elsewhere/x", nix.XZ, nix.FileHash{1}, 7
		}), ""},

		"good after 10,000 unknown": {append([]byte(forgeries("bob-1", 10000)), signed(keep)...), ""},
		"good without its hints":    {signed(func(n *nix.NarInfo) { n.URL, n.Compression = "", "lzip" }), ""},

		"nothing":                   {nil, verify.ReasonCorrupt},
		"cut":                       {signed(keep)[:100], verify.ReasonCorrupt},
		"an error page":             {[]byte("<html>404</html>\n"), verify.ReasonCorrupt},
		"10,000 under the name":     {append([]byte(forgeries("alice-1", 10000)), signed(keep)...), verify.ReasonBadSignature},
		"the narinfo of another":    {other.Signed(alice).AppendText(nil), verify.ReasonWrongPath},
		"of another, unsigned":      {other.NarInfo().AppendText(nil), verify.ReasonWrongPath},
		"unsigned":                  {hello.NarInfo().AppendText(nil), verify.ReasonUnsigned},
		"unsigned CA":               {signed(func(n *nix.NarInfo) { n.Sigs, n.CA = nil, "fixed:r:sha256:"+n.NarHash.Nix32() }), verify.ReasonUnsigned},
		"untrusted key":             {hello.Signed(bob).AppendText(nil), verify.ReasonUnsigned},
		"trusted name, junk":        {append(hello.NarInfo().AppendText(nil), "Sig: alice-1:junk\n"...), verify.ReasonUnsigned},
		"trusted name, short":       {append(hello.NarInfo().AppendText(nil), "Sig: alice-1:AAAA\n"...), verify.ReasonUnsigned},
		"trusted name, zeroes":      {append(hello.NarInfo().AppendText(nil), "Sig: alice-1:"+strings.Repeat("A", 86)+"==\n"...), verify.ReasonBadSignature},
		"trusted name, other's key": {signed(func(n *nix.NarInfo) { n.Sigs = hello.Signed(bob).Sigs; n.Sigs[0].KeyName = "alice-1" }), verify.ReasonBadSignature},
		"other's name, trusted key": {signed(func(n *nix.NarInfo) { n.Sigs[0].KeyName = "bob-1" }), verify.ReasonUnsigned},
		"signature of another path": {signed(func(n *nix.NarInfo) { n.Sigs[0] = sigOf(other, alice) }), verify.ReasonBadSignature},
		"another size":              {signed(func(n *nix.NarInfo) { n.NarSize++ }), verify.ReasonBadSignature},
		"another hash":              {signed(func(n *nix.NarInfo) { n.NarHash[31] ^= 1 }), verify.ReasonBadSignature},
		"a reference more":          {signed(func(n *nix.NarInfo) { n.References = nix.SortPaths(append(n.References, other.StorePath)) }), verify.ReasonBadSignature},
		"a reference less":          {signed(func(n *nix.NarInfo) { n.References = nil }), verify.ReasonBadSignature},
		"another name": {signed(func(n *nix.NarInfo) {
			n.StorePath, _ = nix.ParseBaseName(n.StorePath.Base() + "x")
		}), verify.ReasonBadSignature},
	} {
		info, err := nixtest.Keys(t, alice).Open(test.text, hello.Hash())
		if got := reasonOf(t, err); got != test.want || (info == nil) != (err != nil) {
			t.Errorf("%s: %v, %v; want %q", name, info, err, test.want)
			continue
		}
		if info != nil {
			checkInfo(t, name, info)
		}
	}
	if _, err := nixtest.Keys(t).Open(signed(keep), hello.Hash()); reasonOf(t, err) != verify.ReasonUnsigned {
		t.Errorf("without keys: %v", err)
	}
}

// checkInfo holds an Info of hello to what alice signed.
func checkInfo(t *testing.T, name string, info *verify.Info) {
	t.Helper()
	if info.StorePath() != hello.StorePath || info.NarHash() != hello.NarHash() || info.NarSize() != int64(len(hello.NAR)) ||
		!slices.Equal(info.References(), hello.References) {
		t.Errorf("%s: got %s, %s, %d, %v", name, info.StorePath(), info.NarHash(), info.NarSize(), info.References())
	}
	if !slices.Equal(info.Signers(), []string{"alice-1"}) || !info.SignedByAny([]string{"x", "alice-1"}) || info.SignedByAny([]string{"bob-1"}) || info.SignedByAny(nil) {
		t.Errorf("%s: signers %v", name, info.Signers())
	}
	if strings.Contains(string(info.Text()), "junk") || strings.Contains(string(info.Offer(nix.Raw)), "junk") {
		t.Errorf("%s: passes on junk", name)
	}
	if want := (verify.Digest{Size: int64(len(hello.NAR)), Hash: hello.NarHash()}); info.Digest(nix.Raw, 5) != want {
		t.Errorf("%s: Want %v", name, info.Digest(nix.Raw, 5))
	}
}

// TestSigners: each trusted key that signed counts once, sorted by name.
func TestSigners(t *testing.T) {
	keys := nixtest.Keys(t, alice, bob, nixtest.NewKey("carol-1"))
	info, err := keys.Open(hello.Signed(bob, alice, bob).AppendText(nil), hello.Hash())
	if err != nil || !slices.Equal(info.Signers(), []string{"alice-1", "bob-1"}) {
		t.Fatalf("%v", err)
	}
}

func TestEqual(t *testing.T) {
	keys := nixtest.Keys(t, alice)
	open := func(n *nix.NarInfo) *verify.Info {
		n.Sigs = nil
		alice.Sign(n)
		info, err := keys.OpenNarInfo(n, n.StorePath.Hash())
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	info := open(hello.NarInfo())
	for name, test := range map[string]struct {
		change func(n *nix.NarInfo)
		want   bool
	}{
		"same":       {func(*nix.NarInfo) {}, true},
		"hints":      {func(n *nix.NarInfo) { n.URL, n.Compression, n.FileSize = "x", nix.XZ, 3 }, true},
		"size":       {func(n *nix.NarInfo) { n.NarSize++ }, false},
		"hash":       {func(n *nix.NarInfo) { n.NarHash[0]++ }, false},
		"references": {func(n *nix.NarInfo) { n.References = nil }, false},
		"path":       {func(n *nix.NarInfo) { n.StorePath = other.StorePath }, false},
	} {
		n := hello.NarInfo()
		test.change(n)
		if o := open(n); info.Equal(o) != test.want || o.Equal(info) != test.want {
			t.Errorf("%s: not %v", name, test.want)
		}
	}
}

// TestOffer: our URL, the form that was asked for, and the signed facts.
func TestOffer(t *testing.T) {
	keys := nixtest.Keys(t, alice)
	for _, test := range []struct {
		c        nix.Compression
		fileHash nix.FileHash
		fileSize int64
		isFile   bool
	}{
		{nix.XZ, nix.FileHash{1}, 5, true},
		{nix.Zstd, nix.FileHash{1}, 5, true},
		{nix.XZ, nix.FileHash{}, 5, false},
		{nix.XZ, nix.FileHash{1}, 0, false},
		{nix.Bzip2, nix.FileHash{1}, 5, false},
		{nix.None, nix.FileHash{1}, 5, false},
	} {
		n := hello.Signed(alice)
		n.Compression, n.FileHash, n.FileSize = test.c, test.fileHash, test.fileSize
		info, err := keys.Open(n.AppendText(nil), hello.Hash())
		if err != nil {
			t.Fatal(err)
		}
		form, ok := info.FileForm()
		if want := (nix.Form{Compression: test.c, File: test.fileHash}); ok != test.isFile || ok && form != want || !ok && !form.IsRaw() {
			t.Errorf("%v: FileForm %v, %v", test, form, ok)
		}
		if h := info.Hints(); h.URL != n.URL || h.Compression != test.c || h.FileHash != test.fileHash || h.FileSize != test.fileSize {
			t.Errorf("%v: Hints %v", test, h)
		}
		for _, offered := range []nix.Form{nix.Raw, form, {Compression: nix.XZ, File: nix.FileHash{9}}} {
			checkOffer(t, keys, info, offered)
		}
		if ok && info.Digest(form, 5) != (verify.Digest{Size: 5, Hash: test.fileHash}) {
			t.Errorf("%v: Want", test)
		}
	}
}

// checkOffer reads an offer as a client does.
func checkOffer(t *testing.T, keys *verify.Keys, info *verify.Info, offered nix.Form) {
	t.Helper()
	text := info.Offer(offered)
	again, err := keys.Open(text, info.StorePath().Hash())
	if err != nil || !again.Equal(info) || !slices.Equal(again.Signers(), info.Signers()) {
		t.Errorf("%s as %s: %v\n%s", info.StorePath(), offered, err, text)
		return
	}
	form := nix.Raw
	if own, ok := info.FileForm(); ok && own == offered {
		form = own
	}
	name := nix.NARName{Store: info.StorePath().Hash(), Nar: info.NarHash(), Form: form}
	want := verify.Hints{URL: name.URL(), Compression: nix.None, FileHash: nix.FileHash(info.NarHash()), FileSize: info.NarSize()}
	if !form.IsRaw() {
		h := info.Hints()
		want.Compression, want.FileHash, want.FileSize = h.Compression, h.FileHash, h.FileSize
	}
	if got := again.Hints(); got != want {
		t.Errorf("%s as %s: %+v, want %+v", info.StorePath(), offered, got, want)
	}
	if back, err := nix.ParseNARName(strings.TrimPrefix(again.Hints().URL, "nar/")); err != nil || back != name {
		t.Errorf("URL %s: %+v, %v", again.Hints().URL, back, err)
	}
	// Signatures and CA go on unchanged, line for line.
	for line := range bytes.Lines(info.Text()) {
		key, _, _ := bytes.Cut(line, []byte(":"))
		switch string(key) {
		case "URL", "Compression", "FileHash", "FileSize":
		default:
			if !bytes.Contains(text, line) {
				t.Errorf("%s as %s: lacks %s", info.StorePath(), offered, line)
			}
		}
	}
}

func TestInvalidError(t *testing.T) {
	cause := errors.New("cause")
	err := fmt.Errorf("peer x: %w", &verify.InvalidError{Reason: verify.ReasonHash, Err: cause})
	if !errors.Is(err, cause) || err.Error() != "peer x: invalid: hash: cause" {
		t.Errorf("%v", err)
	}
}

func BenchmarkOpen(b *testing.B) {
	keys, text := nixtest.Keys(b, alice), signed(func(*nix.NarInfo) {})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := keys.Open(text, hello.Hash()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOffer(b *testing.B) {
	info := hello.Info(b, alice)
	b.ReportAllocs()
	for b.Loop() {
		_ = info.Offer(nix.Raw)
	}
}
