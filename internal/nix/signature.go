package nix

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// Signature is one Sig line's value: a key name and an ed25519 signature (RFC 8032)
// of a fingerprint.
type Signature struct {
	KeyName string
	Data    [ed25519.SignatureSize]byte
}

var errSignature = errors.New("not a signature")

// ParseSignature reads "name:base64". It accepts only the one text that String
// returns, so what is passed on is what came, byte for byte.
func ParseSignature(s string) (sig Signature, err error) {
	name, data, err := parseNamed(s, len(sig.Data))
	if err != nil {
		return Signature{}, fmt.Errorf("%w: %w", errSignature, err)
	}
	return Signature{name, [ed25519.SignatureSize]byte(data)}, nil
}

// String returns "name:base64".
func (s Signature) String() string { return string(s.append(nil)) }

func (s *Signature) append(b []byte) []byte {
	return base64.StdEncoding.AppendEncode(append(append(b, s.KeyName...), ':'), s.Data[:])
}

// PublicKey is a named ed25519 key, in text "name:base64" as in trusted-public-keys.
type PublicKey struct {
	Name string
	Key  [ed25519.PublicKeySize]byte
}

var errPublicKey = errors.New("not a public key")

// ParsePublicKey reads "name:base64".
func ParsePublicKey(s string) (key PublicKey, err error) {
	name, data, err := parseNamed(s, len(key.Key))
	if err != nil {
		return PublicKey{}, fmt.Errorf("%w: %w", errPublicKey, err)
	}
	return PublicKey{name, [ed25519.PublicKeySize]byte(data)}, nil
}

// String returns "name:base64".
func (k PublicKey) String() string {
	return k.Name + ":" + base64.StdEncoding.EncodeToString(k.Key[:])
}

// Verify reports whether sig is k's signature of fingerprint.
func (k PublicKey) Verify(fingerprint []byte, sig Signature) bool {
	return sig.KeyName == k.Name && ed25519.Verify(k.Key[:], fingerprint, sig.Data[:])
}

// maxKeyName is the length of the longest name of a key: a name is kept and passed on with each
// narinfo.
const maxKeyName = 128

// parseNamed splits "name:base64" where the data has exactly size bytes. A name has no
// space or control character: signatures are separated by spaces in the Nix database.
func parseNamed(s string, size int) (name string, data []byte, err error) {
	name, text, ok := strings.Cut(s, ":")
	if !ok || name == "" || len(name) > maxKeyName {
		return "", nil, fmt.Errorf("%q is not name:base64", clip(s))
	}
	if strings.ContainsFunc(name, func(r rune) bool { return r == ' ' || isControl(r) }) {
		return "", nil, fmt.Errorf("key name %q has a space or control character", clip(name))
	}
	if len(text) != base64.StdEncoding.EncodedLen(size) || strings.ContainsAny(text, "\r\n") {
		return "", nil, fmt.Errorf("%q: %d characters of base 64, want %d", clip(name), len(text), base64.StdEncoding.EncodedLen(size))
	}
	data, err = base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return "", nil, fmt.Errorf("%q: %w", clip(name), err)
	}
	if len(data) != size {
		return "", nil, fmt.Errorf("%q: %d bytes, want %d", clip(name), len(data), size)
	}
	return name, data, nil
}
