//go:build linux

package main

import (
	"context"
	"errors"
	"io"
	"net/http"

	"github.com/nixp2p/nixp2p/lab/rig"
)

// host is a machine of the site, with what only these scenarios do to it.
type host struct {
	*rig.Host
	st *stage
}

// start starts the node with what its flags are by default, and with a log that tells all.
func (h *host) start(flags ...string) error {
	return h.Start(append([]string{"--log-level", "debug"}, flags...)...)
}

// pathsOf returns how many paths another host shares, as h knows from its inventory; -1 when
// they are not connected.
func (h *host) pathsOf(ctx context.Context, o *host) int64 { return h.PathsOf(ctx, o.Host) }

// upstreamURL returns the URL of a path's file at the upstream, as its narinfo says.
func upstreamURL(st *stage, storePath string) string {
	n, err := rig.NarInfoIn(st.cache.Dir, storePath)
	if err != nil {
		return ""
	}
	return n.URL
}

// drain reads a body to its end and returns how much it was.
func drain(resp *http.Response) (int64, error) {
	n, err := io.Copy(io.Discard, resp.Body)
	return n, errors.Join(err, resp.Body.Close())
}
