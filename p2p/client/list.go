package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

// pageTime bounds the request for a page: a peer that is slower has better things to do.
const pageTime = 5 * time.Second

// Page asks a peer for a part of the list of what it shares: see share.Holder.Page. Nothing in it is
// proven. The error wraps fs.ErrNotExist if the peer is not connected, or an older version, which has
// no list.
func (c *Client) Page(ctx context.Context, id peer.ID, before uint64) (source.SharedPage, error) {
	p := c.cfg.Site.Peer(id)
	if p == nil || c.blamed(p) {
		return source.SharedPage{}, errNobody
	}
	ctx, cancel := context.WithTimeout(ctx, pageTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://peer"+wire.PagePath(before), http.NoBody)
	if err != nil {
		return source.SharedPage{}, err
	}
	resp, err := c.cfg.Site.RoundTrip(p, req)
	if err != nil {
		return source.SharedPage{}, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return source.SharedPage{}, errNobody
	default:
		return source.SharedPage{}, fmt.Errorf("p2p: peer %s: list: status %d", p.Key, resp.StatusCode)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, wire.MaxPageBytes+1))
	if err != nil {
		return source.SharedPage{}, fmt.Errorf("p2p: peer %s: list: %w", p.Key, err)
	}
	page, err := wire.ParsePage(b)
	if err == nil && before > 0 && page.First >= before {
		err = wire.ErrRequest
	}
	if err != nil {
		return source.SharedPage{}, fmt.Errorf("p2p: peer %s: list: %w", p.Key, err)
	}
	return page, nil
}

// Copies returns on how many machines connected peers may have the path, as their inventories say.
func (c *Client) Copies(h nix.StoreHash) int {
	machines := make(map[machine.ID]struct{})
	for _, p := range c.cfg.Site.Holders(inventory.KeyOf(h.Question())) {
		machines[p.Machine] = struct{}{}
	}
	return len(machines)
}
