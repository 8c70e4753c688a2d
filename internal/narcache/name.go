package narcache

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// A file's name is its record: "<narhash>-<size>.nar" or "<narhash>-<filehash>-<size>.nar.xz" or
// ".nar.zst", hashes in nix32, the size of the file in decimal, and "-ok" after the size once the
// file was decoded to the NAR. A delta is "<narhash>-<narhash of the base>-<sizes>-<size>.nar.delta", with
// the sizes of the NAR, of the base, and of the file in whose place it is. So a start needs no other file
// to know what should be there, and nothing can get out of step with it. The time of modification is the
// last use.

// packed is the compression of a delta in records. To everybody else the NAR is here raw.
const packed nix.Compression = "delta"

var suffixes = map[nix.Compression]string{"": ".nar", nix.XZ: ".nar.xz", nix.Zstd: ".nar.zst", packed: ".nar.delta"}

// wordsOf is how many words a name has by its compression, but for decodedMark.
var wordsOf = map[nix.Compression]int{"": 2, nix.XZ: 3, nix.Zstd: 3, packed: 6}

const decodedMark = "ok"

var errName = errors.New("not a file of the cache")

// record is what the name of a file says.
type record struct {
	key
	size    int64
	decoded bool // of a file: it holds the NAR
	packing      // of a delta
}

// packing is what the name of a delta says, in bytes.
type packing struct {
	narSize, baseSize int64
	was               int64 // of the file in whose place it is
}

func (r record) packed() bool { return r.form.Compression == packed }

// baseNar returns the NAR against which a delta is coded: its form names it.
func (r record) baseNar() nix.NarHash { return nix.NarHash(r.form.File) }

// name returns the name of the file and its directory.
func (r record) name() string {
	words := []string{r.nar.Nix32()}
	if !r.form.IsRaw() {
		words = append(words, r.form.File.Nix32())
	}
	if r.packed() {
		words = append(words, strconv.FormatInt(r.narSize, 10), strconv.FormatInt(r.baseSize, 10), strconv.FormatInt(r.was, 10))
	}
	words = append(words, strconv.FormatInt(r.size, 10))
	if r.decoded {
		words = append(words, decodedMark)
	}
	return shard(r.nar) + "/" + strings.Join(words, "-") + suffixes[r.form.Compression]
}

// parseName reads what name wrote, without the directory, and nothing else.
func parseName(s string) (r record, err error) {
	stem, suffix := s, ""
	if dot := strings.IndexByte(s, '.'); dot >= 0 {
		stem, suffix = s[:dot], s[dot:]
	}
	words := strings.Split(stem, "-")
	if suffix != suffixes[""] && len(words) == 4 && words[3] == decodedMark {
		r.decoded, words = true, words[:3]
	}
	known := false
	for c, x := range suffixes {
		if x == suffix && len(words) == wordsOf[c] {
			r.form.Compression, known = c, true
		}
	}
	if !known {
		return record{}, fmt.Errorf("%q: %w", s, errName)
	}
	r.nar, err = nix.ParseNarHash32(words[0])
	if len(words) > 2 && err == nil {
		r.form.File, err = nix.ParseFileHash32(words[1])
	}
	sizes := []*int64{&r.size}
	if r.packed() {
		sizes = []*int64{&r.narSize, &r.baseSize, &r.was, &r.size}
	}
	for i, size := range sizes {
		if err == nil {
			*size, err = parseSize(words[len(words)-len(sizes)+i])
		}
	}
	if err != nil || r.packed() && r.baseNar() == r.nar {
		return record{}, fmt.Errorf("%q: %w", s, errName)
	}
	return r, nil
}

// parseSize reads a size, which has one text only: no sign, no leading zeros.
func parseSize(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n <= 0 || s[0] < '1' || s[0] > '9' {
		return 0, errName
	}
	return n, nil
}

// shardLetters are the names of the directories that hold the files: the last digit of the
// NAR hash, which is as good as random; the first has only two values.
const shardLetters = "0123456789abcdfghijklmnpqrsvwxyz"

func shard(nar nix.NarHash) string {
	// nix32 takes a hash as one little-endian number, so its last digit is the lowest five bits.
	i := nar[0] & 31
	return shardLetters[i : i+1]
}

// Bytes are counted as file systems give them out.
const (
	block = 4096
	// perFile is what a file takes next to its blocks: its name in the directory.
	perFile = 256
	// dirBytes is set aside for the directories: the shards, the one for temporary files,
	// and the one that holds them.
	dirBytes = (int64(len(shardLetters)) + 2) * block
)

// cost returns the bytes that a file of this size is counted with.
func cost(size int64) int64 { return (size + perFile + block - 1) / block * block }
