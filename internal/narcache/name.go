package narcache

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// A file's name is its record: "<narhash>-<size>.nar" or
// "<narhash>-<filehash>-<size>.nar.xz" or ".nar.zst", hashes in nix32, the size of the file
// in decimal. So a start needs no other file to know what should be there, and nothing can
// get out of step with it. The time of modification is the last use.

const (
	suffixRaw  = ".nar"
	suffixXZ   = ".nar.xz"
	suffixZstd = ".nar.zst"
)

var errName = errors.New("not a file of the cache")

func fileName(k key, size int64) string {
	n := strconv.FormatInt(size, 10)
	switch k.form.Compression {
	case nix.XZ:
		return k.nar.Nix32() + "-" + k.form.File.Nix32() + "-" + n + suffixXZ
	case nix.Zstd:
		return k.nar.Nix32() + "-" + k.form.File.Nix32() + "-" + n + suffixZstd
	default:
		return k.nar.Nix32() + "-" + n + suffixRaw
	}
}

// parseFileName reads what fileName wrote, and nothing else.
func parseFileName(s string) (k key, size int64, err error) {
	stem, suffix := s, ""
	for _, end := range [...]string{suffixRaw, suffixXZ, suffixZstd} {
		if cut, ok := strings.CutSuffix(s, end); ok {
			stem, suffix = cut, end
		}
	}
	parts := strings.Split(stem, "-")
	switch {
	case suffix == suffixRaw && len(parts) == 2:
	case suffix == suffixXZ && len(parts) == 3:
		k.form.Compression = nix.XZ
	case suffix == suffixZstd && len(parts) == 3:
		k.form.Compression = nix.Zstd
	default:
		return key{}, 0, fmt.Errorf("%q: %w", s, errName)
	}
	if k.nar, err = nix.ParseNarHash32(parts[0]); err != nil {
		return key{}, 0, fmt.Errorf("%q: %w: %w", s, errName, err)
	}
	if len(parts) == 3 {
		if k.form.File, err = nix.ParseFileHash32(parts[1]); err != nil {
			return key{}, 0, fmt.Errorf("%q: %w: %w", s, errName, err)
		}
	}
	// A size has one text only: no sign, no zeros in front.
	n := parts[len(parts)-1]
	size, err = strconv.ParseInt(n, 10, 64)
	if err != nil || size <= 0 || n[0] < '1' || n[0] > '9' {
		return key{}, 0, fmt.Errorf("%q: %w: size", s, errName)
	}
	return k, size, nil
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
	// perFile is what a file takes beside its blocks: its name in the directory.
	perFile = 256
	// dirBytes is set aside for the directories: the shards, the one for temporary files,
	// and the one that holds them.
	dirBytes = (int64(len(shardLetters)) + 2) * block
)

// cost returns the bytes that a file of this size is counted with.
func cost(size int64) int64 { return (size + perFile + block - 1) / block * block }
