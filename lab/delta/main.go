// Delta measures what an update of a package transfers: as a delta of internal/delta, and by xz, zstd,
// chunks and zstd --patch-from, with CPU time and memory. Its packages are pairs of versions of
// Debian (pairs.tsv), laid out as store paths would be. Class "only hashes" is made of the others: the
// same files with other store hashes and build IDs.
//
//	go run ./lab/delta -dir /var/tmp/delta
//
// It needs apt-get with access to a mirror, dpkg-deb, xz, zstd and time, and 8 GB. What the directory has
// already is not made again.
package main

import (
	"context"
	_ "embed"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
)

//go:embed pairs.tsv
var pairsTSV string

// versions are two packages of a class.
type versions struct {
	class                       string
	base, baseVersion           string
	target, targetVersion       string
	baseNAR, targetNAR, rebuilt string // files; rebuilt is the base with other hashes
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "delta: error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	dir := flag.String("dir", "", "directory for packages and NARs")
	only := flag.String("only", "", "measure only packages whose name contains this")
	methods := flag.String("methods", strings.Join(allMethods, ","), "what to measure")
	to := flag.String("closure", "", "make a closure of the packages in two versions in this directory, for lab/site -update, and measure nothing")
	measure := flag.String("measure", "", "used by the program itself")
	flag.Parse()
	if *measure != "" {
		return measureDelta(ctx, *measure, flag.Args())
	}
	if *dir == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	b := &builder{dir: *dir}
	if *to != "" {
		abs, err := filepath.Abs(*to)
		if err != nil {
			return err
		}
		return (&closure{dir: abs}).make(ctx, b)
	}
	r := newReport(strings.Split(*methods, ","))
	for line := range strings.Lines(pairsTSV) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		v := versions{class: f[0], base: f[1], baseVersion: f[2], target: f[3], targetVersion: f[4]}
		if !strings.Contains(v.target, *only) {
			continue
		}
		if err := b.pair(ctx, &v); err != nil {
			fmt.Fprintln(os.Stderr, "left out:", v.target, err)
			continue
		}
		if err := r.measure(ctx, "only hashes", v.base, v.baseNAR, v.rebuilt); err != nil {
			return err
		}
		if err := r.measure(ctx, v.class, v.target, v.baseNAR, v.targetNAR); err != nil {
			return err
		}
	}
	if *only == "" || strings.Contains("large", *only) {
		base, target, err := b.large()
		if err == nil {
			err = r.measure(ctx, "1 GiB in one file", "made up", base, target)
		}
		if err != nil {
			return err
		}
	}
	fmt.Print(r.String())
	return os.WriteFile(filepath.Join(*dir, "report.md"), []byte(r.String()), 0o644)
}
