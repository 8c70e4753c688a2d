package wire

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// FormsHeader, with the answer to a question for a narinfo, lists the forms in which the NAR
// is there. A peer without it is an older version, which has the NAR raw or makes it so.
const FormsHeader = "Nixp2p-Forms"

// maxForms is the most forms that one answer lists.
const maxForms = 8

// Present is a form that a node has, or is getting.
type Present struct {
	Form  nix.Form
	Bytes int64 // that can be read now
	Size  int64 // of the whole form
}

// Whole reports whether all of the form is there.
func (p Present) Whole() bool { return p.Bytes == p.Size }

// FormatForms returns the value of FormsHeader: "raw=SIZE; xz:HASH=SIZE; zstd:HASH=BYTES/SIZE".
// What has a slash is still coming in.
func FormatForms(list []Present) string {
	b := make([]byte, 0, 80*len(list))
	for i, p := range list[:min(len(list), maxForms)] {
		if i > 0 {
			b = append(b, "; "...)
		}
		b = append(append(b, p.Form.String()...), '=')
		if !p.Whole() {
			b = append(strconv.AppendInt(b, p.Bytes, 10), '/')
		}
		b = strconv.AppendInt(b, p.Size, 10)
	}
	return string(b)
}

// ParseForms reads what FormatForms wrote. Compressions that a newer version may list are
// left out.
func ParseForms(s string) ([]Present, error) {
	if s == "" {
		return nil, nil
	}
	parts := strings.Split(s, "; ")
	if len(parts) > maxForms {
		return nil, fmt.Errorf("%w: %d forms", ErrRequest, len(parts))
	}
	list := make([]Present, 0, len(parts))
	for _, part := range parts {
		name, size, ok := strings.Cut(part, "=")
		if !ok {
			return nil, fmt.Errorf("%w: form", ErrRequest)
		}
		p, known, err := parseForm(name)
		if err != nil {
			return nil, err
		}
		have, all, growing := strings.Cut(size, "/")
		if !growing {
			all = have
		}
		if p.Bytes, err = parseOffset(have); err == nil {
			p.Size, err = parseOffset(all)
		}
		if err != nil || p.Bytes > p.Size || growing && p.Bytes == p.Size {
			return nil, fmt.Errorf("%w: bytes of a form", ErrRequest)
		}
		if known {
			list = append(list, p)
		}
	}
	return list, nil
}

func parseForm(name string) (p Present, known bool, err error) {
	if name == nix.Raw.String() {
		return p, true, nil
	}
	c, hash, ok := strings.Cut(name, ":")
	if !ok || c == "" {
		return p, false, fmt.Errorf("%w: form", ErrRequest)
	}
	p.Form.Compression = nix.Compression(c)
	if p.Form.Compression != nix.XZ && p.Form.Compression != nix.Zstd {
		return p, false, nil
	}
	if p.Form.File, err = nix.ParseFileHash32(hash); err != nil || p.Form.File == (nix.FileHash{}) {
		return p, false, fmt.Errorf("%w: hash of a form", ErrRequest)
	}
	return p, true, nil
}

// parseOffset reads a number without sign or leading zeros.
func parseOffset(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != s {
		return 0, fmt.Errorf("%w: offset", ErrRequest)
	}
	return n, nil
}
