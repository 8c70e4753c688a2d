package verify_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

const cacheNixosOrg = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="

// realText reads a narinfo that cache.nixos.org signed and the hash of the path that it
// names.
func realText(t testing.TB, path string) ([]byte, nix.StoreHash) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "StorePath: /nix/store/")
	if !ok {
		t.Fatalf("%s has no StorePath", path)
	}
	h, err := nix.ParseStoreHash(rest[:32])
	if err != nil {
		t.Fatal(err)
	}
	return text, h
}

func realPaths(t testing.TB, pattern string, want int) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata/real-narinfo", pattern))
	if err != nil || len(paths) != want {
		t.Fatalf("%d files, want %d: %v", len(paths), want, err)
	}
	return paths
}

func realKeys(t testing.TB) *verify.Keys {
	t.Helper()
	keys, err := verify.ParseKeys([]string{cacheNixosOrg})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestReal(t *testing.T) {
	keys := realKeys(t)
	for _, path := range realPaths(t, "*.narinfo", 15) {
		text, h := realText(t, path)
		info, err := keys.Open(text, h)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if form, ok := info.FileForm(); ok {
			checkOffer(t, keys, info, form)
		}
		checkOffer(t, keys, info, nix.Raw)
		offer := info.Offer(nix.Raw)
		for line := range bytes.Lines(text) { // what is proven leaves byte for byte, nothing else does
			key, value, _ := bytes.Cut(line, []byte(": "))
			leaves := string(key) == "CA" || string(key) == "Sig" && bytes.HasPrefix(value, []byte("cache.nixos.org-1:"))
			if bytes.Contains(offer, line) != leaves && slices.Contains([]string{"CA", "Sig", "Deriver", "System"}, string(key)) {
				t.Errorf("%s: leaves is not %v: %s", path, leaves, line)
			}
		}
		again, err := keys.Open(info.Text(), h)
		if err != nil || !again.Equal(info) || again.Hints() != info.Hints() {
			t.Errorf("%s: Text: %v", path, err)
		}
	}
}

func TestRealBad(t *testing.T) {
	keys := realKeys(t)
	for _, path := range realPaths(t, "bad/*.narinfo", 3) {
		text, h := realText(t, path)
		if _, err := keys.Open(text, h); reasonOf(t, err) != verify.ReasonBadSignature {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestRealMangled changes every byte of a real text: either the change is in what no
// signature covers, or it is found.
func TestRealMangled(t *testing.T) {
	keys := realKeys(t)
	text, h := realText(t, "testdata/real-narinfo/curl-7.82.0-bin-two-sigs.narinfo")
	info, err := keys.Open(text, h)
	if err != nil {
		t.Fatal(err)
	}
	opened := 0
	for i := range text {
		bad := bytes.Clone(text)
		bad[i]++
		got, err := keys.Open(bad, h)
		if err != nil {
			reasonOf(t, err)
			continue
		}
		opened++
		if !got.Equal(info) {
			t.Errorf("byte %d: %s, %s, %d", i, got.StorePath(), got.NarHash(), got.NarSize())
		}
	}
	if opened == 0 || opened == len(text) {
		t.Errorf("%d of %d changes opened", opened, len(text))
	}
}

func FuzzOpen(f *testing.F) {
	keys := realKeys(f)
	infos := map[nix.StoreHash]*verify.Info{}
	for _, path := range realPaths(f, "*.narinfo", 15) {
		text, h := realText(f, path)
		info, err := keys.Open(text, h)
		if err != nil {
			f.Fatal(err)
		}
		if infos[h] = info; len(text) < 10000 {
			f.Add(text, string(h[:]))
		}
	}
	f.Fuzz(func(t *testing.T, text []byte, hash string) {
		if len(hash) != len(nix.StoreHash{}) {
			return
		}
		h := nix.StoreHash([]byte(hash))
		info, err := keys.Open(text, h)
		if err != nil {
			return
		}
		if known := infos[h]; known == nil || !known.Equal(info) {
			t.Fatalf("forged: %s", text)
		}
	})
}
