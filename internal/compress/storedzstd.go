package compress

import "encoding/binary"

// The stored zstd file (RFC 8878): one frame with its content size, without checksum, in
// raw blocks. It has a window of one block: in a single segment, which has none, the
// content size would count as the window, and decoders refuse one above 128 MiB.
const (
	zstdMagic       = 0xfd2fb528
	zstdPiece       = 128 << 10
	zstdPieceHeader = 3
	zstdDescriptor  = 3 << 6 // content size of 8 bytes, window, no checksum, no dictionary
	zstdWindow      = 7 << 3 // 2^(10+7) bytes
	zstdFrameHeader = 4 + 1 + 1 + 8
)

type zstdContainer struct{}

func (zstdContainer) most() int64 { return zstdPiece }

func (zstdContainer) begin(b []byte, size int64) []byte {
	b = binary.LittleEndian.AppendUint32(b, zstdMagic)
	b = append(b, zstdDescriptor, zstdWindow)
	return binary.LittleEndian.AppendUint64(b, uint64(size))
}

func (zstdContainer) piece(b []byte, size, at, n int64) []byte {
	header := uint32(n << 3) // type 0: raw block
	if at+n == size {
		header |= 1 // last block
	}
	return append(b, byte(header), byte(header>>8), byte(header>>16))
}

func (zstdContainer) end(b []byte, _ int64) []byte { return b }

func (zstdContainer) stored(size int64) int64 {
	pieces := max(1, (size+zstdPiece-1)/zstdPiece)
	return zstdFrameHeader + pieces*zstdPieceHeader + size
}
