package realnix

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
)

// writeContents writes the contents of every node into dir, without the
// references, which only the builder knows.
func writeContents(ctx context.Context, dir string, p Params, plan []node) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var machine *machineFiles
	if p.Bytes > 0 {
		var err error
		if machine, err = listMachine(p.Bytes); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("realnix: %w", err)
	}
	for i, nd := range plan {
		if err := ctx.Err(); err != nil {
			return err
		}
		r := rand.New(rand.NewPCG(p.Seed, nd.stream))
		path := filepath.Join(dir, stagingName(i))
		var err error
		if machine != nil {
			err = machine.write(r, path, nd)
		} else {
			err = writeNode(r, path, nd)
		}
		if err != nil {
			return fmt.Errorf("realnix: contents of %s: %w", nd.name, err)
		}
	}
	return nil
}

// writeNode writes one path of a corpus of small files.
func writeNode(r *rand.Rand, path string, nd node) error {
	switch nd.kind {
	case kindLink:
		return nil // the builder makes it
	case kindFile:
		return writeFile(path, filler(r, nd.size), 0o644)
	case kindScript:
		return writeFile(path, append([]byte("#!/bin/sh\n# "), text(r, int(nd.size))...), 0o755)
	case kindEdges:
		return writeEdges(r, path)
	default:
		return writePackage(r, path, nd)
	}
}

// writePackage writes what a small package looks like.
func writePackage(r *rand.Rand, path string, nd node) error {
	files := []struct {
		name string
		data []byte
		mode fs.FileMode
	}{
		{"bin/" + nd.name, append([]byte("#!/bin/sh\n# "), text(r, 150)...), 0o755},
		{"share/doc/" + nd.name + "/README", text(r, 100+r.IntN(900)), 0o644},
		{"lib/lib" + nd.name + ".so.1.0", filler(r, nd.size), 0o755},
	}
	for _, f := range files {
		if err := writeFile(filepath.Join(path, f.name), f.data, f.mode); err != nil {
			return err
		}
	}
	return os.Symlink("lib"+nd.name+".so.1.0", filepath.Join(path, "lib/lib"+nd.name+".so"))
}

// writeEdges writes a tree whose NAR comes out wrong if names are sorted by
// locale or by whole path, padding is miscounted, or empty things are lost.
func writeEdges(r *rand.Rand, path string) error {
	for name, size := range map[string]int{
		"a": 7, "a.b/c": 8, "a-b": 9, "aa": 1, "A": 0, "B": 16, "_": 3, "\u00e9t\u00e9": 24, "with space": 5, ".hidden": 2,
		"dir/dir/dir/file": 4096, "~nix~case~hack~1": 3, strings.Repeat("n", 255): 4095, "new\nline": 2, "\xff\xfe": 6,
	} {
		if err := writeFile(filepath.Join(path, name), text(r, size), 0o644); err != nil {
			return err
		}
	}
	if err := writeFile(filepath.Join(path, "run"), nil, 0o755); err != nil {
		return err
	}
	return errors.Join(
		os.Mkdir(filepath.Join(path, "empty"), 0o755),
		os.Symlink("../no/where", filepath.Join(path, "dangling")),
		os.Symlink("/absolute", filepath.Join(path, "empty.link")),
		os.Symlink("dir", filepath.Join(path, "to-dir")),
	)
}

func writeFile(path string, data []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, data, mode)
}

// filler returns n bytes of which one in sixteen is random and the rest are
// runs of one byte, another one in each block: a compressor is through with 70
// MiB in two seconds, yet the result is some megabytes, so that a transfer of
// it can be cut half way.
func filler(r *rand.Rand, n int64) []byte {
	const block, fresh = 16 << 10, 1 << 10
	buf := make([]byte, n+block)
	for at := 0; int64(at) < n; at += block {
		for i := 0; i < fresh; i += 8 {
			binary.LittleEndian.PutUint64(buf[at+i:], r.Uint64())
		}
		run := byte(r.Uint64())
		for i := fresh; i < block; i++ {
			buf[at+i] = run
		}
	}
	return buf[:n]
}

// text returns n bytes of words.
func text(r *rand.Rand, n int) []byte {
	var b bytes.Buffer
	for b.Len() < n {
		b.WriteString(word(r))
		if r.IntN(9) == 0 {
			b.WriteString(word(r))
		}
		b.WriteByte(" \n"[r.IntN(12)/11])
	}
	b.Truncate(n)
	return b.Bytes()
}

func word(r *rand.Rand) string {
	syllables := []string{"ba", "cor", "de", "fil", "gra", "ho", "in", "ket", "lu", "mo", "nix", "os", "pa", "qui", "ro", "sto", "ta", "ul", "vi", "zen"}
	return syllables[r.IntN(len(syllables))] + syllables[r.IntN(len(syllables))]
}

// machineFiles are the regular files of this machine's software.
type machineFiles struct {
	all   []machineFile // in order of their names: neighbours belong together
	large []machineFile // of largeFile and more
}

type machineFile struct {
	path string
	size int64
	exec bool
}

const (
	largeFile = 256 << 10
	// manyFiles bounds the files taken into one path before only large ones are.
	manyFiles = 1500
)

func listMachine(want int64) (*machineFiles, error) {
	m := &machineFiles{}
	var sum int64
	for _, root := range []string{"/usr/bin", "/usr/lib", "/usr/share"} {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil // what cannot be read is not needed
			}
			info, err := d.Info()
			if err != nil || info.Size() == 0 || info.Mode().Perm()&0o004 == 0 {
				return nil
			}
			f := machineFile{path: path, size: info.Size(), exec: info.Mode()&0o100 != 0}
			m.all = append(m.all, f)
			if f.size >= largeFile {
				m.large = append(m.large, f)
			}
			if sum += f.size; sum > 16*want {
				return fs.SkipAll // enough to choose from
			}
			return nil
		})
	}
	if sum < want/4 || len(m.large) == 0 {
		return nil, fmt.Errorf("realnix: /usr holds %d MB in %d files: not enough software for a corpus of %d MB", sum>>20, len(m.all), want>>20)
	}
	return m, nil
}

// write fills a directory with files that lie beside each other on the machine,
// until the size is reached; the last one is cut to fit.
func (m *machineFiles) write(r *rand.Rand, dir string, nd node) error {
	left := nd.size
	next := r.IntN(len(m.all))
	for n := 0; left > 0 || n == 0; n++ {
		f := m.all[next%len(m.all)]
		next++
		if n >= manyFiles {
			f = m.large[r.IntN(len(m.large))]
		}
		offset, size := int64(0), f.size
		if size > left {
			offset, size = r.Int64N(f.size-left+1), left
		}
		dst := filepath.Join(dir, strings.TrimPrefix(f.path, "/usr"))
		if nd.exact && n < 100*manyFiles {
			if _, err := os.Lstat(dst); err == nil {
				continue
			}
		}
		written, err := copyPart(dst, f, offset, size)
		if err != nil {
			return err
		}
		left -= written
	}
	return nil
}

func copyPart(dst string, f machineFile, offset, size int64) (int64, error) {
	src, err := os.Open(f.path)
	if err != nil {
		return 0, err
	}
	defer src.Close()
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return 0, err
	}
	mode := fs.FileMode(0o644)
	if f.exec {
		mode = 0o755
	}
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(out, io.NewSectionReader(src, offset, size))
	return n, errors.Join(err, out.Close())
}
