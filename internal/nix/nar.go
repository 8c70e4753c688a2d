package nix

import "encoding/binary"

// NARMagic is the first string of a NAR.
const NARMagic = "nix-archive-1"

// AppendNARString appends s as NARs frame strings: length in 8 bytes little endian,
// bytes, zeroes up to a multiple of 8.
func AppendNARString(b []byte, s string) []byte {
	b = AppendNARLength(b, int64(len(s)))
	b = append(b, s...)
	return AppendNARPadding(b, int64(len(s)))
}

// AppendNARLength appends the length that stands before a string of n bytes, for contents
// that are streamed. AppendNARPadding appends what stands behind them.
func AppendNARLength(b []byte, n int64) []byte {
	return binary.LittleEndian.AppendUint64(b, uint64(n))
}

// AppendNARPadding appends the zeroes that follow n bytes, at most 7.
func AppendNARPadding(b []byte, n int64) []byte {
	var zeroes [8]byte
	return append(b, zeroes[:-n&7]...)
}

// NARStringSize returns the size of a framed string of n bytes.
func NARStringSize(n int64) int64 { return 8 + n + -n&7 }
