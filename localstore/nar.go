package localstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"sort"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// NAR returns the raw NAR of a valid path from byte off on. The path must have the NAR hash of
// info, else it is absent; so is every compressed form and what is in quarantine. The bytes
// are read as they are asked for, from files that the garbage collector leaves alone until the
// body is closed; nothing is hashed here. A path whose files cannot add up to the signed
// size is quarantined and a *verify.InvalidError.
func (s *Store) NAR(ctx context.Context, info *verify.Info, form nix.Form, off int64) (*verify.Unverified, error) {
	path := info.StorePath()
	if !form.IsRaw() {
		return nil, absent("nar", path)
	}
	if off < 0 || off > info.NarSize() {
		return nil, fmt.Errorf("localstore: nar %s: offset %d of %d", path, off, info.NarSize())
	}
	id, err := s.valid(ctx, path, info.NarHash())
	if err != nil {
		return nil, err
	}
	if s.held(path.Hash(), id) {
		return nil, absent("nar", path)
	}
	t, err := openRootEntry(s.physical(path))
	var lay *layout
	if err == nil {
		lay, err = makeLayout(ctx, t, info.NarSize())
	}
	// A row that is still there after the path was opened cannot be collected by a garbage
	// collector that looks for roots from now on.
	again, gone := s.valid(ctx, path, info.NarHash())
	if gone == nil && again != id {
		gone = absent("nar", path)
	}
	if err = cmp.Or(gone, err); err != nil {
		t.close()
		if gone == nil {
			err = s.unreadable(path, id, t.stamp, err)
		}
		return nil, err
	}
	s.bad.reading(path.Hash(), version{id: id, stamp: t.stamp})
	return &verify.Unverified{Body: newBody(path, t, lay, off), Size: lay.size}, nil
}

var errSize = errors.New("size differs from that of its NAR")

// physical returns where a store path lies.
func (s *Store) physical(p nix.StorePath) string { return filepath.Join(s.dir, p.Base()) }

// valid returns the id of the row of a path with this NAR; absent when there is none.
func (s *Store) valid(ctx context.Context, p nix.StorePath, nar nix.NarHash) (id int64, err error) {
	var got nix.NarHash
	err = s.db.read(ctx, func(c *conn) (err error) {
		id, got, err = c.byPath(p)
		return err
	})
	switch {
	case errors.Is(err, errNone):
		return 0, absent("nar", p)
	case err != nil:
		return 0, unavailable("nar", p, err)
	case id == 0 || got != nar:
		return 0, absent("nar", p)
	}
	return id, nil
}

// unreadable says what it means that a valid path could not be laid out: that it is damaged, as
// far as that can be told, or only that it could not be read now.
func (s *Store) unreadable(path nix.StorePath, id int64, found stamp, err error) error {
	switch {
	case errors.Is(err, errSize), errors.Is(err, errTooBig):
		lie := &verify.InvalidError{Reason: verify.ReasonSize, Err: fmt.Errorf("localstore: nar %s: %w", path, err)}
		s.quarantine(path, version{id: id, stamp: found}, lie)
		return lie
	case errors.Is(err, errKind), errors.Is(err, fs.ErrNotExist) && found == stamp{}:
		// Nix has never registered such a thing, or it is gone although its row says that it is
		// there: until that changes the row is worth nothing.
		s.quarantine(path, version{id: id, stamp: found}, err)
	}
	return unavailable("nar", path, err)
}

// Invalid reports that the raw NAR of a path, all of which came from here, was wrong. The path is
// quarantined as it was when it was last opened for reading. Other forms are ignored: the store
// has none.
func (s *Store) Invalid(info *verify.Info, form nix.Form, err error) {
	if !form.IsRaw() {
		return
	}
	path := info.StorePath()
	m, ok := s.bad.lastRead(path.Hash())
	if !ok {
		return // it was not read here
	}
	s.quarantine(path, m, err)
}

// rootEntry is the root of a tree, held open: an open descriptor of a store path is a root of Nix's
// garbage collector (where that sees the path under its own name).
type rootEntry struct {
	fd     int // -1 where a link cannot be held
	kind   kind
	size   int64
	target string
	stamp  stamp
}

// stamp tells a path from what is put in its place: Nix repairs a path by renaming another over
// it, and keeps the row.
type stamp struct {
	dev, ino     uint64
	ctime, mtime int64
}

func stampOf(st *unix.Stat_t) stamp {
	return stamp{uint64(st.Dev), st.Ino, st.Ctim.Nano(), st.Mtim.Nano()}
}

// statRootEntry returns the stamp of a path; the zero stamp when there is nothing or it cannot be seen.
func statRootEntry(path string) stamp {
	var st unix.Stat_t
	if lstatAt(unix.AT_FDCWD, path, &st) != nil {
		return stamp{}
	}
	return stampOf(&st)
}

// openRootEntry opens a path. What it returns is to be closed also with an error.
func openRootEntry(path string) (t *rootEntry, err error) {
	t = &rootEntry{fd: -1}
	var st unix.Stat_t
	if err = lstatAt(unix.AT_FDCWD, path, &st); err != nil {
		return t, err
	}
	if t.kind, err = kindOf(&st); err != nil {
		return t, err
	}
	if t.kind == kindSymlink {
		if t.fd, err = openAt(unix.AT_FDCWD, path, openPath); err == nil || openPath == unix.O_RDONLY {
			t.target, err = readLinkAt(unix.AT_FDCWD, path)
		}
		t.size = int64(len(t.target))
	} else if t.fd, err = openAt(unix.AT_FDCWD, path, unix.O_RDONLY); err == nil {
		// What was opened, not what was there before.
		if err = retry(func() error { return unix.Fstat(t.fd, &st) }); err == nil {
			t.kind, err = kindOf(&st)
		}
		t.size = st.Size
	}
	if err == nil {
		t.stamp = stampOf(&st)
	}
	return t, err
}

func (t *rootEntry) close() {
	if t.fd >= 0 {
		closeFD(t.fd)
		t.fd = -1
	}
}

// sequential is the size from which a file is worth advice to the kernel.
const sequential = 1 << 20

// body reads the NAR of a tree. Contents go from the file straight into the reader's buffer;
// one Read goes on over as many files as it takes to fill it. At most one file and the
// directories on the way to it are open. It is safe to close it while it is being read.
type body struct {
	path nix.StorePath
	mu   sync.Mutex
	top  *rootEntry
	lay  *layout
	off  int64  // in the NAR, of what is read next
	err  error  // sticky
	node int    // the one being read
	text []byte // to be read before its contents
	left int64  // of its contents

	words []byte // backs text
	dirs  []openDir
	file  int   // -1 when none is open
	at    int64 // in file
}

type openDir struct {
	node uint32
	fd   int
}

// newBody reads the NAR of path from byte off on, which must not be beyond its end. It owns top.
func newBody(path nix.StorePath, top *rootEntry, lay *layout, off int64) *body {
	b := &body{path: path, top: top, lay: lay, file: -1, dirs: []openDir{{0, top.fd}}}
	b.seek(off)
	return b
}

// seek goes to byte off of the NAR, which must not be beyond its end.
func (b *body) seek(off int64) {
	b.closeFile()
	lay := b.lay
	b.off, b.words = off, b.words[:0]
	b.node = sort.Search(len(lay.nodes), func(i int) bool { return lay.nodes[i].start > off }) - 1
	b.begin()
	for skip := off - lay.nodes[b.node].start; ; b.advance() {
		n := min(skip, int64(len(b.text)))
		b.text, skip = b.text[n:], skip-n
		n = min(skip, b.left)
		b.at, b.left, skip = b.at+n, b.left-n, skip-n
		if skip == 0 {
			return
		}
	}
}

// begin goes to the head of the node.
func (b *body) begin() {
	b.words = b.lay.head(b.words, b.node)
	b.text, b.at, b.left = b.words, 0, b.lay.nodes[b.node].contents()
}

// advance goes behind the contents of the node, which were read.
func (b *body) advance() {
	b.words = b.lay.tail(b.words[:0], b.node)
	b.text = b.words
	if b.node++; b.node < len(b.lay.nodes) {
		b.begin()
	}
}

// Read fills p as far as the NAR goes. An error is of the kind unavailable.
func (b *body) Read(p []byte) (n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.read(p)
}

// read is Read for a caller who holds mu.
func (b *body) read(p []byte) (n int, err error) {
	for n < len(p) && b.err == nil {
		switch {
		case len(b.text) > 0:
			k := copy(p[n:], b.text)
			b.text = b.text[k:]
			n += k
		case b.left > 0:
			k, err := b.contents(p[n:])
			n += k
			if err != nil {
				b.err = unavailable("read nar", b.path, err)
			}
		case b.node == len(b.lay.nodes):
			b.err = io.EOF
		default:
			b.advance()
		}
	}
	b.off += int64(n)
	if n > 0 {
		return n, nil // the error, if any, stays for the next call
	}
	if len(p) == 0 {
		return 0, nil
	}
	return 0, b.err
}

// contents reads from the file of the node, which it opens first. A file whose end fits into p is
// asked for one byte too many instead of for its size: small files are what stores are
// made of, and each system call counts.
func (b *body) contents(p []byte) (int, error) {
	if b.file < 0 {
		if err := b.open(int64(len(p)) > b.left); err != nil {
			return 0, err
		}
	}
	if int64(len(p)) > b.left {
		p = p[:b.left+1]
	}
	var n int
	err := retry(func() (err error) { n, err = unix.Pread(b.file, p, b.at); return err })
	if err != nil {
		return 0, err
	}
	if n <= 0 || int64(n) > b.left {
		return 0, errChanged
	}
	b.at += int64(n)
	b.left -= int64(n)
	if b.left == 0 {
		b.closeFile()
	}
	return n, nil
}

// open opens the file of the node, which must still be what the layout says. If fits, the
// reader will see that by itself.
func (b *body) open(fits bool) error {
	n := &b.lay.nodes[b.node]
	if b.node == 0 {
		b.file = b.top.fd
	} else {
		dir, err := b.directory(n.parent)
		if err != nil {
			return err
		}
		if b.file, err = openAt(dir, b.lay.nameOf(n), unix.O_RDONLY); err != nil {
			b.file = -1
			return err
		}
	}
	if fits {
		return nil
	}
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(b.file, &st) }); err != nil {
		return err
	}
	if k, err := kindOf(&st); err != nil || k != n.kind || st.Size != n.size {
		return errChanged
	}
	if n.size >= sequential {
		adviseSequential(b.file)
	}
	return nil
}

func (b *body) closeFile() {
	if b.file >= 0 && b.file != b.top.fd {
		closeFD(b.file)
	}
	b.file = -1
}

// maxOpenDirs bounds the descriptors of one body, the root's among them.
const maxOpenDirs = 64

// directory returns the descriptor of a directory. Those that stay open are the root and the
// last ones on the way to it.
func (b *body) directory(node uint32) (int, error) {
	if i := slices.IndexFunc(b.dirs, func(d openDir) bool { return d.node == node }); i >= 0 {
		b.leave(i + 1)
		return b.dirs[i].fd, nil
	}
	n := &b.lay.nodes[node]
	fd, err := b.directory(n.parent)
	if err != nil {
		return -1, err
	}
	if fd, err = openAt(fd, b.lay.nameOf(n), openPath|unix.O_DIRECTORY); err != nil {
		return -1, err
	}
	b.dirs = append(b.dirs, openDir{node, fd})
	if len(b.dirs) > maxOpenDirs {
		closeFD(b.dirs[1].fd) // opened again on the way back
		b.dirs = slices.Delete(b.dirs, 1, 2)
	}
	return fd, nil
}

// leave closes the directories below the first keep ones.
func (b *body) leave(keep int) {
	for _, d := range b.dirs[keep:] {
		closeFD(d.fd)
	}
	b.dirs = b.dirs[:keep]
}

// Close releases the path to the garbage collector.
func (b *body) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.top == nil {
		return nil
	}
	b.closeFile()
	b.leave(1)
	b.top.close()
	b.top, b.err = nil, fs.ErrClosed
	return nil
}
