package p2p

import (
	"context"
	"fmt"
	"io/fs"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
)

// Sharers returns the connected peers that may be asked what they share.
func (n *Node) Sharers() (list []source.Sharer) {
	m := n.member.Load()
	for _, p := range m.site.Peers() {
		if _, blamed := m.reputation.Blamed(p.Key); blamed || !p.Admitted() || !p.Member() || !p.Usable() || p.Muted() {
			continue
		}
		list = append(list, source.Sharer{ID: p.Key, Machine: p.Machine.String(), Since: p.Since})
	}
	return list
}

// Page asks a peer for a part of the list of what it shares, the newest paths first: those with
// numbers below before, or the newest ones if it is 0. Nothing in it is proven. The error wraps
// fs.ErrNotExist if the peer is gone, or has no list.
func (n *Node) Page(ctx context.Context, id string, before uint64) (source.SharedPage, error) {
	to, err := peer.Decode(id)
	if err != nil {
		return source.SharedPage{}, fmt.Errorf("p2p: peer %q: %w: %w", id, fs.ErrNotExist, err)
	}
	return n.member.Load().client.Page(ctx, to, before)
}

// Copies returns on how many machines connected peers may have the path, as their inventories say.
// It asks nobody.
func (n *Node) Copies(h nix.StoreHash) int { return n.member.Load().client.Copies(h) }
