//go:build linux

// Package rig is what labs on one machine are built from: namespaces that end with the process
// that made them, a LAN of hosts with an uplink in there, an upstream that counts what it sends,
// and hosts with a node and a real Nix each. The machine's own network is not touched. It
// decides neither what is played nor whether it went well.
package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// insideEnv says that this process is the one in the namespaces, and names its directory.
const insideEnv = "NIXP2P_LAB_INSIDE"

// What the outer process made, in the directory.
const (
	binName  = "nixp2p"
	linkName = "wanlink"
	workName = "work"
	diskName = "disk"
)

// ErrUnable says that this machine cannot have a lab.
var ErrUnable = errors.New("no lab on this machine")

// Able tells why a lab cannot be had; tools are programs that it needs beside Nix and those
// that the LAN needs.
func Able(tools ...string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: it needs root", ErrUnable)
	}
	for _, name := range append([]string{"ip", "nft", "tc", "nix-store"}, tools...) {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("%w: there is no %s", ErrUnable, name)
		}
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("%w: %w", ErrUnable, err)
	}
	return nil
}

// ErrFailed says that the inner process has told already what went wrong.
var ErrFailed = errors.New("not all is well")

// Outside builds the programs, which needs the machine, and runs this program again as the first
// process of namespaces of its own. When that process ends, the kernel ends all others in there
// and takes network, mounts and files away. The name is that of the directory; the binary is
// built from this module if it is empty; hosts is the most that will ever be on the LAN.
func Outside(ctx context.Context, name, binary string, hosts int) error {
	dir, err := os.MkdirTemp("", "nixp2p-"+name)
	if err != nil {
		return err
	}
	defer removeAll(dir)
	if err := build(ctx, binary, dir); err != nil {
		return err
	}
	for _, sub := range []string{workName, diskName} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	defer neighbours(hosts*hosts + 4*hosts + 64)()
	cmd := exec.CommandContext(ctx, self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	// The signal comes when the thread that started the process ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return ErrFailed
	}
	return err
}

// neighbours raises the limits of the tables of neighbours, which count the entries of all
// namespaces together, to what hosts need that all talk to each other, and returns what puts
// them back. It is the only setting of the machine that is ever touched, and only for more than
// two dozen hosts: the usual limit is 1024.
func neighbours(entries int) (restore func()) {
	type kept struct{ file, text string }
	var all []kept
	for _, version := range []string{"ipv4", "ipv6"} {
		file := "/proc/sys/net/" + version + "/neigh/default/gc_thresh3"
		text := strings.TrimSpace(ReadText(file))
		if v, err := strconv.Atoi(text); err != nil || v >= entries {
			continue
		}
		if os.WriteFile(file, []byte(strconv.Itoa(entries)), 0o644) == nil {
			all = append(all, kept{file, text})
		}
	}
	return func() {
		for _, k := range all {
			_ = os.WriteFile(k.file, []byte(k.text), 0o644)
		}
	}
}

func build(ctx context.Context, binary, dir string) error {
	for name, pkg := range map[string]string{binName: "cmd/nixp2p", linkName: "lab/netlab/wanlink"} {
		to := filepath.Join(dir, name)
		if name == binName && binary != "" {
			from, err := filepath.Abs(binary)
			if err != nil {
				return err
			}
			if err := os.Symlink(from, to); err != nil {
				return err
			}
			continue
		}
		cmd := exec.CommandContext(ctx, "go", "build", "-o", to, "github.com/nixp2p/nixp2p/"+pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
		}
	}
	return nil
}

// Inside returns the directory of the lab, in the process that Outside started; else nothing.
func Inside() string { return os.Getenv(insideEnv) }

// Binary returns the program under test.
func Binary(dir string) string { return filepath.Join(dir, binName) }

// Work returns where files lie that are in memory, of whom there may be as many bytes as Settle
// was told.
func Work(dir string) string { return filepath.Join(dir, workName) }

// Disk returns where files lie for which memory is too small.
func Disk(dir string) string { return filepath.Join(dir, diskName) }

// Settle gives the first process of the namespaces mounts of its own. Size is that of the files
// kept in memory, as tmpfs takes it.
func Settle(dir, size string) error {
	for _, m := range []struct {
		source, at, kind string
		flags            uintptr
		data             string
	}{
		{"none", "/", "", syscall.MS_REC | syscall.MS_PRIVATE, ""},
		{"proc", "/proc", "proc", 0, ""},
		// Names of namespaces lie in /run; hosts need nothing else of it.
		{"tmpfs", "/run", "tmpfs", 0, "size=16m"},
		// Thousands of small files that nobody wants to keep, and databases that sync.
		{"tmpfs", Work(dir), "tmpfs", 0, "size=" + size},
	} {
		if err := syscall.Mount(m.source, m.at, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("lo: %w: %s", err, out)
	}
	return nil
}
