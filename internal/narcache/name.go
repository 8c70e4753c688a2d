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
// file was decoded to the NAR. So a start needs no other file to know what should be there, and
// nothing can get out of step with it. The time of modification is the last use.

var suffixes = map[nix.Compression]string{"": ".nar", nix.XZ: ".nar.xz", nix.Zstd: ".nar.zst"}

const decodedMark = "ok"

var errName = errors.New("not a file of the cache")

// record is what the name of a file says.
type record struct {
	key
	size    int64
	decoded bool // of a file: it holds the NAR
}

// name returns the name of the file and its directory.
func (r record) name() string {
	parts := []string{r.nar.Nix32()}
	if !r.form.IsRaw() {
		parts = append(parts, r.form.File.Nix32())
	}
	parts = append(parts, strconv.FormatInt(r.size, 10))
	if r.decoded {
		parts = append(parts, decodedMark)
	}
	return shard(r.nar) + "/" + strings.Join(parts, "-") + suffixes[r.form.Compression]
}

// parseName reads what name wrote, without the directory, and nothing else.
func parseName(s string) (r record, err error) {
	stem, suffix := s, ""
	if dot := strings.IndexByte(s, '.'); dot >= 0 {
		stem, suffix = s[:dot], s[dot:]
	}
	parts := strings.Split(stem, "-")
	if suffix != suffixes[""] && len(parts) == 4 && parts[3] == decodedMark {
		r.decoded, parts = true, parts[:3]
	}
	known := false
	for c, x := range suffixes {
		if x == suffix && (c == "" && len(parts) == 2 || c != "" && len(parts) == 3) {
			r.form.Compression, known = c, true
		}
	}
	if !known {
		return record{}, fmt.Errorf("%q: %w", s, errName)
	}
	r.nar, err = nix.ParseNarHash32(parts[0])
	if len(parts) == 3 && err == nil {
		r.form.File, err = nix.ParseFileHash32(parts[1])
	}
	// A size has one text only: no sign, no leading zeros.
	n := parts[len(parts)-1]
	if err == nil {
		r.size, err = strconv.ParseInt(n, 10, 64)
	}
	if err != nil || r.size <= 0 || n[0] < '1' || n[0] > '9' {
		return record{}, fmt.Errorf("%q: %w", s, errName)
	}
	return r, nil
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
