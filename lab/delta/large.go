package main

import (
	"bufio"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/nixp2p/nixp2p/internal/nix"
)

const (
	largeFile = 1 << 30 // bytes of the one file of the largest NARs
	largeStep = 1 << 20
)

// large makes two NARs with one file each, in which parts have moved and bytes have changed: what the memory of
// encoder and decoder is measured with.
func (b *builder) large() (base, target string, err error) {
	dir := filepath.Join(b.dir, "nars", "large")
	base, target = filepath.Join(dir, "base.nar"), filepath.Join(dir, "target.nar")
	if exists(base) && exists(target) {
		return base, target, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", err
	}
	if err := writeLarge(base, false); err != nil {
		return "", "", err
	}
	return base, target, writeLarge(target, true)
}

func writeLarge(file string, changed bool) error {
	f, err := os.Create(file + ".tmp")
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	words(w, nix.NARMagic, "(", "type", "regular", "contents")
	n := nix.AppendNARString(nil, "")[:8]
	for i := range n {
		n[i] = byte(uint64(largeFile) >> (8 * i))
	}
	_, _ = w.Write(n) // a bufio.Writer keeps its error
	for i := range largeFile / largeStep {
		part := i
		if changed {
			part = i ^ 1 // neighbours change places
		}
		step := make([]byte, largeStep)
		r := rand.NewChaCha8([32]byte{byte(part), byte(part >> 8)})
		_, _ = r.Read(step)
		for k := range step { // half of the bits: it can be compressed
			step[k] &= 0x0f
		}
		if changed {
			for k := part % 512; k < len(step); k += 4096 {
				step[k]++
			}
		}
		if _, err := w.Write(step); err != nil {
			return err
		}
	}
	words(w, ")")
	if err := w.Flush(); err != nil {
		return err
	}
	return os.Rename(file+".tmp", file)
}
