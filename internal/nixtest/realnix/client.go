package realnix

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Client is one Nix user with a store of its own, empty at the start, and no
// daemon. Change its fields between commands, not during one.
//
// Where no interface but loopback is up, as in a network namespace without
// links, the nix command (but not nix-store) thinks itself offline: it retries
// no download, and nix build substitutes nothing unless the settings say
// substitute = true.
type Client struct {
	Nix  *Nix
	Dir  string // all that belongs to the client lies in it
	Root string // the store is Root/nix/store, its database Root/nix/var/nix/db/db.sqlite

	Substituters []string          // URLs asked by Realise and RepairPath
	TrustedKeys  []string          // public keys, name:base64
	Settings     map[string]string // further lines of nix.conf; they win over the client's own
	Prefix       []string          // put before each command: ip netns exec NAME, nice, ...
}

// NewClient makes a client with an empty store in dir, which is made if need
// be. The caller removes dir, with RemoveAll.
func (n *Nix) NewClient(dir string, trustedKeys ...string) (*Client, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("realnix: %w", err)
	}
	if err := makeDirs(dir); err != nil {
		return nil, err
	}
	return &Client{Nix: n, Dir: dir, Root: filepath.Join(dir, "root"), TrustedKeys: trustedKeys}, nil
}

// TempClient makes a client that is removed when the test ends.
func (n *Nix) TempClient(tb testing.TB, trustedKeys ...string) *Client {
	tb.Helper()
	// Not TempDir: it cannot remove the read-only directories of a store.
	dir, err := os.MkdirTemp("", "realnix-client")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	c, err := n.NewClient(dir, trustedKeys...)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// RemoveAll removes a tree that may contain a Nix store, whose directories are
// read-only also for their owner.
func RemoveAll(dir string) error {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("realnix: %w", err)
	}
	return nil
}

// Real returns where a store path lies on this machine.
func (c *Client) Real(storePath string) string { return filepath.Join(c.Root, storePath) }

// Visible returns the name under which the client's commands see a file below Dir.
func (c *Client) Visible(path string) (string, error) { return c.Nix.visible(c.Dir, path) }

// Run runs a Nix command against the client's store. A command that fails
// returns what it printed and a *CommandError.
func (c *Client) Run(ctx context.Context, argv ...string) (Result, error) {
	root, err := c.Nix.visible(c.Dir, c.Root)
	if err != nil {
		return Result{}, err
	}
	return c.Nix.run(ctx, command{dir: c.Dir, prefix: c.Prefix, argv: argv, config: c.config(root)})
}

func (c *Client) config(root string) string {
	var b strings.Builder
	line := func(key, value string) { fmt.Fprintf(&b, "%s = %s\n", key, value) }
	line("experimental-features", "nix-command")
	line("store", storeURL(root))
	line("build-users-group", "")
	line("sandbox", "false")
	line("substituters", strings.Join(c.Substituters, " "))
	line("trusted-public-keys", strings.Join(c.TrustedKeys, " "))
	line("fsync-metadata", "false") // nothing of it has to outlive the machine
	// A 404 must not be remembered for an hour: tests add paths and look again.
	line("narinfo-cache-negative-ttl", "0")
	for _, key := range slices.Sorted(maps.Keys(c.Settings)) {
		line(key, c.Settings[key])
	}
	return b.String()
}

func storeURL(root string) string { return "local?root=" + url.PathEscape(root) }

// Copy copies paths with their closures from a cache into the store. A Nix in a
// tree can reach caches by HTTP only.
func (c *Client) Copy(ctx context.Context, from string, paths ...string) (Result, error) {
	return c.Run(ctx, append([]string{"nix", "copy", "--from", from}, paths...)...)
}

// Realise makes paths valid with nix-store -r, from the substituters.
func (c *Client) Realise(ctx context.Context, paths ...string) (Result, error) {
	return c.Run(ctx, append([]string{"nix-store", "-r"}, paths...)...)
}

// PathInfoR asks a cache for the closures of paths and returns them, sorted.
func (c *Client) PathInfoR(ctx context.Context, from string, paths ...string) ([]string, Result, error) {
	res, err := c.Run(ctx, append([]string{"nix", "path-info", "-r", "--store", from}, paths...)...)
	lines := res.Lines()
	slices.Sort(lines)
	return lines, res, err
}

// VerifyAll compares every path of the store with the hash in its database.
func (c *Client) VerifyAll(ctx context.Context) (Result, error) {
	return c.Run(ctx, "nix-store", "--verify", "--check-contents")
}

// RepairPath fetches a valid path again from the substituters if its contents
// do not match the database.
func (c *Client) RepairPath(ctx context.Context, path string) (Result, error) {
	return c.Run(ctx, "nix-store", "--repair-path", path)
}

// ForgetAnswers removes what the client remembers of caches: nix-cache-info and
// narinfos, which Nix otherwise believes for 7 and 30 days.
func (c *Client) ForgetAnswers() error {
	if err := os.RemoveAll(filepath.Join(c.Dir, "cache")); err != nil {
		return fmt.Errorf("realnix: %w", err)
	}
	return makeDirs(c.Dir)
}

// Path is a valid path as Nix describes it.
type Path struct {
	StorePath  string   `json:"path"`
	NarHash    string   `json:"narHash"` // sha256-BASE64
	NarSize    int64    `json:"narSize"`
	References []string `json:"references"` // full paths, sorted
	Sigs       []string `json:"signatures"` // name:base64, sorted
}

// Paths returns all valid paths of the store, sorted.
func (c *Client) Paths(ctx context.Context) ([]Path, error) {
	return c.pathInfo(ctx, "--all")
}

// Closure returns the closure of a valid path, sorted.
func (c *Client) Closure(ctx context.Context, path string) ([]Path, error) {
	return c.pathInfo(ctx, "-r", path)
}

// Sigs returns the signatures in the database of every valid path, sorted.
func (c *Client) Sigs(ctx context.Context) (map[string][]string, error) {
	paths, err := c.Paths(ctx)
	if err != nil {
		return nil, err
	}
	sigs := make(map[string][]string, len(paths))
	for _, p := range paths {
		sigs[p.StorePath] = p.Sigs
	}
	return sigs, nil
}

func (c *Client) pathInfo(ctx context.Context, args ...string) ([]Path, error) {
	argv := []string{"nix", "path-info", "--json"}
	if c.Nix.AtLeast(2, 34) {
		argv = append(argv, "--json-format", "1") // not naming one is deprecated
	}
	res, err := c.Run(ctx, append(argv, args...)...)
	if err != nil {
		return nil, err
	}
	return parsePathInfo([]byte(res.Stdout))
}

// parsePathInfo reads the two forms of nix path-info --json: a list of objects
// with a path up to Nix 2.18, an object keyed by path from 2.19.
func parsePathInfo(text []byte) ([]Path, error) {
	var paths []Path
	if err := json.Unmarshal(text, &paths); err != nil {
		var byPath map[string]Path
		if err := json.Unmarshal(text, &byPath); err != nil {
			return nil, fmt.Errorf("realnix: output of nix path-info: %w", err)
		}
		for name, p := range byPath {
			p.StorePath = name
			paths = append(paths, p)
		}
	}
	for _, p := range paths {
		slices.Sort(p.References)
		slices.Sort(p.Sigs)
	}
	slices.SortFunc(paths, func(a, b Path) int { return strings.Compare(a.StorePath, b.StorePath) })
	return paths, nil
}
