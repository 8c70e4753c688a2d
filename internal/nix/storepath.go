package nix

import (
	"errors"
	"fmt"
	"strings"
)

// StoreDir is the logical store directory. It is part of every hash and every
// fingerprint, so caches with another one cannot be mixed with this one.
const StoreDir = "/nix/store"

// maxName is the longest name of a store path: 255 bytes of file name less the hash,
// the dash, ".drv" and ".chroot" (Nix: src/libstore/path.cc).
const maxName = 211

const storeHashLen = 32

// StorePath is the base name of a valid store path, such as
// "6lwdzpbig6zz8678blcqr5f5q1caxjw2-hello-2.12". The zero value is no path.
type StorePath struct{ base string }

var errStorePath = errors.New("not a store path")

// ParseStorePath reads an absolute store path.
func ParseStorePath(s string) (StorePath, error) {
	base, ok := strings.CutPrefix(s, StoreDir+"/")
	if !ok {
		return StorePath{}, fmt.Errorf("%w: %q is not in %s", errStorePath, clip(s), StoreDir)
	}
	return ParseBaseName(base)
}

// ParseBaseName reads the base name of a store path, as in References lines.
func ParseBaseName(base string) (StorePath, error) {
	if len(base) < storeHashLen+2 || base[storeHashLen] != '-' {
		return StorePath{}, fmt.Errorf("%w: %q is too short or lacks its hash", errStorePath, clip(base))
	}
	for i := range storeHashLen {
		if nix32Digits[base[i]] == 0xff {
			return StorePath{}, fmt.Errorf("%w: %q: %w: character %q", errStorePath, clip(base), errNix32, base[i])
		}
	}
	if err := checkName(base[storeHashLen+1:]); err != nil {
		return StorePath{}, fmt.Errorf("%w: %q: %w", errStorePath, clip(base), err)
	}
	return StorePath{base}, nil
}

// checkName applies the rules of Nix for the part behind the hash.
func checkName(name string) error {
	if len(name) > maxName {
		return fmt.Errorf("name of %d bytes, at most %d", len(name), maxName)
	}
	for i := range len(name) {
		c := name[i]
		switch {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		case strings.IndexByte("+-._?=", c) >= 0:
		default:
			return fmt.Errorf("character %q in the name", c)
		}
	}
	if name == "." || name == ".." || strings.HasPrefix(name, ".-") || strings.HasPrefix(name, "..-") {
		return errors.New("name begins like a directory link")
	}
	return nil
}

// Hash returns the hash part.
func (p StorePath) Hash() (h StoreHash) {
	if p.base != "" {
		// The digits were checked when p was parsed and 32 of them use every bit.
		_ = decodeNix32(h[:], p.base[:storeHashLen])
	}
	return h
}

// Base returns the base name, "" for the zero value.
func (p StorePath) Base() string { return p.base }

// Name returns the part behind the hash, "" for the zero value.
func (p StorePath) Name() string {
	if p.base == "" {
		return ""
	}
	return p.base[storeHashLen+1:]
}

// IsZero reports whether p is the zero value.
func (p StorePath) IsZero() bool { return p.base == "" }

// String returns the absolute path, "" for the zero value.
func (p StorePath) String() string {
	if p.base == "" {
		return ""
	}
	return StoreDir + "/" + p.base
}

// append appends the absolute path.
func (p StorePath) append(b []byte) []byte {
	return append(append(append(b, StoreDir...), '/'), p.base...)
}
