package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/config"
	"github.com/nixp2p/nixp2p/internal/nix"
)

// daemonTime bounds a question to the running daemon.
const daemonTime = 30 * time.Second

// maxAnswer bounds what is read of its answer.
const maxAnswer = 16 << 20

// ask gets path from the admin listener of the running daemon into v.
func ask(ctx context.Context, flags *config.Flags, path string, v any) error {
	cfg, err := flags.Load(config.Env{})
	if err != nil {
		return &usageError{err}
	}
	ctx, cancel := context.WithTimeout(ctx, daemonTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+cfg.AdminListen+path, http.NoBody)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask the daemon at %s: %w", cfg.AdminListen, errors.Unwrap(err))
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("ask the daemon at %s: %w", cfg.AdminListen, err)
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the daemon at %s answers %s: %s", cfg.AdminListen, res.Status, strings.TrimSpace(string(body)))
	}
	if err := json.Unmarshal(body, v); err != nil {
		return &hintError{fmt.Errorf("the answer of %s is not understood: %w", cfg.AdminListen, err), "is another program listening there?"}
	}
	return nil
}

func statusCommand(u *ui) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{Use: "status", Short: "say how the daemon is"}
	flags := config.RegisterClient(c.Flags())
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		var s admin.Status
		if err := ask(c.Context(), flags, "/api/v1/status", &s); err != nil {
			return err
		}
		if asJSON {
			return u.json(s)
		}
		u.status(s)
		return nil
	}
	return c
}

// status prints s for a person.
func (u *ui) status(s admin.Status) {
	u.printf("nixp2p %s, up %s\n", s.Version, time.Duration(s.UptimeSeconds*float64(time.Second)).Round(time.Second))
	if !s.Ready {
		u.printf("not ready: %s\n", s.NotReady)
	}
	for _, d := range s.Degraded {
		u.printf("degraded: %s\n", d)
	}
	u.printf("store paths shared  %d\n", s.StorePathsShared)
	u.printf("peers               %d\n", s.Peers)
	u.printf("sent to Nix         store %s, cache %s, peers %s, upstream %s\n", config.FormatSize(s.Bytes.Store),
		config.FormatSize(s.Bytes.Cache), config.FormatSize(s.Bytes.Peer), config.FormatSize(s.Bytes.Upstream))
	u.printf("saved               %s\n", config.FormatSize(s.SavedBytes))
	if s.Cache.Limit > 0 {
		u.printf("NAR cache           %s of %s in %d files\n", config.FormatSize(s.Cache.Bytes), config.FormatSize(s.Cache.Limit), s.Cache.Entries)
	}
	for _, up := range s.Upstreams {
		state := "up"
		if !up.Up {
			state = "down since " + up.Since.Local().Format(time.DateTime) + ": " + up.Why
		}
		u.printf("upstream            %s, %s, %.0f ms\n", up.URL, state, up.LatencyMS)
	}
}

func whyCommand(u *ui) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "why STORE-PATH", Short: "ask every source for a path and say what each answers", Args: cobra.ExactArgs(1),
	}
	flags := config.RegisterClient(c.Flags())
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		h, err := parsePathArg(args[0])
		if err != nil {
			return err
		}
		var w admin.Why
		if err := ask(c.Context(), flags, "/api/v1/why/"+h.String(), &w); err != nil {
			return err
		}
		if asJSON {
			return u.json(w)
		}
		return u.why(w)
	}
	return c
}

// why prints one line a source; nobody having the path is a failure.
func (u *ui) why(w admin.Why) error {
	has := false
	for _, a := range w.Answers {
		u.printf("%-9s %-12s %8.1f ms  %s\n", a.Source, a.Result, a.TookMS, whyDetail(a))
		has = has || a.Result == admin.Has
	}
	if !has {
		u.printf("no source has %s\n", w.StoreHash)
		return errSilent
	}
	return nil
}

func whyDetail(a admin.Answer) string {
	if a.Result != admin.Has {
		return a.Err
	}
	detail := fmt.Sprintf("%s, %s, signed by %s", a.StorePath, config.FormatSize(a.NarSize), strings.Join(a.Signers, ", "))
	if len(a.Forms) > 0 {
		detail = "holds " + strings.Join(a.Forms, ", ")
	}
	return detail
}

// parsePathArg reads a store path, its base name, a path inside it, or its hash alone.
func parsePathArg(s string) (nix.StoreHash, error) {
	base := strings.TrimPrefix(s, nix.StoreDir+"/")
	base, _, _ = strings.Cut(base, "/")
	if p, err := nix.ParseBaseName(base); err == nil {
		return p.Hash(), nil
	}
	h, err := nix.ParseStoreHash(base)
	if err != nil {
		return nix.StoreHash{}, &usageError{&hintError{fmt.Errorf("%q is no store path", s), "give a path such as " + nix.StoreDir + "/<hash>-<name>"}}
	}
	return h, nil
}
