package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// readFor is the longest that a list may take to come.
const readFor = 10 * time.Minute

var errUnchanged = errors.New("unchanged")

// read returns the wanted paths of the list, where it came from in the end, and what names this
// state of it for the next time. The error is errUnchanged if etag names it still.
func (t *track) read(ctx context.Context, etag string) (paths []nix.StoreHash, from, next string, err error) {
	ctx, cancel := context.WithTimeout(ctx, readFor)
	defer cancel()
	switch t.list.kind {
	case byPath:
		paths, err = t.f.cfg.Closure(ctx, t.list.at)
		if err == nil && len(paths) == 0 {
			err = errEmpty
		}
		return paths, t.list.at, "", err
	case byFile:
		f, err := os.Open(t.list.at)
		if err != nil {
			return nil, "", "", err
		}
		defer f.Close()
		paths, err = t.list.read(f)
		return paths, t.list.at, "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.list.at, nil)
	if err != nil {
		return nil, "", "", err
	}
	if etag != "" {
		req.Header.Set("If-None-Match", etag)
	}
	resp, err := t.f.cfg.Client.Do(req)
	if err != nil {
		return nil, "", "", err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusNotModified:
		return nil, "", "", errUnchanged
	case http.StatusOK:
	default:
		return nil, "", "", fmt.Errorf("%s: %s", resp.Request.URL.Redacted(), resp.Status)
	}
	body := &counted{Reader: resp.Body}
	paths, err = t.list.read(body)
	if err == nil && resp.ContentLength >= 0 && body.n < resp.ContentLength {
		err = io.ErrUnexpectedEOF
	}
	return paths, resp.Request.URL.Redacted(), resp.Header.Get("ETag"), err
}

// counted counts what is read.
type counted struct {
	io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	return n, err
}
