package nixconf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Nix is an installed Nix.
type Nix struct {
	Path         string // of the nix command
	Version      string // "2.34.8"
	major, minor int
}

// Find returns the Nix on PATH, else the one where installers put it: sudo often has a PATH
// without it. The error wraps fs.ErrNotExist if there is none.
func Find(ctx context.Context, getenv func(string) string) (*Nix, error) {
	candidates := []string{"nix", "/run/current-system/sw/bin/nix", "/nix/var/nix/profiles/default/bin/nix"}
	if home := getenv("HOME"); home != "" {
		candidates = append(candidates, filepath.Join(home, ".nix-profile/bin/nix"))
	}
	for _, name := range candidates {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		n := &Nix{Path: path}
		text, err := n.run(ctx, "--version")
		if err != nil {
			return nil, err
		}
		return n, n.parseVersion(string(text))
	}
	return nil, fmt.Errorf("nix: %w", fs.ErrNotExist)
}

// parseVersion reads "nix (Nix) 2.8.0"; other Nixes have their own name and version between
// the brackets, and the version of Nix that they are like behind them.
func (n *Nix) parseVersion(text string) error {
	words := strings.Fields(text)
	if len(words) > 0 {
		n.Version = words[len(words)-1]
	}
	if _, err := fmt.Sscanf(n.Version, "%d.%d", &n.major, &n.minor); err != nil {
		return fmt.Errorf("%s --version says %q", n.Path, strings.TrimSpace(text))
	}
	return nil
}

// AtLeast tells whether this is the given version or a later one.
func (n *Nix) AtLeast(major, minor int) bool {
	return n.major > major || n.major == major && n.minor >= minor
}

// Settings asks Nix what is in effect for this user. An error says why Nix refuses its
// configuration, when it does.
func (n *Nix) Settings(ctx context.Context) (Settings, error) {
	ask := []string{"config", "show"} // since 2.20
	if !n.AtLeast(2, 20) {
		ask = []string{"show-config"}
	}
	text, err := n.run(ctx, append([]string{"--extra-experimental-features", "nix-command"}, append(ask, "--json")...)...)
	if err != nil {
		return Defaults(), err
	}
	return parseShown(text)
}

// run runs nix and returns what it prints.
func (n *Nix) run(ctx context.Context, args ...string) ([]byte, error) {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, n.Path, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = 300 * time.Millisecond // what it started may hold the pipes
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%s %s: %w", n.Path, args[len(args)-1], ctx.Err())
		}
		if said := lastLine(errs.String()); said != "" {
			err = errors.New(said)
		}
		return nil, fmt.Errorf("%s: %w", n.Path, err)
	}
	return out.Bytes(), nil
}

// lastLine returns the last line that says "error:", else the last one.
func lastLine(text string) (last string) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line != "" && (strings.HasPrefix(line, "error:") || !strings.HasPrefix(last, "error:")) {
			last = line
		}
	}
	return last
}
