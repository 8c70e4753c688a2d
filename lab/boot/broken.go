//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nixp2p/nixp2p/lab/rig"
)

// program is in the place of the program, as a full disk in an upgrade, a package for another
// machine or a policy makes it.
type program struct {
	name string
	make string // a script that makes /root/broken
}

var (
	garbage   = program{"garbage", "head -c 100000 /dev/urandom >/root/broken; chmod 755 /root/broken"}
	crashLoop = program{"one that crashes once it serves", `cp /usr/bin/nixp2p /usr/local/bin/kept
		printf '#!/bin/sh\n[ "$1" != serve ] || (sleep 1; kill -KILL $$) &\nexec /usr/local/bin/kept "$@"\n' >/root/broken; chmod 755 /root/broken`}

	brokenPrograms = []program{
		{"for another processor", `cp /usr/bin/nixp2p /root/broken; printf '\003\000' | dd of=/root/broken bs=1 seek=18 conv=notrunc status=none`}, // 32 bits of another kind
		{"without its ELF interpreter", "sed 's,/ld-linux,/ld-nobody,' /bin/true >/root/broken; chmod 755 /root/broken"},
		{"without a shared library", `sed 's,libc\.so,libx.so,' /bin/true >/root/broken; chmod 755 /root/broken`},
		{"not to be executed", "cp /usr/bin/nixp2p /root/broken; chmod 644 /root/broken"},
		{"one that crashes at once", `printf '#!/bin/sh\nexit 1\n' >/root/broken; chmod 755 /root/broken`},
		{"one that hangs", `printf '#!/bin/sh\ntrap "" TERM\nwhile :; do sleep 1; done\n' >/root/broken; chmod 755 /root/broken`},
	}
)

const (
	repair      = "mv /root/kept /usr/bin/nixp2p"
	startByHand = "systemctl reset-failed nixp2p.socket nixp2p.service; systemctl start nixp2p.socket nixp2p.service"
)

// cannotStart replaces the program by what cannot run. Nix has to go on with the next cache, and
// the program that is there again has to be started.
func (w *world) cannotStart(ctx context.Context, m *machine, p program, again, script string) error {
	err := w.step(ctx, m.name, "a user substitutes while the program is "+p.name, func(ctx context.Context) (string, error) {
		return w.broken(ctx, m, p)
	})
	if err != nil {
		return err
	}
	if p.name == crashLoop.name {
		if err := w.step(ctx, m.name, "the next attempt is one start", m.oneStart); err != nil {
			return err
		}
	}
	return w.step(ctx, m.name, again, func(ctx context.Context) (string, error) {
		if _, err := m.run(ctx, script); err != nil {
			return "", err
		}
		if _, ok := rig.Until(ctx, patience, func() bool { return m.answers(ctx) }); !ok {
			return "", errors.New("nothing answers")
		}
		// While an attempt is under way, a single failure ends it.
		_, ok := rig.Until(ctx, patience, func() bool {
			_, err := m.run(ctx, "[ $(systemctl show -P ActiveState nixp2p-retry.service) != activating ]")
			return err == nil
		})
		if !ok {
			return "", errors.New("the attempt does not end")
		}
		lines, err := m.lines(ctx, time.Minute)
		return lines + " lines in the journal in the last minute", err
	})
}

// releaseLimit is within which a program that cannot start releases the socket on any machine. The
// aim is 30 s; on one that is busy each of the three starts takes seconds.
const releaseLimit = 2 * time.Minute

func (w *world) broken(ctx context.Context, m *machine, p program) (string, error) {
	c, err := w.closure("broken-"+strings.ReplaceAll(p.name, " ", "-"), 10, 20_000)
	if err != nil {
		return "", err
	}
	script := p.make + "; mv /usr/bin/nixp2p /root/kept; mv /root/broken /usr/bin/nixp2p; systemctl kill --signal=KILL nixp2p.service"
	if _, err := m.run(ctx, script); err != nil {
		return "", err
	}
	var released, done time.Duration
	failed := ""
	start := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		var ok bool
		if released, ok = rig.Until(gctx, releaseLimit, func() bool { return m.refused(gctx) }); !ok {
			return fmt.Errorf("the socket takes connections after %v", released)
		}
		return nil
	})
	g.Go(func() error {
		err := realise(gctx, m, c)
		if err != nil && p.name == crashLoop.name {
			// Nix gives up when a cache that has answered goes away in the middle of a command.
			// One before 2.13 does so for each cache that it remembers.
			failed = "failed once, "
			if _, err := m.run(gctx, "rm -f /root/.cache/nix/binary-cache-*"); err != nil {
				return err
			}
			if _, ok := rig.Until(gctx, releaseLimit, func() bool { return m.refused(gctx) }); ok {
				err = realise(gctx, m, c)
			}
		}
		done = time.Since(start)
		return err
	})
	if err := g.Wait(); err != nil {
		return "", err
	}
	if _, ok := rig.Until(ctx, patience, func() bool { return m.attempts(ctx) }); !ok {
		return "", errors.New("nothing will start it again")
	}
	lines, err := m.lines(ctx, done)
	return fmt.Sprintf("socket released after %.1f s, command %sdone after %.1f s, %s lines in the journal", released.Seconds(), failed, done.Seconds(), lines), err
}

// attempts reports whether the next attempt to start the program will come, or is under way.
func (m *machine) attempts(ctx context.Context) bool {
	_, err := m.run(ctx, "systemctl is-active nixp2p-retry.timer || [ $(systemctl show -P ActiveState nixp2p-retry.service) = activating ]")
	return err == nil
}

// oneStart waits for the next attempt to start a program that crashes, and looks that it is a
// single one, after which the socket is released at once.
func (m *machine) oneStart(ctx context.Context) (string, error) {
	starts := func() string {
		n, _ := m.run(ctx, "journalctl --no-pager -q -o cat -u nixp2p.service | grep -c '^Starting nixp2p'")
		return n
	}
	before := starts()
	start := time.Now()
	next, ok := rig.Until(ctx, releaseLimit, func() bool { return starts() != before })
	if !ok {
		return "", errors.New("there is none")
	}
	released, ok := rig.Until(ctx, releaseLimit, func() bool { return m.refused(ctx) })
	if !ok {
		return "", errors.New("the socket is not released")
	}
	if _, err := m.run(ctx, fmt.Sprintf("[ $(journalctl --no-pager -q -o cat -u nixp2p.service | grep -c '^Starting nixp2p') = $((%s + 1)) ]", before)); err != nil {
		return "", err
	}
	lines, err := m.lines(ctx, time.Since(start))
	return fmt.Sprintf("after %.1f s, socket released after %.1f s more, %s lines in the journal", next.Seconds(), released.Seconds(), lines), err
}

// lines counts what the journal has about nixp2p of the last seconds.
func (m *machine) lines(ctx context.Context, of time.Duration) (string, error) {
	return m.run(ctx, fmt.Sprintf("journalctl --no-pager -q --since=-%dsec -g nixp2p | wc -l", int(of.Seconds())+1))
}

// crashesSoon has the daemon crash a second after each start, as long as it works: it rests after
// two of them, and the socket is not released.
func (w *world) crashesSoon(ctx context.Context, m *machine) error {
	p := program{"", `cp /usr/bin/nixp2p /usr/local/bin/kept
		printf '#!/bin/sh\nf=$STATE_DIRECTORY/starts; n=$(cat $f || echo 0)\n[ $n -ge 2 ] || (while [ "$(cat $f || echo 0)" = $n ]; do sleep 0.2; done; sleep 1; kill -KILL $$) &\nexec /usr/local/bin/kept "$@"\n' >/root/broken; chmod 755 /root/broken`}
	err := w.step(ctx, m.name, "a user substitutes while the daemon crashes soon after each start", func(ctx context.Context) (string, error) {
		c, err := w.closure("crashes-soon", 10, 20_000)
		if err != nil {
			return "", err
		}
		if _, err := m.run(ctx, p.make+"; mv /usr/bin/nixp2p /root/kept; mv /root/broken /usr/bin/nixp2p; systemctl restart nixp2p.service"); err != nil {
			return "", err
		}
		start := time.Now()
		failed := ""
		if err := realise(ctx, m, c); err != nil {
			failed = "failed once, " // it was cut off in the middle
			if err := realise(ctx, m, c); err != nil {
				return "", err
			}
		}
		done := time.Since(start)
		_, ok := rig.Until(ctx, patience, func() bool {
			_, err := m.run(ctx, "systemctl show -P StatusText nixp2p.service | grep 'several times in a row'")
			return err == nil
		})
		if !ok {
			return "", errors.New("it does not rest")
		}
		_, err = m.run(ctx, "systemctl is-active nixp2p.socket nixp2p.service")
		return fmt.Sprintf("command %sdone after %.1f s", failed, done.Seconds()), err
	})
	if err != nil {
		return err
	}
	return w.script(ctx, m, "the repaired program is restarted", repair+"; systemctl restart nixp2p.service; nixp2p status | head -1")
}
