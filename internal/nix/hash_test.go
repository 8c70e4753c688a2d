package nix

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"testing"
)

// One value in three encodings, from nix-hash.
const (
	hashHex   = "a20f2f10fc806b2d1ffc3194b83e936afac114e5e0ca22be4747e14ad3a48198"
	hashNix32 = "1641lk9lmqa78yz25jp0wlac3ykajczbi51izhgjssw0zh82y3x2"
	hashBase  = "og8vEPyAay0f/DGUuD6TavrBFOXgyiK+R0fhStOkgZg="
)

func TestHashForms(t *testing.T) {
	want, err := hex.DecodeString(hashHex)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		"sha256:" + hashHex, "sha256:" + strings.ToUpper(hashHex), "sha256:" + hashNix32,
		"sha256:" + hashBase, "sha256-" + hashBase,
	} {
		nar, err := ParseNarHash(text)
		if err != nil || !bytes.Equal(nar[:], want) {
			t.Errorf("%s: %x, %v", text, nar, err)
		}
		file, err := ParseFileHash(text)
		if err != nil || !bytes.Equal(file[:], want) {
			t.Errorf("%s: %x, %v", text, file, err)
		}
		if nar.String() != "sha256:"+hashNix32 || file.String() != "sha256:"+hashNix32 {
			t.Errorf("String: %s, %s", nar, file)
		}
	}
	nar, err := ParseNarHash32(hashNix32)
	if err != nil || !bytes.Equal(nar[:], want) || nar.Nix32() != hashNix32 {
		t.Errorf("ParseNarHash32: %s, %v", nar, err)
	}
	file, err := ParseFileHash32(hashNix32)
	if err != nil || !bytes.Equal(file[:], want) || file.Nix32() != hashNix32 {
		t.Errorf("ParseFileHash32: %s, %v", file, err)
	}
}

func TestHashRefused(t *testing.T) {
	for _, text := range []string{
		"", "sha256", "sha256:", "sha256-", hashNix32, hashHex, hashBase,
		"sha1:" + hashHex, "SHA256:" + hashHex, "sha512:" + hashNix32, " sha256:" + hashNix32,
		"sha256:" + hashNix32[1:], "sha256:" + hashNix32 + "0", "sha256:2" + hashNix32[1:], // overflow
		"sha256:" + strings.ToUpper(hashNix32), "sha256:" + strings.Replace(hashNix32, "1", "e", 1),
		"sha256:" + hashHex[1:], "sha256:" + hashHex + "0", "sha256:g" + hashHex[1:],
		"sha256-" + hashHex, "sha256-" + hashBase[1:], "sha256-" + strings.TrimSuffix(hashBase, "="),
		"sha256-" + hashBase[:42] + "h=", // bits behind the last byte
		"sha256-" + hashBase[:42] + "\n=", "sha256-" + hashBase + "\n", "sha256-" + strings.Replace(hashBase, "/", "_", 1),
		"sha256:\n" + hashBase[:43], "sha256-" + strings.Repeat("A", 1<<16),
	} {
		if h, err := ParseNarHash(text); err == nil {
			t.Errorf("%.80q was taken for %s", text, h)
		} else if len(err.Error()) > 400 {
			t.Errorf("%.20q: error of %d bytes", text, len(err.Error()))
		}
	}
}

// TestNix32 works the encoding out by another way: as division of the little-endian
// number by 32, digit by digit.
func TestNix32(t *testing.T) {
	for size := range 65 {
		if size == 0 {
			continue
		}
		sum := sha256.Sum256([]byte{byte(size)})
		digest := bytes.Repeat(sum[:], 2)[:size]
		number := bytes.Clone(digest)
		var want []byte
		for range nix32Len(size) {
			rest := 0
			for i := size - 1; i >= 0; i-- {
				v := rest<<8 | int(number[i])
				number[i], rest = byte(v/32), v%32
			}
			want = append([]byte{nix32[rest]}, want...)
		}
		got := string(appendNix32(nil, digest))
		if got != string(want) {
			t.Errorf("%d bytes: %s, want %s", size, got, want)
		}
		back := make([]byte, size)
		if err := decodeNix32(back, got); err != nil || !bytes.Equal(back, digest) {
			t.Errorf("%d bytes: %x, %v", size, back, err)
		}
	}
}

func TestStoreHash(t *testing.T) {
	const text = "6lwdzpbig6zz8678blcqr5f5q1caxjw2"
	h, err := ParseStoreHash(text)
	if err != nil || h.String() != text || string(h.Append([]byte("x"))) != "x"+text {
		t.Errorf("%s, %v", h, err)
	}
	for i := range len(text) {
		for c := range 256 {
			mangled := text[:i] + string([]byte{byte(c)}) + text[i+1:]
			got, err := ParseStoreHash(mangled)
			if ok := strings.IndexByte(nix32, byte(c)) >= 0; ok != (err == nil) {
				t.Errorf("%q: %v", mangled, err)
			}
			if err == nil && got.String() != mangled {
				t.Errorf("%q became %s", mangled, got)
			}
		}
		if _, err := ParseStoreHash(text[:i]); err == nil {
			t.Errorf("%q was taken", text[:i])
		}
	}
}

func FuzzNarHash(f *testing.F) {
	for _, s := range []string{"sha256:" + hashHex, "sha256:" + hashNix32, "sha256-" + hashBase, "sha256:" + hashBase} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h, err := ParseNarHash(s)
		if err != nil {
			return
		}
		for _, again := range []string{h.String(), "sha256-" + base64.StdEncoding.EncodeToString(h[:]), "sha256:" + hex.EncodeToString(h[:])} {
			if got, err := ParseNarHash(again); err != nil || got != h {
				t.Fatalf("%q: %s, then %s, %v", s, h, got, err)
			}
		}
	})
}
