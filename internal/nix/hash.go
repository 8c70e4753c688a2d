package nix

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

// StoreHash is the hash part of a store path: 20 bytes, 32 characters of nix32. It
// names a path in URLs; it does not determine the bytes of its NAR.
type StoreHash [20]byte

// NarHash is the SHA-256 of an uncompressed NAR: what signatures cover.
type NarHash [32]byte

// FileHash is the SHA-256 of one exact compressed file of an upstream. It is not
// signed, so it names a file and proves nothing.
type FileHash [32]byte

// ParseStoreHash reads the 32 characters of a store hash.
func ParseStoreHash(s string) (h StoreHash, err error) {
	if err := decodeNix32(h[:], s); err != nil {
		return StoreHash{}, fmt.Errorf("store hash %q: %w", clip(s), err)
	}
	return h, nil
}

// String returns the 32 characters.
func (h StoreHash) String() string { return string(h.Append(nil)) }

// LogValue is part of slog.LogValuer: the hash as text, whatever writes the log.
func (h StoreHash) LogValue() slog.Value { return slog.StringValue(h.String()) }

// Append appends the 32 characters to b.
func (h StoreHash) Append(b []byte) []byte { return appendNix32(b, h[:]) }

// ParseNarHash reads a NAR hash in any form that Nix accepts in a narinfo:
// "sha256:" followed by nix32, base 16 or base 64, or SRI "sha256-…".
func ParseNarHash(s string) (NarHash, error) {
	h, err := parseSHA256(s)
	return NarHash(h), err
}

// ParseNarHash32 reads the 52 characters of nix32 alone, as they stand in URLs.
func ParseNarHash32(s string) (h NarHash, err error) {
	err = decodeNix32(h[:], s)
	return h, err
}

// Nix32 returns the 52 characters without a prefix.
func (h NarHash) Nix32() string { return string(appendNix32(nil, h[:])) }

// String returns "sha256:" and 52 characters of nix32, as in narinfos and fingerprints.
func (h NarHash) String() string { return "sha256:" + h.Nix32() }

// LogValue is part of slog.LogValuer: the hash as text, whatever writes the log.
func (h NarHash) LogValue() slog.Value { return slog.StringValue(h.String()) }

// ParseFileHash reads a file hash in the forms of ParseNarHash.
func ParseFileHash(s string) (FileHash, error) {
	h, err := parseSHA256(s)
	return FileHash(h), err
}

// ParseFileHash32 reads the 52 characters of nix32 alone, as they stand in URLs.
func ParseFileHash32(s string) (h FileHash, err error) {
	err = decodeNix32(h[:], s)
	return h, err
}

// Nix32 returns the 52 characters without a prefix.
func (h FileHash) Nix32() string { return string(appendNix32(nil, h[:])) }

// String returns "sha256:" and 52 characters of nix32.
func (h FileHash) String() string { return "sha256:" + h.Nix32() }

// appendSHA256 appends the text of a hash with its prefix.
func appendSHA256(b, digest []byte) []byte {
	return appendNix32(append(b, "sha256:"...), digest)
}

var errHash = errors.New("not a sha256 hash")

func parseSHA256(s string) (h [32]byte, err error) {
	if rest, ok := strings.CutPrefix(s, "sha256-"); ok {
		return decodeBase64Hash(s, rest)
	}
	rest, ok := strings.CutPrefix(s, "sha256:")
	if !ok {
		return h, fmt.Errorf("%w: %q has no sha256 prefix", errHash, clip(s))
	}
	switch len(rest) {
	case 64:
		if _, err := hex.Decode(h[:], []byte(rest)); err != nil {
			return [32]byte{}, fmt.Errorf("%w: %q: base 16: %w", errHash, clip(s), err)
		}
		return h, nil
	case 44:
		return decodeBase64Hash(s, rest)
	default:
		if err := decodeNix32(h[:], rest); err != nil {
			return [32]byte{}, fmt.Errorf("%w: %q: %w", errHash, clip(s), err)
		}
		return h, nil
	}
}

func decodeBase64Hash(s, rest string) (h [32]byte, err error) {
	b, err := base64.StdEncoding.Strict().DecodeString(rest)
	if err != nil || len(b) != len(h) || strings.ContainsAny(rest, "\r\n") {
		return h, fmt.Errorf("%w: %q: base 64", errHash, clip(s))
	}
	return [32]byte(b), nil
}

// clip keeps text from outside short enough for an error message.
func clip(s string) string {
	const most = 120
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
