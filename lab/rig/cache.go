//go:build linux

package rig

import (
	"bytes"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// Cache is the binary cache at the other end of the uplink. It counts what it sends.
type Cache struct {
	URL string
	Dir string // files as nix copy --to file:// leaves them

	NARBytes atomic.Int64 // bodies
	NarInfos atomic.Int64 // requests
	NARs     atomic.Int64 // requests

	srv *http.Server
	end chan struct{}

	mu     sync.Mutex
	refuse func(path string) bool
	asked  map[string]int    // by path
	extra  map[string][]byte // files beside those of Dir
	sent   map[string]int64  // bytes of NARs, by path
	open   map[*sending]struct{}
}

// sending is the body of a NAR on its way.
type sending struct {
	path string
	host string // IP address
	n    atomic.Int64
}

// NewCache starts a cache upstream of a LAN.
func NewCache(l *LAN, dir string) (*Cache, error) {
	ln, err := ListenIn(l.Place("upstream"), l.upstreamAddr())
	if err != nil {
		return nil, err
	}
	c := &Cache{URL: "http://" + strings.TrimSuffix(l.upstreamAddr(), ":80"), Dir: dir, end: make(chan struct{}),
		asked: map[string]int{}, extra: map[string][]byte{}, sent: map[string]int64{}, open: map[*sending]struct{}{}}
	c.srv = &http.Server{Handler: c}
	go func() {
		defer close(c.end)
		_ = c.srv.Serve(ln)
	}()
	return c, nil
}

// Close ends the cache.
func (c *Cache) Close() {
	_ = c.srv.Close()
	<-c.end
}

// Refuse has the cache say that it has not what f says; nil: all is there.
func (c *Cache) Refuse(f func(path string) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuse = f
}

// Add has the cache serve more files, by path.
func (c *Cache) Add(files map[string][]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.Copy(c.extra, files)
}

// Requests returns how often each path was asked for.
func (c *Cache) Requests() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.asked)
}

// Sent returns how many bytes of each NAR were sent, by path; those on their way are not counted.
func (c *Cache) Sent() map[string]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.sent)
}

// Sending returns which host gets a NAR at this moment, and how many bytes of this answer it was
// given; of several the one that has most.
func (c *Cache) Sending(path string) (host string, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.open {
		if n := s.n.Load(); s.path == path && n > bytes {
			host, bytes = s.host, n
		}
	}
	return host, bytes
}

// ServeHTTP answers as a plain file server does.
func (c *Cache) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	c.mu.Lock()
	c.asked[path]++
	refused := c.refuse != nil && c.refuse(path)
	extra := c.extra[path]
	c.mu.Unlock()
	if strings.HasPrefix(path, "/nar/") {
		c.NARs.Add(1)
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		s := &sending{path: path, host: host}
		c.mu.Lock()
		c.open[s] = struct{}{}
		c.mu.Unlock()
		defer func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			delete(c.open, s)
			c.sent[path] += s.n.Load()
		}()
		w = &counted{w, &c.NARBytes, s}
	} else if strings.HasSuffix(path, ".narinfo") {
		c.NarInfos.Add(1)
	}
	switch {
	case refused:
		http.NotFound(w, r)
	case extra != nil:
		http.ServeContent(w, r, path, time.Time{}, bytes.NewReader(extra))
	case path == "/nix-cache-info":
		_, _ = w.Write(nix.CacheInfo{StoreDir: nix.StoreDir, WantMassQuery: true, Priority: 40}.Text())
	default:
		http.ServeFile(w, r, filepath.Join(c.Dir, filepath.Clean("/"+path)))
	}
}

// counted counts the bytes of a body before the reader can have them.
type counted struct {
	http.ResponseWriter
	n *atomic.Int64
	s *sending
}

func (w *counted) Write(b []byte) (int, error) {
	w.n.Add(int64(len(b)))
	w.s.n.Add(int64(len(b)))
	return w.ResponseWriter.Write(b)
}
