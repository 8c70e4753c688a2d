package nix

import (
	"errors"
	"fmt"
)

// nix32 is the alphabet of Nix's base 32 (Nix: src/libutil/hash.cc): no e, o, t, u.
const nix32 = "0123456789abcdfghijklmnpqrsvwxyz"

// nix32Digits maps a byte to its digit, or 0xff.
var nix32Digits = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i := range nix32 {
		t[nix32[i]] = byte(i)
	}
	return t
}()

var errNix32 = errors.New("not nix32")

// nix32Len is the number of digits that n bytes take.
func nix32Len(n int) int { return (n*8-1)/5 + 1 }

// appendNix32 appends digest as one little-endian integer in base 32, most
// significant digit first.
func appendNix32(b, digest []byte) []byte {
	for i := nix32Len(len(digest)) - 1; i >= 0; i-- {
		bit := i * 5
		at, shift := bit/8, bit%8
		c := digest[at] >> shift
		if at+1 < len(digest) {
			c |= digest[at+1] << (8 - shift)
		}
		b = append(b, nix32[c&31])
	}
	return b
}

// decodeNix32 fills dst from s, which must have exactly nix32Len(len(dst)) digits
// and no bit beyond len(dst) bytes: otherwise two texts would name one hash.
func decodeNix32(dst []byte, s string) error {
	if len(s) != nix32Len(len(dst)) {
		return fmt.Errorf("%w: %d characters, want %d", errNix32, len(s), nix32Len(len(dst)))
	}
	clear(dst)
	for i := range len(s) {
		d := nix32Digits[s[len(s)-1-i]]
		if d == 0xff {
			return fmt.Errorf("%w: character %q", errNix32, s[len(s)-1-i])
		}
		bit := i * 5
		at, shift := bit/8, bit%8
		dst[at] |= d << shift
		carry := d >> (8 - shift)
		if at+1 < len(dst) {
			dst[at+1] |= carry
		} else if carry != 0 {
			return fmt.Errorf("%w: overflow", errNix32)
		}
	}
	return nil
}
