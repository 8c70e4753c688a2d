package demo

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

const (
	startTime  = 30 * time.Second // for a node to listen; it needs a fraction of a second
	askTime    = 5 * time.Second  // for an answer of a node
	knowTime   = 15 * time.Second // for a node to learn what the others have
	knowEvery  = 50 * time.Millisecond
	narFetches = 25 // at a time, as Nix does (http-connections)
	narTries   = 5  // of a file that was cut, as Nix does (download-attempts)
)

// node is a daemon, a child of this process. It ends when its standard input does, so it does
// not outlive this process.
type node struct {
	name  string
	url   string // of the substituter
	peer  string // multiaddr with peer ID
	admin admin.Client

	cmd   *exec.Cmd
	stdin io.Closer
	done  chan struct{} // closed when it has ended

	mu      sync.Mutex
	killed  bool
	warning string // the last one that it logged
	err     error  // why it ended
}

// startNode starts a node that knows the given peers, and waits until it listens. died is
// called when it ends without kill. The caller calls kill.
func (r *run) startNode(ctx context.Context, name string, peers []string) (*node, error) {
	dir := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Join(dir, "root"), 0o700); err != nil {
		return nil, err
	}
	args := append(slices.Clone(r.cfg.Node[1:]),
		"--config", os.DevNull, "--log-format", "json", "--log-level", "info",
		"--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
		"--state-dir", filepath.Join(dir, "state"), "--cache-dir", filepath.Join(dir, "cache"),
		"--store-root", filepath.Join(dir, "root"), "--cache-size", "4GiB",
		"--upstream", r.up.url, "--trusted-public-key", r.up.publicKey, "--share-key", keyName,
		"--p2p-listen", "/ip4/127.0.0.1/tcp/0", "--mdns=false", fmt.Sprintf("--upload-limit=%dB/s", r.cfg.LAN))
	for _, p := range peers {
		args = append(args, "--bootstrap", p)
	}
	n := &node{name: name, done: make(chan struct{})}
	n.cmd = exec.Command(r.cfg.Node[0], args...)
	n.cmd.Env = append(slices.DeleteFunc(os.Environ(), ofService), "NETRC="+os.DevNull)
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for this process, which ends the nodes
	stderr, err := n.cmd.StderrPipe()
	if err == nil {
		n.stdin, err = n.cmd.StdinPipe()
	}
	if err == nil {
		err = n.cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", name, err)
	}
	ready := make(chan struct{})
	go n.follow(stderr, ready, r.died)
	late := time.NewTimer(startTime)
	defer late.Stop()
	select {
	case <-ready:
		return n, nil
	case <-n.done:
		err = n.err
	case <-late.C:
		err = fmt.Errorf("node %s does not listen after %v: %s", name, startTime, n.lastWarning())
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	n.kill()
	return nil, err
}

// ofService reports whether a variable is meant for a service of systemd, or names credentials.
func ofService(v string) bool {
	return slices.ContainsFunc([]string{"LISTEN_", "NOTIFY_SOCKET=", "WATCHDOG_", "STATE_DIRECTORY=", "CACHE_DIRECTORY=", "CREDENTIALS_DIRECTORY=", "NETRC="},
		func(prefix string) bool { return strings.HasPrefix(v, prefix) })
}

// follow reads the log to its end and waits for the process. ready is closed when all three
// addresses are known.
func (n *node) follow(log io.Reader, ready chan<- struct{}, died func(error)) {
	defer close(n.done)
	last := ""
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		last = lines.Text()
		var l struct {
			Level, Msg, URL, Err, Path, Source string
			Addresses                          []string
		}
		if json.Unmarshal(lines.Bytes(), &l) != nil {
			continue // before the log begins, or a crash
		}
		switch {
		case l.Level == "WARN" || l.Level == "ERROR":
			n.mu.Lock()
			n.warning = strings.Join(slices.DeleteFunc([]string{l.Msg, l.Source, l.Path, l.Err}, func(s string) bool { return s == "" }), ": ")
			n.mu.Unlock()
		case ready == nil:
		case l.Msg == "listening":
			n.url = l.URL
		case l.Msg == "listening for admin":
			n.admin.Addr = strings.TrimPrefix(l.URL, "http://")
		case l.Msg == "peers can connect" && len(l.Addresses) > 0:
			n.peer = l.Addresses[0]
		}
		if ready != nil && n.url != "" && n.admin.Addr != "" && n.peer != "" {
			close(ready)
			ready = nil
		}
	}
	err := errors.Join(n.cmd.Wait(), lines.Err())
	if w := n.lastWarning(); w != "" {
		last = w
	}
	n.err = fmt.Errorf("node %s ended by itself (%w): %s", n.name, err, last)
	n.mu.Lock()
	killed := n.killed
	n.mu.Unlock()
	if !killed {
		died(n.err)
	}
}

func (n *node) lastWarning() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.warning
}

// kill ends the node at once and returns when it is gone.
func (n *node) kill() {
	n.mu.Lock()
	n.killed = true
	n.mu.Unlock()
	_ = n.cmd.Process.Kill()
	_ = n.stdin.Close()
	<-n.done
}

// status asks the node.
func (n *node) status(ctx context.Context) (admin.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	s, err := n.admin.Status(ctx)
	if err != nil {
		err = fmt.Errorf("node %s: %w", n.name, err)
	}
	return s, err
}

// knows waits until the node has heard of that many peers with at least that many paths.
func (n *node) knows(ctx context.Context, peers, paths int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, knowTime, fmt.Errorf("node %s does not hear of %d peers with %d paths each", n.name, peers, paths))
	defer cancel()
	for {
		list, err := n.admin.Peers(ctx)
		list = slices.DeleteFunc(list, func(p admin.Peer) bool { return p.Paths < int64(paths) })
		if err == nil && len(list) >= peers {
			return nil
		}
		if !pause(ctx, knowEvery) {
			return context.Cause(ctx)
		}
	}
}

// fetch gets all paths from the node, as Nix does, and verifies signatures and hashes. It
// returns how many arrived.
func (n *node) fetch(ctx context.Context, up *upstream) (int, error) {
	keys, err := verify.ParseKeys([]string{up.publicKey})
	if err != nil {
		return 0, err
	}
	transport := &http.Transport{MaxIdleConnsPerHost: narFetches, DisableCompression: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	var arrived atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(narFetches)
	for _, p := range up.paths {
		g.Go(func() error {
			var err error
			for range narTries {
				if err = n.fetchPath(ctx, client, keys, p.info.StorePath); err == nil {
					arrived.Add(1)
					return nil
				}
				if ctx.Err() != nil {
					break
				}
			}
			return fmt.Errorf("%s: %w", p.info.StorePath.Base(), err)
		})
	}
	err = g.Wait()
	return int(arrived.Load()), err
}

func (n *node) fetchPath(ctx context.Context, client *http.Client, keys *verify.Keys, p nix.StorePath) error {
	var text []byte
	err := get(ctx, client, n.url+"/"+p.Hash().String()+".narinfo", func(body io.Reader) (err error) {
		text, err = io.ReadAll(io.LimitReader(body, nix.MaxNarInfo))
		return err
	})
	if err != nil {
		return err
	}
	if _, err := keys.Open(text, p.Hash()); err != nil {
		return err
	}
	info, err := nix.ParseNarInfo(text)
	if err != nil {
		return err
	}
	return get(ctx, client, n.url+"/"+info.URL, func(body io.Reader) error {
		nar, err := compress.NewReader(info.Compression, body)
		if err != nil {
			return err
		}
		defer nar.Close()
		h := sha256.New()
		if _, err := io.Copy(h, nar); err != nil {
			return err
		}
		if nix.NarHash(h.Sum(nil)) != info.NarHash {
			return errors.New("the NAR does not have the signed hash")
		}
		return nil
	})
}
