//go:build linux

// Cold measures what it costs when all hosts of a site build the same closure at the same moment
// and none of them has any of it: how often each byte crosses the uplink, when the last host is
// done, and what two cores have to do with that. The same is played without nixp2p, with nodes
// that do not coordinate, and with nodes that do. It writes tables and pictures, and judges
// nothing but whether each host has all of the closure.
//
//	go run ./lab/cold -list
//	go run ./lab/cold -rows 8-leases-discard-standing
//	go run ./lab/cold                     # the whole series
//	go run ./lab/cold -render             # tables and pictures of what was measured before
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
	"github.com/nixp2p/nixp2p/lab/hostile"
	"github.com/nixp2p/nixp2p/lab/rig"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "cold: error:", err)
		os.Exit(1)
	}
}

// Variables that make this program something else, in a host.
const (
	clientEnv   = "NIXP2P_COLD_CLIENT"
	strangerEnv = "NIXP2P_COLD_STRANGER"
)

func run(ctx context.Context) error {
	switch {
	case os.Getenv(clientEnv) != "":
		return beClient(ctx, os.Stdin, os.Stdout)
	case os.Getenv(strangerEnv) != "":
		return hostile.Run(ctx, os.Stdin, os.Stdout)
	}
	o := parseFlags()
	rows, err := choose(o)
	switch {
	case err != nil:
		return err
	case o.render:
		return publish(o, nil)
	case o.list:
		printRows(o, rows)
		return nil
	case rig.Inside() == "":
		return outside(ctx, o, rows)
	}
	return inside(ctx, o, rows)
}

// options are the flags.
type options struct {
	rows         string
	corpus       string
	small        bool
	nix          string
	binary       string
	results      string
	performance  string
	scale        string
	pictures     string
	profile      string
	uplink       float64
	lan          string
	budget       time.Duration
	patience     float64
	disk         bool
	list, render bool
	json         bool
	verbose      bool
}

func parseFlags() *options {
	o := &options{}
	flag.StringVar(&o.rows, "rows", "", "`NAMES` or patterns of rows, by commas, as HOSTS-ARRANGEMENT-CLIENT[-MESH[-EVENT]]; * is any text; empty is the series")
	flag.StringVar(&o.corpus, "corpus", "/var/cache/nixp2p/cold-corpus", "`DIR` of a closure made by lab/mkcorpus; made, which takes some minutes, if it is not there")
	flag.BoolVar(&o.small, "small", false, "take the small closure of the tests, and write nothing")
	flag.StringVar(&o.nix, "nix", "", "Nix of the hosts: a `VERSION` for which there is a tree, such as 2.34; the machine's own if empty")
	flag.StringVar(&o.binary, "nixp2p", "", "the program; built from this module if empty")
	flag.StringVar(&o.results, "results", "docs/cold-start.json", "JSON `FILE` with the last result of each row")
	flag.StringVar(&o.performance, "o", "docs/performance.md", "`FILE` whose marked section gets the tables")
	flag.StringVar(&o.scale, "scale", "docs/scale.md", "`FILE` whose marked section gets the model")
	flag.StringVar(&o.pictures, "pictures", "docs", "`DIR` of the two pictures")
	flag.StringVar(&o.profile, "profile", "", "write a profile of the first host's node, of 30 s from the first start, to this `FILE`")
	flag.Float64Var(&o.uplink, "uplink", 200, "rate of the uplink in Mbit/s, 20 ms there and back")
	flag.StringVar(&o.lan, "lan", "1gbit", "rate of each host's link, as tc says it, or none")
	flag.DurationVar(&o.budget, "budget", 45*time.Minute, "begin no row of which it is not to be expected that it ends within this time")
	flag.Float64Var(&o.patience, "patience", 1, "multiplies the limit of time of each row")
	flag.BoolVar(&o.disk, "disk", false, "keep hosts' files on disk even where there is memory for them")
	flag.BoolVar(&o.list, "list", false, "list the rows, with an estimate of their time")
	flag.BoolVar(&o.render, "render", false, "measure nothing, write tables and pictures of what there is")
	flag.BoolVar(&o.json, "json", false, "print the results as JSON")
	flag.BoolVar(&o.verbose, "v", false, "print logs of the nodes of rows that fail")
	flag.Parse()
	return o
}

const labName = "cold"

// The closure: the sum, and one NAR that is more than a quarter of it.
var coldCorpus = realnix.Params{Paths: 430, Bytes: 505_000_000, Largest: 160_000_000, Compressions: []string{"xz"}}

// openCorpus opens the closure; outside, where the machine's Nix can build, it makes one.
func openCorpus(ctx context.Context, o *options) (*realnix.Corpus, error) {
	own, err := realnix.LookPath(ctx)
	if err != nil {
		return nil, err
	}
	if o.small {
		return realnix.KeptCorpus(ctx, own, realnix.Params{})
	}
	c, err := realnix.OpenCorpus(o.corpus)
	if !errors.Is(err, os.ErrNotExist) {
		return c, err
	}
	fmt.Fprintln(os.Stderr, "making the closure, once:", o.corpus)
	return realnix.MakeCorpus(ctx, own, o.corpus, coldCorpus, os.Stderr)
}

// outside makes the corpus; the rest runs inside.
func outside(ctx context.Context, o *options, rows []row) error {
	if err := rig.Able(); err != nil {
		return err
	}
	if _, err := openCorpus(ctx, o); err != nil {
		return err
	}
	most := 0
	for _, r := range rows {
		most = max(most, r.Hosts)
	}
	return rig.Outside(ctx, labName, o.binary, most)
}

// inside plays the rows, one after another, and publishes after each.
func inside(ctx context.Context, o *options, rows []row) error {
	w, err := newWorld(ctx, o)
	if err != nil {
		return err
	}
	if !o.json {
		printRows(o, rows)
	}
	begun := time.Now()
	var results []*result
	failed, left := 0, 0
	for i, r := range rows {
		if spent := time.Since(begun); spent+r.estimate(w) > o.budget {
			fmt.Fprintf(os.Stderr, "--- %s: left out, %.0f of %.0f minutes are over\n", r.name(), spent.Minutes(), o.budget.Minutes())
			left++
			continue
		}
		fmt.Fprintf(os.Stderr, "=== %d of %d: %s (about %.0f s; %.1f min so far)\n", i+1, len(rows), r.name(), r.estimate(w).Seconds(), time.Since(begun).Minutes())
		res := w.play(ctx, r)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		results = append(results, res)
		fmt.Fprintln(os.Stderr, "--- "+res.line())
		if !res.good() {
			failed++
		}
		if err := publish(o, res); err != nil {
			return err
		}
	}
	return conclude(o, results, failed, left)
}
