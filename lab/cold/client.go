//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// What Nix does by default: http-connections, max-substitution-jobs, download-attempts and the
// pause before the second of these.
const (
	connections = 25
	jobs        = 16
	attempts    = 5
	firstPause  = 250 * time.Millisecond
)

// order is what a client gets to do: all of the closure of a path.
type order struct {
	URL string
	Top nix.StoreHash
}

// outcome is what came of it.
type outcome struct {
	Paths   int
	Bytes   int64 // of NARs, in the form in which they came
	Infos   float64
	Retries int
	CPU     float64 // seconds
	Err     string
}

// beClient reads an order, gets the closure as Nix does and throws the bytes away: no hash and
// no decoding, so that the machine's cores are left to the nodes.
func beClient(ctx context.Context, in io.Reader, out io.Writer) error {
	var o order
	if err := json.NewDecoder(in).Decode(&o); err != nil {
		return err
	}
	c := &client{base: o.URL, http: &http.Client{Transport: &http.Transport{
		MaxConnsPerHost: connections, MaxIdleConnsPerHost: connections, DisableCompression: true,
		DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
	}}}
	res, err := c.closure(ctx, o.Top)
	if err != nil {
		res.Err = err.Error()
	}
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err == nil {
		res.CPU = time.Duration(ru.Utime.Nano() + ru.Stime.Nano()).Seconds()
	}
	return json.NewEncoder(out).Encode(res)
}

type client struct {
	base string
	http *http.Client

	mu      sync.Mutex
	retries int
	bytes   int64
}

// closure asks for all narinfos, then gets the NARs, each after those of its references.
func (c *client) closure(ctx context.Context, top nix.StoreHash) (res outcome, err error) {
	start := time.Now()
	infos, err := c.infos(ctx, top)
	res.Infos = time.Since(start).Seconds()
	if err == nil {
		err = c.nars(ctx, infos)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	res.Paths, res.Bytes, res.Retries = len(infos), c.bytes, c.retries
	return res, err
}

// infos walks the references.
func (c *client) infos(ctx context.Context, top nix.StoreHash) (map[nix.StoreHash]*nix.NarInfo, error) {
	g, ctx := errgroup.WithContext(ctx)
	slots := make(chan struct{}, connections)
	found := map[nix.StoreHash]*nix.NarInfo{}
	var mu sync.Mutex
	var visit func(h nix.StoreHash) // with mu
	visit = func(h nix.StoreHash) {
		if _, ok := found[h]; ok {
			return
		}
		found[h] = nil
		g.Go(func() error {
			slots <- struct{}{}
			n, err := c.info(ctx, h)
			<-slots
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			found[h] = n
			for _, ref := range n.References {
				visit(ref.Hash())
			}
			return nil
		})
	}
	mu.Lock()
	visit(top)
	mu.Unlock()
	err := g.Wait()
	return found, err
}

func (c *client) info(ctx context.Context, h nix.StoreHash) (n *nix.NarInfo, err error) {
	err = c.insist(ctx, func() error {
		resp, err := c.get(ctx, h.String()+".narinfo", 0)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		if err != nil {
			return err
		}
		if n, err = nix.ParseNarInfo(text); err != nil {
			return fmt.Errorf("%w: %w", errFinal, err)
		}
		return nil
	})
	return n, err
}

// errFinal is not worth another attempt.
var errFinal = errors.New("answer")

func (c *client) get(ctx context.Context, path string, off int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/"+path, nil)
	if err != nil {
		return nil, err
	}
	want := http.StatusOK
	if off > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", off))
		want = http.StatusPartialContent
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != want {
		_ = resp.Body.Close()
		err := fmt.Errorf("%s: status %d", path, resp.StatusCode)
		if resp.StatusCode < http.StatusInternalServerError {
			err = fmt.Errorf("%w: %w", errFinal, err)
		}
		return nil, err
	}
	return resp, nil
}

// insist tries again, with pauses that grow, as Nix does.
func (c *client) insist(ctx context.Context, f func() error) (err error) {
	for n := range attempts {
		if err = f(); err == nil || errors.Is(err, errFinal) || ctx.Err() != nil {
			return err
		}
		c.mu.Lock()
		c.retries++
		c.mu.Unlock()
		t := time.NewTimer(time.Duration(float64(firstPause<<n) * (1 + rand.Float64()/2)))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
	return err
}

// nars gets each NAR once its references are there.
func (c *client) nars(ctx context.Context, infos map[nix.StoreHash]*nix.NarInfo) error {
	waits := map[nix.StoreHash]int{}
	users := map[nix.StoreHash][]nix.StoreHash{}
	ready := make(chan nix.StoreHash, len(infos))
	for h, n := range infos {
		for _, ref := range n.References {
			if r := ref.Hash(); r != h && !slices.Contains(users[r], h) {
				waits[h]++
				users[r] = append(users[r], h)
			}
		}
		if waits[h] == 0 {
			ready <- h
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	var mu sync.Mutex
	left := len(infos)
	for range jobs {
		g.Go(func() error {
			buf := make([]byte, 256<<10)
			for {
				var h nix.StoreHash
				var ok bool
				select {
				case h, ok = <-ready:
				case <-ctx.Done():
					return ctx.Err()
				}
				if !ok {
					return nil
				}
				if err := c.nar(ctx, infos[h], buf); err != nil {
					return err
				}
				mu.Lock()
				for _, u := range users[h] {
					if waits[u]--; waits[u] == 0 {
						ready <- u
					}
				}
				if left--; left == 0 {
					close(ready)
				}
				mu.Unlock()
			}
		})
	}
	return g.Wait()
}

// nar gets one, going on where a response was cut. Its length is that of the response: like Nix
// it does not mind what the narinfo said of the file, which may come in another container.
func (c *client) nar(ctx context.Context, n *nix.NarInfo, buf []byte) error {
	var off int64
	return c.insist(ctx, func() error {
		resp, err := c.get(ctx, n.URL, off)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		got, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{resp.Body}, buf)
		off += got
		c.mu.Lock()
		c.bytes += got
		c.mu.Unlock()
		return err
	})
}
