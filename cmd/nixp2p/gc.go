package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/config"
	"github.com/nixp2p/nixp2p/internal/narcache"
)

func gcCommand(u *ui) *cobra.Command {
	var asJSON, verbose, dry bool
	var size string
	c := &cobra.Command{
		Use: "gc", Short: "list the NAR cache, or trim it with --max-size",
		Long: `Lists the files of the NAR cache with size and last use; those that would be removed first are
at the top. With --max-size it removes files until the cache is no larger than that; 0 empties
it. It works whether or not the daemon is running.`,
	}
	flags := configFlags(c)
	c.Flags().StringVar(&size, "max-size", "", "trim to `SIZE`, such as 5GiB")
	c.Flags().BoolVar(&dry, "dry-run", false, "show what would be removed first, and why")
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "with --max-size, list each file")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		limit := int64(-1)
		if size != "" {
			var err error
			if limit, err = config.ParseSize(size); err != nil {
				return &usageError{fmt.Errorf("--max-size: %w", err)}
			}
		}
		report, err := gc(c, flags, limit, dry)
		if err != nil {
			return err
		}
		if asJSON {
			return u.json(report)
		}
		u.gc(report, verbose || dry || limit < 0, dry)
		return nil
	}
	return c
}

// gc asks the daemon, which owns the directory while it runs. Without one, it works on the
// directory itself.
func gc(c *cobra.Command, flags *config.Flags, limit int64, dry bool) (narcache.Report, error) {
	var report narcache.Report
	d, cfg, err := dialDaemon(flags)
	if err != nil {
		return report, err
	}
	if dry && limit < 0 {
		limit = 0 // the order in which all of it would go
	}
	err = d.Post(c.Context(), "/api/v1/gc", admin.GCRequest{MaxBytes: limit, DryRun: dry}, &report)
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return report, err
	}
	if dry {
		return report, &hintError{errors.New("the daemon is not running: only it knows what is kept"), startHint()}
	}
	report, err = narcache.GC(filepath.Join(cfg.CacheDir, cacheSubdir), limit, nil)
	if errors.Is(err, fs.ErrNotExist) {
		err = &hintError{fmt.Errorf("the daemon is not running, and there is no NAR cache in %s", cfg.CacheDir), startHint() + ", or name the directory with --cache-dir"}
	}
	return report, err
}

// gc prints a report for a person.
func (u *ui) gc(r narcache.Report, list, dry bool) {
	removed := "removed"
	if dry {
		removed = "remove"
	}
	line := func(what string, i narcache.Item) {
		why := ""
		switch {
		case i.Kept:
			why = "  (a followed list has it: last)"
		case dry && what != "":
			why = "  (no list has it; the longest unused goes first)"
		}
		u.printf("%-7s  %10s  %s  %-4s  %s%s\n", what, humanSize(i.Size), i.LastUse.Local().Format(time.DateTime), i.Form, clean(cmp.Or(i.Name, i.NarHash)), why)
	}
	if list {
		for _, i := range r.Removed {
			line(removed, i)
		}
		for _, i := range r.Kept {
			line("", i)
		}
	}
	if len(r.Removed) > 0 {
		u.printf("%s %s, %s\n", removed, count(len(r.Removed), "file"), humanSize(r.BytesBefore-r.BytesAfter))
	}
	u.printf("%s, %s\n", count(len(r.Kept), "file"), humanSize(r.BytesAfter))
}
