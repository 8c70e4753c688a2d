package httpfront

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/narcache"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/internal/runclock"
	"github.com/nixp2p/nixp2p/internal/transfer"
	"github.com/nixp2p/nixp2p/internal/upstream"
)

// node is a front with a real resolver, transfers, a NAR cache and upstreams behind it.
type node struct {
	t      *testing.T
	url    string
	client *http.Client
	// elsewhere makes requests those of a client on another machine.
	elsewhere atomic.Bool
}

func newNode(t *testing.T, urls ...string) *node {
	t.Helper()
	n, m := &node{t: t}, metrics.New()
	ups, err := upstream.New(upstream.Config{URLs: urls, Keys: nixtest.Keys(t, key, homeKey), Metrics: m})
	if err != nil {
		t.Fatal(err)
	}
	cache, err := narcache.Open(narcache.Config{Dir: t.TempDir(), Size: 1 << 30, Metrics: m})
	if err != nil {
		t.Fatal(err)
	}
	resolver, err := resolve.New(resolve.Config{Cache: cache, Upstream: ups, Share: []string{key.Name}, Metrics: m})
	if err != nil {
		t.Fatal(err)
	}
	server, err := transfer.New(transfer.Config{Resolver: resolver, Cache: cache, Clock: runclock.New(), Metrics: m})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	for _, run := range []func(context.Context) error{ups.Run, cache.Run, resolver.Run, server.Run} {
		group.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		group.Wait()
		if err := cache.Close(); err != nil {
			t.Error(err)
		}
	})
	h, err := New(Config{Resolver: resolver, Transfer: server, Metrics: m, Share: []string{key.Name}})
	if err != nil {
		t.Fatal(err)
	}
	n.url, n.client = serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.elsewhere.Load() {
			r.RemoteAddr = "192.0.2.1:7"
		}
		h.ServeHTTP(w, r)
	}))
	return n
}

// get returns what a client sees: the response, the bytes of its body, and the error of reading
// them.
func (n *node) get(path, span string) (*http.Response, []byte, error) {
	r, err := http.NewRequestWithContext(n.t.Context(), http.MethodGet, n.url+"/"+path, nil)
	if err != nil {
		return &http.Response{}, nil, err
	}
	if span != "" {
		r.Header.Set("Range", span)
	}
	res, err := n.client.Do(r)
	if err != nil {
		return &http.Response{}, nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res, body, err
}

// TestPassedOn: a narinfo and its file, for many clients at once with one request upstream.
func TestPassedOn(t *testing.T) {
	p := nixtest.NewPath("many", 300_000)
	up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: []nixtest.Path{p}, Keys: []nixtest.Key{key}, Compression: nix.Zstd})
	n := newNode(t, up.URL())
	res, text, err := n.get(p.Hash().String()+".narinfo", "")
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(res.Status, err)
	}
	info, err := nix.ParseNarInfo(text)
	if err != nil || info.Compression != nix.Zstd {
		t.Fatalf("%v\n%s", err, text)
	}
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			res, got, err := n.get(info.URL, "")
			if err != nil || !bytes.Equal(got, up.File(p)) || res.Header.Get("Accept-Ranges") != "bytes" || res.Header.Get("Content-Encoding") != "" {
				t.Errorf("status %d, %d bytes, error %v", res.StatusCode, len(got), err)
			}
		})
	}
	group.Wait()
	if got := up.Requests(nixtest.NarFile); got != 1 {
		t.Errorf("fetched %d times", got)
	}
	if res, rest, err := n.get(info.URL, fmt.Sprintf("bytes=%d-", 100)); err != nil || res.StatusCode != http.StatusPartialContent || !bytes.Equal(rest, up.File(p)[100:]) {
		t.Errorf("the rest: status %d, %d bytes, error %v", res.StatusCode, len(rest), err)
	}
}

// TestNothingPrivateElsewhere: a client on another machine causes no request with credentials, and
// gets no private path, remembered or not.
func TestNothingPrivateElsewhere(t *testing.T) {
	cache := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: []nixtest.Path{secret}, Keys: []nixtest.Key{homeKey}})
	var asked atomic.Int64
	guarded := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); ok && r.URL.Path != "/nix-cache-info" {
			asked.Add(1)
		}
		cache.ServeHTTP(w, r)
	}))
	defer guarded.Close()
	u, err := url.Parse(guarded.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("ci", "hunter2")
	n := newNode(t, u.String())
	ask := func() (status int) {
		t.Helper()
		res, _, err := n.get(secret.Hash().String()+".narinfo", "")
		if err != nil {
			t.Fatal(err)
		}
		nar, _, err := n.get(secretName.URL(), "")
		if err != nil || nar.StatusCode != res.StatusCode {
			t.Errorf("narinfo %d, NAR %d, %v", res.StatusCode, nar.StatusCode, err)
		}
		return res.StatusCode
	}
	n.elsewhere.Store(true)
	if status := ask(); status != http.StatusNotFound || asked.Load() > 0 {
		t.Errorf("elsewhere: status %d, %d requests with credentials", status, asked.Load())
	}
	n.elsewhere.Store(false)
	if status := ask(); status != http.StatusOK || asked.Load() == 0 {
		t.Errorf("on this machine: status %d, %d requests with credentials", status, asked.Load())
	}
	before := asked.Load()
	n.elsewhere.Store(true)
	if status := ask(); status != http.StatusNotFound || asked.Load() > before {
		t.Errorf("elsewhere, when it is remembered: status %d, %d requests with credentials", status, asked.Load()-before)
	}
}
