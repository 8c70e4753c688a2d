package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/config"
	"github.com/nixp2p/nixp2p/internal/narcache"
)

func gcCommand(u *ui) *cobra.Command {
	var asJSON bool
	var size string
	c := &cobra.Command{
		Use: "gc", Short: "list the NAR cache, or trim it with --max-size",
		Long: `Lists what the NAR cache holds, what would go first at the top, with size and last use.
With --max-size it is trimmed to that first; 0 empties it. Works with the daemon running or not.`,
	}
	flags := config.Register(c.Flags())
	c.Flags().StringVar(&size, "max-size", "", "trim to `SIZE`, such as 5GiB")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		limit := int64(-1)
		if size != "" {
			var err error
			if limit, err = config.ParseSize(size); err != nil {
				return &usageError{fmt.Errorf("--max-size: %w", err)}
			}
		}
		report, err := gc(c, flags, limit)
		if err != nil {
			return err
		}
		if asJSON {
			return u.json(report)
		}
		u.gc(report)
		return nil
	}
	return c
}

// gc asks the daemon, which owns the directory while it runs, or does it itself.
func gc(c *cobra.Command, flags *config.Flags, limit int64) (narcache.Report, error) {
	var report narcache.Report
	d, err := dialDaemon(flags)
	if err != nil {
		return report, err
	}
	err = d.post(c.Context(), "/api/v1/gc", admin.GCRequest{MaxBytes: limit}, &report)
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return report, err
	}
	return narcache.GC(filepath.Join(d.cfg.CacheDir, cacheSubdir), limit, nil)
}

// gc prints a report for a person.
func (u *ui) gc(r narcache.Report) {
	line := func(what string, i narcache.Item) {
		u.printf("%-7s  %10s  %s  %-4s  %s\n", what, humanSize(i.Size), i.LastUse.Local().Format(time.DateTime), i.Form, i.NarHash)
	}
	for _, i := range r.Removed {
		line("removed", i)
	}
	for _, i := range r.Kept {
		line("", i)
	}
	u.printf("%d files, %s\n", len(r.Kept), humanSize(r.BytesAfter))
}
