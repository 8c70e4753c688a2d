package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
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
		Use: "setup", Short: "make Nix use the node, or undo that",
		Long: `Shows the change that makes Nix use this node, and applies it with --apply. It writes a file
nixp2p.conf next to nix.conf and adds one line to nix.conf that includes it; nothing else in
nix.conf changes. --undo removes both, and the URL of the node wherever else nix.conf names it.`,
	}
	flags := configFlags(c)
	c.Flags().BoolVar(&o.apply, "apply", false, "apply the change")
	c.Flags().BoolVar(&o.undo, "undo", false, "undo the change")
	c.Flags().StringVar(&o.file, "nix-conf", "", "change `FILE` (default $NIX_CONF_DIR/nix.conf, /etc/nix/nix.conf)")
	c.Flags().BoolVar(&o.asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if o.apply && o.undo {
			return &usageError{errors.New("--apply and --undo cannot be combined")}
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
	File    string         `json:"file"` // nix.conf
	Own     string         `json:"own_file"`
	URL     string         `json:"url,omitempty"`
	Change  bool           `json:"change"` // there is something to change
	Done    bool           `json:"done"`   // and it was changed
	Removes bool           `json:"removes_file,omitempty"`
	Edits   []nixconf.Edit `json:"edits"`
	Notes   []string       `json:"notes"`
	Restart string         `json:"restart,omitempty"` // the command that makes the Nix daemon read nix.conf again
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
		plan, err = nixconf.NewUndo(o.file, url, os.Getenv("NIX_STORE_DIR"))
	case err != nil:
		return &usageError{&hintError{fmt.Errorf("listen %s: %w", cfg.Listen, err), "give --listen an address such as 127.0.0.1:7654"}}
	default:
		want := nixconf.Want{URL: url, UserFiles: places.User, StoreDir: os.Getenv("NIX_STORE_DIR")}
		want.Fallback, notes = knowsFallback(ctx)
		notes = append(notes, proxyNote(url)...)
		plan, err = nixconf.NewPlan(o.file, want)
	}
	if err != nil {
		return setupHint(err, url)
	}
	r := setupResult{
		File: plan.File, Own: plan.Own, URL: url, Change: !plan.Nothing(), Removes: plan.Removes(),
		Edits: append([]nixconf.Edit{}, plan.Edits...), Notes: append(append([]string{}, plan.Notes...), notes...), Restart: restartNix(),
	}
	if o.undo {
		r.URL = ""
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
	u.setupDone(r, o.undo)
	return nil
}

// nixTime bounds the question for the version of Nix.
const nixTime = 10 * time.Second

// knowsFallback reports whether this Nix can be used with `fallback`.
func knowsFallback(ctx context.Context) (bool, []string) {
	ctx, cancel := context.WithTimeout(ctx, nixTime)
	defer cancel()
	const left = "`fallback = true`, which lets Nix continue when a cache does not answer, is not set: "
	n, err := nixconf.Find(ctx, os.Getenv)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, []string{left + "no Nix was found (" + err.Error() + "), and Nix before 2.13 crashes with it."}
	case err != nil:
		return false, []string{left + err.Error() + "."}
	case !n.AtLeast(2, 13):
		return false, []string{left + "Nix " + n.Version + " crashes with it when a cache goes away; 2.13 does not."}
	}
	return true, nil
}

// proxyNote says that the environment sends Nix through a proxy also to the node. That of the Nix
// daemon may be another one, which the doctor looks at.
func proxyNote(substituter string) []string {
	to, err := url.Parse(substituter)
	if err != nil {
		return nil
	}
	variable, proxy := nixconf.ProxyTo(os.Getenv, to.Hostname())
	if variable == "" {
		return nil
	}
	if at, err := url.Parse(proxy); err == nil {
		proxy = at.Redacted()
	}
	return []string{fmt.Sprintf("%s=%s sends Nix through a proxy also to this node, which a proxy cannot reach: add %s to no_proxy, "+
		"here and in the environment of the Nix daemon; `nixp2p doctor` shows whether it arrives there.", variable, proxy, to.Hostname())}
}

// setupHint adds what to do about a file that cannot be changed.
func setupHint(err error, url string) error {
	var managed *nixconf.ManagedError
	var syntax *nixconf.SyntaxError
	hint := ""
	switch {
	case errors.As(err, &managed):
		hint = "add to the configuration that generates it, with the module of nixp2p in its imports,\n\n" + moduleSnippet(url) +
			"\nor, if the node is not run by the module,\n\n" + settingsSnippet(url)
	case errors.As(err, &syntax):
		hint = "fix that line first: Nix itself refuses the file"
	case errors.Is(err, fs.ErrPermission):
		hint = "run it as root: `sudo nixp2p setup …`"
	case errors.Is(err, syscall.EROFS):
		hint = "the file system is read-only: change the file where it is generated, or name another with --nix-conf"
	case errors.Is(err, nixconf.ErrMeanwhile):
		hint = "run it again"
	}
	if hint == "" {
		return err
	}
	return &hintError{err, hint}
}

// moduleSnippet is the change on NixOS.
func moduleSnippet(url string) string {
	s := "    services.nixp2p.enable = true;\n    services.nixp2p.openFirewall = true; # for machines around this one\n"
	if listen := strings.TrimPrefix(url, "http://"); url != "" && listen != "127.0.0.1:7654" {
		s += fmt.Sprintf("    services.nixp2p.settings.listen = %q;\n", listen)
	}
	return s
}

func settingsSnippet(url string) string {
	return fmt.Sprintf("    nix.settings.substituters = lib.mkBefore [ %q ];\n    nix.settings.connect-timeout = %d;\n    nix.settings.fallback = true;\n",
		url, nixconf.ConnectTimeout)
}

// restartNix returns the command that makes the Nix daemon read its configuration again. It is ""
// without a daemon: then the next command reads it.
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
		return "restart nix-daemon in the way it was started"
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
func (u *ui) setupDone(r setupResult, undo bool) {
	for _, e := range r.Edits {
		u.printf("%s:\n", e.File)
		for i, l := range e.Old {
			u.printf("%5d - %s\n", e.Line+i, l)
		}
		for _, l := range e.New {
			u.printf("      + %s\n", l)
		}
	}
	switch {
	case !r.Change && undo:
		u.printf("nothing to undo in %s\n", r.File)
	case !r.Change:
		u.printf("nothing to do: %s already names %s\n", r.File, r.URL)
	case !r.Done:
		u.printf("nothing has been changed: add --apply to apply this\n")
	case r.Removes:
		u.printf("undone; %s is removed, since it did not exist before\n", r.File)
	case undo:
		u.printf("undone\n")
	default:
		u.printf("done; `nixp2p setup --undo` undoes it\n")
	}
	switch {
	case r.Done && r.Restart != "":
		u.printf("restart the Nix daemon to apply this: %s\n", r.Restart)
	case r.Done:
		u.printf("there is no Nix daemon: the next Nix command uses it\n")
	}
	for _, n := range r.Notes {
		u.printf("note: %s\n", n)
	}
}

// substituterURL returns the URL for nix.conf of a node that listens there.
func substituterURL(listen string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil || strings.HasPrefix(listen, "unix:") || port == "0" {
		return "", errors.New("Nix needs a TCP address with a fixed port") //nolint:staticcheck // a name
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port), nil
}
