package main

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"io"
	"math/bits"
	"os"
	"os/exec"
)

// What chunk stores do: both NARs are cut at places that their contents choose (FastCDC, 16 KiB on average), and the
// chunks of the newer one are sent that the older one has not, with a list of all of them.
const (
	chunkMean = 16 << 10
	chunkMost = 4 * chunkMean
	listed    = sha256.Size + 2 // bytes of a chunk in the list
)

// sendChunks writes what is sent of target to whoever has base, compressed as one stream.
func sendChunks(w io.Writer, base, target *os.File) error {
	have := map[[sha256.Size]byte]bool{}
	if err := eachChunk(base, func(c []byte) error { have[sha256.Sum256(c)] = true; return nil }); err != nil {
		return err
	}
	zstd := exec.Command("zstd", "-q", "--single-thread", "-3", "-c")
	zstd.Stdout, zstd.Stderr = w, os.Stderr
	in, err := zstd.StdinPipe()
	if err != nil {
		return err
	}
	if err := zstd.Start(); err != nil {
		return err
	}
	chunks := 0
	err = eachChunk(target, func(c []byte) error {
		chunks++
		if sum := sha256.Sum256(c); !have[sum] {
			have[sum] = true
			_, err := in.Write(c)
			return err
		}
		return nil
	})
	if err := errors.Join(err, in.Close(), zstd.Wait()); err != nil {
		return err
	}
	_, err = w.Write(make([]byte, listed*chunks))
	return err
}

// eachChunk calls f with each chunk of a file, whose bytes are valid until it returns.
func eachChunk(file io.Reader, f func([]byte) error) error {
	gear := gears()
	r := bufio.NewReaderSize(file, 1<<20)
	for {
		b, err := r.Peek(chunkMost)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if len(b) == 0 {
			return nil
		}
		n := cut(&gear, b)
		if err := f(b[:n]); err != nil {
			return err
		}
		if _, err := r.Discard(n); err != nil {
			return err
		}
	}
}

// gears are fixed numbers without a pattern (splitmix64).
func gears() (g [256]uint64) {
	x := uint64(0)
	for i := range g {
		x += 0x9e3779b97f4a7c15
		z := x
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		g[i] = z ^ z>>31
	}
	return g
}

// cut returns the length of the first chunk of b: FastCDC with normalization level 2.
func cut(gear *[256]uint64, b []byte) int {
	const least = chunkMean / 4
	if len(b) <= least {
		return len(b)
	}
	n := bits.Len(chunkMean) - 1
	mask := func(bits int) uint64 { return (1<<bits - 1) << (64 - bits) }
	early, late := mask(n+2), mask(n-2)
	var h uint64
	for i := least; i < min(len(b), chunkMost); i++ {
		h = h<<1 + gear[b[i]]
		if i < chunkMean && h&early == 0 || i >= chunkMean && h&late == 0 {
			return i + 1
		}
	}
	return min(len(b), chunkMost)
}
