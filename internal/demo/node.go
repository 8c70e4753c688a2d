package demo

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/admin"
)

const (
	// startTime bounds how long a node takes to listen: far above the fraction of a second
	// that it needs.
	startTime = 30 * time.Second
	askTime   = 5 * time.Second
	// keptLines are of the end of a node's log, for the reason when it ends by itself.
	keptLines = 20
)

// nodeConfig is what a node is started with.
type nodeConfig struct {
	name      string
	dir       string // its own, made here
	command   []string
	upstream  string
	publicKey string
	lan       int64 // bytes a second that it sends to peers at most
	bootstrap []string
}

// node is a daemon of its own, a child of this process. It ends with this process, however
// that ends, because its standard input does.
type node struct {
	name  string
	url   string // of the substituter
	peer  string // multiaddr with peer ID
	admin admin.Client

	cmd   *exec.Cmd
	stdin io.Closer
	done  chan struct{} // closed when it has ended

	mu     sync.Mutex
	ending bool // on purpose
	lines  []string
	worst  string // the last warning or error that it logged
	err    error  // how it ended
}

// logLine is a line of a node's log.
type logLine struct {
	Level     string   `json:"level"`
	Msg       string   `json:"msg"`
	URL       string   `json:"url"`
	Addresses []string `json:"addresses"`
	Err       string   `json:"err"`
	Path      string   `json:"path"`
	Source    string   `json:"source"`
}

// startNode starts a node and waits until it listens for Nix, for us and for peers. died is
// called when it ends unasked. The caller calls kill.
func startNode(ctx context.Context, cfg nodeConfig, died func(error)) (*node, error) {
	if err := os.MkdirAll(filepath.Join(cfg.dir, "root"), 0o700); err != nil {
		return nil, err
	}
	args := append(cfg.command[1:len(cfg.command):len(cfg.command)],
		"--config", os.DevNull, "--log-format", "json", "--log-level", "info",
		"--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
		"--state-dir", filepath.Join(cfg.dir, "state"), "--cache-dir", filepath.Join(cfg.dir, "cache"),
		"--store-root", filepath.Join(cfg.dir, "root"), "--cache-size", "4GiB",
		"--upstream", cfg.upstream, "--trusted-public-key", cfg.publicKey, "--share-key", keyName,
		"--p2p-listen", "/ip4/127.0.0.1/tcp/0", "--mdns=false", fmt.Sprintf("--upload-limit=%dB/s", cfg.lan),
	)
	for _, b := range cfg.bootstrap {
		args = append(args, "--bootstrap", b)
	}
	n := &node{name: cfg.name, done: make(chan struct{})}
	n.cmd = exec.Command(cfg.command[0], args...)
	n.cmd.Env = append(withoutService(os.Environ()), "NETRC="+os.DevNull)
	n.cmd.SysProcAttr = apart()
	stderr, err := n.cmd.StderrPipe()
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", n.name, err)
	}
	if n.stdin, err = n.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("node %s: %w", n.name, err)
	}
	if err := n.cmd.Start(); err != nil {
		return nil, fmt.Errorf("node %s: %w", n.name, err)
	}
	heard := make(chan logLine, 8)
	go n.follow(stderr, heard, died)
	if err := n.await(ctx, heard); err != nil {
		n.kill()
		return nil, err
	}
	return n, nil
}

// withoutService leaves out what systemd tells a service: the nodes are none.
func withoutService(environ []string) (left []string) {
	drop := []string{"LISTEN_", "NOTIFY_SOCKET=", "WATCHDOG_", "STATE_DIRECTORY=", "CACHE_DIRECTORY=", "NETRC="}
next:
	for _, v := range environ {
		for _, d := range drop {
			if strings.HasPrefix(v, d) {
				continue next
			}
		}
		left = append(left, v)
	}
	return left
}

// follow reads the log to its end and waits for the process.
func (n *node) follow(log io.Reader, heard chan<- logLine, died func(error)) {
	defer close(n.done)
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		n.note(lines.Text(), heard)
	}
	err := n.cmd.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	said := n.worst
	if said == "" && len(n.lines) > 0 {
		said = n.lines[len(n.lines)-1]
	}
	n.err = fmt.Errorf("node %s ended by itself (%w): %s", n.name, errors.Join(err, lines.Err()), said)
	if !n.ending {
		died(n.err)
	}
}

// note keeps a line and passes on those that startNode waits for.
func (n *node) note(text string, heard chan<- logLine) {
	var l logLine
	parsed := json.Unmarshal([]byte(text), &l) == nil
	n.mu.Lock()
	n.lines = append(n.lines, text)
	n.lines = n.lines[max(0, len(n.lines)-keptLines):]
	switch {
	case !parsed: // what a command says before it has a log, or a crash
	case l.Level == "WARN" || l.Level == "ERROR":
		n.worst = l.Msg
		for _, more := range []string{l.Source, l.Path, l.Err} {
			if more != "" {
				n.worst += ": " + more
			}
		}
	}
	n.mu.Unlock()
	if parsed && (l.URL != "" || len(l.Addresses) > 0) {
		select {
		case heard <- l:
		default: // nobody waits any more
		}
	}
}

// complaint returns the last warning of the node, "" when there was none.
func (n *node) complaint() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.worst
}

// await waits for the lines that say where the node listens.
func (n *node) await(ctx context.Context, heard <-chan logLine) error {
	late := time.NewTimer(startTime)
	defer late.Stop()
	for n.url == "" || n.admin.Addr == "" || n.peer == "" {
		select {
		case l := <-heard:
			switch l.Msg {
			case "listening":
				n.url = l.URL
			case "listening for admin":
				n.admin.Addr = strings.TrimPrefix(l.URL, "http://")
			case "peers can connect":
				n.peer = l.Addresses[0]
			}
		case <-n.done:
			return n.ended()
		case <-late.C:
			return fmt.Errorf("node %s does not listen after %v: %s", n.name, startTime, n.complaint())
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	n.admin.HTTP = newHTTPClient()
	return nil
}

func (n *node) ended() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.err
}

// kill ends the node at once, as the out-of-memory killer does, and returns when it is gone.
func (n *node) kill() {
	n.mu.Lock()
	n.ending = true
	n.mu.Unlock()
	_ = n.cmd.Process.Kill()
	_ = n.stdin.Close()
	<-n.done
}

// status asks the node how it is.
func (n *node) status(ctx context.Context) (admin.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	s, err := n.admin.Status(ctx)
	if err != nil {
		return s, fmt.Errorf("node %s: %w", n.name, err)
	}
	return s, nil
}

// knows waits until as many peers have told the node of at least as many paths each.
func (n *node) knows(ctx context.Context, peers, paths int) error {
	const patience, every = 15 * time.Second, 50 * time.Millisecond
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("node %s does not hear of %d peers with %d paths each", n.name, peers, paths))
	defer cancel()
	for {
		list, err := n.admin.Peers(ctx)
		told := 0
		for _, p := range list {
			if p.Paths >= int64(paths) {
				told++
			}
		}
		if err == nil && told >= peers {
			return nil
		}
		if !pause(ctx, every) {
			return context.Cause(ctx)
		}
	}
}

// pause waits, or returns false when ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
