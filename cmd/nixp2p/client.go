package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
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

// daemonClient asks the running daemon on its admin listener.
type daemonClient struct{ cfg *config.Config }

// dialDaemon finds out where the daemon listens; it does not ask it yet.
func dialDaemon(flags *config.Flags) (*daemonClient, error) {
	cfg, err := flags.Load(config.Env{})
	if err != nil {
		return nil, &usageError{err}
	}
	return &daemonClient{cfg}, nil
}

// refusedError is an answer of the daemon that says no.
type refusedError struct {
	status int
	reason string
}

func (e *refusedError) Error() string { return e.reason }

// Is lets 404 be absence.
func (e *refusedError) Is(target error) bool {
	return target == fs.ErrNotExist && e.status == http.StatusNotFound
}

// get reads the answer at path into v.
func (d *daemonClient) get(ctx context.Context, path string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, daemonTime)
	defer cancel()
	return d.ask(ctx, http.MethodGet, path, nil, v)
}

// post sends body and reads the answer into v. It takes as long as the daemon does.
func (d *daemonClient) post(ctx context.Context, path string, body, v any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return d.ask(ctx, http.MethodPost, path, text, v)
}

func (d *daemonClient) ask(ctx context.Context, method, path string, body []byte, v any) error {
	at := d.cfg.AdminListen
	req, err := http.NewRequestWithContext(ctx, method, "http://"+at+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask the daemon at %s: %w", at, errors.Unwrap(err))
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("ask the daemon at %s: %w", at, err)
	}
	if res.StatusCode != http.StatusOK {
		var refusal admin.Refusal
		if json.Unmarshal(text, &refusal) != nil || refusal.Error == "" {
			refusal.Error = strings.TrimSpace(string(text))
		}
		return fmt.Errorf("the daemon at %s answers %s: %w", at, res.Status, &refusedError{res.StatusCode, refusal.Error})
	}
	if err := json.Unmarshal(text, v); err != nil {
		return &hintError{fmt.Errorf("the answer of %s is not understood: %w", at, err), "is another program listening there?"}
	}
	return nil
}

// ask gets one answer of the running daemon.
func ask(ctx context.Context, flags *config.Flags, path string, v any) error {
	d, err := dialDaemon(flags)
	if err != nil {
		return err
	}
	return d.get(ctx, path, v)
}

// humanSize writes bytes for people, with two or three digits that matter.
func humanSize(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	x, unit := float64(n)/(1<<10), "KiB"
	for _, u := range []string{"MiB", "GiB", "TiB"} {
		if x < 1000 {
			break
		}
		x, unit = x/(1<<10), u
	}
	if x < 10 {
		return fmt.Sprintf("%.1f %s", x, unit)
	}
	return fmt.Sprintf("%.0f %s", x, unit)
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
	u.printf("sent to Nix         store %s, cache %s, peers %s, upstream %s\n", humanSize(s.Bytes.Store),
		humanSize(s.Bytes.Cache), humanSize(s.Bytes.Peer), humanSize(s.Bytes.Upstream))
	u.printf("saved               %s\n", humanSize(s.SavedBytes))
	if s.Cache.Limit > 0 {
		u.printf("NAR cache           %s of %s in %d files\n", humanSize(s.Cache.Bytes), humanSize(s.Cache.Limit), s.Cache.Entries)
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
	detail := fmt.Sprintf("%s, %s, signed by %s", a.StorePath, humanSize(a.NarSize), strings.Join(a.Signers, ", "))
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
