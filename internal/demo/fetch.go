package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// arrived are the paths that a client has got whole, with the hash that was signed.
type arrived map[nix.StorePath]bool

// client fetches a closure from a node as Nix does.
type client interface {
	// name says what it is, for people.
	name() string
	// fetch gets the closure of top from the cache at url and returns what has arrived and
	// how often something had to be asked again.
	fetch(ctx context.Context, url string, c *closure) (arrived, int, error)
}

const (
	// fetchers is how many connections Nix opens (http-connections), attempts how often it
	// asks for a file that was cut (download-attempts).
	fetchers = 25
	attempts = 5
)

// builtin stands in for Nix where there is none: it verifies signatures, sizes and hashes, and
// keeps nothing.
type builtin struct{}

func (builtin) name() string { return "the built-in client" }

func (builtin) fetch(ctx context.Context, url string, c *closure) (arrived, int, error) {
	keys, err := verify.ParseKeys([]string{c.publicKey})
	if err != nil {
		return nil, 0, err
	}
	transport := &http.Transport{MaxConnsPerHost: fetchers, MaxIdleConnsPerHost: fetchers, DisableCompression: true}
	defer transport.CloseIdleConnections()
	w := &walk{url: url, keys: keys, http: &http.Client{Transport: transport}, seen: map[nix.StorePath]bool{}, got: arrived{}}
	g, ctx := errgroup.WithContext(ctx)
	w.group = g
	w.visit(ctx, c.top)
	err = g.Wait()
	return w.got, int(w.again.Load()), err
}

// walk is one fetch of a closure.
type walk struct {
	url   string
	keys  *verify.Keys
	http  *http.Client
	group *errgroup.Group
	again atomic.Int64

	mu   sync.Mutex
	seen map[nix.StorePath]bool
	got  arrived
}

// visit fetches a path and what it refers to, once.
func (w *walk) visit(ctx context.Context, p nix.StorePath) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seen[p] {
		return
	}
	w.seen[p] = true
	w.group.Go(func() error {
		if err := w.path(ctx, p); err != nil {
			return fmt.Errorf("%s: %w", p.Base(), err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.got[p] = true
		return nil
	})
}

func (w *walk) path(ctx context.Context, p nix.StorePath) error {
	var info *verify.Info
	err := w.get(ctx, "/"+p.Hash().String()+".narinfo", func(body io.Reader) error {
		text, err := io.ReadAll(io.LimitReader(body, nix.MaxNarInfo))
		if err != nil {
			return err
		}
		info, err = w.keys.Open(text, p.Hash())
		return err
	})
	if err != nil {
		return err
	}
	for _, ref := range info.References() {
		w.visit(ctx, ref)
	}
	for n := 1; ; n++ {
		err := w.nar(ctx, info)
		if err == nil || ctx.Err() != nil || n == attempts {
			return err
		}
		w.again.Add(1)
	}
}

// nar fetches a NAR and proves it.
func (w *walk) nar(ctx context.Context, info *verify.Info) error {
	hints := info.Hints()
	return w.get(ctx, "/"+hints.URL, func(body io.Reader) error {
		dec, err := compress.NewReader(hints.Compression, body)
		if err != nil {
			return err
		}
		defer dec.Close()
		proof := verify.NewProof(info.Want(nix.Raw, 0))
		if _, err := io.Copy(proof, dec); err != nil {
			return err
		}
		return proof.Check()
	})
}

var errAnswer = errors.New("the node answers")

// get passes the body of an answer on.
func (w *walk) get(ctx context.Context, at string, use func(io.Reader) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url+at, http.NoBody)
	if err != nil {
		return err
	}
	res, err := w.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%w %s", errAnswer, res.Status)
	}
	return use(res.Body)
}
