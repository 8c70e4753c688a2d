package localstore

import (
	"cmp"
	"slices"

	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// family is a hash of a name without its versions: packages of one family are versions of each
// other. 0 is none.
type family uint64

// familyOf returns the family of the name of a store path: what stays when each number with its
// dots, and each run of 6 and more hexadecimal digits that has one, becomes "#". So
// openssl-3.0.14-dev and openssl-3.0.15-dev are of one family, and openssl-3.0.15 is of another.
func familyOf(name string) family {
	const offset, prime = 14695981039346656037, 1099511628211 // FNV-1a
	h := uint64(offset)
	for i := 0; i < len(name); {
		c := name[i]
		if n := versionAt(name[i:]); n > 0 {
			c, i = '#', i+n
		} else {
			i++
		}
		h = (h ^ uint64(c)) * prime
	}
	return family(max(h, 1))
}

const hexRun = 6

// versionAt returns how many bytes at the beginning of s are a number or a hash.
func versionAt(s string) int {
	isDigit := func(c byte) bool { return c >= '0' && c <= '9' }
	hex, digits := 0, 0
	for hex < len(s) && (isDigit(s[hex]) || s[hex] >= 'a' && s[hex] <= 'f') {
		if isDigit(s[hex]) {
			digits++
		}
		hex++
	}
	if hex >= hexRun && digits > 0 {
		return hex
	}
	n := 0
	for n < len(s) && (isDigit(s[n]) || n > 0 && s[n] == '.' && n+1 < len(s) && isDigit(s[n+1])) {
		n++
	}
	return n
}

// Bases of another size than 1/baseFactor to baseFactor times the target's are of no use.
const baseFactor = 4

// Bases returns the paths that may be shown to others and may be versions of info's, the most alike
// first, at most most.
func (s *Store) Bases(info *verify.Info, most int) []source.Base {
	fam, size := familyOf(info.StorePath().Name()), info.NarSize()
	list := s.idx.family(fam, func(e *entry) bool {
		return e.nar != info.NarHash() && e.size >= size/baseFactor && e.size/baseFactor <= size
	})
	distance := func(e entry) int64 { return max(e.size-size, size-e.size) }
	slices.SortStableFunc(list, func(a, b entry) int {
		return cmp.Or(cmp.Compare(distance(a), distance(b)), cmp.Compare(b.id, a.id))
	})
	var out []source.Base
	for _, e := range list[:min(len(list), most)] {
		out = append(out, source.Base{Store: e.store, Nar: e.nar, Size: e.size})
	}
	return out
}

// maxFamily bounds how many rows of one family are looked at, the newest ones: there may be
// thousands that are called "source".
const maxFamily = 256

// family returns the entries of a family that may be shown and that keep accepts.
func (x *index) family(f family, keep func(*entry) bool) (list []entry) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	id := x.families[f]
	for range maxFamily {
		e := x.find(id)
		if e == nil {
			break
		}
		if e.offered() && keep(e) {
			list = append(list, *e)
		}
		id = e.older
	}
	return list
}

// join puts an entry that is new at the head of its family.
func (x *index) join(e *entry) {
	if e.family == 0 {
		return
	}
	e.older = x.families[e.family]
	x.families[e.family] = e.id
}

// rejoin makes the families anew, when entries have gone.
func (x *index) rejoin() {
	x.families = make(map[family]int64)
	for i := range x.entries {
		x.join(&x.entries[i])
	}
}
