package wire

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// Headers beside those of HTTP.
const (
	// HaveHeader says how many bytes of a NAR are there, where that is not all of it yet.
	HaveHeader = "Nixp2p-Have"
	// SizeHeader is the size of the whole NAR where the body is compressed on the way.
	SizeHeader = "Nixp2p-Size"
	// FileHeader with a narinfo says that its NAR is there as an upstream's file, not raw.
	FileHeader = "Nixp2p-File"
	// AtHandHeader asks for a raw NAR only if nobody has to decode a file for it.
	AtHandHeader = "Nixp2p-At-Hand"
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

// FormatRange returns the value of a Range header for all from byte off on.
func FormatRange(off int64) string { return "bytes=" + strconv.FormatInt(off, 10) + "-" }

// ParseRange reads a Range header of that one kind; "" is 0. Others are an error: peers send
// no others.
func ParseRange(s string) (off int64, err error) {
	if s == "" {
		return 0, nil
	}
	digits, ok := strings.CutPrefix(s, "bytes=")
	digits, ok2 := strings.CutSuffix(digits, "-")
	if !ok || !ok2 {
		return 0, fmt.Errorf("%w: range", ErrRequest)
	}
	return parseOffset(digits)
}

// FormatContentRange returns the value of a Content-Range header for all from byte off on.
func FormatContentRange(off, size int64) string {
	return fmt.Sprintf("bytes %d-%d/%d", off, max(size-1, 0), size)
}

// ParseContentRange reads what FormatContentRange wrote.
func ParseContentRange(s string) (off, size int64, err error) {
	rest, ok := strings.CutPrefix(s, "bytes ")
	span, total, ok2 := strings.Cut(rest, "/")
	from, to, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, fmt.Errorf("%w: content range", ErrRequest)
	}
	if off, err = parseOffset(from); err != nil {
		return 0, 0, err
	}
	last, err := parseOffset(to)
	if err != nil {
		return 0, 0, err
	}
	if size, err = parseOffset(total); err != nil {
		return 0, 0, err
	}
	if off > last || last != size-1 {
		return 0, 0, fmt.Errorf("%w: content range", ErrRequest)
	}
	return off, size, nil
}

// parseOffset reads a number without sign or leading zeros.
func parseOffset(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != s {
		return 0, fmt.Errorf("%w: offset", ErrRequest)
	}
	return n, nil
}

const (
	// maxPeers bounds lists of addresses, in a frame and in a refusal.
	maxPeers = 16 << 10
	// maxPeerLines and maxPeerLine bound what they are made of.
	maxPeerLines = 128
	maxPeerLine  = 256
)

// MaxPeerList is the most bytes of a list of addresses.
const MaxPeerList = maxPeers

// AppendPeers encodes multiaddrs with peer IDs, a line each, as many as a list may have.
func AppendPeers(b []byte, addrs []string) []byte {
	start, lines := len(b), 0
	for _, a := range addrs {
		if a == "" || len(a) > maxPeerLine || strings.ContainsAny(a, "\n\r") {
			continue
		}
		if lines == maxPeerLines || len(b)-start+len(a)+1 > maxPeers {
			break
		}
		b = append(append(b, a...), '\n')
		lines++
	}
	return b
}

// ParsePeers reads what AppendPeers wrote. Whether a line is an address shows when it is
// used.
func ParsePeers(b []byte) ([]string, error) {
	if len(b) > maxPeers {
		return nil, fmt.Errorf("%w: %d bytes of addresses", ErrFrame, len(b))
	}
	var list []string
	for line := range strings.Lines(string(b)) {
		line, ok := strings.CutSuffix(line, "\n")
		if !ok || line == "" || len(line) > maxPeerLine || strings.Contains(line, "\r") || len(list) == maxPeerLines {
			return nil, fmt.Errorf("%w: addresses", ErrFrame)
		}
		list = append(list, line)
	}
	return list, nil
}
