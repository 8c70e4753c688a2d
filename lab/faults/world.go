package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
)

// fixture lets fixtures that are made for tests be used by a command: a failure is a panic.
type fixture struct {
	testing.TB
	ctx     func() context.Context
	cleanup []func()
}

func (f *fixture) Helper()                  {}
func (f *fixture) Context() context.Context { return f.ctx() }
func (f *fixture) Fatal(args ...any)        { panic(fmt.Sprint(args...)) }
func (f *fixture) Cleanup(end func())       { f.cleanup = append(f.cleanup, end) }

func (f *fixture) close() {
	for _, end := range slices.Backward(f.cleanup) {
		end()
	}
	f.cleanup = nil
}

// world is what all cells share.
type world struct {
	*fixture
	key   nixtest.Key
	paths []nixtest.Path // references first
	top   nixtest.Path   // the largest, which refers to all others
	good  *nixtest.Upstream
	bomb  []byte
}

const (
	// largeFile is more than a node holds back, and takes a good cache milliseconds.
	largeFile = 3 << 20
	// bombSize is what the bomb decodes to.
	bombSize = 256 << 20
	// preferred is the priority of the ill cache: before nixp2p (30) and the good one (40).
	preferred = 10
	// behind is how much later the good cache answers, so that the ill one looks better.
	behind = 20 * time.Millisecond
)

func newWorld(ctx context.Context) *world {
	w := &world{fixture: &fixture{ctx: func() context.Context { return ctx }}, key: nixtest.NewKey(keyName)}
	refs := func() (all []nix.StorePath) {
		for _, p := range w.paths {
			all = append(all, p.StorePath)
		}
		return all
	}
	for i, size := range []int{2000, 50_000, 300_000} {
		w.paths = append(w.paths, nixtest.NewPath(fmt.Sprintf("small-%d", i), size))
	}
	w.top = nixtest.NewPath("large", largeFile, refs()...)
	w.paths = append(w.paths, w.top)
	w.good = w.cache(nixtest.UpstreamConfig{Compression: nix.XZ})
	w.good.SetAll(nixtest.Fault{Delay: behind})
	w.bomb = nixtest.Compress(w, nix.Zstd, nixtest.FileNAR(make([]byte, bombSize))).Bytes
	return w
}

func (w *world) cache(cfg nixtest.UpstreamConfig) *nixtest.Upstream {
	cfg.Paths, cfg.Keys = w.paths, []nixtest.Key{w.key}
	return nixtest.NewUpstream(w, cfg)
}

// worker does one cell after another, with ill caches of its own.
type worker struct {
	*world
	ill, illRaw *nixtest.Upstream
	illTLS      *nixtest.Upstream
	leaving     *nixtest.Upstream // made for each row that stops it: a port that was given up is taken by others
}

func newWorker(w *world) *worker {
	return &worker{
		world:  w,
		ill:    w.cache(nixtest.UpstreamConfig{Compression: nix.XZ, Priority: preferred}),
		illRaw: w.cache(nixtest.UpstreamConfig{Priority: preferred}),
		illTLS: w.cache(nixtest.UpstreamConfig{Priority: preferred, TLS: true}),
	}
}

// large tells the requests for the NAR of the large path at u.
func (k *worker) large(u *nixtest.Upstream) func(r *http.Request) bool {
	n, err := nix.ParseNarInfo(u.NarInfo(k.top))
	if err != nil {
		panic(err)
	}
	return func(r *http.Request) bool { return r.URL.Path == "/"+n.URL }
}

// heal undoes all faults.
func (k *worker) heal(r *row) {
	for _, u := range []*nixtest.Upstream{k.ill, k.illRaw, k.illTLS} {
		u.SetAll()
	}
	if r.stop {
		k.leaving = k.cache(nixtest.UpstreamConfig{Priority: preferred})
	}
}

// hurt makes the ill cache as r says.
func (k *worker) hurt(r *row) {
	for _, u := range []*nixtest.Upstream{k.ill, k.illRaw} {
		if r.all != nil {
			u.SetAll(r.all(k)...)
		}
		if r.info != nil {
			u.Set(nixtest.NarInfo, r.info(k)...)
		}
		if r.file != nil {
			u.Set(nixtest.NarFile, r.file(k)...)
		}
	}
	if r.stop {
		k.leaving.Stop()
	}
}

// complete compares what a client has with what it wanted.
func (w *world) complete(c *realnix.Client) error {
	for _, p := range w.paths {
		have, err := os.ReadFile(c.Real(p.StorePath.String()))
		if err != nil {
			return err
		}
		if !bytes.Equal(have, p.Contents) {
			return fmt.Errorf("%s is wrong", p.StorePath)
		}
	}
	return nil
}

func fileHash(b []byte) nix.FileHash { return sha256.Sum256(b) }

// complaints counts the lines in which Nix complains, and returns the last error.
func complaints(stderr string) (n int, said string) {
	for line := range strings.Lines(stderr) {
		line = strings.TrimSpace(line)
		switch {
		case strings.Contains(line, "--add-root"): // 2.8 says so to every nix-store -r
		case strings.HasPrefix(line, "error:"):
			n++
			said = line
		case strings.HasPrefix(line, "warning:"):
			n++
		}
	}
	return n, said
}
