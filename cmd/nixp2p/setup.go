package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/nixp2p/nixp2p/internal/config"
	"github.com/nixp2p/nixp2p/internal/nixconf"
)

// setupOptions are the flags of setup.
type setupOptions struct {
	apply, undo, asJSON bool
	file                string
}

func setupCommand(u *ui) *cobra.Command {
	var o setupOptions
	c := &cobra.Command{
		Use: "setup", Short: "put the node into nix.conf, or take it out",
		Long: `Shows the change of nix.conf that lets Nix ask this node first, and makes it with --apply.
Whatever else stands in the file stays, and what it was is kept beside it. --undo gives the
old bytes back; where the file was changed meanwhile only what setup put there goes.`,
	}
	flags := config.Register(c.Flags())
	c.Flags().BoolVar(&o.apply, "apply", false, "make the change")
	c.Flags().BoolVar(&o.undo, "undo", false, "take the change back")
	c.Flags().StringVar(&o.file, "nix-conf", "", "change `FILE` (default $NIX_CONF_DIR/nix.conf, /etc/nix/nix.conf)")
	c.Flags().BoolVar(&o.asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if o.apply && o.undo {
			return &usageError{&hintError{errors.New("--apply and --undo undo each other"), "give one of them"}}
		}
		cfg, err := flags.Load(config.Env{})
		if err != nil && !o.undo {
			return u.problems(err)
		}
		return u.setup(c.Context(), cfg, o)
	}
	return c
}

// setupResult is what setup prints with --json.
type setupResult struct {
	File    string         `json:"file"`
	URL     string         `json:"url,omitempty"`
	Change  bool           `json:"change"` // there is something to change
	Done    bool           `json:"done"`   // and it was changed
	Removes bool           `json:"removes_file,omitempty"`
	Edits   []nixconf.Edit `json:"edits"`
	Backup  string         `json:"backup,omitempty"`
	Notes   []string       `json:"notes"`
	Restart string         `json:"restart,omitempty"` // the command that makes Nix notice
}

func (u *ui) setup(ctx context.Context, cfg *config.Config, o setupOptions) error {
	places := nixconf.Look(os.Getenv)
	if o.file == "" {
		o.file = places.System
	}
	var plan *nixconf.Plan
	var notes []string
	url, err := substituterURL(cfg.Listen)
	switch {
	case o.undo:
		plan, err = nixconf.NewUndo(o.file, os.Getenv("NIX_STORE_DIR"))
	case err != nil:
		return &usageError{&hintError{fmt.Errorf("listen %s: %w", cfg.Listen, err), "give --listen an address such as 127.0.0.1:7654"}}
	default:
		want := nixconf.Want{URL: url, UserFiles: places.User, StoreDir: os.Getenv("NIX_STORE_DIR")}
		want.Fallback, notes = knowsFallback(ctx)
		plan, err = nixconf.NewPlan(o.file, want)
	}
	if err != nil {
		return setupHint(err, url)
	}
	r := setupResult{
		File: plan.File, URL: url, Change: !plan.Nothing(), Removes: plan.Removes(), Edits: plan.Edits, Backup: plan.Backup,
		Notes: append(append([]string{}, plan.Notes...), notes...), Restart: restartNix(),
	}
	if o.undo {
		r.URL = ""
	}
	if r.Edits == nil {
		r.Edits = []nixconf.Edit{}
	}
	if o.apply || o.undo {
		if err := plan.Make(); err != nil {
			return setupHint(err, url)
		}
		r.Done = r.Change
	}
	if o.asJSON {
		return u.json(r)
	}
	u.setupDone(r, o)
	return nil
}

// nixTime bounds the question for the version of Nix.
const nixTime = 10 * time.Second

// knowsFallback tells whether `fallback` does what it says.
func knowsFallback(ctx context.Context) (bool, []string) {
	ctx, cancel := context.WithTimeout(ctx, nixTime)
	defer cancel()
	const left = "`fallback = true`, which lets Nix go on when a cache does not answer, is left out: "
	n, err := nixconf.Find(ctx, os.Getenv)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, []string{left + "no Nix was found to ask for its version, and before 2.13 it crashes with that."}
	case err != nil:
		return false, []string{left + err.Error() + "."}
	case !n.AtLeast(2, 13):
		return false, []string{left + "Nix " + n.Version + " crashes with that when a cache goes away; 2.13 does not."}
	}
	return true, nil
}

// setupHint says what to do about a file that cannot be changed.
func setupHint(err error, url string) error {
	var managed *nixconf.ManagedError
	var changed *nixconf.ChangedError
	var syntax *nixconf.SyntaxError
	hint := ""
	switch {
	case errors.As(err, &managed):
		hint = "write into the configuration that makes it, with the module of nixp2p among its imports,\n\n" + moduleSnippet(url) +
			"\nor, for a node that is run in another way,\n\n" + settingsSnippet(url)
	case errors.As(err, &changed):
		hint = "take out by hand what stands between \"# nixp2p setup: begin\" and \"# nixp2p setup: end\", and the URL of the node in the line `substituters`"
		if changed.Backup != "" {
			hint += "; what the file was before the setup is in " + changed.Backup
		}
	case errors.As(err, &syntax):
		hint = "mend that line first: Nix itself refuses the file"
	case errors.Is(err, fs.ErrPermission):
		hint = "run it as root: `sudo nixp2p setup …`"
	case errors.Is(err, syscall.EROFS):
		hint = "the file system is read-only: change the file where it is made, or name another with --nix-conf"
	case errors.Is(err, nixconf.ErrMeanwhile):
		hint = "run it again"
	}
	if hint == "" {
		return err
	}
	return &hintError{err, hint}
}

// moduleSnippet is what the change is on NixOS.
func moduleSnippet(url string) string {
	s := "    services.nixp2p.enable = true;\n"
	if listen := strings.TrimPrefix(url, "http://"); url != "" && listen != "127.0.0.1:7654" {
		s += fmt.Sprintf("    services.nixp2p.settings.listen = %q;\n", listen)
	}
	return s
}

func settingsSnippet(url string) string {
	return fmt.Sprintf("    nix.settings.substituters = lib.mkBefore [ %q ];\n    nix.settings.connect-timeout = %d;\n    nix.settings.fallback = true;\n",
		url, nixconf.ConnectTimeout)
}

// restartNix returns the command after which the Nix daemon goes by the new file, "" where
// there is no daemon: then the next command does.
func restartNix() string {
	if runtime.GOOS == "darwin" {
		for _, label := range []string{"org.nixos.nix-daemon", "systems.determinate.nix-daemon"} {
			if _, err := os.Stat("/Library/LaunchDaemons/" + label + ".plist"); err == nil {
				return "sudo launchctl kickstart -k system/" + label
			}
		}
	}
	if _, err := os.Stat("/run/systemd/system"); err == nil && systemdHas("nix-daemon.service") {
		return "sudo systemctl restart nix-daemon.service"
	}
	if _, err := os.Stat("/nix/var/nix/daemon-socket/socket"); err == nil {
		return "restart nix-daemon with what started it"
	}
	return ""
}

func systemdHas(unit string) bool {
	for _, dir := range []string{"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"} {
		if _, err := os.Stat(filepath.Join(dir, unit)); err == nil {
			return true
		}
	}
	return false
}

// setupDone prints a result for a person.
func (u *ui) setupDone(r setupResult, o setupOptions) {
	switch {
	case !r.Change && o.undo:
		u.printf("%s: nothing of nixp2p setup is in it\n", r.File)
	case !r.Change:
		u.printf("%s: nothing to do, it has %s\n", r.File, r.URL)
	default:
		u.setupEdits(r)
		u.setupNext(r, o)
	}
	for _, n := range r.Notes {
		u.printf("note: %s\n", n)
	}
}

func (u *ui) setupEdits(r setupResult) {
	u.printf("%s:\n", r.File)
	for _, e := range r.Edits {
		for _, l := range e.Old {
			u.printf("%5d - %s\n", e.Line, l)
			e.Line++
		}
		for _, l := range e.New {
			u.printf("      + %s\n", l)
		}
	}
}

// setupNext says what was done, and what is to be done now.
func (u *ui) setupNext(r setupResult, o setupOptions) {
	switch {
	case !r.Done:
		u.printf("nothing is changed yet: run it again with --apply\n")
		return
	case r.Removes:
		u.printf("removed: it was not there before\n")
	case o.undo:
		u.printf("undone\n")
	case r.Backup != "":
		u.printf("done; what it was is in %s, and `nixp2p setup --undo` gives it back\n", r.Backup)
	default:
		u.printf("done; `nixp2p setup --undo` takes it back\n")
	}
	if r.Restart != "" {
		u.printf("now let the Nix daemon notice: %s\n", r.Restart)
	} else {
		u.printf("there is no Nix daemon: the next command goes by it\n")
	}
}

// errNoURL says that Nix cannot ask the node.
var errNoURL = errors.New("Nix asks substituters over TCP, on a port that stays the same") //nolint:staticcheck // a name

// substituterURL returns what stands in nix.conf for a node that listens there.
func substituterURL(listen string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil || strings.HasPrefix(listen, "unix:") || port == "0" {
		return "", errNoURL
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port), nil
}
