//go:build linux

// Boot tries the package on machines that boot: two containers with systemd as their first process
// on a LAN of their own. It installs the package, has an ordinary user substitute through the Nix
// daemon while the service is restarted, killed, stopped, frozen, upgraded and broken, finds the
// neighbour next to other programs that speak mDNS and behind a firewall, and removes everything.
//
//	make test-system                     Debian 12 and sid, side by side
//	go run ./lab/boot -deb FILE bookworm
//
// It needs root, systemd-nspawn, and for each release a tree with systemd and Nix, which it makes
// with debootstrap if it is not there.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nixp2p/nixp2p/lab/rig"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o := parseFlags()
	err := run(ctx, o)
	switch {
	case err == nil:
	case errors.Is(err, rig.ErrUnable) && !o.require:
		fmt.Println("SKIPPED: the system test cannot run on this machine:", err)
	default:
		fmt.Fprintln(os.Stderr, "boot: error:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	deb      string
	trees    string
	onlyTree bool
	require  bool
	makeTree time.Duration
	limit    time.Duration
	releases []string
}

// treeDir is where trees are kept below the user's cache directory.
const treeDir = "nixp2p-test/system"

func parseFlags() *options {
	o := &options{}
	cache, _ := os.UserCacheDir()
	flag.StringVar(&o.deb, "deb", "", "the package, a `FILE` that `make deb` made")
	flag.StringVar(&o.trees, "trees", filepath.Join(cache, treeDir), "`DIR` of the trees, one for each release")
	flag.BoolVar(&o.onlyTree, "only-trees", false, "make the trees that are missing, and nothing else")
	flag.BoolVar(&o.require, "require", false, "fail where the test cannot run, instead of saying why")
	flag.DurationVar(&o.makeTree, "make-tree", 15*time.Minute, "how long making a tree may take; 0 leaves out releases without one")
	flag.DurationVar(&o.limit, "limit", 0, "how long it may take before it is given up, which is no failure; with one, a machine that is very busy does not begin")
	flag.Parse()
	o.releases = flag.Args()
	return o
}

func run(ctx context.Context, o *options) error {
	switch {
	case len(o.releases) == 0:
		return errors.New("which releases? `boot -deb FILE bookworm sid`")
	case rig.Inside() != "":
		return inside(ctx, o)
	}
	if err := able(); err != nil {
		return err
	}
	if o.onlyTree {
		var g errgroup.Group
		for _, release := range o.releases {
			g.Go(func() error { return ensureTree(ctx, o, release) })
		}
		return g.Wait()
	}
	if err := busy(); err != nil && o.limit > 0 {
		return err
	}
	if _, err := os.Stat(o.deb); err != nil {
		return fmt.Errorf("the package: %w: run `make deb` first", err)
	}
	if len(o.releases) == 1 {
		return outside(ctx, o, o.releases[0])
	}
	// Most of the time somebody waits for somebody: releases run side by side.
	self, err := os.Executable()
	if err != nil {
		return err
	}
	var g errgroup.Group
	for _, release := range o.releases {
		g.Go(func() error {
			args := append([]string{}, os.Args[1:len(os.Args)-len(o.releases)]...)
			cmd := exec.CommandContext(ctx, self, append(args, release)...)
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
			cmd.WaitDelay = 30 * time.Second
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("%s: %w", release, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// able tells why no machine can boot here.
func able() error {
	if err := rig.Able("systemd-nspawn", "nsenter", "dpkg-deb"); err != nil {
		return err
	}
	if !strings.Contains(rig.ReadText("/proc/filesystems"), "overlay") {
		return fmt.Errorf("%w: the kernel has no overlay file system", rig.ErrUnable)
	}
	name := fmt.Sprintf("nixp2p-boot-probe-%d", os.Getpid())
	groups, err := makeGroups(name)
	removeGroups(groups)
	if err != nil {
		return fmt.Errorf("%w: %w", rig.ErrUnable, err)
	}
	return nil
}

// outside makes the tree if there is none, and starts the part that is inside.
func outside(ctx context.Context, o *options, release string) error {
	if err := ensureTree(ctx, o, release); err != nil {
		return err
	}
	// In the outer process, since the groups outlive those who were in them.
	var all []string
	defer func() { removeGroups(all) }()
	for k := 1; k <= machines; k++ {
		groups, err := makeGroups(groupName(release, k))
		all = append(all, groups...)
		if err != nil {
			return err
		}
	}
	limited, cancel := ctx, context.CancelFunc(func() {})
	if o.limit > 0 {
		limited, cancel = context.WithTimeout(ctx, o.limit)
	}
	defer cancel()
	// What the lab calls its binary is the package here.
	err := rig.Outside(limited, "boot-"+release, o.deb, machines)
	if limited.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("%w: %s was not done within %v: it is too slow or too busy", rig.ErrUnable, release, o.limit)
	}
	return err
}

// busy returns an error if the load of this machine is so high that a limit makes no sense.
func busy() error {
	var load float64
	_, _ = fmt.Sscan(rig.ReadText("/proc/loadavg"), &load) // what cannot be read is no load
	if most := float64(10 * runtime.NumCPU()); load > most {
		return fmt.Errorf("%w: it is busy, with a load of %.0f on %d processors", rig.ErrUnable, load, runtime.NumCPU())
	}
	return nil
}

// packages are what a machine has beside its release's base and Nix.
var packages = []string{
	"systemd", "systemd-sysv", "systemd-resolved", "dbus", "nix-setup-systemd", "avahi-daemon", "nftables", "iproute2", "procps",
}

func ensureTree(ctx context.Context, o *options, release string) error {
	tree := filepath.Join(o.trees, release)
	if _, err := os.Stat(tree); err == nil {
		return nil
	}
	if o.makeTree == 0 {
		return fmt.Errorf("%w: there is no tree at %s, and none is to be made", rig.ErrUnable, tree)
	}
	if _, err := exec.LookPath("debootstrap"); err != nil {
		return fmt.Errorf("%w: there is no tree at %s, and no debootstrap to make one", rig.ErrUnable, tree)
	}
	fmt.Printf("%s: making the tree %s, once\n", release, tree)
	ctx, cancel := context.WithTimeout(ctx, o.makeTree)
	defer cancel()
	script, err := sources(ctx, "lab/mknix-chroot.sh")
	if err != nil {
		return err
	}
	log := tree + ".log"
	if err := os.MkdirAll(o.trees, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, script, append([]string{release, tree}, packages...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	out, err := cmd.CombinedOutput()
	if werr := os.WriteFile(log, out, 0o644); err == nil {
		err = werr
	}
	if err != nil {
		return fmt.Errorf("%w: the tree of %s could not be made, see %s: %w", rig.ErrUnable, release, log, err)
	}
	return nil
}

// sources returns where a file of this module lies.
func sources(ctx context.Context, file string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("where the module is: %w", err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), file), nil
}
