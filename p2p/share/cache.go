package share

import (
	"context"
	"io"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// CacheOf makes a Cache of the NAR cache, whose downloads have a type of their own. It is
// written for any such type because packages that are sources do not import each other.
func CacheOf[D downloadOf[R], R io.ReadCloser](c cacheOf[D]) Cache { return cache[D, R]{c} }

type cacheOf[D any] interface {
	source.NARs
	Tree(ctx context.Context, info *verify.Info) (source.Tree, error)
	Sizes(nar nix.NarHash) []source.Sized
	Prove(ctx context.Context, info *verify.Info, form nix.Form) error
	Proven(nar nix.NarHash, form nix.Form) bool
	Downloads(nar nix.NarHash) []D
}

type downloadOf[R io.ReadCloser] interface {
	Form() nix.Form
	Size() int64
	Readable() int64
	PeerReader(off int64) R
}

type cache[D downloadOf[R], R io.ReadCloser] struct{ cacheOf[D] }

func (c cache[D, R]) Downloads(nar nix.NarHash) (list []Download) {
	for _, d := range c.cacheOf.Downloads(nar) {
		list = append(list, download[D, R]{d})
	}
	return list
}

type download[D downloadOf[R], R io.ReadCloser] struct{ d D }

func (d download[D, R]) Form() nix.Form                     { return d.d.Form() }
func (d download[D, R]) Size() int64                        { return d.d.Size() }
func (d download[D, R]) Readable() int64                    { return d.d.Readable() }
func (d download[D, R]) PeerReader(off int64) io.ReadCloser { return d.d.PeerReader(off) }
