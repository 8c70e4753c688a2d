package nix

import (
	"errors"
	"fmt"
	"strings"
)

// Compression is a value of a narinfo's Compression line.
type Compression string

// The compressions that Nix reads without programs of others. An absent or empty line means
// bzip2.
const (
	None   Compression = "none"
	XZ     Compression = "xz"
	Zstd   Compression = "zstd"
	Bzip2  Compression = "bzip2"
	Brotli Compression = "br"
	Gzip   Compression = "gzip"
	LZ4    Compression = "lz4"
	Lzip   Compression = "lzip"
	LZMA   Compression = "lzma"
	LZW    Compression = "compress"
)

// Form is a shape of the bytes of a NAR: the zero value is the raw NAR, any other is one exact
// compressed file of an upstream. Only xz and zstd files are passed on as they are.
type Form struct {
	Compression Compression // XZ or Zstd; "" for raw
	File        FileHash    // zero for raw
}

// Raw is the form of the plain NAR, the one that NarHash signs.
var Raw = Form{}

// IsRaw reports whether f is the plain NAR.
func (f Form) IsRaw() bool { return f == Raw }

// String returns "raw" or the compression and file hash.
func (f Form) String() string {
	if f.IsRaw() {
		return "raw"
	}
	return string(f.Compression) + ":" + f.File.Nix32()
}

// NARName is what a NAR URL of this project says. It carries all that is needed to
// serve the NAR: Nix remembers narinfos for 30 days, and asks for the NAR with no
// narinfo request before it.
type NARName struct {
	Store StoreHash
	Nar   NarHash
	Form  Form
}

// suffixes of NAR URLs by compression.
const (
	suffixRaw  = ".nar"
	suffixXZ   = ".nar.xz"
	suffixZstd = ".nar.zst"
)

var errNARName = errors.New("not a NAR URL")

// ParseNARName reads the last element of a NAR URL: "<storehash>-<narhash>.nar", or
// "<storehash>-<narhash>-<filehash>.nar.xz" or ".nar.zst", hashes in nix32.
func ParseNARName(s string) (n NARName, err error) {
	var stem string
	var file bool
	switch {
	case strings.HasSuffix(s, suffixXZ):
		stem, n.Form.Compression, file = strings.TrimSuffix(s, suffixXZ), XZ, true
	case strings.HasSuffix(s, suffixZstd):
		stem, n.Form.Compression, file = strings.TrimSuffix(s, suffixZstd), Zstd, true
	case strings.HasSuffix(s, suffixRaw):
		stem = strings.TrimSuffix(s, suffixRaw)
	default:
		return NARName{}, fmt.Errorf("%w: %q", errNARName, clip(s))
	}
	parts := strings.Split(stem, "-")
	if len(parts) != 2 && !file || len(parts) != 3 && file {
		return NARName{}, fmt.Errorf("%w: %q", errNARName, clip(s))
	}
	if n.Store, err = ParseStoreHash(parts[0]); err != nil {
		return NARName{}, fmt.Errorf("%w: %w", errNARName, err)
	}
	if n.Nar, err = ParseNarHash32(parts[1]); err != nil {
		return NARName{}, fmt.Errorf("%w: NAR hash: %w", errNARName, err)
	}
	if file {
		if n.Form.File, err = ParseFileHash32(parts[2]); err != nil {
			return NARName{}, fmt.Errorf("%w: file hash: %w", errNARName, err)
		}
	}
	return n, nil
}

// String returns the last element of the URL; ParseNARName reads it.
func (n NARName) String() string {
	b := n.Store.Append(make([]byte, 0, 160))
	b = append(b, '-')
	b = appendNix32(b, n.Nar[:])
	if n.Form.IsRaw() {
		return string(append(b, suffixRaw...))
	}
	b = append(b, '-')
	b = appendNix32(b, n.Form.File[:])
	if n.Form.Compression == Zstd {
		return string(append(b, suffixZstd...))
	}
	return string(append(b, suffixXZ...))
}

// URL returns the value of a narinfo's URL line: relative, so that it holds under any
// address of the cache.
func (n NARName) URL() string { return "nar/" + n.String() }
