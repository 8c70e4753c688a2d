// Mkcorpus makes the closure that measurements are taken with: real builds of
// the machine's Nix, filled with files of the machine, signed, and copied to
// file:// caches in several compressions. It starts no server and measures
// nothing.
//
//	nice -n 19 go run ./lab/mkcorpus -dir /var/cache/nixp2p/bench-corpus
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "mkcorpus: error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	dir := flag.String("dir", "", "directory to make; must not exist yet")
	paths := flag.Int("paths", 800, "store paths in the closure")
	size := flag.Int64("bytes", 1<<30, "bytes of NARs to aim at; 0 makes the small corpus of the tests")
	largest := flag.Int64("largest", 0, "of these, bytes of the largest NAR to aim at; 0 is what comes of the others' sizes")
	seed := flag.Uint64("seed", 1, "another number, another corpus")
	compressions := flag.String("compressions", "none,zstd,xz", "of the caches: none, xz, zstd, bzip2")
	flag.Parse()
	if *dir == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	nix, err := realnix.LookPath(ctx)
	if err != nil {
		return err
	}
	c, err := realnix.MakeCorpus(ctx, nix, *dir, realnix.Params{
		Paths: *paths, Bytes: *size, Largest: *largest, Seed: *seed, Compressions: strings.Split(*compressions, ","),
	}, os.Stdout)
	if err != nil {
		return err
	}
	fmt.Printf("top:   %s\nkey:   %s\nstore: %s\n", c.Top, c.PublicKey, c.StoreRoot)
	for name, cache := range c.Caches {
		fmt.Printf("%-6s %s\n", name+":", cache)
	}
	return nil
}
