//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/lab/rig"
)

const (
	machines = 2
	// Slow enough that something can happen in the middle of a closure.
	uplink = "rate=6 delay=5"
	// patience bounds each step on a busy machine. A step that is worth a shorter limit has one.
	patience = 3 * time.Minute
)

// world is what is played: two machines, and the cache at the other end of their uplink.
type world struct {
	release string
	begun   time.Time
	key     nixtest.Key
	cache   *rig.Cache
	lan     *rig.LAN
	m1, m2  *machine

	mu sync.Mutex // of the log
}

// inside plays, in namespaces that end with this process.
func inside(ctx context.Context, o *options) error {
	dir := rig.Inside()
	if err := rig.Settle(dir, "3g"); err != nil {
		return err
	}
	w := &world{release: o.releases[0], begun: time.Now(), key: nixtest.NewKey("lab-1")}
	var err error
	if w.lan, err = rig.NewLAN(ctx, "boot", dir, machines, "NETLAB_WAN="+uplink); err != nil {
		return fmt.Errorf("%w: %w", rig.ErrUnable, err)
	}
	if w.cache, err = rig.NewCache(w.lan, rig.Disk(dir)); err != nil {
		return err
	}
	defer w.cache.Close()
	next := filepath.Join(rig.Disk(dir), "next.deb")
	if err := nextVersion(ctx, rig.Binary(dir), next); err != nil {
		return err
	}
	tree := filepath.Join(o.trees, w.release)
	for k, m := range []**machine{&w.m1, &w.m2} {
		name := fmt.Sprintf("m%d", k+1)
		*m, err = prepare(tree, filepath.Join(rig.Work(dir), name), name, w.lan.Place(fmt.Sprintf("h%d", k+1)))
		if err != nil {
			return fmt.Errorf("%w: %w", rig.ErrUnable, err)
		}
		if err := w.furnish(ctx, *m, rig.Binary(dir), next); err != nil {
			return err
		}
	}
	err = w.play(ctx)
	if err != nil {
		w.journals(ctx)
		return err
	}
	w.say("ok", "all of it", time.Since(w.begun), "")
	return nil
}

// furnish puts into a machine what its administrator would: a user, Nix's settings, nixp2p's.
func (w *world) furnish(ctx context.Context, m *machine, deb, next string) error {
	// The first has no other cache than nixp2p: whatever fails there fails a command.
	others := ""
	if m == w.m2 {
		others = w.cache.URL
	}
	name, _, _ := strings.Cut(w.key.Public(), ":")
	files := map[string]string{
		"/etc/nix/nix.conf":       "build-users-group = nixbld\nsubstituters = " + others + "\ntrusted-public-keys = " + w.key.Public() + "\n",
		"/etc/nixp2p/config.toml": fmt.Sprintf("upstream = [%q]\ntrusted-public-key = [%q]\nshare-key = [%q]\n", w.cache.URL, w.key.Public(), name),
		"/root/nft":               firewall,
	}
	if err := m.write(files); err != nil {
		return err
	}
	for from, to := range map[string]string{deb: "/root/nixp2p.deb", next: "/root/next.deb"} {
		if out, err := exec.CommandContext(ctx, "cp", "-L", from, m.root+to).CombinedOutput(); err != nil {
			return fmt.Errorf("cp: %w: %s", err, out)
		}
	}
	// Other programs that speak mDNS are there and do not run before their turn. Services are
	// started by packages, which the tree does not allow.
	return m.chroot(ctx, `
		rm -f /usr/sbin/policy-rc.d
		useradd --create-home alice
		if getent group nix-users; then usermod -aG nix-users alice; fi
		systemctl disable avahi-daemon.service avahi-daemon.socket systemd-resolved.service systemd-networkd.service 2>&1
		ln -sf /dev/null /etc/systemd/system/systemd-networkd-wait-online.service
		cp /etc/nix/nix.conf /root/nix.conf.before`)
}

const firewall = `table inet filter {
	chain input {
		type filter hook input priority 0; policy drop;
		ct state established,related accept
		iif "lo" accept
		meta l4proto { 1, 58 } accept
		tcp dport 7656 accept
		udp dport 5353 accept
	}
}
`

// nextVersion makes of a package one with the same files and a higher version.
func nextVersion(ctx context.Context, deb, next string) error {
	dir := next + ".d"
	defer os.RemoveAll(dir)
	script := `dpkg-deb -R "$1" "$2"; sed -i 's/^Version: .*/&+next/' "$2/DEBIAN/control"; dpkg-deb --root-owner-group -Znone -b "$2" "$3"`
	if out, err := exec.CommandContext(ctx, "sh", "-euc", script, "sh", deb, dir, next).CombinedOutput(); err != nil {
		return fmt.Errorf("the next version: %w: %s", err, out)
	}
	return nil
}

// say prints a line of the log: when, where, what, how long, and what was seen.
func (w *world) say(where, what string, took time.Duration, seen string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if seen != "" {
		seen = ": " + strings.ReplaceAll(seen, "\n", "; ")
	}
	fmt.Printf("%-8s %6.1f s  %-2s  %5.1f s  %s%s\n", w.release, time.Since(w.begun).Seconds(), where, took.Seconds(), what, seen)
}

// step does one thing and says what was seen.
func (w *world) step(ctx context.Context, where, what string, do func(ctx context.Context) (string, error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	start := time.Now()
	seen, err := do(ctx)
	if err != nil {
		w.say(where, "FAILED "+what, time.Since(start), "")
		return fmt.Errorf("%s: %s: %w", where, what, err)
	}
	w.say(where, what, time.Since(start), seen)
	return nil
}

// both does the same on both machines at once.
func (w *world) both(ctx context.Context, what string, do func(ctx context.Context, m *machine) (string, error)) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, m := range []*machine{w.m1, w.m2} {
		g.Go(func() error {
			return w.step(ctx, m.name, what, func(ctx context.Context) (string, error) { return do(ctx, m) })
		})
	}
	return g.Wait()
}

// script is a step that is a script of root.
func (w *world) script(ctx context.Context, m *machine, what, script string) error {
	return w.step(ctx, m.name, what, func(ctx context.Context) (string, error) { return m.run(ctx, script) })
}

// journals prints the end of what the service said on both machines.
func (w *world) journals(ctx context.Context) {
	for _, m := range []*machine{w.m1, w.m2} {
		if m.leader == 0 {
			continue
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		out, err := m.run(ctx, "journalctl -n 60 --no-pager -o short-precise; systemctl --failed --no-legend; nixp2p status 2>&1 | head -30")
		cancel()
		w.mu.Lock()
		fmt.Printf("--- journal of %s %s (%v)\n%s\n", w.release, m.name, err, out)
		w.mu.Unlock()
	}
}

// play is the whole of it.
func (w *world) play(ctx context.Context) error {
	for _, part := range []func(ctx context.Context) error{w.boot, w.install, w.endure, w.meet, w.share, w.remove} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}
