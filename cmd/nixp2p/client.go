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

// refusedError is an error that the daemon answered with.
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
		return &hintError{fmt.Errorf("the answer of %s is not valid: %w", at, err), "is another program listening there?"}
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

// humanSize writes bytes for people, as the status page does.
func humanSize(n int64) string { return admin.FormatBytes(n) }

// parsePathArg reads a store path, its base name, a path inside it, or its hash alone.
func parsePathArg(s string) (nix.StoreHash, error) {
	base := strings.TrimPrefix(s, nix.StoreDir+"/")
	base, _, _ = strings.Cut(base, "/")
	if p, err := nix.ParseBaseName(base); err == nil {
		return p.Hash(), nil
	}
	h, err := nix.ParseStoreHash(base)
	if err != nil {
		return nix.StoreHash{}, &usageError{&hintError{fmt.Errorf("%q is not a store path", s), "give a path such as " + nix.StoreDir + "/<hash>-<name>"}}
	}
	return h, nil
}
