package nix

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Limits of a narinfo. The largest real one known has 3,691 references in 200 KB and two
// signatures; every signature costs a public-key operation, so their number is what
// a hostile cache would turn up.
const (
	MaxNarInfo = 1 << 20 // bytes of text
	maxSigs    = 64
)

// NarInfo is the content of a narinfo text. Nothing in it is believed: package verify
// makes proof of it. URL, Compression, FileHash, FileSize and Deriver are not covered
// by signatures.
type NarInfo struct {
	StorePath   StorePath
	URL         string
	Compression Compression // never empty: what the text leaves out is Bzip2
	FileHash    FileHash    // zero when absent
	FileSize    int64       // bytes; 0 when absent
	NarHash     NarHash
	NarSize     int64       // bytes, > 0
	References  []StorePath // sorted by base name, no two equal
	Deriver     StorePath   // zero when absent or unknown
	Sigs        []Signature // well-formed ones, in the order of the text
	CA          string      // "" when absent
	DroppedSigs int         // malformed Sig lines left out
}

var errNarInfo = errors.New("corrupt narinfo")

// ParseNarInfo reads the text as the strictest Nix does, so that what is passed on is
// accepted by every Nix: each line is "Key: value" ended by a newline, an empty value
// keeps its space, no control characters. Unknown keys are skipped, the last of a
// repeated scalar counts, malformed Sig lines are left out: Nix 2.34 and later refuse
// the whole narinfo for one of them.
func ParseNarInfo(text []byte) (*NarInfo, error) {
	n, err := parseNarInfo(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNarInfo, err)
	}
	return n, nil
}

func parseNarInfo(text []byte) (*NarInfo, error) {
	if len(text) > MaxNarInfo {
		return nil, fmt.Errorf("%d bytes, at most %d", len(text), MaxNarInfo)
	}
	n := &NarInfo{Compression: Bzip2}
	var seen narInfoSeen
	for len(text) > 0 {
		end := bytes.IndexByte(text, '\n')
		if end < 0 {
			return nil, errors.New("last line does not end in a newline")
		}
		line := text[:end]
		text = text[end+1:]
		if i := bytes.IndexFunc(line, func(r rune) bool { return r < ' ' || r == 0x7f }); i >= 0 {
			return nil, fmt.Errorf("control character %q", line[i])
		}
		key, value, ok := bytes.Cut(line, []byte(":"))
		if value, ok = bytes.CutPrefix(value, []byte(" ")); !ok {
			return nil, fmt.Errorf("line %q is not \"Key: value\"", clip(string(line)))
		}
		if err := n.set(string(key), string(value), &seen); err != nil {
			return nil, fmt.Errorf("%s: %w", clip(string(key)), err)
		}
	}
	return n, n.complete()
}

// narInfoSeen remembers the keys that Nix allows only once.
type narInfoSeen struct{ refs, ca bool }

// set takes one line. The order of cases is the order in which Nix writes them.
func (n *NarInfo) set(key, value string, seen *narInfoSeen) (err error) {
	switch key {
	case "StorePath":
		n.StorePath, err = ParseStorePath(value)
	case "URL":
		n.URL = value
	case "Compression":
		n.Compression, err = parseCompression(value)
	case "FileHash":
		n.FileHash, err = ParseFileHash(value)
	case "FileSize":
		n.FileSize, err = parseSize(value)
	case "NarHash":
		n.NarHash, err = ParseNarHash(value)
	case "NarSize":
		n.NarSize, err = parseSize(value)
	case "References":
		err = n.setReferences(value, seen)
	case "Deriver":
		n.Deriver, err = parseDeriver(value)
	case "Sig":
		err = n.addSig(value)
	case "CA":
		if seen.ca {
			return errors.New("given twice")
		}
		seen.ca = true
		n.CA, err = parseCA(value)
	}
	return err
}

func (n *NarInfo) complete() error {
	switch {
	case n.StorePath.IsZero():
		return errors.New("no StorePath")
	case n.URL == "":
		return errors.New("no URL")
	case n.NarHash == NarHash{}:
		return errors.New("no NarHash")
	case n.NarSize <= 0:
		return errors.New("no NarSize")
	}
	return nil
}

func (n *NarInfo) setReferences(value string, seen *narInfoSeen) error {
	if value == "" {
		return nil
	}
	if seen.refs {
		return errors.New("given twice")
	}
	seen.refs = true
	for base := range strings.SplitSeq(value, " ") {
		if base == "" {
			continue
		}
		p, err := ParseBaseName(base)
		if err != nil {
			return err
		}
		n.References = append(n.References, p)
	}
	n.References = SortPaths(n.References)
	return nil
}

func (n *NarInfo) addSig(value string) error {
	if len(n.Sigs)+n.DroppedSigs >= maxSigs {
		return fmt.Errorf("more than %d", maxSigs)
	}
	sig, err := ParseSignature(value)
	if err != nil {
		n.DroppedSigs++
		return nil //nolint:nilerr // a malformed line voids itself, not its neighbours
	}
	n.Sigs = append(n.Sigs, sig)
	return nil
}

// SortPaths sorts paths as fingerprints want them and drops repeated ones, in place.
func SortPaths(paths []StorePath) []StorePath {
	slices.SortFunc(paths, func(a, b StorePath) int { return strings.Compare(a.base, b.base) })
	return slices.Compact(paths)
}

func parseCompression(s string) (Compression, error) {
	switch c := Compression(s); c {
	case "":
		return Bzip2, nil
	case None, XZ, Zstd, Bzip2, Brotli, Gzip:
		return c, nil
	default:
		return "", fmt.Errorf("%q is not known", clip(s))
	}
}

func parseSize(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is no size", clip(s))
	}
	return n, nil
}

func parseDeriver(s string) (StorePath, error) {
	if s == "" || s == "unknown-deriver" {
		return StorePath{}, nil
	}
	return ParseBaseName(s)
}

// parseCA checks no more than the shape: content addresses are passed on, never judged.
func parseCA(s string) (string, error) {
	if s != "" && !strings.HasPrefix(s, "text:") && !strings.HasPrefix(s, "fixed:") {
		return "", fmt.Errorf("%q is no content address", clip(s))
	}
	return s, nil
}

// AppendText appends the narinfo text in the order in which Nix writes it.
// ParseNarInfo reads it back; malformed signatures and unknown keys are gone.
func (n *NarInfo) AppendText(b []byte) []byte {
	b = append(n.StorePath.append(append(b, "StorePath: "...)), '\n')
	b = appendLine(b, "URL: ", n.URL)
	b = appendLine(b, "Compression: ", string(n.Compression))
	if n.FileHash != (FileHash{}) {
		b = append(appendSHA256(append(b, "FileHash: "...), n.FileHash[:]), '\n')
	}
	if n.FileSize > 0 {
		b = append(strconv.AppendInt(append(b, "FileSize: "...), n.FileSize, 10), '\n')
	}
	b = append(appendSHA256(append(b, "NarHash: "...), n.NarHash[:]), '\n')
	b = append(strconv.AppendInt(append(b, "NarSize: "...), n.NarSize, 10), '\n')
	b = append(b, "References: "...)
	for i, p := range n.References {
		if i > 0 {
			b = append(b, ' ')
		}
		b = append(b, p.base...)
	}
	b = append(b, '\n')
	if !n.Deriver.IsZero() {
		b = appendLine(b, "Deriver: ", n.Deriver.base)
	}
	for i := range n.Sigs {
		b = append(n.Sigs[i].append(append(b, "Sig: "...)), '\n')
	}
	if n.CA != "" {
		b = appendLine(b, "CA: ", n.CA)
	}
	return b
}

func appendLine(b []byte, key, value string) []byte {
	return append(append(append(b, key...), value...), '\n')
}

// Fingerprint returns the bytes that signatures cover:
// "1;<path>;sha256:<nix32>;<size>;<references as full paths, joined by commas>"
// (Nix: src/libstore/path-info.cc).
func (n *NarInfo) Fingerprint() []byte {
	b := make([]byte, 0, 256+len(n.References)*80)
	b = append(n.StorePath.append(append(b, "1;"...)), ';')
	b = append(appendSHA256(b, n.NarHash[:]), ';')
	b = append(strconv.AppendInt(b, n.NarSize, 10), ';')
	for i, p := range n.References {
		if i > 0 {
			b = append(b, ',')
		}
		b = p.append(b)
	}
	return b
}
