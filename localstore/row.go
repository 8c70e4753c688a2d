package localstore

import (
	"database/sql/driver"
	"strings"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// maxSigs is the most signatures of a row that are looked at, as in a narinfo: each costs a
// public-key operation, and trusted users of Nix may add as many as they like.
const maxSigs = 64

// class says which keys have signed a row.
type class uint8

const (
	classShared    class = iota // signed by a share key
	classTrusted                // signed by a trusted key that is no share key
	classUnsigned               // no signature
	classUntrusted              // signatures, but none that holds by a trusted key
	classCA                     // no signature, but a content address
	classNoSize                 // an ancient row: without the size there is no fingerprint
	classInvalid                // a malformed path or hash
	classes
)

// row is one row of ValidPaths with its references. Path, hash and size are valid only if it is
// usable.
type row struct {
	id      int64
	class   class // classInvalid, classNoSize, or classUnsigned: the keys were not asked yet
	path    nix.StorePath
	nar     nix.NarHash
	size    int64
	refs    []nix.StorePath
	ca      string
	sigs    []nix.Signature
	dropped bool // some signatures, malformed or beyond maxSigs
}

// rowColumns are the columns that parseRow expects, of ValidPaths p. One statement sees one
// state of the database: a second one for the references might see the next.
const rowColumns = `p.id, p.path, p.hash, p.narSize, p.sigs, p.ca,
	(SELECT group_concat(v.path, ' ') FROM Refs r JOIN ValidPaths v ON v.id = r.reference WHERE r.referrer = p.id)`

const rowWidth = 7

// parseRow reads what rowColumns returned. Root wrote it, but trusted users of Nix can import
// paths with what signatures and content addresses they like.
func parseRow(v []driver.Value) *row {
	r := &row{class: classInvalid}
	r.id, _ = v[0].(int64)
	path, err := nix.ParseStorePath(text(v[1]))
	if err != nil {
		return r
	}
	hash, err := nix.ParseNarHash(text(v[2]))
	if err != nil || hash == (nix.NarHash{}) { // in a narinfo the zero hash means none
		return r
	}
	r.path, r.nar = path, hash
	for ref := range strings.FieldsSeq(text(v[6])) {
		p, err := nix.ParseStorePath(ref)
		if err != nil {
			return r
		}
		r.refs = append(r.refs, p)
	}
	r.refs = nix.SortPaths(r.refs)
	r.ca = text(v[5])
	for s := range strings.FieldsSeq(text(v[4])) {
		sig, err := nix.ParseSignature(s)
		if err != nil || len(r.sigs) == maxSigs {
			r.dropped = true
			continue
		}
		r.sigs = append(r.sigs, sig)
	}
	r.size, _ = v[3].(int64)
	if r.size <= 0 {
		r.class = classNoSize
		return r
	}
	r.class = classUnsigned
	return r
}

// usable reports whether the row has all that a narinfo needs except a signature.
func (r *row) usable() bool { return r.class == classUnsigned }

func text(v driver.Value) string {
	switch v := v.(type) {
	case string:
		return v
	case []byte:
		return string(v)
	default:
		return ""
	}
}

// narInfo returns the row as a narinfo whose hints say that the NAR is available raw. Its content
// address is checked by verify.
func (r *row) narInfo() *nix.NarInfo {
	return &nix.NarInfo{
		StorePath:   r.path,
		URL:         nix.NARName{Store: r.path.Hash(), Nar: r.nar}.URL(),
		Compression: nix.None,
		FileHash:    nix.FileHash(r.nar),
		FileSize:    r.size,
		NarHash:     r.nar,
		NarSize:     r.size,
		References:  r.refs,
		Sigs:        r.sigs,
		CA:          r.ca,
	}
}

// whyUnsigned returns why a row has no valid signature.
func (r *row) whyUnsigned() class {
	switch {
	case len(r.sigs) > 0 || r.dropped:
		return classUntrusted
	case r.ca != "":
		return classCA
	default:
		return classUnsigned
	}
}
