//go:build linux

// Site runs nodes on several hosts of one machine, network namespaces on a LAN with an uplink,
// each with a store and a real Nix of its own, has them find each other, share and survive,
// and tells what held and how long it took. Everything lives in namespaces of its own: the
// machine's network is not touched and nothing is left behind, however it ends. Load that many
// real sites would make it does not try to make.
//
//	go run ./lab/site -list
//	go run ./lab/site -scenario closure -v
//	go run ./lab/site -o docs/site.md -scale docs/scale.md -performance docs/performance.md
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
	"github.com/nixp2p/nixp2p/lab/hostile"
	"github.com/nixp2p/nixp2p/lab/rig"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if os.Getenv(strangerEnv) != "" {
		if err := hostile.Run(ctx, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "stranger:", err)
			os.Exit(1)
		}
		return
	}
	o := parseFlags()
	var err error
	switch {
	case o.list:
		for _, s := range scenarios() {
			fmt.Printf("%-18s %2d hosts  %s\n", s.name, s.hosts, s.what)
		}
	case rig.Inside() == "":
		err = outside(ctx, o)
	default:
		err = inside(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "site: error:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	names   string // of scenarios, by commas
	hosts   int    // 0: each scenario's own number
	out     string
	scale   string
	results string

	performance string
	binary      string
	nix         string
	update      string
	delta       string
	json        bool
	list        bool
	verbose     bool
	factor      float64 // what limits of time are multiplied with
}

func parseFlags() *options {
	o := &options{}
	flag.StringVar(&o.names, "scenario", "all", "which to run, by commas")
	flag.IntVar(&o.hosts, "hosts", 0, "hosts on the LAN, where a scenario works with more or fewer; 0 is what it asks for")
	flag.StringVar(&o.out, "o", "", "write the tables of this run, and of earlier ones in -results, to this file")
	flag.StringVar(&o.scale, "scale", "", "the same for what was measured of growth")
	flag.StringVar(&o.performance, "performance", "", "the same for the section of docs/performance.md about peers")
	flag.StringVar(&o.results, "results", "", "JSON file that keeps the last result of each scenario over several runs")
	flag.StringVar(&o.binary, "nixp2p", "", "the program; built from this module if empty")
	flag.StringVar(&o.nix, "nix", "", "Nix of the hosts: a version for which there is a tree, such as 2.34; the machine's own if empty")
	flag.StringVar(&o.update, "update", "", "directory that lab/delta -closure made, for the scenarios of updates")
	flag.StringVar(&o.delta, "delta", "", "write what was measured of updates into this file, docs/delta.md")
	flag.BoolVar(&o.json, "json", false, "print the results as JSON")
	flag.BoolVar(&o.list, "list", false, "list the scenarios")
	flag.BoolVar(&o.verbose, "v", false, "print logs of the nodes of scenarios that fail")
	flag.Float64Var(&o.factor, "patience", 1, "multiplies the limit of time of each scenario, not what it checks")
	flag.Parse()
	return o
}

// result is one scenario as it was run.
type result struct {
	Name    string
	What    string
	Hosts   int
	Nix     string
	Took    time.Duration
	Load    float64 // of the machine when it began: runnable processes
	Checks  []check
	Figures []figure
	Err     string // it could not be run to its end
}

// check is one thing that had to hold.
type check struct {
	What string
	OK   bool
	Seen string
}

// figure is one thing that was measured.
type figure struct {
	What, Value string
	Number      float64
}

func (r *result) passed() bool {
	return r.Err == "" && !slices.ContainsFunc(r.Checks, func(c check) bool { return !c.OK })
}

func (r *result) verdict() string {
	if r.passed() {
		return "PASS"
	}
	return "FAIL"
}

// coldSection is the part of docs/scale.md that lab/cold writes.
const coldSection = "cold start"

// labName is the first part of the names of namespaces.
const labName = "site"

// outside makes the corpora, which needs the machine's own Nix, and the rest runs inside.
func outside(ctx context.Context, o *options) error {
	if err := rig.Able("sqlite3"); err != nil {
		return err
	}
	chosen, err := choose(o.names)
	if err != nil {
		return err
	}
	own, err := realnix.LookPath(ctx)
	if err != nil {
		return err
	}
	for _, p := range corpora() {
		if _, err := realnix.KeptCorpus(ctx, own, p); err != nil {
			return err
		}
	}
	most := o.hosts
	for _, s := range chosen {
		most = max(most, s.hosts)
	}
	return rig.Outside(ctx, labName, o.binary, most)
}

// choose returns the scenarios that were asked for.
func choose(names string) ([]*scenario, error) {
	all := scenarios()
	if names == "all" {
		return slices.DeleteFunc(all, func(s *scenario) bool { return s.extra }), nil
	}
	var list []*scenario
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(all, func(s *scenario) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no scenario %q: -list names them", name)
		}
		list = append(list, all[i])
	}
	return list, nil
}

// inside runs the scenarios, in the namespaces, one after another.
func inside(ctx context.Context, o *options) error {
	chosen, err := choose(o.names)
	if err != nil {
		return err
	}
	w, err := newWorld(ctx, o)
	if err != nil {
		return err
	}
	var results []*result
	failed := 0
	for _, s := range chosen {
		r := w.run(ctx, s)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		results = append(results, r)
		if !r.passed() {
			failed++
		}
		if err := publish(o, r); err != nil {
			return err
		}
	}
	if o.json {
		if err := json.NewEncoder(os.Stdout).Encode(results); err != nil {
			return err
		}
	}
	if failed > 0 && !o.json {
		return fmt.Errorf("%d of %d scenarios failed", failed, len(results))
	}
	return nil
}

// publish adds one result to those of earlier runs and writes the files anew: what was
// measured is not lost when a later scenario ends the run.
func publish(o *options, r *result) error {
	kept := map[string]*result{}
	if o.results != "" {
		text, err := os.ReadFile(o.results)
		if err == nil {
			err = json.Unmarshal(text, &kept)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if r != nil {
		kept[r.Name] = r
	}
	var list []*result
	for _, s := range scenarios() {
		if r := kept[s.name]; r != nil {
			list = append(list, r)
		}
	}
	if o.results != "" {
		text, err := json.MarshalIndent(kept, "", "\t")
		if err == nil {
			err = os.WriteFile(o.results, text, 0o644)
		}
		if err != nil {
			return err
		}
	}
	var errs []error
	if o.out != "" {
		errs = append(errs, os.WriteFile(o.out, []byte(siteMarkdown(list)), 0o644))
	}
	if o.scale != "" {
		errs = append(errs, rig.WriteAround(o.scale, scaleMarkdown(list), coldSection))
	}
	if o.performance != "" {
		errs = append(errs, rig.WriteSection(o.performance, "peers", peersMarkdown(list)))
	}
	if o.delta != "" {
		errs = append(errs, rig.WriteSection(o.delta, "updates", updateMarkdown(list)))
	}
	return errors.Join(errs...)
}
