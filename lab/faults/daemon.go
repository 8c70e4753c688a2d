package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"syscall"
	"time"

	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
)

// daemon is a nixp2p with directories of its own.
type daemon struct {
	cmd   *exec.Cmd
	url   string
	admin string
	peer  string        // multiaddr with the peer ID; "" without p2p
	log   chan struct{} // closed when the log has ended
}

var (
	listening = regexp.MustCompile(`msg=listening url=(\S+)`)
	forAdmin  = regexp.MustCompile(`msg="listening for admin" url=(\S+)`)
	forPeers  = regexp.MustCompile(`msg="peers can connect".* addresses="?\[([^] ]+)`)
)

// errEnded is that a daemon did not come so far that it listens.
var errEnded = errors.New("nixp2p ended")

// daemonArgs are the flags of every nixp2p here.
func daemonArgs(dir string, key string, upstreams ...string) []string {
	args := []string{
		"serve", "--config", os.DevNull, "--p2p=false", "--admin-listen", "127.0.0.1:0", "--store-root", dir + "/none",
		"--state-dir", dir + "/state", "--cache-dir", dir + "/cache", "--trusted-public-key", key,
	}
	for _, u := range upstreams {
		args = append(args, "--upstream", u)
	}
	return args
}

// startDaemon returns when it listens. It has env beside this program's environment.
func startDaemon(ctx context.Context, binary string, args []string, env ...string) (*daemon, error) {
	d := &daemon{log: make(chan struct{})}
	d.cmd = exec.CommandContext(ctx, binary, append(args, "--listen", "127.0.0.1:0")...)
	d.cmd.Env = append(os.Environ(), env...)
	stderr, err := d.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	type found struct {
		to   *string
		text string
	}
	seen := make(chan found, 3)
	wanted := map[*regexp.Regexp]*string{listening: &d.url, forAdmin: &d.admin}
	if slices.Contains(args, "--p2p=true") {
		wanted[forPeers] = &d.peer
	}
	missing := len(wanted)
	var text []byte
	go func() {
		defer close(d.log)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			text = append(append(text, lines.Text()...), '\n')
			for line, to := range wanted {
				if m := line.FindStringSubmatch(lines.Text()); m != nil {
					delete(wanted, line)
					seen <- found{to, m[1]}
				}
			}
		}
	}()
	for ; missing > 0; missing-- {
		select {
		case f := <-seen:
			*f.to = f.text
		case <-d.log:
			return nil, errors.Join(fmt.Errorf("%w: %s", errEnded, text), d.cmd.Wait())
		}
	}
	return d, nil
}

// stop does not wait for transfers.
func (d *daemon) stop() {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	hard := time.AfterFunc(time.Second, func() { _ = d.cmd.Process.Kill() })
	<-d.log
	_ = d.cmd.Wait()
	hard.Stop()
}

// newClient returns a client with an empty store that asks the substituters in their order of
// priority.
func newClient(n *realnix.Nix, dir, key string, substituters ...string) (*realnix.Client, error) {
	c, err := n.NewClient(dir, key)
	if err != nil {
		return nil, err
	}
	c.Substituters = substituters
	// As Nix does by itself: a question that was answered no is not asked again.
	c.Settings = map[string]string{"narinfo-cache-negative-ttl": "3600"}
	return c, nil
}
