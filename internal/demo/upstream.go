package demo

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// upstreamDelay is how far away the upstream seems: a good line to cache.nixos.org.
const upstreamDelay = 20 * time.Millisecond

// uplinkBurst is what the line sends at once.
const uplinkBurst = 64 << 10

// upstream is a binary cache on loopback behind a slow line. It counts what it sends.
type upstream struct {
	url   string
	line  *rate.Limiter
	infos map[string][]byte // by URL path
	files map[string][]byte
	srv   *http.Server
	done  chan struct{}

	narinfoRequests atomic.Int64
	narRequests     atomic.Int64
	narBytes        atomic.Int64
}

// startUpstream serves c at bytesPerSecond until stop is called. With lie one of its files is
// not what its narinfo says.
func startUpstream(ctx context.Context, c *closure, bytesPerSecond int64, lie bool) (*upstream, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLoopback, err)
	}
	u := &upstream{
		url:   "http://" + l.Addr().String(),
		line:  rate.NewLimiter(rate.Limit(bytesPerSecond), uplinkBurst),
		infos: map[string][]byte{}, files: map[string][]byte{}, done: make(chan struct{}),
	}
	for i := range c.paths {
		p := &c.paths[i]
		u.infos["/"+p.path.Hash().String()+".narinfo"] = p.info
		u.files[p.url()] = p.file
	}
	if lie {
		p := &c.paths[len(c.paths)/2]
		wrong := bytes.Clone(p.file)
		wrong[len(wrong)/2] ^= 1
		u.files[p.url()] = wrong
	}
	u.srv = &http.Server{Handler: u, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	go func() {
		defer close(u.done)
		_ = u.srv.Serve(l)
	}()
	if err := u.try(ctx); err != nil {
		u.stop()
		return nil, err
	}
	return u, nil
}

// try asks as the nodes will: where connections to loopback are filtered, that is better said
// at once.
func (u *upstream) try(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.url+"/nix-cache-info", http.NoBody)
	if err != nil {
		return err
	}
	res, err := newHTTPClient().Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLoopback, err)
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
		return fmt.Errorf("%w: %s answers %s", ErrLoopback, u.url, res.Status)
	}
	return nil
}

// newHTTPClient returns a client that uses no proxy and keeps no connection: what it asks is on
// this machine.
func newHTTPClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}
}

// stop closes the listener and all connections.
func (u *upstream) stop() {
	_ = u.srv.Close()
	<-u.done
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	away := time.NewTimer(upstreamDelay)
	defer away.Stop()
	select {
	case <-away.C:
	case <-r.Context().Done():
		return
	}
	at := r.URL.Path
	switch {
	case at == "/nix-cache-info":
		_, _ = w.Write(nix.CacheInfo{StoreDir: nix.StoreDir, WantMassQuery: true, Priority: 40}.Text())
	case strings.HasSuffix(at, ".narinfo"):
		u.narinfoRequests.Add(1)
		u.send(w, r, u.infos[at])
	default:
		u.narRequests.Add(1)
		await := func(n int) error { return u.line.WaitN(r.Context(), n) }
		u.send(&paced{ResponseWriter: w, await: await, sent: &u.narBytes}, r, u.files[at])
	}
}

// send answers with b; nil means that there is no such thing.
func (u *upstream) send(w http.ResponseWriter, r *http.Request, b []byte) {
	if b == nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

// paced sends no faster than the line, which all responses share.
type paced struct {
	http.ResponseWriter
	await func(n int) error // waits for the turn of n bytes
	sent  *atomic.Int64
}

func (p *paced) Write(b []byte) (written int, err error) {
	for len(b) > 0 {
		n := min(len(b), uplinkBurst/4)
		if err := p.await(n); err != nil {
			return written, err
		}
		// Counted first: the other side may have them before Write returns.
		p.sent.Add(int64(n))
		n, err = p.ResponseWriter.Write(b[:n])
		written += n
		if err != nil {
			return written, err
		}
		b = b[n:]
	}
	return written, nil
}
