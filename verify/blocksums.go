package verify

import (
	"errors"
	"hash/maphash"
	"io"
)

// BlockSums is a Proof that also keeps a short sum of each block, so that the same bytes need not
// be hashed when they are read once more: a Guard compares them, see Holdback.Previous. The sums
// are made under a secret of this process: nobody can find other bytes with the same sums.
type BlockSums struct {
	*Proof
	block blockSum
	sums  []uint64
}

// sumBlock is the number of bytes that have one sum.
const sumBlock = blockSize

// NewBlockSums returns a BlockSums that has seen nothing.
func NewBlockSums(want Digest) *BlockSums {
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

// compare returns a checker of the same bytes read once more. Check must have succeeded.
func (p *BlockSums) compare() checker {
	c := &comparison{want: p.want, rest: p.sums}
	c.block.h.SetSeed(p.block.h.Seed())
	return c
}

type comparison struct {
	want  Digest
	block blockSum
	rest  []uint64 // sums of the blocks to come
	n     int64
}

func (c *comparison) Write(b []byte) (int, error) {
	if int64(len(b)) > c.want.Size-c.n {
		return 0, &InvalidError{Reason: ReasonSize, Err: errOtherBytes}
	}
	c.n += int64(len(b))
	err := c.block.add(b, c.n == c.want.Size, func(sum uint64) error {
		if c.rest[0] != sum {
			return &InvalidError{Reason: ReasonHash, Err: errOtherBytes}
		}
		c.rest = c.rest[1:]
		return nil
	})
	return len(b), err
}

func (c *comparison) Check() error {
	if c.n < c.want.Size {
		return io.ErrUnexpectedEOF
	}
	return nil
}

var errOtherBytes = errors.New("not the bytes that were verified before")

// blockSum sums a stream block by block.
type blockSum struct {
	h maphash.Hash
	n int // bytes of the current block
}

// add takes the next bytes and calls done with the sum of each block that ends. If last, the
// block ends with b.
func (s *blockSum) add(b []byte, last bool, done func(sum uint64) error) error {
	for len(b) > 0 {
		piece := b[:min(len(b), sumBlock-s.n)]
		b = b[len(piece):]
		_, _ = s.h.Write(piece)
		if s.n += len(piece); s.n < sumBlock && !(last && len(b) == 0) {
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
