package wire

import (
	"errors"
	"fmt"
	"strings"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/update"
)

// Headers in addition to those of HTTP. Ranges are those of internal/httprange: From and
// ContentRange.
const (
	// HaveHeader says how many bytes of a NAR are present, if that is not all of it yet.
	HaveHeader = "Nixp2p-Have"
	// SizeHeader is the size of the whole NAR if the body is compressed on the way.
	SizeHeader = "Nixp2p-Size"
	// BaseHeader names bases in a request for a raw NAR, the preferred one first, and in an answer
	// that is a delta (Content-Encoding update.Coding) the one that was taken.
	BaseHeader = update.BaseHeader
	// MaxInfo bounds a narinfo from a peer, as that from an upstream.
	MaxInfo = 1 << 20
)

// Request is what a peer asks for: a narinfo by its question, or a NAR by its hash.
type Request struct {
	IsInfo   bool
	Question nix.Question
	Nar      nix.NarHash
	Form     nix.Form
}

// ErrRequest is wrapped by errors for paths that ask for nothing.
var ErrRequest = errors.New("wire: not a request")

const (
	infoPrefix = "/q/"
	narPrefix  = "/nar/"
)

// Path returns the path of the request: "/q/<question>", "/nar/<narhash>" for the raw NAR,
// "/nar/<narhash>/xz/<filehash>" or "/nar/<narhash>/zstd/<filehash>" for one exact file.
func (r Request) Path() string {
	if r.IsInfo {
		return infoPrefix + r.Question.String()
	}
	if r.Form.IsRaw() {
		return narPrefix + r.Nar.Nix32()
	}
	return narPrefix + r.Nar.Nix32() + "/" + string(r.Form.Compression) + "/" + r.Form.File.Nix32()
}

// ParseRequest reads what Path wrote.
func ParseRequest(path string) (r Request, err error) {
	if s, ok := strings.CutPrefix(path, infoPrefix); ok {
		r.IsInfo = true
		if r.Question, err = nix.ParseQuestion(s); err != nil {
			return Request{}, fmt.Errorf("%w: %w", ErrRequest, err)
		}
		return r, nil
	}
	s, ok := strings.CutPrefix(path, narPrefix)
	part := strings.Split(s, "/")
	if !ok || len(part) != 1 && len(part) != 3 {
		return Request{}, ErrRequest
	}
	if r.Nar, err = nix.ParseNarHash32(part[0]); err != nil {
		return Request{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if len(part) == 1 {
		return r, nil
	}
	r.Form.Compression = nix.Compression(part[1])
	if r.Form.Compression != nix.XZ && r.Form.Compression != nix.Zstd {
		return Request{}, fmt.Errorf("%w: compression", ErrRequest)
	}
	if r.Form.File, err = nix.ParseFileHash32(part[2]); err != nil {
		return Request{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if r.Form.File == (nix.FileHash{}) {
		return Request{}, fmt.Errorf("%w: no file hash", ErrRequest)
	}
	return r, nil
}

// FormatBases returns the value of BaseHeader.
func FormatBases(bases []nix.NarHash) string {
	words := make([]string, 0, len(bases))
	for _, b := range bases {
		words = append(words, b.Nix32())
	}
	return strings.Join(words, ", ")
}

// ParseBases reads what FormatBases wrote. What is malformed or too much is left out: a base is an
// offer.
func ParseBases(value string) (bases []nix.NarHash) {
	for word := range strings.SplitSeq(value, ",") {
		if b, err := nix.ParseNarHash32(strings.TrimSpace(word)); err == nil && len(bases) < update.MaxBases {
			bases = append(bases, b)
		}
	}
	return bases
}
