package main

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/config"
)

// daemonTime bounds a question to the running daemon. What it is told to do may take longer.
const daemonTime = 30 * time.Second

// dialDaemon finds out where the daemon listens; it does not ask it yet. With a mistake elsewhere in
// the configuration the daemon answers all the same, and says what is wrong.
func dialDaemon(flags *config.Flags) (*admin.Client, *config.Config, error) {
	cfg, err := flags.Load(config.Env{})
	at := func(p *config.Problem) bool { return p.Key == "admin-listen" || strings.HasPrefix(p.Where, "--") }
	if slices.ContainsFunc(config.Problems(err), at) {
		return nil, nil, &usageError{err}
	}
	return &admin.Client{Addr: cfg.AdminListen, HTTP: http.DefaultClient}, cfg, nil
}

// ask gets one answer of the running daemon.
func ask(ctx context.Context, flags *config.Flags, path string, v any) error {
	d, _, err := dialDaemon(flags)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, daemonTime)
	defer cancel()
	return d.Get(ctx, path, v)
}

// humanSize writes bytes for people, as the status page does.
func humanSize(n int64) string { return admin.FormatBytes(n) }
