package nix

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

// Question is what peers are asked by: the SHA-256 of a label and a store hash. A
// peer that does not know the path cannot derive it from the question.
type Question [sha256.Size]byte

// questionLabel keeps these hashes apart from all other hashes of a store
// hash; the number is the version.
const questionLabel = "nixp2p-q1"

// Question returns the question for the path of this hash:
// SHA-256("nixp2p-q1" || the 32 characters of nix32).
func (h StoreHash) Question() Question {
	var buf [len(questionLabel) + storeHashLen]byte
	return sha256.Sum256(h.Append(append(buf[:0], questionLabel...)))
}

// String returns 64 characters of base 16.
func (q Question) String() string { return hex.EncodeToString(q[:]) }

var errQuestion = errors.New("not a question")

// ParseQuestion reads 64 characters of lower-case base 16.
func ParseQuestion(s string) (q Question, err error) {
	if len(s) != hex.EncodedLen(len(q)) {
		return q, fmt.Errorf("%w: %q", errQuestion, clip(s))
	}
	if _, err := hex.Decode(q[:], []byte(s)); err != nil || q.String() != s {
		return Question{}, fmt.Errorf("%w: %q", errQuestion, clip(s))
	}
	return q, nil
}
