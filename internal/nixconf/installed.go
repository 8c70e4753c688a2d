package nixconf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Nix is an installed Nix.
type Nix struct {
	Path         string // of the nix command
	Version      string // "2.34.8"
	major, minor int
}

// Find returns the Nix on PATH, else the one where installers put it: sudo often has a PATH
// without it. Root does not run a program that another user could have put there. The error
// wraps fs.ErrNotExist if there is no Nix.
func Find(ctx context.Context, getenv func(string) string) (*Nix, error) {
	candidates := []string{"nix", "/run/current-system/sw/bin/nix", "/nix/var/nix/profiles/default/bin/nix"}
	if home := getenv("HOME"); home != "" {
		candidates = append(candidates, filepath.Join(home, ".nix-profile/bin/nix"))
	}
	unsafe := ""
	for _, name := range candidates {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		if os.Geteuid() == 0 && !ownedByRoot(path) {
			unsafe = ": root does not run " + path + ", which another user can change"
			continue
		}
		n := &Nix{Path: path}
		text, err := n.run(ctx, "--version")
		if err != nil {
			return nil, err
		}
		return n, n.parseVersion(string(text))
	}
	return nil, fmt.Errorf("nix: %w%s", fs.ErrNotExist, unsafe)
}

// maxLinks bounds how many symbolic links of a path are followed.
const maxLinks = 40

// ownedByRoot reports whether only root can decide which program path is: each directory, link
// and file on the way belongs to root, and no other user can replace an entry.
func ownedByRoot(path string) bool {
	path, err := filepath.Abs(path)
	if err != nil {
		return false
	}
	at, rest := "/", strings.Split(path[1:], "/")
	for links := 0; ; {
		info, err := os.Lstat(at)
		if err != nil {
			return false
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		link := info.Mode()&fs.ModeSymlink != 0
		// In a sticky directory, such as /nix/store, others can only add entries.
		if !ok || st.Uid != 0 || !link && info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0 {
			return false
		}
		if link {
			target, err := os.Readlink(at)
			if links++; err != nil || links > maxLinks {
				return false
			}
			at = filepath.Dir(at)
			if filepath.IsAbs(target) {
				at = "/"
			}
			rest = append(strings.Split(strings.Trim(filepath.Clean(target), "/"), "/"), rest...)
		}
		if len(rest) == 0 {
			return true
		}
		at, rest = filepath.Join(at, rest[0]), rest[1:]
	}
}

// parseVersion reads "nix (Nix) 2.8.0". Variants of Nix put their own name and version between
// the brackets, and the version of Nix to which they correspond at the end.
func (n *Nix) parseVersion(text string) error {
	words := strings.Fields(text)
	if len(words) > 0 {
		n.Version = words[len(words)-1]
	}
	if _, err := fmt.Sscanf(n.Version, "%d.%d", &n.major, &n.minor); err != nil {
		return fmt.Errorf("%s --version printed %q", n.Path, strings.TrimSpace(text))
	}
	return nil
}

// AtLeast reports whether this is the given version or a later one.
func (n *Nix) AtLeast(major, minor int) bool {
	return n.major > major || n.major == major && n.minor >= minor
}

// Settings asks Nix which settings are in effect for this user. If Nix refuses its configuration,
// the error says why.
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
	cmd.WaitDelay = 300 * time.Millisecond // its children may hold the pipes
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%s %s: %w", n.Path, args[len(args)-1], ctx.Err())
		}
		if text := lastLine(errs.String()); text != "" {
			err = errors.New(text)
		}
		return nil, fmt.Errorf("%s: %w", n.Path, err)
	}
	return out.Bytes(), nil
}

// lastLine returns the last line that begins with "error:", else the last one.
func lastLine(text string) (last string) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line != "" && (strings.HasPrefix(line, "error:") || !strings.HasPrefix(last, "error:")) {
			last = line
		}
	}
	return last
}
