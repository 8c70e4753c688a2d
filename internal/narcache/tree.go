package narcache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"sync"

	"github.com/nixp2p/nixp2p/internal/delta"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// treeShare is the part of the cache that NARs may take together which are decoded to be read at any place.
const treeShare = 8

// tree is a raw NAR in a file.
type tree struct {
	delta.Tree
	once  sync.Once
	close func() error
}

// Close is part of source.Tree.
func (t *tree) Close() (err error) {
	t.once.Do(func() { err = t.close() })
	return err
}

// Tree opens a raw NAR for whoever reads it at any place. If there are only files of it, one is decoded into a
// file without a name, which is gone with the tree. Others may be evicted for it: see reserveTree. The error
// wraps fs.ErrNotExist if the NAR is not here or was damaged.
func (c *Cache) Tree(ctx context.Context, info *verify.Info) (source.Tree, error) {
	n := claimOf(info)
	e := c.choose(n.nar, nix.Raw)
	t, err := c.tree(ctx, e, n)
	if errors.Is(err, errDropped) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("narcache: tree of %s: %w", n.nar, err)
	}
	c.use(e)
	return t, nil
}

// tree opens what e, which may be nil, holds or is decoded to. That is no use of it yet.
func (c *Cache) tree(ctx context.Context, e *entry, n claim) (*tree, error) {
	if e != nil && e.packed() {
		u, err := restored(ctx, c, e, n, 0)
		if err != nil && !errors.Is(err, errDropped) {
			return nil, err
		}
		if err == nil {
			defer u.Body.Close()
		}
		e = c.choose(n.nar, nix.Raw)
	}
	switch {
	case e == nil, e.packed():
		return nil, fs.ErrNotExist
	case !e.form.IsRaw():
		return c.unpack(ctx, e, n)
	}
	if err := c.ensure(ctx, e, n, false); err != nil {
		return nil, err
	}
	f, err := c.openEntry(e)
	if err != nil {
		return nil, err
	}
	return newTree(f, e.size, (&entryReader{c: c, e: e, f: f}).Close)
}

// newTree returns a tree of a file, which end closes.
func newTree(f *os.File, size int64, end func() error) (*tree, error) {
	t, err := delta.Scan(f, size)
	if err != nil {
		return nil, errors.Join(err, end())
	}
	return &tree{Tree: t, close: end}, nil
}

// unpack decodes the raw NAR in e into a file without a name, and checks it.
func (c *Cache) unpack(ctx context.Context, e *entry, n claim) (*tree, error) {
	size := n.size
	switch {
	case cost(size) > c.max/treeShare:
		return nil, fmt.Errorf("%d bytes: %w", size, ErrDoesNotFit)
	case c.health.degraded() || c.place.Load() == nil:
		return nil, ErrDegraded
	}
	u, err := c.serve(ctx, e, n, nix.Raw, 0)
	if err != nil {
		return nil, err
	}
	defer u.Body.Close()
	if err := c.reserveTree(cost(size)); err != nil {
		return nil, err
	}
	f, err := c.nameless(size)
	end := func() error {
		err := f.Close()
		c.releaseTree(cost(size))
		return err
	}
	if err != nil {
		_ = end() // of nothing
		return nil, c.health.failed("create", err)
	}
	proof := verify.NewProof(n.digest())
	w := &diskWriter{f: f}
	if _, err = io.Copy(io.MultiWriter(proof, w), withContext(ctx, u.Body)); err == nil {
		err = proof.Check()
	}
	switch {
	case w.err != nil:
		err = c.health.failed("write", w.err)
	case source.Invalid(err) != nil:
		c.blame(e, n.path, err)
	}
	if err != nil {
		return nil, errors.Join(err, end())
	}
	return newTree(f, size, end)
}

// nameless makes a file that is gone when it is closed. On an error there is nothing to close.
func (c *Cache) nameless(size int64) (*os.File, error) {
	at, name := c.place.Load(), tmpDir+"/"+strconv.FormatUint(c.nextTmp.Add(1), 10)
	f, err := at.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err = at.Remove(name); err == nil {
		err = c.disk.allocate(f, size)
	}
	if err != nil {
		_ = f.Close() // it has no bytes
		return nil, err
	}
	return f, nil
}

// diskWriter keeps the error of the disk apart from those of what is written.
type diskWriter struct {
	f   *os.File
	err error
}

// Write is part of io.Writer.
func (w *diskWriter) Write(p []byte) (n int, err error) {
	n, w.err = w.f.Write(p)
	return n, w.err
}
