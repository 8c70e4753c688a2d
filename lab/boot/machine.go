//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nixp2p/nixp2p/lab/rig"
)

// machine is a container with systemd as its first process.
type machine struct {
	name   string
	ns     string // network namespace
	root   string // its file system, changes included
	log    string // file with what the container says at its console
	leader int    // its first process
	done   chan struct{}
}

const cgroupRoot = "/sys/fs/cgroup"

func groupName(release string, k int) string { return fmt.Sprintf("nixp2p-boot-%s-%d", release, k) }

// makeGroups makes a control group of this name in each hierarchy. Two systemds in the same groups
// would end each other's services.
func makeGroups(name string) (groups []string, err error) {
	hierarchies := []string{cgroupRoot}
	if _, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.procs")); err != nil {
		hierarchies, _ = filepath.Glob(cgroupRoot + "/*")
	}
	for _, h := range hierarchies {
		// A new group of cpuset takes no process before it has been given processors.
		if base := filepath.Base(h); strings.Contains(base, "cpuset") {
			continue
		}
		if info, err := os.Lstat(h); err != nil || !info.IsDir() {
			continue // a link from one controller to another
		}
		if _, err := os.Stat(filepath.Join(h, "cgroup.procs")); err != nil {
			continue
		}
		at := filepath.Join(h, name)
		if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return groups, fmt.Errorf("control groups: %w", err)
		}
		groups = append(groups, at)
	}
	if len(groups) == 0 {
		return nil, errors.New("control groups: none at " + cgroupRoot)
	}
	return groups, nil
}

// removeGroups removes groups with those that systemd made below, when nothing is in them any more.
func removeGroups(groups []string) {
	for _, g := range groups {
		var dirs []string
		_ = filepath.WalkDir(g, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			_ = syscall.Rmdir(dirs[i])
		}
	}
}

// prepare gives a machine a file system of its own over a tree, which is not changed.
func prepare(tree, dir, name, ns string) (*machine, error) {
	m := &machine{name: name, ns: ns, root: filepath.Join(dir, "root"), log: filepath.Join(dir, "console")}
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{m.root, upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	if err := syscall.Mount("overlay", m.root, "overlay", 0, "lowerdir="+tree+",upperdir="+upper+",workdir="+work); err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	return m, m.write(map[string]string{
		"/etc/hostname":   name + "\n",
		"/etc/hosts":      "127.0.0.1 localhost " + name + "\n::1 localhost\n",
		"/etc/machine-id": fmt.Sprintf("%x\n", id),
	})
}

// write writes files of a machine that does not run, or of one that does.
func (m *machine) write(files map[string]string) error {
	for name, text := range files {
		at := filepath.Join(m.root, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// chroot runs a script in a machine that does not run.
func (m *machine) chroot(ctx context.Context, script string) error {
	out, err := exec.CommandContext(ctx, "chroot", m.root, "/usr/bin/env", "-i", path, "sh", "-euc", script).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", m.name, err, out)
	}
	return nil
}

const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// boot starts the container and waits until its systemd says that all has started.
func (m *machine) boot(ctx context.Context, group string, env ...string) (state string, err error) {
	log, err := os.Create(m.log)
	if err != nil {
		return "", err
	}
	defer log.Close()
	groups, err := makeGroups(group)
	if err != nil {
		return "", err
	}
	enter := ""
	for _, g := range groups {
		enter += "echo $$ >" + g + "/cgroup.procs; "
	}
	cmd := exec.Command("sh", "-euc", enter+`exec "$@"`, "sh",
		"systemd-nspawn", "-q", "-D", m.root, "--machine="+m.name, "--network-namespace-path=/run/netns/"+m.ns, "--register=no",
		"--keep-unit", "--console=pipe", "--resolv-conf=off", "--timezone=off", "--link-journal=no", "-b")
	cmd.Env = append(rig.Environ(), env...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return "", err
	}
	m.done = make(chan struct{})
	go func() {
		defer close(m.done)
		_ = cmd.Wait()
	}()
	_, ok := rig.Until(ctx, 30*time.Second, func() bool {
		m.leader = firstOf(cmd.Process.Pid)
		return m.leader != 0 || m.ended()
	})
	if !ok || m.ended() {
		return "", fmt.Errorf("%s: no systemd has started:\n%s", m.name, rig.ReadText(m.log))
	}
	_, ok = rig.Until(ctx, 90*time.Second, func() bool {
		state, _ = m.run(ctx, "systemctl is-system-running --wait")
		return state == "running" || state == "degraded" || m.ended()
	})
	if !ok || state != "running" {
		failed, _ := m.run(ctx, "systemctl --failed --no-legend")
		return state, fmt.Errorf("%s: systemd is %q: %s\n%s", m.name, state, failed, rig.ReadText(m.log))
	}
	return state, nil
}

func (m *machine) ended() bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

// firstOf returns the child of a process that is systemd, or 0.
func firstOf(pid int) int {
	children := rig.ReadText(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for _, c := range strings.Fields(children) {
		if strings.TrimSpace(rig.ReadText("/proc/"+c+"/comm")) == "systemd" {
			n, _ := strconv.Atoi(c)
			return n
		}
	}
	return 0
}

// scriptError is a script that failed, with what it printed.
type scriptError struct {
	machine, script, out string
	err                  error
}

func (e *scriptError) Error() string {
	return fmt.Sprintf("%s: %s: %v\n%s", e.machine, e.script, e.err, e.out)
}
func (e *scriptError) Unwrap() error { return e.err }

// run runs a script as root and returns what it prints, without the last end of a line.
func (m *machine) run(ctx context.Context, script string) (string, error) {
	return m.enter(ctx, script, "sh", "-euc", script)
}

// alice runs a script as a user whom the Nix daemon does not trust.
func (m *machine) alice(ctx context.Context, script string) (string, error) {
	return m.enter(ctx, script, "setpriv", "--reuid=alice", "--regid=alice", "--init-groups", "--", "env", "HOME=/home/alice", "sh", "-euc", script)
}

func (m *machine) enter(ctx context.Context, name string, argv ...string) (string, error) {
	args := []string{"-t", strconv.Itoa(m.leader), "-m", "-u", "-i", "-n", "-p", "-C", "--", "env", "-i", path, "HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}
	cmd := exec.CommandContext(ctx, "nsenter", append(args, argv...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	text := strings.TrimSuffix(out.String(), "\n")
	if err != nil {
		return text, &scriptError{m.name, name, text, err}
	}
	return text, nil
}

// refused reports whether nobody listens where Nix asks.
func (m *machine) refused(ctx context.Context) bool {
	c, err := rig.DialIn(ctx, m.ns, "tcp", "127.0.0.1:7654")
	if err == nil {
		_ = c.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// answers reports whether the substituter answers.
func (m *machine) answers(ctx context.Context) bool {
	c, err := rig.DialIn(ctx, m.ns, "tcp", "127.0.0.1:7654")
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	_, err = c.Write([]byte("GET /nix-cache-info HTTP/1.0\r\nHost: localhost\r\n\r\n"))
	return err == nil && startsWith(c, "HTTP/1.0 200")
}

func startsWith(c net.Conn, want string) bool {
	buf := make([]byte, len(want))
	for n := 0; n < len(buf); {
		k, err := c.Read(buf[n:])
		if n += k; err != nil {
			break
		}
	}
	return string(buf) == want
}
