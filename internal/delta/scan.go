package delta

import (
	"encoding/binary"
	"io"
	"iter"
	"slices"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// scanned is a Tree made by Scan.
type scanned struct {
	io.ReaderAt
	size  int64
	files []File
}

func (t *scanned) Size() int64           { return t.size }
func (t *scanned) Files() iter.Seq[File] { return slices.Values(t.files) }

const (
	maxDepth = 1024
	maxWord  = 8 << 10 // bytes of a name or of the target of a link
)

// Scan returns the NAR of size bytes in r as a Tree. It reads all but the contents of files. r must
// stay readable as long as the Tree is used.
func Scan(r io.ReaderAt, size int64) (Tree, error) {
	s := &scanner{page: page{r: r, size: size}}
	if err := s.expect(nix.NARMagic); err != nil {
		return nil, err
	}
	if err := s.node("", 0); err != nil {
		return nil, err
	}
	if s.at != size {
		return nil, corrupt("NAR of %d bytes, not %d", s.at, size)
	}
	return &scanned{r, size, s.files}, nil
}

type scanner struct {
	page
	at    int64
	buf   [8]byte
	files []File
}

// length reads the length of a string, which must lie inside.
func (s *scanner) length() (int64, error) {
	if s.size-s.at < 8 {
		return 0, corrupt("NAR ends early")
	}
	if err := s.read(s.buf[:], s.at); err != nil {
		return 0, err
	}
	n := int64(binary.LittleEndian.Uint64(s.buf[:]))
	if s.at += 8; n < 0 || n > s.size-s.at || n+-n&7 > s.size-s.at {
		return 0, corrupt("NAR string of %d bytes", n)
	}
	return n, nil
}

func (s *scanner) word() (string, error) {
	n, err := s.length()
	if err != nil {
		return "", err
	}
	if n > maxWord {
		return "", corrupt("NAR word of %d bytes", n)
	}
	b := make([]byte, n)
	err = s.read(b, s.at)
	s.at += n + -n&7
	return string(b), err
}

func (s *scanner) expect(words ...string) error {
	for _, want := range words {
		got, err := s.word()
		if err != nil {
			return err
		}
		if got != want {
			return corrupt("NAR has %q where %q is due", got, want)
		}
	}
	return nil
}

// node reads one object of the tree.
func (s *scanner) node(path string, depth int) error {
	if depth > maxDepth {
		return corrupt("NAR is too deep")
	}
	if err := s.expect("(", "type"); err != nil {
		return err
	}
	kind, err := s.word()
	switch {
	case err != nil:
		return err
	case kind == "regular":
		err = s.regular(path)
	case kind == "symlink":
		if err = s.expect("target"); err == nil {
			_, err = s.word()
		}
	case kind == "directory":
		return s.directory(path, depth)
	default:
		err = corrupt("NAR has a %q", kind)
	}
	if err != nil {
		return err
	}
	return s.expect(")")
}

func (s *scanner) regular(path string) error {
	w, err := s.word()
	if err == nil && w == "executable" {
		if err = s.expect(""); err == nil {
			w, err = s.word()
		}
	}
	if err != nil {
		return err
	}
	if w != "contents" {
		return corrupt("NAR has a file without contents")
	}
	n, err := s.length()
	if err != nil {
		return err
	}
	if n > 0 && len(s.files) < MaxFiles {
		s.files = append(s.files, File{path, s.at, n})
	}
	s.at += n + -n&7
	return nil
}

// directory reads the entries up to the parenthesis that ends them.
func (s *scanner) directory(path string, depth int) error {
	for {
		w, err := s.word()
		if err != nil || w == ")" {
			return err
		}
		if w != "entry" {
			return corrupt("NAR has %q in a directory", w)
		}
		if err := s.expect("(", "name"); err != nil {
			return err
		}
		name, err := s.word()
		if err != nil {
			return err
		}
		if err := s.expect("node"); err != nil {
			return err
		}
		if path != "" {
			name = path + "/" + name
		}
		if err := s.node(name, depth+1); err != nil {
			return err
		}
		if err := s.expect(")"); err != nil {
			return err
		}
	}
}
