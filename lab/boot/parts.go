//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nixp2p/nixp2p/lab/rig"
)

func (w *world) boot(ctx context.Context) error {
	var env []string
	if w.release != "bookworm" { // newer systemds know the unified hierarchy alone
		env = append(env, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
	}
	return w.both(ctx, "boots", func(ctx context.Context, m *machine) (string, error) {
		k := 1
		if m == w.m2 {
			k = 2
		}
		if _, err := m.boot(ctx, groupName(w.release, k), env...); err != nil {
			return "", fmt.Errorf("%w: %w", rig.ErrUnable, err) // nothing of nixp2p is there yet
		}
		return m.run(ctx, "systemctl --version | head -1; nix --version")
	})
}

func (w *world) install(ctx context.Context) error {
	err := w.both(ctx, "installs the package, which starts", func(ctx context.Context, m *machine) (string, error) {
		if out, err := m.run(ctx, "dpkg -i /root/nixp2p.deb && systemctl is-enabled nixp2p.socket nixp2p.service && systemctl is-active nixp2p.socket nixp2p.service"); err != nil {
			return out, err
		}
		// Ready, and systemd says so in words.
		if _, err := m.run(ctx, "nixp2p status"); err != nil {
			return "", err
		}
		return m.run(ctx, "systemctl show -P StatusText nixp2p.service | grep .")
	})
	if err != nil {
		return err
	}
	// Later steps restart the service too often to show that it would not be ended after 10 s.
	err = w.both(ctx, "feeds systemd's watchdog", func(ctx context.Context, m *machine) (string, error) {
		_, ok := rig.Until(ctx, time.Minute, func() bool {
			_, err := m.run(ctx, "w=$(systemctl show -P WatchdogTimestampMonotonic nixp2p.service); a=$(systemctl show -P ActiveEnterTimestampMonotonic nixp2p.service); [ $((w - a)) -gt 2000000 ]")
			return err == nil
		})
		if !ok {
			return "", errors.New("it does not")
		}
		_, err := m.run(ctx, "[ $(systemctl show -P NRestarts nixp2p.service) = 0 ]")
		return "", err
	})
	if err != nil {
		return err
	}
	return w.both(ctx, "setup --apply", func(ctx context.Context, m *machine) (string, error) {
		if _, err := m.run(ctx, "nixp2p setup --apply && systemctl restart nix-daemon.service"); err != nil {
			return "", err
		}
		return m.run(ctx, "nix --extra-experimental-features nix-command show-config | grep '^substituters ='")
	})
}

// endure has a user substitute on one machine while the service goes down in each way, and on both
// while it cannot start.
func (w *world) endure(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := w.outages(ctx, w.m1); err != nil {
			return err
		}
		// Until now nixp2p was the only cache of this machine.
		other := "echo 'extra-substituters = " + w.cache.URL + "' | tee -a /root/nix.conf.before >>/etc/nix/nix.conf; systemctl restart nix-daemon.service"
		if w.release == "bookworm" {
			// Before 2.13, Nix gives up if a cache that it remembers refuses connections.
			other += "; rm -f /root/.cache/nix/binary-cache-*"
		}
		if _, err := w.m1.run(ctx, other); err != nil {
			return err
		}
		for _, p := range brokenPrograms {
			if err := w.cannotStart(ctx, w.m1, p, "the repaired program is started by hand", repair+"; "+startByHand); err != nil {
				return err
			}
		}
		return nil
	})
	g.Go(func() error {
		if err := w.cannotStart(ctx, w.m2, garbage, "the next attempt starts the program that is there again", repair); err != nil {
			return err
		}
		if err := w.cannotStart(ctx, w.m2, crashLoop, "installing the package starts it at once", "dpkg -i /root/nixp2p.deb"); err != nil {
			return err
		}
		if err := w.crashesSoon(ctx, w.m2); err != nil {
			return err
		}
		return w.wrongConfig(ctx, w.m2)
	})
	return g.Wait()
}

// outages are what may happen to the service in the middle of a download. The machine has no other
// cache.
var outages = []struct{ name, script string }{
	{"nothing", "true"},
	{"restart", "systemctl restart nixp2p.service"},
	{"kill", "systemctl kill --signal=KILL nixp2p.service"},
	{"stop", "systemctl stop nixp2p.service"},
	{"freeze", "systemctl kill --signal=STOP nixp2p.service"},
	{"upgrade", "dpkg -i /root/next.deb"},
}

func (w *world) outages(ctx context.Context, m *machine) error {
	for _, o := range outages {
		err := w.step(ctx, m.name, "a user substitutes, "+o.name+" in between", func(ctx context.Context) (string, error) {
			c, err := w.closure("outage-"+o.name, 24, 100_000)
			if err != nil {
				return "", err
			}
			g, gctx := errgroup.WithContext(ctx)
			g.Go(func() error {
				if _, ok := rig.Until(gctx, patience, func() bool { return w.asked(c) >= len(c.paths)/3 }); !ok {
					return errors.New("the download did not begin")
				}
				_, err := m.run(gctx, o.script)
				return err
			})
			g.Go(func() error { return realise(gctx, m, c) })
			if err := g.Wait(); err != nil {
				return "", err
			}
			return fmt.Sprintf("%d paths", len(c.paths)), nil
		})
		if err != nil {
			return err
		}
	}
	return w.script(ctx, m, "the upgrade is what runs", "dpkg-query -W -f '${Version}' nixp2p | grep next; [ /proc/$(systemctl show -P MainPID nixp2p.service)/exe -ef /usr/bin/nixp2p ]")
}

// closure adds a closure to the upstream.
func (w *world) closure(name string, paths, size int) (*closure, error) {
	c, err := newClosure(w.key, name, paths, size)
	if err == nil {
		w.cache.Add(c.files)
	}
	return c, err
}

// asked returns how often the upstream was asked for NARs of a closure.
func (w *world) asked(c *closure) (n int) {
	for path, times := range w.cache.Requests() {
		if c.nars[path] {
			n += times
		}
	}
	return n
}

// realise has the user substitute a closure and looks whether all of it is there.
func realise(ctx context.Context, m *machine, c *closure) error {
	if _, err := m.alice(ctx, "nix-store -r "+c.top); err != nil {
		return err
	}
	_, err := m.alice(ctx, "nix-store --check-validity "+strings.Join(c.paths, " "))
	return err
}

// wrongConfig has a daemon that cannot work say so everywhere, and answer 404.
func (w *world) wrongConfig(ctx context.Context, m *machine) error {
	err := w.step(ctx, m.name, "a wrong configuration is said by systemctl status, the journal and nixp2p status", func(ctx context.Context) (string, error) {
		if _, err := m.run(ctx, "cp /etc/nixp2p/config.toml /root/config; echo nonsense >>/etc/nixp2p/config.toml; systemctl restart nixp2p.service; systemctl is-active nixp2p.service"); err != nil {
			return "", err
		}
		if _, err := m.run(ctx, "if nixp2p status; then exit 1; fi; journalctl -q --no-pager -u nixp2p.service -p err --since=-20sec | grep 404"); err != nil {
			return "", err
		}
		return m.run(ctx, "systemctl show -P StatusText nixp2p.service | grep 404")
	})
	if err != nil {
		return err
	}
	err = w.script(ctx, m, "the configuration is corrected", "cp /root/config /etc/nixp2p/config.toml; systemctl restart nixp2p.service; nixp2p status | head -1")
	if err != nil {
		return err
	}
	return w.script(ctx, m, "root is kept from serving over the service's directories",
		"if nixp2p serve 2>/root/said; then exit 1; fi; head -1 /root/said; [ $(wc -l </root/said) -le 2 ]; [ -z \"$(find /var/lib/private/nixp2p/ -user 0)\" ]")
}

// meet has the machines find each other by mDNS, each time as if they had never met.
func (w *world) meet(ctx context.Context) error {
	key := ""
	for _, next := range []struct {
		what, before, after string
	}{
		{"alone", "", ""},
		{"beside avahi", "systemctl start avahi-daemon.service; systemctl is-active avahi-daemon.service", "systemctl stop avahi-daemon.socket avahi-daemon.service"},
		{
			"beside systemd-resolved", `mkdir -p /etc/systemd/resolved.conf.d; printf '[Resolve]\nMulticastDNS=yes\n' >/etc/systemd/resolved.conf.d/mdns.conf
				systemctl start systemd-resolved.service; resolvectl mdns eth0 yes`, "systemctl stop systemd-resolved.service",
		},
		{"behind a firewall that drops", "nft -f /root/nft", ""},
		{"with the secret of a closed site", "KEY", ""},
	} {
		before := next.before
		if before == "KEY" {
			var err error
			if key, err = w.m1.run(ctx, "nixp2p swarm-key"); err != nil {
				return err
			}
			before = "umask 077; mkdir -p /etc/credstore; echo '" + key + "' >/etc/credstore/nixp2p.swarm-key"
		}
		fresh := "systemctl stop nixp2p.socket nixp2p.service; rm -rf /var/lib/private/nixp2p /var/cache/private/nixp2p; " + before + "\nsystemctl start nixp2p.socket nixp2p.service"
		if err := w.quietly(ctx, func(ctx context.Context, m *machine) error { _, err := m.run(ctx, fresh); return err }); err != nil {
			return err
		}
		if err := w.both(ctx, "finds the neighbour by mDNS, "+next.what, findsNeighbour); err != nil {
			return err
		}
		if next.after == "" {
			continue
		}
		if err := w.quietly(ctx, func(ctx context.Context, m *machine) error { _, err := m.run(ctx, next.after); return err }); err != nil {
			return err
		}
	}
	return nil
}

// quietly does something on both machines at once that is no step.
func (w *world) quietly(ctx context.Context, do func(ctx context.Context, m *machine) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, m := range []*machine{w.m1, w.m2} {
		g.Go(func() error { return do(ctx, m) })
	}
	return g.Wait()
}

// peers returns those that a machine knows, nil if it cannot be asked.
func peers(ctx context.Context, m *machine) (list []rig.PeerStatus) {
	if out, err := m.run(ctx, "nixp2p peers --json"); err == nil {
		_ = json.Unmarshal([]byte(out), &list) // what is no JSON is no peer
	}
	return list
}

// shares returns how many paths the neighbour of a machine shares, as that machine knows.
func shares(ctx context.Context, m *machine) (n int) {
	for _, p := range peers(ctx, m) {
		n += int(p.Paths)
	}
	return n
}

func findsNeighbour(ctx context.Context, m *machine) (string, error) {
	var seen []rig.PeerStatus
	_, ok := rig.Until(ctx, 30*time.Second, func() bool {
		seen = peers(ctx, m)
		return len(seen) == 1 && (strings.Contains(seen[0].FoundBy, "mdns") || seen[0].FoundBy == "inbound")
	})
	if !ok {
		return "", fmt.Errorf("no neighbour: %+v", seen)
	}
	return fmt.Sprintf("%v, found by %s", seen[0].Addresses, seen[0].FoundBy), nil
}

// share has one machine take from the other's store what it lacks, without the upstream.
func (w *world) share(ctx context.Context) error {
	err := w.step(ctx, "m2", "a user takes from the neighbour's store", func(ctx context.Context) (string, error) {
		c, err := w.closure("outage-nothing", 24, 100_000)
		if err == nil {
			err = realise(ctx, w.m1, c)
		}
		if err != nil {
			return "", err
		}
		if _, ok := rig.Until(ctx, time.Minute, func() bool { return shares(ctx, w.m2) >= len(c.paths) }); !ok {
			return "", errors.New("the neighbour does not say what it has")
		}
		// On a busy machine the time budget of some is used up, and the upstream is asked as well.
		before := w.asked(c)
		if err := realise(ctx, w.m2, c); err != nil {
			return "", err
		}
		n := w.asked(c) - before
		if n >= len(c.paths) {
			return "", errors.New("all of them came from upstream")
		}
		return fmt.Sprintf("%d paths, upstream was asked for %d NARs", len(c.paths), n), nil
	})
	if err != nil {
		return err
	}
	return w.both(ctx, "doctor finds no failure", func(ctx context.Context, m *machine) (string, error) {
		out, err := m.run(ctx, "nixp2p doctor")
		if err != nil {
			return "", err
		}
		return out[strings.LastIndex(out, "\n")+1:], nil
	})
}

// left lists files of the package. The trees have no others of this name.
const left = "find / -xdev -name '*nixp2p*' ! -path '/proc/*' ! -path '/root/*' ! -path '/tmp/*' ! -path '/var/log/*' ! -path '/etc/nixp2p' ! -path '/etc/credstore/*'"

func (w *world) remove(ctx context.Context) error {
	err := w.both(ctx, "purges the package: Nix's settings and all files as before", func(ctx context.Context, m *machine) (string, error) {
		if out, err := m.run(ctx, "dpkg -P nixp2p"); err != nil {
			return out, err
		}
		if out, err := m.run(ctx, "cmp /root/nix.conf.before /etc/nix/nix.conf"); err != nil {
			return out, err
		}
		out, err := m.run(ctx, left)
		if err == nil && out != "" {
			err = fmt.Errorf("left behind: %s", out)
		}
		return "", err
	})
	if err != nil {
		return err
	}
	return w.step(ctx, "m2", "a user substitutes without nixp2p", func(ctx context.Context) (string, error) {
		c, err := w.closure("after", 10, 20_000)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%d paths", len(c.paths)), realise(ctx, w.m2, c)
	})
}
