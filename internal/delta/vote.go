package delta

import "math/bits"

const (
	// maxVotes is about how many places of a file have a vote.
	maxVotes = 1 << 17
	// voteUnit: places that differ by less count as one.
	voteUnit = 4 << 20
	// leastVoteBits: one position in 1,024 has a vote at most.
	leastVoteBits = 10
)

// voters are marked places of a large file of the base, by which its windows are found.
type voters struct {
	at    map[uint64]int64 // where a mark is; ambiguous if it is there more than once
	shift int
}

const ambiguous = -1

func newVoters(size int64) *voters {
	b := max(leastVoteBits, bits.Len64(uint64(size)/maxVotes))
	return &voters{at: make(map[uint64]int64), shift: 64 - b}
}

// each calls f for each mark in b, with a hash of the 64 bytes before.
func (v *voters) each(b []byte, f func(h uint64, at int)) {
	var h uint64
	for i, c := range b {
		if h = h<<1 + uint64(gear[c])*0x100000001; h>>v.shift == 0 && i >= 64 {
			f(h, i)
		}
	}
}

// add notes the marks in b, which lies at byte off of the file.
func (v *voters) add(b []byte, off int64) {
	v.each(b, func(h uint64, at int) {
		if _, ok := v.at[h]; ok {
			v.at[h] = ambiguous
		} else if len(v.at) < 2*maxVotes {
			v.at[h] = off + int64(at)
		}
	})
}

// moved returns by how far most marks in b, which lies at byte off of another file, have moved.
func (v *voters) moved(b []byte, off int64) (by int64) {
	votes := map[int64]int{}
	v.each(b, func(h uint64, at int) {
		if p, ok := v.at[h]; ok && p != ambiguous {
			votes[(p-off-int64(at)+voteUnit/2)>>voteBits]++
		}
	})
	best := 0
	for d, n := range votes {
		if n > best || n == best && abs(d) < abs(by) {
			best, by = n, d
		}
	}
	return by * voteUnit
}

const voteBits = 22 // of voteUnit
