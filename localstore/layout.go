package localstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// maxDepth is how many directories may lie in each other. Nix takes 64 since its 2.28; before, what
// fits into a path name of the system, which is fewer than this.
const maxDepth = unix.PathMax / 2

// caseHack is what Nix appends, with a number, to names that differ from another one of their
// directory in case only, where file systems are blind to that (macOS). In the NAR, such a name
// ends before it.
const caseHack = "~nix~case~hack~"

// narName returns the length of the name that a file has in the NAR.
func narName(name string, hacked bool) int {
	if i := strings.Index(name, caseHack); hacked && i > 0 {
		return i
	}
	return len(name)
}

// Errors of a tree that is not, or no longer, one that Nix has registered.
var (
	errKind    = errors.New("neither file nor directory nor symbolic link")
	errDepth   = fmt.Errorf("more than %d directories in each other", maxDepth)
	errTooBig  = errors.New("larger than its NAR")
	errTwice   = errors.New("the NAR would have this name twice")
	errChanged = errors.New("changed while it was read")
)

// The words between which names, targets and contents stand (Nix: src/libutil/archive.cc).
var (
	narMagic      = words(nix.NARMagic)
	narEntry      = words("entry", "(", "name")
	narNode       = words("node")
	narType       = words("(", "type")
	narRegular    = words("regular", "contents")
	narExecutable = words("regular", "executable", "", "contents")
	narSymlink    = words("symlink", "target")
	narDirectory  = words("directory")
	narClose      = words(")")
)

func words(list ...string) []byte {
	var b []byte
	for _, s := range list {
		b = nix.AppendNARString(b, s)
	}
	return b
}

type kind uint8

const (
	kindDirectory kind = iota
	kindFile
	kindExecutable
	kindSymlink
)

// node is one file, directory or link of a tree. Its part of the NAR is a head, the contents
// of a file, and a tail that also closes the directories that end behind it.
type node struct {
	start  int64  // where its head begins in the NAR
	size   int64  // bytes of a file's contents or of a link's target
	name   uint32 // where its name begins in layout.names; a link's target follows the name
	parent uint32
	closes uint16 // directories that end behind it, itself included
	kind   kind
	length uint8 // of its name in the NAR
	hack   uint8 // of what follows in its name on disk
}

// layout is the shape of the NAR of a tree, made of what lstat says: no contents are read.
// 32 bytes and the name for each node.
type layout struct {
	nodes []node // in the order of the NAR, the root first
	names []byte
	size  int64 // of the whole NAR
}

// nameOf returns the name on disk.
func (l *layout) nameOf(n *node) string { return string(l.names[n.name:][:int(n.length)+int(n.hack)]) }

func (l *layout) target(n *node) []byte {
	return l.names[int(n.name)+int(n.length)+int(n.hack):][:n.size]
}

// head appends what stands before the contents of node i.
func (l *layout) head(b []byte, i int) []byte {
	n := &l.nodes[i]
	if i == 0 {
		b = append(b, narMagic...)
	} else {
		b = append(b, narEntry...)
		b = appendBytes(b, l.names[n.name:][:n.length])
		b = append(b, narNode...)
	}
	b = append(b, narType...)
	switch n.kind {
	case kindDirectory:
		b = append(b, narDirectory...)
	case kindSymlink:
		b = append(b, narSymlink...)
		b = appendBytes(b, l.target(n))
	case kindExecutable:
		b = append(b, narExecutable...)
		b = nix.AppendNARLength(b, n.size)
	case kindFile:
		b = append(b, narRegular...)
		b = nix.AppendNARLength(b, n.size)
	}
	return b
}

// appendBytes is nix.AppendNARString without the copy that makes a string of s.
func appendBytes(b, s []byte) []byte {
	b = append(nix.AppendNARLength(b, int64(len(s))), s...)
	return nix.AppendNARPadding(b, int64(len(s)))
}

// contents returns how many bytes stand between head and tail of node i.
func (n *node) contents() int64 {
	if n.kind == kindFile || n.kind == kindExecutable {
		return n.size
	}
	return 0
}

// tail appends what stands behind the contents of node i.
func (l *layout) tail(b []byte, i int) []byte {
	n := &l.nodes[i]
	b = nix.AppendNARPadding(b, n.contents())
	words := 2 * int(n.closes) // each node's own parenthesis and that of its entry
	if n.kind != kindDirectory {
		words += 2
	}
	if i == len(l.nodes)-1 {
		words-- // the root has no entry
	}
	for range words {
		b = append(b, narClose...)
	}
	return b
}

// walker makes a layout.
type walker struct {
	layout
	limit  int64
	hacked bool
	head   []byte
	buf    []byte
	stat   unix.Stat_t
}

// makeLayout walks the tree whose root is top, and returns a layout of exactly size bytes of NAR.
// Names are taken as they are, and without what Nix appends to some where only that makes the
// size right: the hash decides anyway.
func makeLayout(ctx context.Context, top *rootEntry, size int64) (*layout, error) {
	lay, err := walk(ctx, top, size, false)
	if err != nil && !errors.Is(err, errTooBig) || err == nil && lay.size == size {
		return lay, err
	}
	if top.kind == kindDirectory {
		if _, err := unix.Seek(top.fd, 0, io.SeekStart); err != nil {
			return nil, err
		}
		if hacked, err := walk(ctx, top, size, true); err == nil && hacked.size == size {
			return hacked, nil
		}
	}
	if err == nil {
		err = fmt.Errorf("%w: %d bytes", errSize, lay.size)
	}
	return nil, err
}

// walk makes a layout. A tree that grows beyond limit bytes of NAR is an error as soon as that is
// seen. No link is followed, not even when somebody puts one in the way meanwhile.
func walk(ctx context.Context, top *rootEntry, limit int64, hacked bool) (*layout, error) {
	w := &walker{limit: limit, hacked: hacked, buf: make([]byte, 16<<10)}
	n := node{kind: top.kind}
	if top.kind != kindDirectory {
		n.size = top.size
	}
	w.names = append(w.names, top.target...)
	if err := w.push(n); err != nil {
		return nil, err
	}
	if top.kind == kindDirectory {
		if err := w.directory(ctx, top.fd, 0, 0); err != nil {
			return nil, err
		}
	} else {
		w.size += 16
	}
	return &w.layout, nil
}

// push appends a node, but for the parentheses that close it.
func (w *walker) push(n node) error {
	n.start = w.size
	w.nodes = append(w.nodes, n)
	w.head = w.layout.head(w.head[:0], len(w.nodes)-1)
	w.size += int64(len(w.head))
	if rest := w.limit - w.size; n.contents() > rest {
		return errTooBig
	}
	w.size += nix.NARStringSize(n.contents()) - nix.NARStringSize(0)
	return nil
}

// directory appends what is in the directory fd, whose node is self.
func (w *walker) directory(ctx context.Context, fd int, self uint32, depth int) error {
	if depth >= maxDepth {
		return errDepth
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	names, err := readNames(fd, w.buf)
	if err != nil {
		return err
	}
	// Bytewise, as NARs want it.
	inNAR := func(name string) string { return name[:narName(name, w.hacked)] }
	slices.SortFunc(names, func(a, b string) int { return strings.Compare(inNAR(a), inNAR(b)) })
	for i, name := range names {
		if i > 0 && inNAR(names[i-1]) == inNAR(name) {
			return fmt.Errorf("%q: %w", name, errTwice)
		}
		if err := w.entry(ctx, fd, self, depth, name); err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	w.nodes[len(w.nodes)-1].closes++
	w.size += 16
	if self != 0 {
		w.size += 16
	}
	return nil
}

func (w *walker) entry(ctx context.Context, dir int, parent uint32, depth int, name string) error {
	if len(name) > math.MaxUint8 || len(w.names) > math.MaxUint32-math.MaxUint16 {
		return errTooBig
	}
	st := &w.stat
	if err := lstatAt(dir, name, st); err != nil {
		return err
	}
	length := narName(name, w.hacked)
	n := node{name: uint32(len(w.names)), length: uint8(length), hack: uint8(len(name) - length), parent: parent}
	w.names = append(w.names, name...)
	var err error
	if n.kind, err = kindOf(st); err != nil {
		return err
	}
	switch n.kind {
	case kindSymlink:
		target, err := readLinkAt(dir, name)
		if err != nil {
			return err
		}
		n.size = int64(len(target))
		w.names = append(w.names, target...)
	case kindFile, kindExecutable:
		n.size = st.Size
	case kindDirectory:
	}
	if err := w.push(n); err != nil {
		return err
	}
	if n.kind != kindDirectory {
		w.size += 32
		return nil
	}
	fd, err := openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	return w.directory(ctx, fd, uint32(len(w.nodes)-1), depth+1)
}

func kindOf(st *unix.Stat_t) (kind, error) {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return kindDirectory, nil
	case unix.S_IFLNK:
		return kindSymlink, nil
	case unix.S_IFREG:
		if st.Mode&unix.S_IXUSR != 0 {
			return kindExecutable, nil
		}
		return kindFile, nil
	default:
		return 0, errKind
	}
}

// readNames returns the names in a directory, in no order.
func readNames(fd int, buf []byte) (names []string, err error) {
	for {
		var n int
		err := retry(func() (err error) { n, err = unix.ReadDirent(fd, buf); return err })
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

func lstatAt(dir int, name string, st *unix.Stat_t) error {
	return retry(func() error { return unix.Fstatat(dir, name, st, unix.AT_SYMLINK_NOFOLLOW) })
}

func openAt(dir int, name string, flags int) (fd int, err error) {
	err = retry(func() (err error) {
		fd, err = unix.Openat(dir, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		return err
	})
	return fd, err
}

func readLinkAt(dir int, name string) (string, error) {
	// Longer than any target: one that fills the room was cut.
	var buf [unix.PathMax + 1]byte
	var n int
	err := retry(func() (err error) { n, err = unix.Readlinkat(dir, name, buf[:]); return err })
	if err != nil {
		return "", err
	}
	if n == len(buf) {
		return "", errTooBig
	}
	return string(buf[:n]), nil
}

// closeFD closes a descriptor that was only read from: nothing can be lost by it.
func closeFD(fd int) { _ = unix.Close(fd) }
