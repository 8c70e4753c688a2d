package compress

import (
	"encoding/binary"
	"hash/crc32"
)

// The stored xz file (The .xz File Format 1.2.1): one stream without check, one block,
// LZMA2 chunks without compression, index, footer.
const (
	xzPiece       = 64 << 10 // the most that an uncompressed LZMA2 chunk holds
	xzPieceHeader = 3
	xzStreamEdge  = 12 // bytes of the stream header, and of the footer
	xzBlockHeader = 12
	// xzDict is the size byte of a dictionary of 64 KiB: nothing refers back, but liblzma
	// copies in pieces of the dictionary's size.
	xzDict = 8
)

const (
	lzma2End         = 0
	lzma2FirstStored = 1 // uncompressed chunk that resets the dictionary
	lzma2Stored      = 2
)

type xzContainer struct{}

func (xzContainer) most() int64 { return xzPiece }

func (xzContainer) begin(b []byte, _ int64) []byte {
	b = append(b, 0xfd, '7', 'z', 'X', 'Z', 0)
	b = appendCRC32(append(b, 0, 0), 2) // stream flags: no check
	// Header of 12 bytes, one filter: LZMA2, one byte of properties; padding.
	return appendCRC32(append(b, xzBlockHeader/4-1, 0, 0x21, 1, xzDict, 0, 0, 0), 8)
}

func (xzContainer) piece(b []byte, _, at, n int64) []byte {
	if n == 0 {
		return b
	}
	control := byte(lzma2Stored)
	if at == 0 {
		control = lzma2FirstStored
	}
	return append(b, control, byte((n-1)>>8), byte(n-1))
}

func (c xzContainer) end(b []byte, size int64) []byte {
	unpadded := c.unpadded(size)
	b = append(b, lzma2End)
	b = append(b, make([]byte, -unpadded&3)...)

	start := len(b)
	b = c.appendIndex(b, size)
	b = appendCRC32(b, len(b)-start)
	indexSize := len(b) - start

	crcAt := len(b)
	b = append(b, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(indexSize/4-1))
	b = append(b, 0, 0)
	binary.LittleEndian.PutUint32(b[crcAt:], crc32.ChecksumIEEE(b[crcAt+4:]))
	return append(b, 'Y', 'Z')
}

// appendIndex appends the index without its CRC32.
func (c xzContainer) appendIndex(b []byte, size int64) []byte {
	start := len(b)
	b = append(b, 0, 1) // index indicator, one record
	b = binary.AppendUvarint(b, uint64(c.unpadded(size)))
	b = binary.AppendUvarint(b, uint64(size))
	return append(b, make([]byte, -(len(b)-start)&3)...)
}

// unpadded is the size of the block without its padding.
func (xzContainer) unpadded(size int64) int64 {
	pieces := (size + xzPiece - 1) / xzPiece
	return xzBlockHeader + pieces*xzPieceHeader + size + 1
}

func (c xzContainer) stored(size int64) int64 {
	unpadded := c.unpadded(size)
	var index [frame]byte
	return 2*xzStreamEdge + unpadded + -unpadded&3 + int64(len(c.appendIndex(index[:0], size))) + crc32.Size
}

// appendCRC32 appends the CRC32 of the last n bytes of b.
func appendCRC32(b []byte, n int) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b[len(b)-n:]))
}
