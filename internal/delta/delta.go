// Package delta codes a NAR as what differs from another one, its base: usually an older version of
// the same package, most of whose bytes return, moved and with small changes.
//
// A delta is a zstd stream of segments. A segment is four numbers (the lengths of its lists) and
// four lists:
//
//   - ops: triples (copy n bytes from the place in the base, insert m bytes, move the place by s);
//   - runs: pairs (equal bytes, changed bytes) over all that the ops copy;
//   - changes: what is added, modulo 256, to each changed byte;
//   - inserts: the bytes that the ops insert.
//
// Numbers are varints of encoding/binary; moves are signed. The place is kept over segments.
// The method is that of bsdiff (copies that tolerate changes), with an index of
// content-defined marks in place of a suffix array, file against file of the same name.
//
// Nothing in a delta is trusted. A Reader keeps within the limits below whatever it is given, and
// what it returns is the NAR only if its signed hash says so.
package delta

import (
	"errors"
	"io"
	"iter"
)

// Coding is the name of the format where HTTP needs one (Content-Encoding).
const Coding = "nixp2p-delta-1"

// Tree is a NAR that can be read at any place, and where the contents of its files lie in it.
type Tree interface {
	io.ReaderAt
	// Size returns the bytes of the whole NAR.
	Size() int64
	// Files returns the regular files that are not empty, in the order of the NAR.
	Files() iter.Seq[File]
}

// File is the contents of one regular file.
type File struct {
	Path   string // names joined by slashes; "" for a NAR that is one file
	Off, N int64  // where they lie in the NAR, in bytes
}

func (f File) end() int64 { return f.Off + f.N }

// Limits of the format. A Reader refuses what exceeds them, and a writer keeps within them.
const (
	// maxSpan is the most bytes of the NAR that one segment makes.
	maxSpan = 16 << 20
	// maxLists is the most bytes of the four lists of a segment together.
	maxLists = 4 << 20
	// Of a delta that has made n bytes, at most opsFree + n/opsBytes ops may have been read:
	// copies of single bytes would make a Reader read its base once for each.
	opsFree  = 4 << 10
	opsBytes = 32
	// MaxFiles is the most files of a Tree that are looked at; those beyond are inserted.
	MaxFiles = 1 << 18
)

// ErrCorrupt is wrapped by errors that say that a delta, or a NAR, is not well-formed.
var ErrCorrupt = errors.New("delta: corrupt")

// BaseError is an error of reading the base: it says nothing about the delta.
type BaseError struct{ Err error }

func (e *BaseError) Error() string { return "delta: read base: " + e.Err.Error() }
func (e *BaseError) Unwrap() error { return e.Err }
