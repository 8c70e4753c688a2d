package localstore

import (
	"context"
	"errors"
	"io"
	"iter"

	"github.com/nixp2p/nixp2p/internal/delta"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// tree is the NAR of a path, read at any place.
type tree struct{ *body }

// Tree is NAR for whoever reads at any place. The path is safe from the garbage collector until
// the tree is closed.
func (s *Store) Tree(ctx context.Context, info *verify.Info) (source.Tree, error) {
	u, err := s.NAR(ctx, info, nix.Raw, 0)
	if err != nil {
		return nil, err
	}
	b, ok := u.Body.(*body)
	if !ok {
		return nil, errors.Join(errors.ErrUnsupported, u.Body.Close())
	}
	return tree{b}, nil
}

// Size returns the bytes of the NAR.
func (t tree) Size() int64 { return t.lay.size }

// ReadAt is part of io.ReaderAt. Reading on where it ended costs nothing extra.
func (t tree) ReadAt(p []byte, off int64) (n int, err error) {
	b := t.body
	b.mu.Lock()
	defer b.mu.Unlock()
	if off < 0 || off >= b.lay.size {
		return 0, io.EOF
	}
	if b.err == nil && off != b.off {
		b.seek(off)
	}
	for n < len(p) && err == nil {
		var k int
		k, err = b.read(p[n:])
		n += k
	}
	if errors.Is(err, io.EOF) {
		b.err = nil // another place may be read
		if n == len(p) {
			err = nil
		}
	}
	return n, err
}

// Files returns the files that are not empty.
func (t tree) Files() iter.Seq[delta.File] {
	return func(yield func(delta.File) bool) {
		var dirs []dirPath
		for i := range t.lay.nodes {
			n := &t.lay.nodes[i]
			for len(dirs) > 0 && dirs[len(dirs)-1].node != n.parent {
				dirs = dirs[:len(dirs)-1]
			}
			path := t.lay.nameOf(n)
			if len(dirs) > 0 && dirs[len(dirs)-1].path != "" {
				path = dirs[len(dirs)-1].path + "/" + path
			}
			if n.kind == kindDirectory {
				dirs = append(dirs, dirPath{uint32(i), path})
			}
			if n.contents() > 0 && !yield(delta.File{Path: path, Off: t.lay.contentsAt(i), N: n.contents()}) {
				return
			}
		}
	}
}

// dirPath is a directory on the way to a node.
type dirPath struct {
	node uint32
	path string
}

// contentsAt returns where the contents of node i begin in the NAR.
func (l *layout) contentsAt(i int) int64 {
	var buf [512]byte
	return l.nodes[i].start + int64(len(l.head(buf[:0], i)))
}
