//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
)

// insideEnv says that this process is the one in the namespaces, and names its directory.
const insideEnv = "NIXP2P_SITE_INSIDE"

// What the outer process made, in the directory.
const (
	binName  = "nixp2p"
	linkName = "wanlink"
	workName = "work"
)

// errUnable says that this machine cannot have a lab.
var errUnable = errors.New("no lab on this machine")

// able tells why a lab cannot be had.
func able() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: it needs root", errUnable)
	}
	for _, name := range []string{"ip", "nft", "tc", "sqlite3", "nix-store"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("%w: there is no %s", errUnable, name)
		}
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("%w: %w", errUnable, err)
	}
	return nil
}

// outside builds the programs and the corpora, which needs the machine, and runs this program
// again as the first process of namespaces of its own. When that process ends, the kernel ends
// all others in there and takes network, mounts and files away.
func outside(ctx context.Context, o *options) error {
	if err := able(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "nixp2p-site")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := build(ctx, o, dir); err != nil {
		return err
	}
	own, err := realnix.LookPath(ctx)
	if err != nil {
		return err
	}
	for _, p := range corpora() {
		if _, err := realnix.KeptCorpus(ctx, own, p); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(dir, workName), 0o755); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	chosen, err := choose(o.names)
	if err != nil {
		return err
	}
	most := o.hosts
	for _, s := range chosen {
		most = max(most, s.hosts)
	}
	defer neighbours(most*most + 4*most + 64)()
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
		return errFailed
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
		text := strings.TrimSpace(readText(file))
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

// errFailed says that the inner process has told already what went wrong.
var errFailed = errors.New("not all is well")

func build(ctx context.Context, o *options, dir string) error {
	for name, pkg := range map[string]string{binName: "cmd/nixp2p", linkName: "lab/netlab/wanlink"} {
		to := filepath.Join(dir, name)
		if name == binName && o.binary != "" {
			from, err := filepath.Abs(o.binary)
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

// settle gives the first process of the namespaces mounts of its own.
func settle(dir string) error {
	work := filepath.Join(dir, workName)
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
		{"tmpfs", work, "tmpfs", 0, "size=10g"},
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

// in runs f on a thread that is in the named network namespace: sockets that f opens itself
// stay there. The thread is thrown away.
func in(name string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The first thread does not end with its goroutine, and would leave the whole
			// process in the namespace for those who look. While it waits, others work.
			defer runtime.UnlockOSThread()
			done <- in(name, f)
			return
		}
		done <- func() error {
			ns, err := os.Open("/run/netns/" + name)
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter %s: %w", name, err)
			}
			return f()
		}()
	}()
	return <-done
}

// dialIn dials from a namespace. The address is numeric: a name would be looked up elsewhere.
func dialIn(ctx context.Context, name, network, addr string) (c net.Conn, err error) {
	err = in(name, func() (err error) {
		c, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// listenIn listens in a namespace.
func listenIn(name, addr string) (l net.Listener, err error) {
	err = in(name, func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	return l, err
}

// capture is the packets that passed a host's interface.
type capture struct {
	stop chan struct{}
	done chan struct{}
	pcap [][]byte
	seen int64 // bytes
	err  error
}

// captureIn records all packets of eth0 of a namespace, in and out, until its stop is closed.
func captureIn(name string) (*capture, error) {
	c := &capture{stop: make(chan struct{}), done: make(chan struct{})}
	var fd int
	err := in(name, func() (err error) {
		const allProtocols = 0x0300 // ETH_P_ALL in network order
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, allProtocols); err != nil {
			return err
		}
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: allProtocols, Ifindex: i.Index})
	})
	if err != nil {
		return nil, err
	}
	go func() {
		defer close(c.done)
		defer unix.Close(fd)
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
		buf := make([]byte, 1<<17)
		for {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			switch {
			case err == nil:
				c.pcap = append(c.pcap, append([]byte(nil), buf[:n]...))
				c.seen += int64(n)
				continue
			case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			default:
				c.err = err
				return
			}
			select {
			case <-c.stop:
				return
			default:
			}
		}
	}()
	return c, nil
}

// end stops the capture and returns the packets.
func (c *capture) end() ([][]byte, error) {
	close(c.stop)
	<-c.done
	return c.pcap, c.err
}

// environ is this process's environment without what Go's tests put there.
func environ() []string {
	var list []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "NIXP2P_") && !strings.HasPrefix(e, "NOTIFY_SOCKET=") {
			list = append(list, e)
		}
	}
	return list
}
