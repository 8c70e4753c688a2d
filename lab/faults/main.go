// Faults shows what the real Nix makes of a cache that is ill, alone and with nixp2p in
// between, and of a nixp2p that is ill itself, and writes what it saw into docs/faults.md. It
// works in a network namespace of its own, where nothing reaches another machine. It judges
// nothing: the test beside it does.
//
//	go run ./lab/faults
//	go run ./lab/faults -part peers
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"time"

	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "faults: error:", err)
		os.Exit(1)
	}
}

// The parts of the file that can be made apart.
const (
	partCaches  = "caches"
	partPeers   = "peers"
	partAttacks = "attacks"
	partWays    = "ways"
)

// options are the flags.
type options struct {
	out      string
	binary   string
	part     string
	only     *regexp.Regexp
	quick    bool
	json     bool
	limit    time.Duration
	parallel int
	shard    int // of the ways: every shards-th row from this one on
	shards   int
	dir      string // everything temporary
}

// inShards reports whether this process only starts others.
func (o *options) inShards() bool { return o.part == partWays && o.shards == 1 && o.parallel > 1 }

func (o *options) does(part string) bool { return o.part == part || o.part == "all" }

func parseFlags() *options {
	o := &options{only: regexp.MustCompile(""), shards: 1}
	flag.StringVar(&o.out, "o", "docs/faults.md", "file to write")
	flag.StringVar(&o.binary, "nixp2p", "", "the program; built from this module if empty")
	flag.StringVar(&o.part, "part", "all", "caches (and nixp2p itself), ways (to a cache), peers, attacks, or all; the other parts of the file stay as they are")
	flag.Func("only", "rows whose name this regular expression finds; of the ways, the other rows of the file stay as they are", func(s string) (err error) {
		o.only, err = regexp.Compile(s)
		return err
	})
	flag.BoolVar(&o.quick, "quick", false, "the machine's Nix alone, the fast rows, only with nixp2p")
	flag.BoolVar(&o.json, "json", false, "print JSON and write no file")
	flag.DurationVar(&o.limit, "limit", time.Minute, "how long one command may take")
	flag.Func("shard", "I/N: of the ways, every Nth row from I on", func(s string) error {
		_, err := fmt.Sscanf(s, "%d/%d", &o.shard, &o.shards)
		return err
	})
	flag.IntVar(&o.parallel, "parallel", 4, "commands at a time")
	flag.Parse()
	return o
}

func run(ctx context.Context) error {
	o := parseFlags()
	if os.Getenv(insideEnv) == "" && !o.inShards() {
		if err := reexec(ctx); !errors.Is(err, errNoNamespace) {
			return err
		}
		fmt.Fprintln(os.Stderr, "no network namespace can be had: rows that need one are left out")
	}
	dir, err := os.MkdirTemp("", "faults")
	if err != nil {
		return err
	}
	defer realnix.RemoveAll(dir)
	o.dir = dir
	if o.binary == "" {
		o.binary = filepath.Join(dir, "nixp2p")
		build := exec.CommandContext(ctx, "go", "build", "-o", o.binary, "github.com/nixp2p/nixp2p/cmd/nixp2p")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			return fmt.Errorf("build nixp2p: %w", err)
		}
	}
	measured := measure
	if o.inShards() {
		measured = measureShards
	}
	r, err := measured(ctx, o)
	if err != nil {
		return err
	}
	if o.json {
		return json.NewEncoder(os.Stdout).Encode(r)
	}
	return r.write(o.out, o)
}

// report is all that was seen.
type report struct {
	Took    time.Duration
	Limit   time.Duration
	Network bool // rows that need a namespace are there
	Nixes   []*nixReport
}

// nixReport is what one Nix saw.
type nixReport struct {
	Version string
	Rows    []*rowReport
	Outages []*outageReport
	Peers   []*peerReport
	Attacks []*attackReport
	Ways    []*wayReport
}

func measure(ctx context.Context, o *options) (*report, error) {
	start := time.Now()
	r := &report{Limit: o.limit, Network: os.Getenv(insideEnv) != ""}
	nixes, err := findNixes(ctx, o)
	if err != nil {
		return nil, err
	}
	var conf resolvConf
	if o.does(partWays) && r.Network {
		if conf, err = mountResolvConf(o.dir, nixes); err != nil {
			return nil, err
		}
	}
	for _, n := range nixes {
		nr := &nixReport{Version: n.Version}
		r.Nixes = append(r.Nixes, nr)
		if o.does(partWays) && r.Network {
			if nr.Ways, err = measureWays(ctx, o, n, conf); err != nil {
				return nil, err
			}
		}
		if o.does(partAttacks) && !o.quick {
			if nr.Attacks, err = measureAttacks(ctx, o, n); err != nil {
				return nil, err
			}
		}
		if o.does(partPeers) {
			if nr.Peers, err = measurePeers(ctx, o, n); err != nil {
				return nil, err
			}
		}
		if !o.does(partCaches) {
			continue
		}
		if nr.Rows, err = measureRows(ctx, o, n); err != nil {
			return nil, err
		}
		if o.quick {
			continue
		}
		if nr.Outages, err = measureOutages(ctx, o, n); err != nil {
			return nil, err
		}
	}
	r.Took = time.Since(start)
	return r, nil
}

// findNixes returns the machine's Nix and 2.34, where there is one.
func findNixes(ctx context.Context, o *options) ([]*realnix.Nix, error) {
	own, err := realnix.LookPath(ctx)
	if err != nil {
		return nil, err
	}
	nixes := []*realnix.Nix{own}
	if o.quick {
		return nixes, nil
	}
	for _, v := range realnix.Variants() {
		if v.Name != "2.34" {
			continue
		}
		n, err := realnix.LookChroot(ctx, v)
		if err != nil {
			fmt.Fprintf(os.Stderr, "without Nix %s: %v\n", v.Name, err)
			continue
		}
		nixes = append(nixes, n)
	}
	return nixes, nil
}

// seconds writes a duration for the tables.
func seconds(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return "< 1 ms"
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
