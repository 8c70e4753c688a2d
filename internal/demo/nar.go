package demo

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// kind is what an entry of a tree is.
type kind int

const (
	kindDir kind = iota
	kindFile
	kindExec
	kindLink
)

// entry is a file, directory or link, made up or on disk.
type entry struct {
	name     string
	kind     kind
	data     []byte // of a file that is made up
	onDisk   string // of one on disk: where it is
	size     int64  // of one on disk
	target   string
	children []entry // sorted by name
}

func dir(name string, children ...entry) entry {
	return entry{name: name, kind: kindDir, children: children}
}

// lookAt returns the tree at a place on disk.
func lookAt(path string) (entry, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return entry{}, err
	}
	e := entry{name: filepath.Base(path), onDisk: path, size: info.Size()}
	switch {
	case info.Mode().IsRegular() && info.Mode()&0o100 != 0:
		e.kind = kindExec
	case info.Mode().IsRegular():
		e.kind = kindFile
	case info.Mode()&os.ModeSymlink != 0:
		e.kind = kindLink
		e.target, err = os.Readlink(path)
		return e, err
	case info.IsDir():
		names, err := os.ReadDir(path) // sorted, by bytes
		if err != nil {
			return entry{}, err
		}
		for _, n := range names {
			child, err := lookAt(filepath.Join(path, n.Name()))
			if err != nil {
				return entry{}, err
			}
			e.children = append(e.children, child)
		}
	default:
		return entry{}, fmt.Errorf("%s is neither file, directory nor link", path)
	}
	return e, nil
}

// hashOnDisk returns hash and size of the NAR of a tree on disk.
func hashOnDisk(path string) (nix.NarHash, int64, error) {
	e, err := lookAt(path)
	if err != nil {
		return nix.NarHash{}, 0, err
	}
	h := sha256.New()
	count := &counter{w: h}
	err = writeNAR(count, e)
	return nix.NarHash(h.Sum(nil)), count.n, err
}

// counter counts what passes.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// writeNAR writes the NAR of a tree (Nix: doc/manual, "Nix Archive (NAR) format").
func writeNAR(w io.Writer, e entry) error {
	if _, err := w.Write(nix.AppendNARString(nil, nix.NARMagic)); err != nil {
		return err
	}
	return e.write(w)
}

func (e *entry) write(w io.Writer) error {
	switch e.kind {
	case kindLink:
		return framed(w, "(", "type", "symlink", "target", e.target, ")")
	case kindDir:
		return e.writeDir(w)
	}
	if err := framed(w, "(", "type", "regular"); err != nil {
		return err
	}
	if e.kind == kindExec {
		if err := framed(w, "executable", ""); err != nil {
			return err
		}
	}
	if err := framed(w, "contents"); err != nil {
		return err
	}
	if err := e.writeContents(w); err != nil {
		return err
	}
	return framed(w, ")")
}

func (e *entry) writeDir(w io.Writer) error {
	if err := framed(w, "(", "type", "directory"); err != nil {
		return err
	}
	for i := range e.children {
		if err := framed(w, "entry", "(", "name", e.children[i].name, "node"); err != nil {
			return err
		}
		if err := e.children[i].write(w); err != nil {
			return err
		}
		if err := framed(w, ")"); err != nil {
			return err
		}
	}
	return framed(w, ")")
}

func (e *entry) writeContents(w io.Writer) error {
	var src io.Reader = bytes.NewReader(e.data)
	size := int64(len(e.data))
	if e.onDisk != "" {
		f, err := os.Open(e.onDisk)
		if err != nil {
			return err
		}
		defer f.Close()
		src, size = f, e.size
	}
	if _, err := w.Write(nix.AppendNARLength(nil, size)); err != nil {
		return err
	}
	if _, err := io.CopyN(w, src, size); err != nil {
		return err
	}
	_, err := w.Write(nix.AppendNARPadding(nil, size))
	return err
}

// framed writes framed strings.
func framed(w io.Writer, all ...string) error {
	var b []byte
	for _, s := range all {
		b = nix.AppendNARString(b, s)
	}
	_, err := w.Write(b)
	return err
}
