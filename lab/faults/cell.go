package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
)

// setup is where nixp2p stands.
type setup int

const (
	without setup = iota // Nix asks the ill cache, then the good one
	before               // Nix asks nixp2p, which has the ill cache, then the good one
	alone                // Nix asks nixp2p, which has both
	setups
)

// rowReport is what one Nix saw of one fault.
type rowReport struct {
	Group, Name string
	MayFail     bool             // alone
	Cells       [setups]*outcome // nil: not measured
}

// outcome is one command.
type outcome struct {
	OK         bool // all paths are there, and right
	Wrong      bool // Nix said that all is well and it is not
	TimedOut   bool
	Took       time.Duration
	Complaints int    // lines with warning: or error:
	Said       string // the last error
	Seen       seen   // by the recorder before nixp2p
}

func measureRows(ctx context.Context, o *options, n *realnix.Nix) ([]*rowReport, error) {
	w := newWorld(ctx)
	defer w.close()
	g, ctx := errgroup.WithContext(ctx)
	type job struct {
		row  *row
		into *rowReport
		how  setup
	}
	jobs := make(chan job)
	var mu sync.Mutex
	for range o.parallel {
		k := newWorker(w)
		g.Go(func() error {
			for j := range jobs {
				out, err := k.cell(ctx, o, n, j.row, j.how)
				if err != nil {
					return fmt.Errorf("%s: %w", j.row.name, err)
				}
				mu.Lock()
				j.into.Cells[j.how] = out
				mu.Unlock()
				fmt.Fprintf(os.Stderr, "%-7s %-55s %d  %s\n", n.Version, j.row.name, j.how, out)
			}
			return nil
		})
	}
	var all []*rowReport
	g.Go(func() error {
		defer close(jobs)
		for _, r := range rows() {
			if !o.only.MatchString(r.name) || o.quick && !r.quick || r.network && os.Getenv(insideEnv) == "" {
				continue
			}
			into := &rowReport{Group: r.group, Name: r.name, MayFail: r.mayFail}
			all = append(all, into)
			for how := range setups {
				if o.quick && how == without {
					continue
				}
				select {
				case jobs <- job{r, into, how}:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		return nil
	})
	return all, g.Wait()
}

// cell runs one command with one fault.
func (k *worker) cell(ctx context.Context, o *options, n *realnix.Nix, r *row, how setup) (*outcome, error) {
	dir, err := os.MkdirTemp(o.dir, "cell")
	if err != nil {
		return nil, err
	}
	defer realnix.RemoveAll(dir)
	k.heal(r)
	ill := k.ill.URL()
	if r.url != nil {
		ill = r.url(k)
	}
	first, upstreams := ill, []string{ill}
	if how == alone {
		upstreams = append(upstreams, k.good.URL())
	}
	var rec *recorder
	if how != without {
		d, err := startDaemon(ctx, o.binary, daemonArgs(dir, k.key.Public(), upstreams...))
		if err != nil {
			return nil, err
		}
		defer d.stop()
		if rec, err = newRecorder(d.url); err != nil {
			return nil, err
		}
		first = rec.URL
	}
	c, err := newClient(n, filepath.Join(dir, "client"), k.key.Public(), first)
	if err != nil {
		return nil, err
	}
	if how != alone {
		c.Substituters = append(c.Substituters, k.good.URL())
	}
	if err := k.learn(ctx, c, first, r.known); err != nil {
		return nil, err
	}
	k.hurt(r)
	out, err := k.realise(ctx, o, c)
	if err != nil {
		return nil, err
	}
	if rec != nil {
		out.Seen = rec.end()
	}
	return out, nil
}

// learn lets the client remember its first substituter.
func (k *worker) learn(ctx context.Context, c *realnix.Client, first string, known knowledge) error {
	switch known {
	case cacheInfo:
		// A path that nobody has: nothing else is remembered.
		_, _, _ = c.PathInfoR(ctx, first, nixtest.NewPath("absent", 0).StorePath.String())
	case narinfos:
		if _, res, err := c.PathInfoR(ctx, first, k.top.StorePath.String()); err != nil {
			return fmt.Errorf("learn: %w: %s", err, res.Stderr)
		}
	}
	return nil
}

// realise is the command that is measured.
func (k *worker) realise(ctx context.Context, o *options, c *realnix.Client) (*outcome, error) {
	limited, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	res, err := c.Realise(limited, k.top.StorePath.String())
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	out := &outcome{Took: res.Wall, OK: err == nil, TimedOut: limited.Err() != nil}
	out.Complaints, out.Said = complaints(res.Stderr)
	var failed *realnix.CommandError
	if err != nil && !errors.As(err, &failed) {
		return nil, err
	}
	if out.OK {
		if err := k.complete(c); err != nil {
			out.OK, out.Wrong, out.Said = false, true, err.Error()
		}
	}
	return out, nil
}
