package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// insideEnv says that this process is the one in the namespace.
const insideEnv = "NIXP2P_FAULTS_INSIDE"

// Addresses of the documentation (RFC 5737), which the namespace gives a meaning.
const (
	noRoute   = "192.0.2.7"     // the kernel says at once that there is no way
	noAnswer  = "198.51.100.7"  // packets go out and nothing comes back
	noName    = "cache.invalid" // RFC 2606
	noAnswer6 = "2001:db8::7"   // RFC 3849, as noAnswer
)

var errNoNamespace = errors.New("no network namespace")

// reexec runs this program again in namespaces of its own: what it cannot reach there is what
// it says, no packet leaves the machine, and what it mounts goes with it.
func reexec(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", setUp, "sh", self}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGTERM}
	if uid, gid := os.Geteuid(), os.Getegid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: 1}}
	}
	// A second interrupt is not needed: the terminal sends it to both.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w: %w", errNoNamespace, err)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == noNetwork {
		return errNoNamespace
	}
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	return err
}

// noNetwork is the exit code of setUp when the network cannot be made.
const noNetwork = 77

// setUp makes the network and goes on as the program. Half of a pair of interfaces whose
// neighbour is nobody swallows packets; as it is up, Nix does not think itself offline.
const setUp = `{ mount --make-rprivate / && ip link set lo up && ip route add unreachable ` + noRoute + `/32 &&
	ip link add hole0 type veth peer name hole1 && ip link set hole0 up && ip link set hole1 up &&
	ip addr add 198.51.100.1/24 dev hole0 &&
	ip neigh add ` + noAnswer + ` lladdr 02:00:00:00:00:07 dev hole0 nud permanent; } || exit 77
ip -6 addr add 2001:db8::1/64 dev hole0 nodad && ip -6 neigh add ` + noAnswer6 + ` lladdr 02:00:00:00:00:07 dev hole0 nud permanent || true
exec "$@"`
