package sourcetest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"sync/atomic"

	"github.com/nixp2p/nixp2p/internal/delta"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// Trees is a Fake as deltas need it. Each path that Public shows is a base of each other.
type Trees struct {
	*Fake
	Open   atomic.Int32    // trees that are open
	Packed nix.Compression // what Version says; None if it is ""
}

var (
	_ source.Trees    = (*Trees)(nil)
	_ source.Versions = (*Trees)(nil)
)

// Version is part of source.Versions.
func (t *Trees) Version(_ context.Context, nar nix.NarHash) (*verify.Info, nix.Compression, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, i := range t.infos {
		if i.NarHash() == nar && i.SignedByAny(t.share) {
			return i, cmp.Or(t.Packed, nix.None), nil
		}
	}
	return nil, "", fmt.Errorf("%s: %w", nar, fs.ErrNotExist)
}

// Bases is part of source.Trees.
func (t *Trees) Bases(info *verify.Info, most int) (list []source.Base) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for h, i := range t.infos {
		if i.SignedByAny(t.share) && i.NarHash() != info.NarHash() && len(list) < most {
			list = append(list, source.Base{Store: h, Nar: i.NarHash(), Size: i.NarSize()})
		}
	}
	return list
}

// Tree is part of source.Trees.
func (t *Trees) Tree(ctx context.Context, info *verify.Info) (source.Tree, error) {
	tree, err := t.Fake.Tree(ctx, info)
	if err != nil {
		return nil, err
	}
	t.Open.Add(1)
	return &openTree{tree, &t.Open}, nil
}

// Tree opens the raw NAR of a path.
func (f *Fake) Tree(_ context.Context, info *verify.Info) (source.Tree, error) {
	f.mu.Lock()
	b, ok := f.blobs[info.NarHash()][nix.Raw]
	f.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("tree of %s: %w", info.NarHash(), fs.ErrNotExist)
	}
	tree, err := delta.Scan(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, err
	}
	return &openTree{tree, new(atomic.Int32)}, nil
}

type openTree struct {
	delta.Tree
	open *atomic.Int32
}

func (t *openTree) Close() error {
	t.open.Add(-1)
	return nil
}
