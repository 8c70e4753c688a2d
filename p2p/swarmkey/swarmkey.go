// Package swarmkey lets two nodes prove to each other that they hold the secret of a closed
// site, bound to both their peer IDs, without telling it. Up to two secrets count at a time,
// so that one can be replaced by another while the site runs.
package swarmkey

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

const (
	prefix = "nixp2p-swarm-key-1:"
	// KeySize is the bytes of a secret: drawn at random.
	KeySize = 32
	// maxKeys: the one in use and the one that follows it.
	maxKeys = 2
	// maxFile bounds the text of a key file.
	maxFile = 64 << 10

	nonceSize = 32
	proofSize = sha256.Size
)

// Keys are the secrets of a site, at most two. None is an open site.
type Keys [][KeySize]byte

// New returns a fresh secret as a line of a key file, without the newline.
func New() string {
	var k [KeySize]byte
	_, _ = rand.Read(k[:]) // never fails
	return prefix + base64.StdEncoding.EncodeToString(k[:])
}

// Parse reads a key file: one secret a line as New makes them, two at most; empty lines and
// those that begin with # are passed over. The text is never part of an error.
func Parse(text []byte) (Keys, error) {
	if len(text) > maxFile {
		return nil, errors.New("swarm key: the file is too long")
	}
	var keys Keys
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		data, ok := strings.CutPrefix(line, prefix)
		k, err := base64.StdEncoding.Strict().DecodeString(data)
		if !ok || err != nil || len(k) != KeySize {
			return nil, fmt.Errorf("swarm key: line %d is not one that nixp2p swarm-key makes", n)
		}
		if len(keys) == maxKeys {
			return nil, fmt.Errorf("swarm key: more than %d keys", maxKeys)
		}
		keys = append(keys, [KeySize]byte(k))
	}
	if len(keys) == 0 {
		return nil, errors.New("swarm key: there is none in the file")
	}
	return keys, nil
}

// Pair names the two sides by their peer IDs: a proof is worth nothing between others, so
// that it cannot be passed on.
type Pair struct{ Opener, Answerer string }

// role keeps the two directions apart: a proof cannot be sent back to the side that made it.
type role string

const (
	opener   role = "opens"
	answerer role = "answers"
)

func (p Pair) prove(key [KeySize]byte, r role, challenge, nonce []byte) []byte {
	h := hmac.New(sha256.New, key[:])
	for _, part := range [][]byte{[]byte("nixp2p-site-1"), []byte(r), []byte(p.Opener), []byte(p.Answerer), challenge, nonce} {
		_ = binary.Write(h, binary.BigEndian, uint32(len(part)))
		h.Write(part)
	}
	return h.Sum(nil)
}

// Challenge returns what the answerer sends first: random bytes.
func Challenge() []byte { return nonce() }

func nonce() []byte {
	b := make([]byte, nonceSize)
	_, _ = rand.Read(b) // never fails
	return b
}

// Open returns the opener's answer to the challenge: random bytes of its own and a proof
// for each of its keys.
func (k Keys) Open(p Pair, challenge []byte) []byte {
	b := nonce()
	for _, key := range k {
		b = append(b, p.prove(key, opener, challenge, b[:nonceSize])...)
	}
	return b
}

// Answer judges what Open returned. If it proves one of the keys, or if there is no key,
// the result is what the answerer sends as a welcome.
func (k Keys) Answer(p Pair, challenge, opened []byte) (welcome []byte, ok bool) {
	if len(opened) < nonceSize || len(opened) > nonceSize+maxKeys*proofSize || (len(opened)-nonceSize)%proofSize != 0 {
		return nil, false
	}
	if len(k) == 0 {
		return nil, true
	}
	own, proofs := opened[:nonceSize], opened[nonceSize:]
	for _, key := range k {
		want := p.prove(key, opener, challenge, own)
		for proof := range slices.Chunk(proofs, proofSize) {
			if hmac.Equal(proof, want) {
				return p.prove(key, answerer, challenge, own), true
			}
		}
	}
	return nil, false
}

// Welcomed judges the welcome. On an open site any is one.
func (k Keys) Welcomed(p Pair, challenge, opened, welcome []byte) bool {
	if len(k) == 0 {
		return len(welcome) == 0
	}
	for _, key := range k {
		if hmac.Equal(welcome, p.prove(key, answerer, challenge, opened[:nonceSize])) {
			return true
		}
	}
	return false
}
