package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
)

// maxAnswer is far above the answer of a node with hundreds of peers: what listens on the
// port may be another program.
const maxAnswer = 16 << 20

// Client asks a running node.
type Client struct {
	Addr string       // "host:port"
	HTTP *http.Client // If nil, one without time-outs and kept connections.
}

// RefusedError is an error that the node answered with.
type RefusedError struct {
	Status int
	Reason string
}

func (e *RefusedError) Error() string { return e.Reason }

// Is lets 404 be absence.
func (e *RefusedError) Is(target error) bool {
	return target == fs.ErrNotExist && e.Status == http.StatusNotFound
}

// Status asks for /api/v1/status.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.Get(ctx, "/api/v1/status", &s)
}

// Peers asks for /api/v1/peers.
func (c *Client) Peers(ctx context.Context) (p []Peer, err error) {
	return p, c.Get(ctx, "/api/v1/peers", &p)
}

// Get reads the answer at path into v.
func (c *Client) Get(ctx context.Context, path string, v any) error {
	return c.ask(ctx, http.MethodGet, path, nil, v)
}

// Post sends body as JSON and reads the answer into v.
func (c *Client) Post(ctx context.Context, path string, body, v any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return c.ask(ctx, http.MethodPost, path, text, v)
}

func (c *Client) ask(ctx context.Context, method, path string, body []byte, v any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+c.Addr+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	client := c.HTTP
	if client == nil {
		client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask the daemon at %s: %w", c.Addr, errors.Unwrap(err))
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("ask the daemon at %s: %w", c.Addr, err)
	}
	if res.StatusCode != http.StatusOK {
		var r Refusal
		if json.Unmarshal(text, &r) != nil || r.Error == "" {
			r.Error = strings.TrimSpace(string(text[:min(len(text), 200)]))
		}
		return fmt.Errorf("the daemon at %s answers %s: %w", c.Addr, res.Status, &RefusedError{res.StatusCode, r.Error})
	}
	if err := json.Unmarshal(text, v); err != nil {
		return fmt.Errorf("what answers on %s is not nixp2p: %w", c.Addr, err)
	}
	return nil
}
