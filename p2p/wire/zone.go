package wire

import (
	"fmt"
	"strings"
)

// MaxZone is the most bytes of the name of a zone.
const MaxZone = 64

// ParseZone reads the body of a Zone frame, or what an operator wrote: letters, digits, dots,
// dashes and underscores, as clouds name their zones. "" is no zone.
func ParseZone(s string) (string, error) {
	if len(s) > MaxZone {
		return "", fmt.Errorf("%w: name of a zone of %d bytes", ErrFrame, len(s))
	}
	if strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r))
	}) {
		return "", fmt.Errorf("%w: name of a zone", ErrFrame)
	}
	return s, nil
}
