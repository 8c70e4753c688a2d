// Package nixtest makes what tests need: signing keys, store paths with real NARs, signed
// narinfos, and a faulty upstream. It is for tests only.
package nixtest

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// Key signs narinfos.
type Key struct {
	Name    string
	private ed25519.PrivateKey
}

// NewKey returns the key of this name: the same name gives the same key.
func NewKey(name string) Key {
	seed := sha256.Sum256([]byte("nixtest key " + name))
	return Key{name, ed25519.NewKeyFromSeed(seed[:])}
}

// Public returns "name:base64".
func (k Key) Public() string {
	return nix.PublicKey{Name: k.Name, Key: [32]byte(k.private.Public().(ed25519.PublicKey))}.String()
}

// Keys returns a key set that trusts the given keys.
func Keys(t testing.TB, keys ...Key) *verify.Keys {
	t.Helper()
	var texts []string
	for _, k := range keys {
		texts = append(texts, k.Public())
	}
	set, err := verify.ParseKeys(texts)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// Sign appends k's signature to n.
func (k Key) Sign(n *nix.NarInfo) {
	sig := ed25519.Sign(k.private, n.Fingerprint())
	n.Sigs = append(n.Sigs, nix.Signature{KeyName: k.Name, Data: [ed25519.SignatureSize]byte(sig)})
}

// Path is a store path with its NAR: a single regular file.
type Path struct {
	StorePath  nix.StorePath
	Contents   []byte // of the file
	NAR        []byte
	References []nix.StorePath
}

// NewPath returns a path whose file has size bytes of noise; name decides everything.
func NewPath(name string, size int, references ...nix.StorePath) Path {
	seed := sha256.Sum256([]byte("nixtest path " + name))
	contents := make([]byte, size)
	_, _ = rand.NewChaCha8(seed).Read(contents)
	path, err := nix.ParseBaseName(nix.StoreHash(seed[:20]).String() + "-" + name)
	if err != nil {
		panic(err)
	}
	return Path{path, contents, FileNAR(contents), nix.SortPaths(references)}
}

// Hash returns the store hash.
func (p Path) Hash() nix.StoreHash { return p.StorePath.Hash() }

// NarHash returns the hash of the NAR.
func (p Path) NarHash() nix.NarHash { return sha256.Sum256(p.NAR) }

// NarInfo returns an unsigned narinfo that says that the NAR is had raw at "nar/<narhash>.nar".
func (p Path) NarInfo() *nix.NarInfo {
	hash := p.NarHash()
	return &nix.NarInfo{
		StorePath: p.StorePath, URL: "nar/" + hash.Nix32() + ".nar", Compression: nix.None,
		FileHash: nix.FileHash(hash), FileSize: int64(len(p.NAR)),
		NarHash: hash, NarSize: int64(len(p.NAR)), References: p.References,
	}
}

// Signed returns NarInfo with the signatures of keys.
func (p Path) Signed(keys ...Key) *nix.NarInfo {
	n := p.NarInfo()
	for _, k := range keys {
		k.Sign(n)
	}
	return n
}

// Info returns the proof for Signed(key).
func (p Path) Info(t testing.TB, key Key) *verify.Info {
	t.Helper()
	info, err := Keys(t, key).Open(p.Signed(key).AppendText(nil), p.Hash())
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// FileNAR returns the NAR of one regular, not executable file.
func FileNAR(contents []byte) []byte {
	var b []byte
	for _, s := range []string{"nix-archive-1", "(", "type", "regular", "contents"} {
		b = appendString(b, []byte(s))
	}
	b = appendString(b, contents)
	return appendString(b, []byte(")"))
}

func appendString(b, s []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(len(s)))
	b = append(b, s...)
	return append(b, make([]byte, -len(s)&7)...)
}

// Compressed is a NAR as one file of an upstream.
type Compressed struct {
	Compression nix.Compression
	Bytes       []byte
}

// NarInfo returns p's narinfo for this file, signed, at "nar/<filehash>.nar.<suffix>".
func (c Compressed) NarInfo(p Path, keys ...Key) *nix.NarInfo {
	n := p.Signed(keys...)
	n.Compression, n.FileHash, n.FileSize = c.Compression, sha256.Sum256(c.Bytes), int64(len(c.Bytes))
	n.URL = fmt.Sprintf("nar/%s.nar.%s", n.FileHash.Nix32(), c.Compression)
	return n
}
