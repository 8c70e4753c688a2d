package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// maxAnswer is far above the answer of a node with hundreds of peers: what listens on the
// port may be another program.
const maxAnswer = 16 << 20

// Client asks a running node.
type Client struct {
	Addr string       // "host:port"
	HTTP *http.Client // nil means one without time-outs of its own
}

// Status asks for /api/v1/status.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.get(ctx, "/api/v1/status", &s)
}

// Peers asks for /api/v1/peers.
func (c *Client) Peers(ctx context.Context) (p []Peer, err error) {
	return p, c.get(ctx, "/api/v1/peers", &p)
}

// Why asks for /api/v1/why.
func (c *Client) Why(ctx context.Context, h nix.StoreHash) (w Why, err error) {
	return w, c.get(ctx, "/api/v1/why/"+h.String(), &w)
}

func (c *Client) get(ctx context.Context, path string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.Addr+path, nil)
	if err != nil {
		return fmt.Errorf("ask node: %w", err)
	}
	hc := c.HTTP
	if hc == nil {
		hc = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	}
	resp, err := hc.Do(req)
	if err != nil {
		return fmt.Errorf("ask node: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("ask node: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var r Refusal
		if json.Unmarshal(body, &r) != nil || r.Error == "" {
			r.Error = string(bytes.TrimSpace(body[:min(len(body), 200)]))
		}
		return fmt.Errorf("ask node: %s says %s: %s", c.Addr, resp.Status, r.Error)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("ask node: %s is not nixp2p: %w", c.Addr, err)
	}
	return nil
}
