package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
	"github.com/nixp2p/nixp2p/lab/rig"
)

// way is one state of what lies between this machine and a cache that is well: Nix goes it alone, and
// then nixp2p goes it for Nix. Neither has another cache.
type way struct {
	group string
	name  string
	quick bool   // takes seconds at most
	known string // why nixp2p may get less than Nix

	names  []habit // name servers, one that is right if there is none
	resolv string  // resolv.conf; empty: these name servers in their order
	// gate stands before the cache and returns its URL; nil: http://cacheName:PORT.
	gate func(g *gates) string
	// layout changes a cache in a directory and returns its URL, in which DIR is the directory; nil:
	// the cache is a server.
	layout func(dir string) (url string, err error)
	// env are variables for Nix and for nixp2p; conf are lines of nix.conf for both. PORT of the gates
	// and files are filled in by them.
	env, conf func(g *gates, file func(name, text string) string) []string
}

// wayReport is what one Nix saw.
type wayReport struct {
	Nth                int
	Group, Name, Known string
	Direct             *outcome // Nix alone
	Through            *outcome // through nixp2p, which is asked alone
}

// late is how much later than Nix alone a command may be done with nixp2p.
const late = 2 * time.Second

// Worse reports whether nixp2p got what Nix gets alone not at all, or too late.
func (r *wayReport) Worse() string {
	switch {
	case !r.Direct.OK:
		return ""
	case !r.Through.OK:
		return "worse"
	case r.Through.Took > r.Direct.Took+late:
		return "later"
	}
	return ""
}

// measureWays runs the rows of this shard.
func measureWays(ctx context.Context, o *options, n *realnix.Nix, conf resolvConf) (all []*wayReport, err error) {
	w := newWorld(ctx)
	defer w.close()
	w.good.SetAll()
	ca := newAuthority()
	for i, y := range ways() {
		if !o.only.MatchString(y.name) || o.quick && !y.quick || i%o.shards != o.shard {
			continue
		}
		r := &wayReport{Nth: i, Group: y.group, Name: y.name, Known: y.known}
		if r.Direct, err = y.cell(ctx, o, n, w, ca, conf, false); err != nil {
			return nil, fmt.Errorf("%s: %w", y.name, err)
		}
		if r.Through, err = y.cell(ctx, o, n, w, ca, conf, true); err != nil {
			return nil, fmt.Errorf("%s: %w", y.name, err)
		}
		fmt.Fprintf(os.Stderr, "%-7s %-55s %s | %s %s\n", n.Version, y.name, r.Direct, r.Through, r.Worse())
		if !r.Through.OK && r.Direct.OK {
			fmt.Fprintf(os.Stderr, "        %s\n", r.Through.Said)
		}
		all = append(all, r)
	}
	return all, nil
}

// measureShards runs the rows of the ways in several processes: each has namespaces of its own, as
// there is one resolv.conf for all that a namespace does.
func measureShards(ctx context.Context, o *options) (*report, error) {
	start := time.Now()
	parts := make([]*report, o.parallel)
	var g errgroup.Group
	for i := range parts {
		g.Go(func() error {
			cmd := exec.CommandContext(ctx, os.Args[0], append(slices.Clone(os.Args[1:]), "-part", partWays, "-json", "-nixp2p", o.binary, "-shard", fmt.Sprintf("%d/%d", i, o.parallel))...)
			cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			if err != nil {
				return fmt.Errorf("shard %d: %w", i, err)
			}
			return json.Unmarshal(out, &parts[i])
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	all := parts[0]
	for _, p := range parts[1:] {
		for i, n := range p.Nixes {
			all.Nixes[i].Ways = append(all.Nixes[i].Ways, n.Ways...)
		}
	}
	for _, n := range all.Nixes {
		slices.SortFunc(n.Ways, func(a, b *wayReport) int { return a.Nth - b.Nth })
	}
	all.Took = time.Since(start)
	return all, nil
}

// cell runs one command.
func (y *way) cell(ctx context.Context, o *options, n *realnix.Nix, w *world, ca *authority, conf resolvConf, through bool) (*outcome, error) {
	dir, err := os.MkdirTemp(o.dir, "way")
	if err != nil {
		return nil, err
	}
	defer realnix.RemoveAll(dir)
	s, err := startServers(y.habits())
	if err != nil {
		return nil, err
	}
	defer s.close()
	if err := conf.set(y.conffile()); err != nil {
		return nil, err
	}
	g := &gates{ca: ca, cache: w.good}
	defer g.close()
	c, err := newClient(n, filepath.Join(dir, "client"), w.key.Public())
	if err != nil {
		return nil, err
	}
	url, err := y.url(g, w, c, through)
	if err != nil {
		return nil, err
	}
	env, lines, err := y.settings(g, c, through)
	if err != nil {
		return nil, err
	}
	if through {
		d, err := y.daemon(ctx, o, dir, w.key.Public(), url, env, lines)
		if errors.Is(err, errEnded) {
			return &outcome{Said: err.Error()}, nil
		}
		if err != nil {
			return nil, err
		}
		defer d.stop()
		url = d.url
	} else {
		c.Prefix = append([]string{"env"}, env...)
		for _, line := range lines {
			k, v, _ := strings.Cut(line, " = ")
			c.Settings[k] = v
		}
	}
	c.Substituters = []string{url}
	k := &worker{world: w}
	return k.realise(ctx, o, c)
}

// url is where the cache is.
func (y *way) url(g *gates, w *world, c *realnix.Client, through bool) (string, error) {
	switch {
	case y.layout != nil:
		dir := filepath.Join(c.Dir, "cache", "bin")
		nixtest.WriteCache(w, dir, nixtest.UpstreamConfig{Paths: w.paths, Keys: []nixtest.Key{w.key}, Compression: nix.XZ})
		url, err := y.layout(dir)
		if err != nil {
			return "", err
		}
		if !through {
			if dir, err = c.Visible(dir); err != nil {
				return "", err
			}
		}
		return strings.ReplaceAll(url, "DIR", dir), nil
	case y.gate != nil:
		return y.gate(g), nil
	}
	return "http://" + cacheName + ":" + g.plain(), nil
}

// settings returns the variables and the lines of nix.conf, with the names of files as those who read
// them see them.
func (y *way) settings(g *gates, c *realnix.Client, through bool) (env, lines []string, err error) {
	file := func(name, text string) string {
		at := filepath.Join(c.Dir, name)
		err = os.WriteFile(at, []byte(text), 0o644)
		if seen, e := c.Visible(at); err == nil && !through {
			at, err = seen, e
		}
		return at
	}
	if y.env != nil {
		env = y.env(g, file)
	}
	if y.conf != nil {
		lines = y.conf(g, file)
	}
	return env, lines, err
}

func (y *way) daemon(ctx context.Context, o *options, dir, key, url string, env, lines []string) (*daemon, error) {
	at := filepath.Join(dir, "nix")
	if err := os.Mkdir(at, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(at, "nix.conf"), []byte(strings.Join(append(lines, ""), "\n")), 0o644); err != nil {
		return nil, err
	}
	return startDaemon(ctx, o.binary, daemonArgs(dir, key, url), append([]string{"NIX_CONF_DIR=" + at, "NIX_SSL_CERT_FILE=", "SSL_CERT_FILE="}, env...)...)
}

func (y *way) habits() []habit {
	if len(y.names) == 0 {
		return []habit{right}
	}
	return y.names
}

func (y *way) conffile() string {
	if y.resolv != "" {
		return y.resolv
	}
	var b strings.Builder
	for i := range y.habits() {
		fmt.Fprintf(&b, "nameserver 127.0.1.%d\n", i+1)
	}
	return b.String()
}

func (r *report) ways() string {
	heads := []string{"the way to the cache"}
	for _, n := range r.Nixes {
		heads = append(heads, "Nix "+n.Version+" alone", "through nixp2p")
	}
	var b strings.Builder
	b.WriteString(waysIntro)
	group := ""
	var t *rig.Table
	for i, first := range r.Nixes[0].Ways {
		if first.Group != group {
			if t != nil {
				b.WriteString(t.String())
			}
			group = first.Group
			fmt.Fprintf(&b, "\n### %s\n\n", group)
			t = rig.NewTable(heads...)
		}
		cells := []any{first.Name}
		for _, n := range r.Nixes {
			through := n.Ways[i].Through.String()
			if worse := n.Ways[i].Worse(); worse != "" {
				through = "**" + worse + "**: " + through
				if n.Ways[i].Known != "" {
					through += "; " + n.Ways[i].Known
				}
			}
			cells = append(cells, n.Ways[i].Direct, through)
		}
		t.Row(cells...)
	}
	if t != nil {
		b.WriteString(t.String())
	}
	return b.String()
}

const waysIntro = `## The way to a cache is ill

The cache is well, and what lies before it is ill in one way: name servers, connections, TLS, proxies.
Each row is two commands with nothing remembered: Nix asks the cache alone; then Nix asks only
a nixp2p that has just been started and has this cache as its only upstream. nixp2p is to get what Nix gets,
at most 2 s later; where it does not, the cell says **worse** or **later**. Variables
and lines of nix.conf in a row are those of Nix in the first case and those of nixp2p in the second.
`
