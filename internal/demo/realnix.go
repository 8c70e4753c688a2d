package demo

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// realNix is the Nix of this machine with a store, a home and a configuration of its own: it
// neither asks the machine's daemon nor touches its store.
type realNix struct {
	path    string
	version string
	dir     string // stores are made in it, and removed once they have been looked at
}

func (n *realNix) name() string { return "nix " + n.version }

// killTime is how long what Nix started may hold its pipes.
const killTime = 2 * time.Second

// fetch has Nix copy the closure into a store that is empty, and hashes what it put there.
func (n *realNix) fetch(ctx context.Context, from string, c *closure) (arrived, int, error) {
	home, err := os.MkdirTemp(n.dir, "nix-")
	if err != nil {
		return nil, 0, err
	}
	defer removeAll(home)
	root := filepath.Join(home, "root")
	if err := n.copy(ctx, home, root, from, c); err != nil {
		return nil, 0, err
	}
	got := arrived{}
	for i := range c.paths {
		if err := ctx.Err(); err != nil {
			return got, 0, err
		}
		p := &c.paths[i]
		hash, size, err := hashOnDisk(filepath.Join(root, p.path.String()))
		switch {
		case err != nil:
			return got, 0, fmt.Errorf("what Nix put into its store: %w", err)
		case hash != p.narHash || size != p.narSize:
			return got, 0, fmt.Errorf("what Nix put into its store: %s has the hash %s, not %s", p.path, hash, p.narHash)
		}
		got[p.path] = true
	}
	return got, 0, nil
}

func (n *realNix) copy(ctx context.Context, home, root, from string, c *closure) error {
	for _, d := range []string{"home", "tmp", "cache", "conf"} {
		if err := os.MkdirAll(filepath.Join(home, d), 0o700); err != nil {
			return err
		}
	}
	store := "local?root=" + url.PathEscape(root)
	cmd := exec.CommandContext(ctx, n.path, "copy", "--from", from, "--to", store, c.top.String())
	var said bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = home, &said, &said
	cmd.SysProcAttr = apart()
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killTime
	cmd.Env = nixEnv(home, store, c.publicKey)
	err := cmd.Run()
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if text := said.String(); err != nil && (strings.Contains(text, "No space left") || strings.Contains(text, "disk is full")) {
		return fmt.Errorf("%w in %s: nix copy: %w: %s", ErrNoRoom, filepath.Dir(n.dir), err, reason(text))
	}
	if err != nil {
		return fmt.Errorf("%w: %w: %s", ErrNix, err, reason(said.String()))
	}
	return nil
}

// nixEnv is all of the environment that Nix is given: nothing of the user's but PATH.
func nixEnv(home, store, key string) []string {
	conf := filepath.Join(home, "conf")
	return []string{
		"PATH=" + os.Getenv("PATH"), "LC_ALL=C",
		"HOME=" + filepath.Join(home, "home"), "TMPDIR=" + filepath.Join(home, "tmp"),
		"XDG_CACHE_HOME=" + filepath.Join(home, "cache"), "XDG_DATA_HOME=" + filepath.Join(home, "home"),
		"XDG_STATE_HOME=" + filepath.Join(home, "home"),
		"XDG_CONFIG_HOME=" + conf, "XDG_CONFIG_DIRS=" + conf, "NIX_CONF_DIR=" + conf, "NIX_USER_CONF_FILES=",
		"NIX_CONFIG=" + strings.Join([]string{
			"experimental-features = nix-command",
			"store = " + store,
			"build-users-group =",
			"sandbox = false",
			"substituters =",
			"trusted-public-keys = " + key,
			"fsync-metadata = false", // all of it is removed in a moment
		}, "\n"),
	}
}

// reason returns what Nix gave as the error, on one line: before it stands what it was doing.
func reason(said string) string {
	if at := strings.Index(said, "error:"); at >= 0 {
		said = said[at:]
	}
	return strings.Join(strings.Fields(said), " ")
}
