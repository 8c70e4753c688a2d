// Command nixp2p is a binary cache for this machine's Nix: it answers from the machine's own
// store, from peers on the same site, or from the upstream caches, and hands out nothing
// that a trusted key has not signed. This package wires the parts together and holds the
// commands; it decides nothing about paths or bytes.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(run()) }

// run is main with an exit code: 0 done, 1 failed, 2 wrong usage or configuration.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A reader of the log or of a result may end first: that ends neither the daemon nor a command.
	signal.Ignore(syscall.SIGPIPE)
	ui := &ui{out: os.Stdout, err: os.Stderr}
	return ui.exitCode(newRoot(ui).ExecuteContext(ctx))
}
