package verify

import (
	"errors"
	"hash/maphash"
	"io"
)

// BlockSums is a Proof that remembers what has passed, so that the same bytes need not be hashed
// again when they are read once more: a Guard compares them, see Holdback.Known. What it keeps are
// short sums under a secret of this process: nobody can make other bytes with the same.
type BlockSums struct {
	*Proof
	block blockSum
	sums  []uint64
}

// printBlock is what has one sum.
const printBlock = blockSize

// NewBlockSums returns a BlockSums that has seen nothing.
func NewBlockSums(want Want) *BlockSums {
	return &BlockSums{Proof: NewProof(want)}
}

// Write takes the next bytes. Errors as Proof's.
func (p *BlockSums) Write(b []byte) (int, error) {
	n, err := p.Proof.Write(b)
	if err == nil {
		_ = p.block.add(b, p.n == p.want.Size, func(sum uint64) error {
			p.sums = append(p.sums, sum)
			return nil
		})
	}
	return n, err
}

// again returns the judge of the same bytes read once more. The first bytes must have been
// proven by Check.
func (p *BlockSums) again() judge {
	a := &again{p: p, left: p.sums}
	a.block.h.SetSeed(p.block.h.Seed())
	return a
}

type again struct {
	p     *BlockSums
	block blockSum
	left  []uint64 // sums of the blocks to come
	n     int64
}

func (a *again) Write(b []byte) (int, error) {
	if int64(len(b)) > a.p.want.Size-a.n {
		return 0, &InvalidError{Reason: ReasonSize, Err: errOtherBytes}
	}
	a.n += int64(len(b))
	err := a.block.add(b, a.n == a.p.want.Size, func(sum uint64) error {
		if a.left[0] != sum {
			return &InvalidError{Reason: ReasonHash, Err: errOtherBytes}
		}
		a.left = a.left[1:]
		return nil
	})
	return len(b), err
}

func (a *again) Check() error {
	if a.n < a.p.want.Size {
		return io.ErrUnexpectedEOF
	}
	return nil
}

var errOtherBytes = errors.New("other bytes than were proven a moment ago")

// blockSum sums a stream block by block.
type blockSum struct {
	h maphash.Hash
	n int // bytes of the block that has begun
}

// add takes the next bytes and calls done with the sum of each block that ends; last ends the
// last one.
func (s *blockSum) add(b []byte, last bool, done func(sum uint64) error) error {
	for len(b) > 0 {
		piece := b[:min(len(b), printBlock-s.n)]
		b = b[len(piece):]
		_, _ = s.h.Write(piece)
		if s.n += len(piece); s.n < printBlock && !(last && len(b) == 0) {
			continue
		}
		if err := done(s.h.Sum64()); err != nil {
			return err
		}
		s.h.Reset()
		s.n = 0
	}
	return nil
}
