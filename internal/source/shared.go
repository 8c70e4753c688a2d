package source

import (
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// SharedPath is a path that a node shows to others: one that a share key signed.
type SharedPath struct {
	Store nix.StoreHash
	Nar   nix.NarHash
	Size  int64 // of the NAR in bytes
}

// SharedPage is a part of the list of what a node shares, the newest path first. A node numbers its
// paths in the order in which it came to share them, from 1, anew each time it starts; those of a page
// go down from First.
type SharedPage struct {
	Paths []SharedPath
	First uint64 // number of the first of Paths; 0 if there are none
	Next  uint64 // where the next page is asked for; 0 if this is the last one
}

// Sharer is a connected peer that may be asked what it shares.
type Sharer struct {
	ID      string
	Machine string    // identities of one machine have the same one
	Since   time.Time // when it connected: it may count its paths anew after that
}
