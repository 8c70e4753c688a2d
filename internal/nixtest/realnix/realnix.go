// Package realnix runs the real Nix for tests and measurements: it finds the
// installed versions, has them build and sign a closure and copy it to binary
// caches, and runs clients that start from nothing. Every store, home, cache and
// configuration is a directory of the caller's, never the machine's /nix.
// It knows nothing of this project's own packages and judges no result: what a
// client printed and stored is handed back for the test to look at.
package realnix

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// RequireEnv names the variable that turns "Nix is absent: skipped" into a
// failure when it is 1, so that a CI machine cannot lose these tests unnoticed.
const RequireEnv = "NIXP2P_REQUIRE_NIX"

// A Variant is a version of Nix other than the machine's, found in a directory
// tree that lab/mknix-chroot.sh makes.
type Variant struct {
	Name string // as in the names of subtests: "2.26"
	Env  string // variable that names the tree
	Dir  string // where it is looked for when the variable is not set
}

// Variants returns the versions that the tests know to ask for. Nix 2.26 is
// what Debian trixie has; 2.34 (sid) substitutes in parallel, parses signatures
// strictly and fails over between substituters, where older ones give up.
func Variants() []Variant {
	return []Variant{
		{Name: "2.26", Env: "NIXP2P_NIX_CHROOT_226", Dir: "/var/cache/nixp2p/chroot/trixie"},
		{Name: "2.34", Env: "NIXP2P_NIX_CHROOT_234", Dir: "/var/cache/nixp2p/chroot/sid"},
	}
}

// Nix is one installed Nix. Its fields are only read after it has been found,
// so it may be shared by tests that run in parallel.
type Nix struct {
	Version string // as Nix prints it: "2.34.8"
	Chroot  string // root of the tree it lives in; empty = the machine's own
}

// Find returns the machine's Nix and skips the test if there is none, or fails
// it if RequireEnv is 1.
func Find(tb testing.TB) *Nix {
	tb.Helper()
	nix, err := LookPath(tb.Context())
	if err != nil {
		skip(tb, os.Getenv(RequireEnv) == "1", err)
	}
	return nix
}

// FindVariant returns the Nix of a tree and skips the test if the tree is not
// there. It fails the test if the variable names a tree that cannot be used:
// whoever sets it wants this version tested.
func FindVariant(tb testing.TB, v Variant) *Nix {
	tb.Helper()
	nix, err := LookChroot(tb.Context(), v)
	if err != nil {
		skip(tb, os.Getenv(v.Env) != "", err)
	}
	return nix
}

func skip(tb testing.TB, required bool, err error) {
	tb.Helper()
	if required {
		tb.Fatalf("real Nix is required here: %v", err)
	}
	tb.Skipf("skipped without real Nix: %v", err)
}

// LookPath returns the Nix on PATH. The error wraps fs.ErrNotExist if there is
// none.
func LookPath(ctx context.Context) (*Nix, error) {
	for _, name := range []string{"nix", "nix-store"} {
		if _, err := exec.LookPath(name); err != nil {
			return nil, fmt.Errorf("realnix: no %s on PATH: %w", name, fs.ErrNotExist)
		}
	}
	return (&Nix{}).withVersion(ctx)
}

// LookChroot returns the Nix in a variant's tree. It needs root, as chroot and
// mount do. The error wraps fs.ErrNotExist if there is no tree.
func LookChroot(ctx context.Context, v Variant) (*Nix, error) {
	dir := os.Getenv(v.Env)
	if dir == "" {
		dir = v.Dir
	}
	if _, err := os.Stat(filepath.Join(dir, "usr/bin/nix")); err != nil {
		return nil, fmt.Errorf("realnix: no tree with Nix %s (make it with lab/mknix-chroot.sh, or set %s): %w", v.Name, v.Env, err)
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("realnix: Nix %s in %s needs root", v.Name, dir)
	}
	nix, err := (&Nix{Chroot: dir}).withVersion(ctx)
	if err == nil && nix.Version != v.Name && !strings.HasPrefix(nix.Version, v.Name+".") {
		return nil, fmt.Errorf("realnix: %s holds Nix %s, not %s", dir, nix.Version, v.Name)
	}
	return nix, err
}

var versionPattern = regexp.MustCompile(`^nix \(Nix\) (\d+\.\d+\S*)`)

func (n *Nix) withVersion(ctx context.Context) (*Nix, error) {
	dir, err := os.MkdirTemp("", "realnix")
	if err != nil {
		return nil, fmt.Errorf("realnix: %w", err)
	}
	defer os.RemoveAll(dir)
	res, err := n.run(ctx, command{dir: dir, argv: []string{"nix", "--version"}})
	if err != nil {
		return nil, err
	}
	m := versionPattern.FindStringSubmatch(res.Stdout)
	if m == nil {
		return nil, fmt.Errorf("realnix: nix --version says %q", res.Stdout)
	}
	n.Version = m[1]
	return n, nil
}

// AtLeast tells whether this Nix is of the given version or a later one; a
// pre-release counts as the release.
func (n *Nix) AtLeast(major, minor int) bool {
	var a, b int
	if _, err := fmt.Sscanf(n.Version, "%d.%d", &a, &b); err != nil {
		return false
	}
	return a > major || a == major && b >= minor
}

// mountPoint is where a command inside a tree sees its directory; every Debian
// tree has it, and nothing else uses it.
const mountPoint = "/mnt"

// enterChroot runs a command in the tree $1 with $2 visible at mountPoint. The
// mounts live in a namespace that ends with the command, so nothing is left to
// clean up however it ends. Nix needs /proc to find itself.
const enterChroot = `mount -t proc proc "$1/proc" && mount --rbind "$2" "$1` + mountPoint + `" &&
root=$1 && shift 2 && exec chroot "$root" "$@"`

// visible returns the name under which a command run with dir sees path, which
// must lie below dir.
func (n *Nix) visible(dir, path string) (string, error) {
	if n.Chroot == "" {
		return path, nil
	}
	rel, err := filepath.Rel(dir, path)
	if err != nil || !filepath.IsLocal(rel) {
		return "", fmt.Errorf("realnix: %s cannot be seen from the tree: it is not below %s", path, dir)
	}
	return filepath.Join(mountPoint, rel), nil
}

// Result is what one command did.
type Result struct {
	Args   []string      // the Nix command, without what was put before it
	Stdout string        // as printed
	Stderr string        // as printed
	Wall   time.Duration // from start to exit
	CPU    time.Duration // user and system time of the command and all children it waited for
}

// Lines returns the non-empty lines of the standard output.
func (r Result) Lines() []string {
	return strings.FieldsFunc(r.Stdout, func(c rune) bool { return c == '\n' })
}

// A CommandError is a command that ran and failed; its text ends with the last
// lines that the command wrote to its standard error.
type CommandError struct {
	Result
	Err error // of os/exec
}

func (e *CommandError) Error() string {
	lines := strings.Split(strings.TrimSpace(e.Stderr), "\n")
	lines = lines[max(0, len(lines)-12):] // Nix first lists all that it would have done
	return fmt.Sprintf("realnix: %s: %v: %s", strings.Join(e.Args, " "), e.Err, strings.Join(lines, "\n"))
}

func (e *CommandError) Unwrap() error { return e.Err }

// command is one process to run.
type command struct {
	dir    string   // holds all that the command may read and write; its working directory
	prefix []string // put before everything else, such as ip netns exec NAME
	argv   []string
	config string // text of nix.conf
}

// run runs a command with nothing of the caller's environment but PATH, so that
// the user's configuration and the machine's daemon have no say.
func (n *Nix) run(ctx context.Context, c command) (Result, error) {
	res := Result{Args: c.argv}
	dir, err := n.visible(c.dir, c.dir)
	if err != nil {
		return res, err
	}
	path := os.Getenv("PATH")
	argv := append([]string(nil), c.prefix...)
	if n.Chroot != "" {
		path = "/usr/sbin:/usr/bin:/sbin:/bin"
		argv = append(argv, "unshare", "--mount", "sh", "-c", enterChroot, "realnix", n.Chroot, c.dir)
	}
	argv = append(argv, c.argv...)

	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.dir, &stdout, &stderr
	cmd.WaitDelay = 5 * time.Second // a builder that outlives its Nix may hold the pipes
	cmd.Env = []string{
		"PATH=" + path,
		"LC_ALL=C",
		"HOME=" + filepath.Join(dir, "home"),
		"TMPDIR=" + filepath.Join(dir, "tmp"),
		"XDG_CACHE_HOME=" + filepath.Join(dir, "cache"),
		"XDG_CONFIG_HOME=" + filepath.Join(dir, "conf"),
		"XDG_CONFIG_DIRS=" + filepath.Join(dir, "conf"),
		"XDG_DATA_HOME=" + filepath.Join(dir, "data"),
		"XDG_STATE_HOME=" + filepath.Join(dir, "state"),
		"NIX_CONF_DIR=" + filepath.Join(dir, "conf"),
		"NIX_CONFIG=" + c.config,
	}
	start := time.Now()
	err = cmd.Run()
	res.Wall = time.Since(start)
	res.Stdout, res.Stderr = stdout.String(), stderr.String()
	if state := cmd.ProcessState; state != nil {
		res.CPU = state.UserTime() + state.SystemTime()
	}
	if err != nil {
		if ctx.Err() != nil {
			err = errors.Join(ctx.Err(), err)
		}
		return res, &CommandError{Result: res, Err: err}
	}
	return res, nil
}

// makeDirs makes the directories that run points a command at.
func makeDirs(dir string) error {
	for _, sub := range []string{"home", "tmp", "cache", "conf", "data", "state"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return fmt.Errorf("realnix: %w", err)
		}
	}
	return nil
}
