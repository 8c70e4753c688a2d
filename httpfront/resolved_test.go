package httpfront

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/internal/resolve/sourcetest"
	"github.com/nixp2p/nixp2p/verify"
)

// joined is a resolver as the front sees it.
type joined struct{ *resolve.Resolver }

func (j joined) Narinfo(ctx context.Context, h nix.StoreHash, reach resolve.Reach) ([]byte, *verify.Info, error) {
	a, err := j.Info(ctx, h, reach)
	if err != nil {
		return nil, nil, err
	}
	return a.Text(), a.Info, nil
}

func (j joined) NAR(ctx context.Context, name nix.NARName, q resolve.Query) (NAR, error) {
	n, err := j.Resolver.NAR(ctx, name, q)
	if err != nil {
		return nil, err
	}
	return n, nil
}

// site is a front, a resolver and the sources behind it, over HTTP.
type site struct {
	t         *testing.T
	store, up *sourcetest.Fake
	cache     *sourcetest.Cache
	url       string
	client    *http.Client
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, store: sourcetest.NewFake("store"), up: sourcetest.NewFake("upstream"), cache: sourcetest.NewCache()}
	r, err := resolve.New(resolve.Config{
		Store: s.store, Upstream: s.up, Cache: s.cache, Spool: s.cache.Create, Share: []string{key.Name}, Metrics: metrics.New(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	s.url, s.client = serve(t, newHandler(t, joined{r}))
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// get returns what a client sees: the response, the bytes of its body, and the error of reading them.
func (s *site) get(path, span string) (*http.Response, []byte, error) {
	r, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.url+"/"+path, nil)
	if err != nil {
		return nil, nil, err
	}
	if span != "" {
		r.Header.Set("Range", span)
	}
	res, err := s.client.Do(r)
	if err != nil {
		return &http.Response{}, nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res, body, err
}

// TestResume: a client that was cut because a source died goes on as Nix does.
func TestResume(t *testing.T) {
	s := newSite(t)
	// So large that some of it has left when the source dies: before that the response would
	// be begun anew, unseen.
	p := nixtest.NewPath("big", 24<<20)
	s.up.Add(t, key, p)
	s.up.SetFaults(sourcetest.Fault{Do: sourcetest.Die, At: 20 << 20, Times: 1})
	url := nix.NARName{Store: p.Hash(), Nar: p.NarHash()}.URL()
	res, begin, err := s.get(url, "")
	if err == nil || res.Header.Get("Accept-Ranges") != "bytes" || res.ContentLength != int64(len(p.NAR)) || !bytes.HasPrefix(p.NAR, begin) {
		t.Fatalf("%d bytes, error %v", len(begin), err)
	}
	res, rest, err := s.get(url, fmt.Sprintf("bytes=%d-", len(begin)))
	if err != nil || res.StatusCode != http.StatusPartialContent || !bytes.Equal(append(begin, rest...), p.NAR) {
		t.Errorf("the rest: status %d, %d bytes, error %v", res.StatusCode, len(rest), err)
	}
}

// TestLie: wrong bytes are never seen as a whole response, and who got some of them cannot go on.
func TestLie(t *testing.T) {
	for _, size := range []int{1000, 3 << 20} {
		s := newSite(t)
		p := nixtest.NewPath("lie", size)
		url := nix.NARName{Store: p.Hash(), Nar: p.NarHash()}.URL()
		s.up.Add(t, key, p)
		s.up.SetFaults(sourcetest.Fault{Do: sourcetest.Flip, At: int64(len(p.NAR)) - 1})
		res, got, err := s.get(url, "")
		if began := len(got) > 0; err == nil && res.StatusCode != http.StatusNotFound || began && (err == nil || len(got) > len(p.NAR)-verify.TailSize) {
			t.Errorf("status %d, %d bytes, error %v", res.StatusCode, len(got), err)
		}
		s.up.SetFaults()
		s.up.Add(t, key, p)
		if len(got) > 0 {
			if res, _, err := s.get(url, "bytes=10-"); err != nil || res.StatusCode != http.StatusNotFound {
				t.Errorf("going on: status %d, error %v", res.StatusCode, err)
			}
		}
		if _, got, err := s.get(url, ""); err != nil || !bytes.Equal(got, p.NAR) {
			t.Errorf("when all is well: %d bytes, error %v", len(got), err)
		}
	}
}

// TestMany: many clients at once, one fetch, and a container where the file is not needed.
func TestMany(t *testing.T) {
	s := newSite(t)
	p := nixtest.NewPath("many", 2<<20)
	info, file := s.up.AddFile(t, key, p, nix.Zstd, nil)
	form, _ := info.FileForm()
	url := nix.NARName{Store: p.Hash(), Nar: p.NarHash(), Form: form}.URL()
	gate := make(chan struct{})
	s.up.SetFaults(sourcetest.Fault{Do: sourcetest.Wait, At: 1 << 20, Until: gate})
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			res, got, err := s.get(url, "")
			if err != nil || !bytes.Equal(got, file.Bytes) || res.Header.Get("Accept-Ranges") != "bytes" || res.Header.Get("Content-Encoding") != "" {
				t.Errorf("status %d, %d bytes, error %v", res.StatusCode, len(got), err)
			}
		})
	}
	close(gate)
	group.Wait()
	if n := s.up.Opened(form); n != 1 {
		t.Errorf("fetched %d times", n)
	}
	s.store.Add(t, key, p)
	other := nix.NARName{Store: p.Hash(), Nar: p.NarHash(), Form: nix.Form{Compression: nix.XZ, File: nix.FileHash{1}}}
	res, got, err := s.get(other.URL(), "")
	if err != nil || res.Header.Get("Accept-Ranges") != "" || res.ContentLength != int64(len(got)) {
		t.Errorf("container: %v, %d bytes, error %v", res.Header, len(got), err)
	}
	if res, _, err := s.get(other.URL(), "bytes=10-"); err != nil || res.StatusCode != http.StatusNotFound {
		t.Errorf("the rest of a container: status %d, error %v", res.StatusCode, err)
	}
}
