package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/config"
	"github.com/nixp2p/nixp2p/internal/nix"
)

// prefetchers is how many paths are worked on at once: as many as Nix fetches.
const prefetchers = 16

func prefetchCommand(u *ui) *cobra.Command {
	var asJSON, dry bool
	var from string
	c := &cobra.Command{
		Use:   "prefetch STORE-PATH…",
		Short: "fetch the closures of paths into the NAR cache",
		Long: `Asks the running daemon to fetch those paths of the given closures that this machine does not
have. A path may be given in every way that Nix takes: as store path, base name or hash, as a link
to one such as ./result or a profile, as DERIVATION^OUTPUT, or with - as a list on standard input. It can be interrupted at any time: what was fetched stays, and the next run continues from
there.`,
		Args: cobra.ArbitraryArgs,
	}
	flags := config.RegisterClient(c.Flags())
	c.Flags().StringVar(&from, "from-file", "", "read paths from `FILE`, one a line; .xz is decoded, - is standard input")
	c.Flags().BoolVar(&dry, "dry-run", false, "show how much would be fetched")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		roots, err := rootArgs(args, from, c.InOrStdin())
		if err != nil {
			return err
		}
		d, _, err := dialDaemon(flags)
		if err != nil {
			return err
		}
		p := &prefetch{d: d, dry: dry, seen: map[nix.StoreHash]bool{}, bar: liveLine{out: u.err, live: onTerminal(u.err)}, quiet: asJSON}
		err = p.run(c.Context(), roots)
		p.bar.erase()
		if asJSON {
			err = errors.Join(err, u.json(p.sum))
		} else {
			u.prefetched(p.sum, dry)
		}
		if err == nil && p.sum.Missing+p.sum.Failed > 0 {
			return errSilent
		}
		return err
	}
	return c
}

// rootArgs reads the roots from the command line and a file.
func rootArgs(args []string, from string, stdin io.Reader) ([]nix.StoreHash, error) {
	var roots []nix.StoreHash
	for _, a := range args {
		more, err := pathArgs(a, stdin)
		if err != nil {
			return nil, err
		}
		roots = append(roots, more...)
	}
	if from != "" {
		more, err := readPathFile(from, stdin)
		if err != nil {
			return nil, err
		}
		roots = append(roots, more...)
	}
	if len(roots) == 0 {
		return nil, &usageError{&hintError{errors.New("no path to prefetch"), "name store paths, or a list of them with --from-file"}}
	}
	return roots, nil
}

// prefetchSum is what a run did.
type prefetchSum struct {
	Paths       int      `json:"paths"`
	AtHand      int      `json:"at_hand"`
	Fetched     int      `json:"fetched"`
	FetchBytes  int64    `json:"fetch_bytes"`  // in the forms in which they are fetched
	NarBytes    int64    `json:"nar_bytes"`    // of all paths, raw
	Missing     int      `json:"missing"`      // paths that no source has
	Failed      int      `json:"failed"`       // paths that could not be fetched
	FailedPaths []string `json:"failed_paths"` // store hashes of both, at most maxFailed
	FirstError  string   `json:"error,omitempty"`
}

const maxFailed = 100

// prefetch walks closures: each path's answer names its references.
type prefetch struct {
	d     *admin.Client
	dry   bool
	bar   liveLine
	quiet bool // no progress is shown

	mu    sync.Mutex
	seen  map[nix.StoreHash]bool
	queue []nix.StoreHash
	sum   prefetchSum
}

func (p *prefetch) run(ctx context.Context, roots []nix.StoreHash) error {
	for _, h := range roots {
		p.add(h)
	}
	for {
		// One generation after the other: a closure is wide and not deep.
		batch := p.queue
		p.queue = nil
		if len(batch) == 0 || ctx.Err() != nil {
			return ctx.Err()
		}
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(prefetchers)
		for _, h := range batch {
			g.Go(func() error { return p.one(ctx, h) })
		}
		if err := g.Wait(); err != nil {
			return err
		}
	}
}

// add puts a path into the queue unless it was there. The caller holds mu, or is alone.
func (p *prefetch) add(h nix.StoreHash) {
	if !p.seen[h] {
		p.seen[h] = true
		p.queue = append(p.queue, h)
		p.sum.Paths++
	}
}

// one fetches a path. It returns an error only if the daemon is gone; what concerns this path
// alone is counted.
func (p *prefetch) one(ctx context.Context, h nix.StoreHash) error {
	var a admin.Prefetched
	err := p.d.Post(ctx, "/api/v1/prefetch", admin.PrefetchRequest{StoreHash: h.String(), DryRun: p.dry}, &a)
	var refused *admin.RefusedError
	if err != nil && !errors.As(err, &refused) {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		p.sum.Missing++
	case err != nil:
		p.sum.Failed++
		if p.sum.FirstError == "" {
			p.sum.FirstError = err.Error()
		}
	case a.AtHand != "":
		p.sum.AtHand++
	default:
		p.sum.Fetched++
		p.sum.FetchBytes += max(a.Size, 0)
	}
	if err != nil && len(p.sum.FailedPaths) < maxFailed {
		p.sum.FailedPaths = append(p.sum.FailedPaths, h.String())
	}
	p.sum.NarBytes += a.NarSize
	for _, r := range a.References {
		if ref, err := nix.ParseStoreHash(r); err == nil {
			p.add(ref)
		}
	}
	if s := p.sum; !p.quiet {
		p.bar.show(fmt.Sprintf("%d of %d paths, %s fetched", s.AtHand+s.Fetched+s.Missing+s.Failed, s.Paths, humanSize(s.FetchBytes)))
	}
	return nil
}

// prefetched prints the sum for a person.
func (u *ui) prefetched(s prefetchSum, dry bool) {
	verb := "fetched"
	if dry {
		verb = "to fetch"
	}
	u.printf("%s (%s of NARs): %d already here, %d %s (%s)", count(s.Paths, "path"), humanSize(s.NarBytes), s.AtHand, s.Fetched, verb, humanSize(s.FetchBytes))
	if s.Missing > 0 {
		u.printf(", %d that no source has", s.Missing)
	}
	if s.Failed > 0 {
		u.printf(", %d failed: %s", s.Failed, s.FirstError)
	}
	u.printf("\n")
	for _, h := range s.FailedPaths {
		u.printf("  not fetched: %s\n", h)
	}
}
