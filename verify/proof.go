package verify

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// Digest says what bytes must turn out to be.
type Digest struct {
	Size int64 // bytes, exactly
	Hash [sha256.Size]byte
}

// Digest returns what the bytes of i in the given form must be: the signed NarSize and
// NarHash for raw; for a file its FileHash and size, which no key signed: a file that matches is
// the one that was named, and may still hold another NAR. fileSize is used for files only.
func (i *Info) Digest(form nix.Form, fileSize int64) Digest {
	if form.IsRaw() {
		return Digest{i.n.NarSize, i.n.NarHash}
	}
	return Digest{fileSize, form.File}
}

// Unverified is what a source says are the bytes of a NAR in some form, from some offset on.
// Nothing in it is proven. The receiver closes Body.
type Unverified struct {
	Body io.ReadCloser
	Size int64 // of the whole form in bytes, whatever the offset
}

// Proof hashes bytes as they pass. It is not safe for concurrent use.
type Proof struct {
	want Digest
	n    int64
	h    hash.Hash
}

// NewProof returns a Proof that has seen nothing.
func NewProof(want Digest) *Proof { return &Proof{want: want, h: sha256.New()} }

// Offset returns how many bytes have passed.
func (p *Proof) Offset() int64 { return p.n }

// Write takes the next bytes. Going on past the size is an *InvalidError and takes nothing.
func (p *Proof) Write(b []byte) (int, error) {
	if int64(len(b)) > p.want.Size-p.n {
		return 0, &InvalidError{Reason: ReasonSize, Err: fmt.Errorf("more than %d bytes", p.want.Size)}
	}
	p.n += int64(len(b))
	return p.h.Write(b)
}

// Check compares size and hash when the source has ended. Fewer bytes than the size are
// io.ErrUnexpectedEOF, because anything may have cut the stream; a wrong hash is an *InvalidError.
func (p *Proof) Check() error {
	if p.n < p.want.Size {
		return fmt.Errorf("%d of %d bytes: %w", p.n, p.want.Size, io.ErrUnexpectedEOF)
	}
	if got := [sha256.Size]byte(p.h.Sum(nil)); got != p.want.Hash {
		return &InvalidError{Reason: ReasonHash, Err: fmt.Errorf("want %s, got %s", nix.NarHash(p.want.Hash), nix.NarHash(got))}
	}
	return nil
}
