package nix

import (
	"strings"
	"testing"
)

// The key of cache.nixos.org with one of its signatures.
const (
	realKey         = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="
	realSig         = "cache.nixos.org-1:J3pwQAMB5Pzi4PpxyTPOugN8sl8cVbU/XjC1WVj5MKwZDIVdUHTV3IwLido9XMHe3xL6sWVdlk76hhQwaMVNDg=="
	realFingerprint = "1;/nix/store/6lwdzpbig6zz8678blcqr5f5q1caxjw2-hello-2.12;sha256:08n38jlm2m2wlsskaav1mcvsgp42nm7cv8x9yga84l9rgnxsz8lz;181368;" +
		"/nix/store/6lwdzpbig6zz8678blcqr5f5q1caxjw2-hello-2.12,/nix/store/b2hc0i92l22ir2kavnjn3z5z6mzabbvm-glibc-2.34-210"
)

func mustKey(t testing.TB, s string) PublicKey {
	t.Helper()
	k, err := ParsePublicKey(s)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func mustSig(t testing.TB, s string) Signature {
	t.Helper()
	sig, err := ParseSignature(s)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func TestVerify(t *testing.T) {
	key, sig := mustKey(t, realKey), mustSig(t, realSig)
	if !key.Verify([]byte(realFingerprint), sig) {
		t.Fatal("the real signature does not verify")
	}
	for i := range len(realFingerprint) {
		bad := []byte(realFingerprint)
		bad[i]++
		if key.Verify(bad, sig) {
			t.Errorf("verifies with byte %d changed", i)
		}
	}
	other := key
	other.Name = "other-1"
	if other.Verify([]byte(realFingerprint), sig) {
		t.Error("the name does not count")
	}
}

// mangled returns every substring of s, and s with every byte changed in several ways.
func mangled(s string) (texts []string) {
	for i := range len(s) {
		for j := i; j < len(s); j++ {
			texts = append(texts, s[i:j])
		}
		if i > 0 {
			texts = append(texts, s[i:])
		}
		for _, c := range []byte{s[i] + 1, s[i] - 1, s[i] ^ 0x20, s[i] ^ 0x80, 0, ' ', '\n', ':', '='} {
			if c != s[i] {
				texts = append(texts, s[:i]+string([]byte{c})+s[i+1:])
			}
		}
		texts = append(texts, s[:i]+"A"+s[i:], s[:i]+"\n"+s[i:], s[:i]+s[i:i+1]+s[i:])
	}
	return append(texts, s+"=", s+" ", s+"\n", s+"\r", s+"A", s+"AAAA", " "+s, "\n"+s)
}

func TestMangledKey(t *testing.T) {
	sig := mustSig(t, realSig)
	for _, s := range mangled(realKey) {
		if s == realKey {
			continue
		}
		k, err := ParsePublicKey(s)
		if err != nil {
			if k != (PublicKey{}) {
				t.Errorf("%q: %v and an error", s, k)
			}
			continue
		}
		if k.String() != s {
			t.Errorf("%q was taken for %q", s, k)
		}
		if k.Verify([]byte(realFingerprint), sig) {
			t.Errorf("%q verifies", s)
		}
	}
}

func TestMangledSignature(t *testing.T) {
	key := mustKey(t, realKey)
	for _, s := range mangled(realSig) {
		if s == realSig {
			continue
		}
		sig, err := ParseSignature(s)
		if err != nil {
			if sig != (Signature{}) {
				t.Errorf("%q: %v and an error", s, sig)
			}
			continue
		}
		if sig.String() != s {
			t.Errorf("%q was taken for %q", s, sig)
		}
		if key.Verify([]byte(realFingerprint), sig) {
			t.Errorf("%q verifies", s)
		}
	}
}

func TestNamedRefused(t *testing.T) {
	data := strings.TrimPrefix(realKey, "cache.nixos.org-1")
	for _, name := range []string{"", "a b", "a\tb", "a\nb", "a\x00b", "a\x7fb", " a"} {
		if _, err := ParsePublicKey(name + data); err == nil {
			t.Errorf("name %q was taken", name)
		}
	}
	if _, err := ParsePublicKey(realSig); err == nil {
		t.Error("a signature was taken for a key")
	}
	if _, err := ParseSignature(realKey); err == nil {
		t.Error("a key was taken for a signature")
	}
	if _, err := ParseSignature("k:" + strings.Repeat("A", 1<<20)); err == nil || len(err.Error()) > 400 {
		t.Error("no short error for a long line")
	}
}

func FuzzPublicKey(f *testing.F) {
	f.Add(realKey)
	f.Fuzz(func(t *testing.T, s string) {
		if k, err := ParsePublicKey(s); err == nil && k.String() != s {
			t.Fatalf("%q became %q", s, k)
		}
	})
}

func FuzzSignature(f *testing.F) {
	f.Add(realSig)
	f.Fuzz(func(t *testing.T, s string) {
		sig, err := ParseSignature(s)
		if err != nil {
			return
		}
		if sig.String() != s {
			t.Fatalf("%q became %q", s, sig)
		}
		if strings.ContainsAny(sig.KeyName, " \n:") {
			t.Fatalf("key name %q", sig.KeyName)
		}
	})
}
