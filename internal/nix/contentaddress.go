package nix

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
)

// CheckCA reads a content address, the value of a CA line, and returns its canonical text if the
// store path computed from it is path, else "". A content address is not signed, and Nix refuses a
// path that does not follow from it.
//
// Known are text:sha256, fixed and fixed:r with md5, sha1, sha256 and sha512 (Nix:
// src/libstore/content-address.cc, src/libstore/store-dir-config.cc).
func CheckCA(ca string, path StorePath, references []StorePath) string {
	method, algo, digest, ok := parseCA(ca)
	if !ok {
		return ""
	}
	var kind string
	inner := digest
	switch {
	case method == "text:" && algo == "sha256" && !slices.Contains(references, path):
		kind = pathType("text", path, references)
	case method == "fixed:r:" && algo == "sha256":
		kind = pathType("source", path, references)
	case method != "text:" && len(references) == 0:
		kind = "output:out"
		sum := sha256.Sum256([]byte("fixed:out:" + strings.TrimPrefix(method, "fixed:") + algo + ":" + hex.EncodeToString(digest) + ":"))
		inner = sum[:]
	default:
		return ""
	}
	if makeStoreHash(kind, inner, path.Name()) != path.Hash() {
		return ""
	}
	return method + algo + ":" + string(appendNix32(nil, digest))
}

// digestSizes of the hash algorithms of content addresses, in bytes.
var digestSizes = map[string]int{"md5": 16, "sha1": 20, "sha256": 32, "sha512": 64}

// parseCA splits a content address. The method is "text:", "fixed:" or "fixed:r:".
func parseCA(ca string) (method, algo string, digest []byte, ok bool) {
	rest := ca
	for _, method = range []string{"text:", "fixed:r:", "fixed:"} {
		if rest, ok = strings.CutPrefix(ca, method); ok {
			break
		}
	}
	algo, text, found := strings.Cut(rest, ":")
	size := digestSizes[algo]
	if !ok || !found || size == 0 {
		return "", "", nil, false
	}
	digest = make([]byte, size)
	var err error
	switch len(text) {
	case hex.EncodedLen(size):
		_, err = hex.Decode(digest, []byte(text))
	case nix32Len(size):
		err = decodeNix32(digest, text)
	case base64.StdEncoding.EncodedLen(size):
		digest, err = base64.StdEncoding.Strict().DecodeString(text)
	default:
		return "", "", nil, false
	}
	return method, algo, digest, err == nil && len(digest) == size
}

// pathType is the type of a store path with references, which are part of what is hashed.
func pathType(kind string, self StorePath, references []StorePath) string {
	b := []byte(kind)
	refersToSelf := false
	for _, r := range references {
		if r == self {
			refersToSelf = true
			continue
		}
		b = r.append(append(b, ':'))
	}
	if refersToSelf {
		b = append(b, ":self"...)
	}
	return string(b)
}

// makeStoreHash returns the hash part of the path of this type, inner hash and name.
func makeStoreHash(kind string, inner []byte, name string) (h StoreHash) {
	sum := sha256.Sum256([]byte(kind + ":sha256:" + hex.EncodeToString(inner) + ":" + StoreDir + ":" + name))
	for i, b := range sum {
		h[i%len(h)] ^= b
	}
	return h
}
