package httpfront

import (
	"hash/crc32"
	"net/http"
	"strconv"
	"strings"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// Responses have strong entity tags (RFC 9110 8.8.3) that every node makes from the same bytes in the
// same way, so that a proxy or a CDN before several nodes may compare and resume. Dates are not
// sent: a node does not know when its upstream changed something.

// narTag returns the entity tag of a NAR in the form that its URL names.
func narTag(name nix.NARName) string {
	if name.Form.IsRaw() {
		return `"` + name.Nar.Nix32() + `"`
	}
	return `"` + name.Form.File.Nix32() + `"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// textTag returns the entity tag of a short text: it only has to tell apart the few versions that
// one URL has in its life.
func textTag(text []byte) string {
	b := make([]byte, 0, 24)
	b = append(b, '"')
	b = strconv.AppendUint(b, uint64(crc32.Checksum(text, castagnoli)), 16)
	b = append(b, '-')
	b = strconv.AppendInt(b, int64(len(text)), 16)
	return string(append(b, '"'))
}

// precondition evaluates If-Match and If-None-Match (RFC 9110 13.2.2) for something that exists. It
// returns 304 or 412 if that is the answer, else 0.
func precondition(r *http.Request, tag string) int {
	if match := r.Header["If-Match"]; match != nil {
		if !matches(match, tag, true) {
			return http.StatusPreconditionFailed
		}
	}
	if none := r.Header["If-None-Match"]; none != nil && matches(none, tag, false) {
		return http.StatusNotModified
	}
	return 0
}

// matches reports whether a list of entity tags has tag, or is "*". Weak tags count unless strong.
func matches(values []string, tag string, strong bool) bool {
	for _, value := range values {
		for one := range strings.SplitSeq(value, ",") { // ours have no comma
			one = strings.TrimSpace(one)
			if !strong {
				one = strings.TrimPrefix(one, "W/")
			}
			if one == "*" || one == tag {
				return true
			}
		}
	}
	return false
}
