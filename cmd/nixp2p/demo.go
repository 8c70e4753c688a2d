package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/nixp2p/nixp2p/internal/config"
	"github.com/nixp2p/nixp2p/internal/demo"
)

// demoOptions are the flags of demo.
type demoOptions struct {
	asJSON, lie       bool
	size, uplink, lan string
	paths             int
}

func demoCommand(u *ui) *cobra.Command {
	var o demoOptions
	c := &cobra.Command{
		Use: "demo", Short: "show on this machine what nodes do for each other",
		Long: `Makes up signed store paths and an upstream cache behind a slow line, starts three daemons,
and fetches all paths through each of them, as Nix does. The first one gets them from the
upstream, the second from the first, and while the third fetches, the first is killed. Then it
shows where the bytes came from.

All of it is on 127.0.0.1, on free ports, and in a temporary directory ($TMPDIR) that is removed
at the end. This machine's Nix store, its configuration and a node that runs here are not
touched.

The exit code is 0 only if every path arrived as it was signed, the second node needed nothing
from the upstream, and the third finished although the first was killed.`,
	}
	f := c.Flags()
	f.StringVar(&o.uplink, "uplink", "50Mbit/s", "`RATE` at which the upstream sends")
	f.StringVar(&o.lan, "lan", "1Gbit/s", "highest `RATE` at which a node sends to others")
	f.StringVar(&o.size, "size", "80MB", "`SIZE` of all paths together")
	f.BoolVar(&o.asJSON, "json", false, "print JSON")
	f.BoolVar(&o.lie, "lie", false, "the upstream sends wrong bytes, so the demo fails")
	f.IntVar(&o.paths, "paths", 80, "number of paths")
	for _, forTests := range []string{"lie", "paths"} {
		_ = f.MarkHidden(forTests)
	}
	c.RunE = func(c *cobra.Command, _ []string) error { return u.demo(c.Context(), o) }
	return c
}

// demoNodeCommand is `serve` for the demo: it ends with the process that started it, even if
// that is killed.
func demoNodeCommand(u *ui) *cobra.Command {
	c := &cobra.Command{Use: "demo-node", Short: "run the daemon until standard input ends", Hidden: true}
	flags := configFlags(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(exitFailed)
		}()
		return serve(c.Context(), u, func() (*config.Config, error) { return flags.Load(config.Env{}) })
	}
	return c
}

func (o demoOptions) config() (cfg demo.Config, err error) {
	self, err := ownPath()
	if err != nil {
		return cfg, err
	}
	cfg = demo.Config{
		Node: []string{self, "demo-node"}, Lie: o.lie, Paths: o.paths, Dir: os.TempDir(),
		Tell: func(string) {}, Progress: func(demo.Progress) {},
	}
	for _, x := range []struct {
		flag, text string
		parse      func(string) (int64, error)
		to         *int64
	}{
		{"size", o.size, config.ParseSize, &cfg.Size},
		{"uplink", o.uplink, config.ParseRate, &cfg.Uplink},
		{"lan", o.lan, config.ParseRate, &cfg.LAN},
	} {
		if *x.to, err = x.parse(x.text); err == nil && *x.to < 1e5 {
			err = errors.New("the least is 100kB")
		}
		if err != nil {
			return cfg, &usageError{fmt.Errorf("--%s %s: %w", x.flag, x.text, err)}
		}
	}
	return cfg, nil
}

// ownPath returns the path of this program. Without /proc, as in a bare chroot, it is found as
// the shell found it.
func ownPath() (string, error) {
	self, err := os.Executable()
	if err == nil {
		return self, nil
	}
	if self, lerr := exec.LookPath(os.Args[0]); lerr == nil {
		return filepath.Abs(self)
	}
	return "", err
}

func (u *ui) demo(ctx context.Context, o demoOptions) error {
	cfg, err := o.config()
	if err != nil {
		return err
	}
	// It also cleans up when the terminal is closed, or the reader of its output ends.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGHUP)
	defer stop()
	pipe := make(chan os.Signal, 1) // without this, SIGPIPE ends the process
	signal.Notify(pipe, syscall.SIGPIPE)
	defer signal.Stop(pipe)
	show := &demoShow{terminal: u.terminal(), u: u, unread: stop, began: time.Now(), bar: liveLine{out: u.err, live: onTerminal(u.out) && onTerminal(u.err)}}
	if !o.asJSON {
		cfg.Tell, cfg.Progress = show.tell, show.progress
	}
	result, err := demo.Run(ctx, cfg)
	show.bar.erase()
	switch {
	case o.asJSON:
		if jerr := u.json(result); jerr != nil {
			return jerr
		}
	case len(result.Nodes) > 0:
		show.table(result)
	}
	return demoHint(err)
}

// demoHint adds what to do about a demo that failed.
func demoHint(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled):
		return errors.New("interrupted; everything it started is stopped and removed")
	case errors.Is(err, demo.ErrNoSpace):
		return &hintError{err, "name another directory, `TMPDIR=/var/tmp nixp2p demo`, or give a smaller --size"}
	case errors.Is(err, demo.ErrLoopback):
		return &hintError{err, "a sandbox or a firewall is between them, or there is no interface `lo`: Nix could not reach a node here either"}
	case errors.Is(err, demo.ErrUpstream):
		return &hintError{err, "is this machine busy? A node that gets nothing from another within a second asks the upstream"}
	case errors.Is(err, fs.ErrPermission):
		return &hintError{err, "name a directory that you can write to, `TMPDIR=/var/tmp nixp2p demo`"}
	}
	return err
}

// demoShow prints the steps, and on a terminal one line that changes.
type demoShow struct {
	terminal
	u      *ui
	unread func() // called when the reader of the output has ended
	began  time.Time
	bar    liveLine
}

func (s *demoShow) tell(text string) {
	s.bar.erase()
	at := fmt.Sprintf("%5.1f s", time.Since(s.began).Seconds())
	for line := range strings.SplitSeq(text, "\n") {
		if _, err := fmt.Fprintf(s.u.out, "%s  %s\n", s.paint(dim, at), line); err != nil {
			s.unread()
		}
		at = strings.Repeat(" ", len(at))
	}
}

func (s *demoShow) progress(p demo.Progress) {
	if s.bar.live {
		s.bar.show(fmt.Sprintf("         %s  %5.1f s  %s from upstream, %s from peers", s.paint(bold, p.Node),
			p.Elapsed.Seconds(), demo.FormatMB(p.FromUpstream), demo.FormatMB(p.FromPeers)))
	}
}

// table shows where the bytes came from.
func (s *demoShow) table(r demo.Result) {
	var rows [][]cell
	for _, n := range r.Nodes {
		rows = append(rows, []cell{
			{text: n.Name}, {text: fmt.Sprintf("%d/%d", n.Paths, r.Paths)}, {text: demo.FormatMB(n.FromUpstream)}, {text: demo.FormatMB(n.FromPeers)},
			{text: fmt.Sprintf("%.1f s", n.Seconds)}, {text: demoNote(r, n)},
		})
	}
	s.u.printf("\n")
	s.u.lines(s.terminal.table([]string{"NODE", "PATHS", "NARS FROM UPSTREAM", "FROM PEERS", "TIME", ""}, rows))
	if !r.OK {
		s.u.printf("\n%s\n", s.paint(red, "It did not work."))
		return
	}
	s.u.printf("\nThe upstream sent %s of zstd files. To three machines without nixp2p it would have sent %s (3 x %s).\n",
		s.paint(bold, demo.FormatMB(r.UplinkBytes)), s.paint(bold, demo.FormatMB(r.UplinkWithout)), demo.FormatMB(r.Files))
	s.u.printf("%s Every path arrived as it was signed. Nothing is left behind.\n", s.paint(green, "It worked."))
}

func demoNote(r demo.Result, n demo.Node) string {
	var notes []string
	if n.FromCache > 0 {
		notes = append(notes, "(and "+demo.FormatMB(n.FromCache)+" from its cache)")
	}
	if n.Name == "C" && r.KilledAfter > 0 {
		notes = append(notes, "A was killed after "+demo.FormatMB(r.KilledAfter))
	}
	return strings.Join(notes, " ")
}
