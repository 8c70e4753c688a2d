//go:build linux

package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// LAN is a network with its hosts and its uplink, made by netlab.sh.
type LAN struct {
	Only6 bool     // there is no IPv4
	Env   []string // with which netlab.sh runs

	name   string
	script string
}

// NewLAN makes a LAN of n hosts. The name is the first part of those of its namespaces, the
// directory that of the lab. Settings are variables of netlab.sh. A LAN that comes with an error
// has to be taken down, too.
func NewLAN(ctx context.Context, name, dir string, n int, settings ...string) (*LAN, error) {
	script, err := findScript(ctx)
	if err != nil {
		return nil, err
	}
	l := &LAN{name: name, script: script}
	l.Env = append(Environ(), "NETLAB_NAME="+name, "NETLAB_STATE="+filepath.Join(Work(dir), "netlab"), "NETLAB_WANLINK="+filepath.Join(dir, linkName))
	l.Env = append(l.Env, settings...)
	for _, s := range settings {
		l.Only6 = l.Only6 || s == "NETLAB_NO4=1"
	}
	_, err = l.Do(ctx, "up", strconv.Itoa(n))
	return l, err
}

// findScript returns where netlab.sh lies, in the module's sources.
func findScript(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/nixp2p/nixp2p").Output()
	if err != nil {
		return "", fmt.Errorf("where the module is: %w", err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "lab/netlab/netlab.sh"), nil
}

// Do runs netlab.sh.
func (l *LAN) Do(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", append([]string{l.script}, args...)...)
	cmd.Env = l.Env
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	// The link goes on in the background and keeps its standard streams elsewhere, but not
	// those that bash gave its helpers.
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return "", fmt.Errorf("netlab.sh %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

// Place returns the name of the namespace of a host ("h1"), of "lan" or of "upstream".
func (l *LAN) Place(where string) string {
	if where == "upstream" {
		where = "up"
	}
	return l.name + "-" + where
}

// upstreamAddr is where the upstream listens, and gateways lead.
func (l *LAN) upstreamAddr() string {
	if l.Only6 {
		return "[fd78::1]:80"
	}
	return "10.78.0.1:80"
}

// IP returns the address of a host on the LAN.
func (l *LAN) IP(k int) string {
	if l.Only6 {
		return fmt.Sprintf("fd77::%x", k)
	}
	return fmt.Sprintf("10.77.%d.%d", k/256, k%256)
}

// Bytes returns the bytes that a host has received from the LAN and sent to it.
func (l *LAN) Bytes(ctx context.Context, k int) (rx, tx int64, err error) {
	out, err := l.Do(ctx, "bytes", fmt.Sprintf("h%d", k))
	if err == nil {
		_, err = fmt.Sscanf(out, "rx_bytes %d tx_bytes %d", &rx, &tx)
	}
	return rx, tx, err
}

// Down takes the LAN away, with all that runs in it.
func (l *LAN) Down(ctx context.Context) error {
	_, err := l.Do(ctx, "down")
	return err
}

// LinkCPU returns what the program took that is the uplink: it is a part of the lab's own cost.
func (l *LAN) LinkCPU() time.Duration {
	for _, e := range l.Env {
		if dir, ok := strings.CutPrefix(e, "NETLAB_STATE="); ok {
			if pid, err := strconv.Atoi(strings.TrimSpace(ReadText(filepath.Join(dir, "wan.pid")))); err == nil {
				u, _ := usageOf(pid)
				return u.CPU
			}
		}
	}
	return 0
}
