// Command bench measures one node against nginx in the same run on the same machine, and
// writes the tables of docs/performance.md. Every figure is a ratio, the median over the
// repetitions; the two sides of a ratio are measured one right after the other. It needs
// nginx, wrk, curl and the real Nix, and judges nothing: the aims stand beside the figures.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
	"github.com/nixp2p/nixp2p/lab/rig"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	ctx    context.Context //nolint:containedctx // a command's own
	dir    string          // for servers' files, on disk
	binary string
	corpus *realnix.Corpus
	nix    *realnix.Nix // copies closures
	runs   int
	only   string
	rows   []row
}

func run(ctx context.Context) error {
	corpusDir := flag.String("corpus", "", "`DIR` made by lab/mkcorpus with -compressions none,xz; empty makes one, which takes some ten minutes")
	binary := flag.String("nixp2p", "./nixp2p", "the `BINARY` to measure")
	runs := flag.Int("runs", 5, "repetitions")
	out := flag.String("o", "docs/performance.md", "`FILE` to write")
	only := flag.String("only", "", "measure only rows whose name has this `TEXT`; then nothing is written")
	flag.Parse()
	for _, tool := range []string{"nginx", "wrk", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w: `make deps` installs it", err)
		}
	}
	abs, err := filepath.Abs(*binary)
	if err != nil {
		return err
	}
	b := &bench{ctx: ctx, binary: abs, runs: *runs, only: *only}
	if b.nix, err = findNix(ctx); err != nil {
		return err
	}
	if b.corpus, err = findCorpus(ctx, *corpusDir); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "nixp2p-bench-"); err != nil {
		return err
	}
	defer func() { _ = realnix.RemoveAll(b.dir) }()
	if err := os.Chmod(b.dir, 0o755); err != nil { // nginx's workers are somebody else
		return err
	}
	if err := b.all(); err != nil {
		return err
	}
	if *only != "" {
		return nil
	}
	return rig.WriteAround(*out, b.report(), "peers", "cold start")
}

// findNix prefers the newest: it substitutes in parallel, as what people run.
func findNix(ctx context.Context) (*realnix.Nix, error) {
	variants := realnix.Variants()
	for i := len(variants) - 1; i >= 0; i-- {
		if n, err := realnix.LookChroot(ctx, variants[i]); err == nil {
			return n, nil
		}
	}
	return realnix.LookPath(ctx)
}

func findCorpus(ctx context.Context, dir string) (*realnix.Corpus, error) {
	if dir != "" {
		return realnix.OpenCorpus(dir)
	}
	n, err := realnix.LookPath(ctx)
	if err != nil {
		return nil, err
	}
	return realnix.KeptCorpus(ctx, n, realnix.Params{Paths: 800, Bytes: 1 << 30, Compressions: []string{"none", "xz"}})
}

// all measures every row.
func (b *bench) all() error {
	for _, m := range []struct {
		name string
		do   func() error
	}{
		{"narinfo", b.narinfos}, {"miss", b.misses}, {"store NAR", b.storeNARs}, {"store copy", b.storeCopies},
		{"cold copy", b.coldCopies}, {"warm copy", b.warmCopies}, {"start", b.starts},
	} {
		if !strings.Contains(m.name, b.only) {
			continue
		}
		if err := m.do(); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		if b.ctx.Err() != nil {
			return errors.New("interrupted")
		}
	}
	return nil
}
