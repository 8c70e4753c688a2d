package verify

import (
	"slices"
	"unsafe"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// Info is a narinfo that a trusted key signed. Only Keys.Open makes one. It is immutable
// and safe for concurrent use.
//
// It keeps the signed facts, the valid signatures of trusted keys, a content address if the
// store path follows from it, and Hints. Nothing else of the text is kept.
type Info struct {
	n       nix.NarInfo
	signers []string
}

// StorePath returns the path, whose hash part is what was asked for.
func (i *Info) StorePath() nix.StorePath { return i.n.StorePath }

// NarHash returns the SHA-256 of the raw NAR.
func (i *Info) NarHash() nix.NarHash { return i.n.NarHash }

// NarSize returns the size of the raw NAR in bytes.
func (i *Info) NarSize() int64 { return i.n.NarSize }

// References returns the paths that this one refers to, sorted, perhaps with itself. The
// caller must not change it.
func (i *Info) References() []nix.StorePath { return i.n.References }

// Signatures returns the valid signatures of trusted keys, sorted by key. The caller must not
// change it.
func (i *Info) Signatures() []nix.Signature { return i.n.Sigs }

// Signers returns the names of the trusted keys whose signatures are valid, at least one,
// sorted. The caller must not change it.
func (i *Info) Signers() []string { return i.signers }

// SignedByAny reports whether one of the named keys is among the signers.
func (i *Info) SignedByAny(names []string) bool {
	return slices.ContainsFunc(i.signers, func(s string) bool { return slices.Contains(names, s) })
}

// Hints say where the source of the text has a file of the NAR. No signature covers them: they
// are worth what their source is worth, and leave this machine only as the form of a file that
// is offered (see Offer).
type Hints struct {
	URL         string          // "" if there are none
	Compression nix.Compression // as in the text, perhaps one that is not known
	FileHash    nix.FileHash    // zero when absent
	FileSize    int64           // 0 when absent
}

// Hints returns the hints of the text.
func (i *Info) Hints() Hints {
	return Hints{i.n.URL, i.n.Compression, i.n.FileHash, i.n.FileSize}
}

// WithoutHints returns the signed facts alone: what a peer says about files is not kept.
func (i *Info) WithoutHints() *Info {
	o := *i
	o.dropHints()
	return &o
}

func (i *Info) dropHints() {
	i.n.URL, i.n.Compression, i.n.FileHash, i.n.FileSize = "", "", nix.FileHash{}, 0
}

// FileForm returns the form of the upstream's file, and whether it is one that can be
// passed on as it is: xz or zstd with FileHash and FileSize.
func (i *Info) FileForm() (nix.Form, bool) {
	n := &i.n
	ok := (n.Compression == nix.XZ || n.Compression == nix.Zstd) && n.FileHash != (nix.FileHash{}) && n.FileSize > 0
	if !ok {
		return nix.Raw, false
	}
	return nix.Form{Compression: n.Compression, File: n.FileHash}, true
}

// Equal reports whether i and o say the same signed facts.
func (i *Info) Equal(o *Info) bool {
	return i.n.StorePath == o.n.StorePath && i.n.NarHash == o.n.NarHash && i.n.NarSize == o.n.NarSize &&
		slices.Equal(i.n.References, o.n.References)
}

// Size returns how many bytes of memory i takes.
func (i *Info) Size() int {
	n := &i.n
	size := int(unsafe.Sizeof(*i)) + len(n.StorePath.Base()) + len(n.URL) + len(n.Compression) + len(n.CA) +
		cap(n.References)*int(unsafe.Sizeof(nix.StorePath{})) +
		cap(n.Sigs)*int(unsafe.Sizeof(nix.Signature{})) + cap(i.signers)*int(unsafe.Sizeof(""))
	for _, p := range n.References {
		size += len(p.Base()) + 1
	}
	return size
}

// Text returns the narinfo with its hints, for keeping on this machine. It has at most
// nix.MaxNarInfo bytes, and Open reads it.
func (i *Info) Text() []byte { return i.n.AppendText(nil) }

// Offer returns the narinfo as this node offers it: our URL for form, the signed facts, the
// signatures byte for byte and the content address. Of the hints, it has those of the file if
// form is that of FileForm; any other form is offered raw. Whoever trusts one of the signers
// accepts it: it has at most nix.MaxNarInfo bytes.
func (i *Info) Offer(form nix.Form) []byte {
	n := i.n
	if own, ok := i.FileForm(); !ok || form != own {
		form = nix.Raw
		n.Compression, n.FileHash, n.FileSize = nix.None, nix.FileHash(n.NarHash), n.NarSize
	}
	n.URL = nix.NARName{Store: n.StorePath.Hash(), Nar: n.NarHash, Form: form}.URL()
	return n.AppendText(make([]byte, 0, 1024))
}
