package nix

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// MaxNarInfo is the size in bytes of the largest narinfo text that is read. The largest real
// one known has 3,691 references in 200 KB.
const MaxNarInfo = 1 << 20

const (
	// maxURL bounds what is kept of a line that no signature covers.
	maxURL = 2 << 10
	// maxCAs: each CA line costs a hash over the references.
	maxCAs = 8
	// textOverhead is more than all lines but References, Sig and CA take together.
	textOverhead = 1<<10 + maxURL
)

// NarInfo is the content of a narinfo text. Nothing in it is verified: package verify does
// that. Signatures cover StorePath, NarHash, NarSize and References. CA is not signed, but the
// store path follows from it or not.
type NarInfo struct {
	StorePath   StorePath
	URL         string      // "" when absent: without it the next three mean nothing
	Compression Compression // as in the text, perhaps unknown; Bzip2 when absent
	FileHash    FileHash    // zero when absent
	FileSize    int64       // bytes; 0 when absent
	NarHash     NarHash
	NarSize     int64       // bytes, > 0
	References  []StorePath // sorted by base name, no two equal
	Sigs        []Signature // well-formed ones, in the order of the text
	CA          string      // "" when absent or when StorePath does not follow from it
}

var errNarInfo = errors.New("corrupt narinfo")

// ParseNarInfo reads a narinfo text. What is signed must be well-formed. Everything else is
// left out if it is malformed or unknown, because no source may void by an unsigned line what a
// key has signed. The last of a repeated scalar counts, as in Nix.
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
	p := narInfoParser{n: &NarInfo{Compression: Bzip2}}
	for len(text) > 0 {
		end := bytes.IndexByte(text, '\n')
		if end < 0 {
			return nil, errors.New("last line does not end in a newline")
		}
		line := text[:end]
		text = text[end+1:]
		key, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue
		}
		// Nix takes the byte behind the colon for the space, whatever it is.
		if err := p.set(string(key), string(value[min(1, len(value)):])); err != nil {
			return nil, fmt.Errorf("%s: %w", clip(string(key)), err)
		}
	}
	return p.n, p.complete()
}

type narInfoParser struct {
	n    *NarInfo
	refs bool // References were given
	cas  []string
}

// set takes one line. Only signed fields can be wrong.
func (p *narInfoParser) set(key, value string) (err error) {
	n := p.n
	switch key {
	case "StorePath":
		n.StorePath, err = ParseStorePath(value)
	case "NarHash":
		n.NarHash, err = ParseNarHash(value)
	case "NarSize":
		n.NarSize, err = parseSize(value)
	case "References":
		err = p.setReferences(value)
	case "Sig":
		// A malformed line voids itself, not its neighbours. Nix reads the data up to its padding, which
		// may be missing.
		name, data, _ := strings.Cut(value, ":")
		data, _, _ = strings.Cut(data, "=")
		if sig, err := ParseSignature(name + ":" + data + "=="); err == nil {
			n.Sigs = append(n.Sigs, sig)
		}
	case "CA":
		if len(p.cas) <= maxCAs {
			p.cas = append(p.cas, value)
		}
	default:
		p.hint(key, value)
	}
	return err
}

// hint takes a line that says where the file is and what it is like.
func (p *narInfoParser) hint(key, value string) {
	n := p.n
	switch key {
	case "URL":
		n.URL = ""
		if len(value) <= maxURL && !strings.ContainsFunc(value, isControl) {
			n.URL = value
		}
	case "Compression":
		n.Compression = Compression(clip(value))
		if value == "" {
			n.Compression = Bzip2
		}
	case "FileHash":
		n.FileHash, _ = ParseFileHash(value) // zero if it is of another algorithm
	case "FileSize":
		n.FileSize, _ = parseSize(value)
	}
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

func (p *narInfoParser) complete() error {
	n := p.n
	switch {
	case n.StorePath.IsZero():
		return errors.New("no StorePath")
	case n.NarHash == NarHash{}:
		return errors.New("no NarHash")
	case n.NarSize <= 0:
		return errors.New("no NarSize")
	}
	if len(p.cas) > maxCAs {
		return nil
	}
	for _, ca := range p.cas {
		if n.CA = CheckCA(ca, n.StorePath, n.References); n.CA != "" {
			break
		}
	}
	return nil
}

func (p *narInfoParser) setReferences(value string) error {
	if value == "" {
		return nil
	}
	if p.refs {
		return errors.New("given twice")
	}
	p.refs = true
	for base := range strings.SplitSeq(value, " ") {
		if base == "" {
			continue
		}
		path, err := ParseBaseName(base)
		if err != nil {
			return err
		}
		p.n.References = append(p.n.References, path)
	}
	p.n.References = compactPaths(SortPaths(p.n.References), len(value))
	return nil
}

// compactPaths copies paths that are parts of a string of size bytes if they would keep much
// more memory than they need: a line may consist of spaces and repetitions.
func compactPaths(paths []StorePath, size int) []StorePath {
	var b strings.Builder
	for _, p := range paths {
		b.WriteString(p.base)
	}
	if b.Len()+2*len(paths) >= size {
		return paths
	}
	all := b.String()
	out := make([]StorePath, len(paths))
	for i, p := range paths {
		out[i].base, all = all[:len(p.base)], all[len(p.base):]
	}
	return out
}

// SortPaths sorts paths as fingerprints want them and drops repeated ones, in place.
func SortPaths(paths []StorePath) []StorePath {
	slices.SortFunc(paths, func(a, b StorePath) int { return strings.Compare(a.base, b.base) })
	return slices.Compact(paths)
}

func parseSize(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is not a size", clip(s))
	}
	return n, nil
}

// AppendText appends the narinfo text in the order in which Nix writes it.
// ParseNarInfo reads it back.
func (n *NarInfo) AppendText(b []byte) []byte {
	b = append(n.StorePath.append(append(b, "StorePath: "...)), '\n')
	if n.URL != "" {
		b = appendLine(b, "URL: ", n.URL)
	}
	if n.Compression != "" {
		b = appendLine(b, "Compression: ", string(n.Compression))
	}
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
	for i := range n.Sigs {
		b = append(n.Sigs[i].append(append(b, "Sig: "...)), '\n')
	}
	if n.CA != "" {
		b = appendLine(b, "CA: ", n.CA)
	}
	return b
}

// MaxTextLen returns a bound of the length of the text, whatever file it names.
func (n *NarInfo) MaxTextLen() int {
	size := textOverhead + len(n.CA)
	for _, p := range n.References {
		size += len(p.base) + 1
	}
	for i := range n.Sigs {
		size += len("Sig: :\n") + len(n.Sigs[i].KeyName) + base64.StdEncoding.EncodedLen(len(n.Sigs[i].Data))
	}
	return size
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
