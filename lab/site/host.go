//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
)

// host is a machine of the site: a namespace, a store with its Nix, and a node.
type host struct {
	st     *stage
	k      int
	ns     string
	dir    string
	client *realnix.Client // asks this host's node
	http   *http.Client
	node   *process
	begun  time.Time
}

func (h *host) String() string { return fmt.Sprintf("h%d", h.k) }

const (
	nodeURL  = "http://127.0.0.1:7654"
	adminURL = "http://127.0.0.1:7655"
)

func newHost(st *stage, k int) (*host, error) {
	h := &host{st: st, k: k, ns: place(fmt.Sprintf("h%d", k)), dir: filepath.Join(st.dir, fmt.Sprintf("h%d", k))}
	h.http = httpIn(h.ns)
	return h, h.newClient("client")
}

// newClient gives the host a Nix with an empty store. A node that runs goes on with the store
// that it has.
func (h *host) newClient(name string) (err error) {
	h.client, err = h.st.nix.NewClient(filepath.Join(h.dir, name), h.st.corpus.PublicKey)
	if err != nil {
		return err
	}
	h.client.Prefix = []string{"ip", "netns", "exec", h.ns}
	h.client.Substituters = []string{nodeURL}
	return nil
}

// fill gives the host a copy of a store, as if it had been there for long.
func (h *host) fill(ctx context.Context, root string) error {
	if out, err := exec.CommandContext(ctx, "cp", "-a", root, h.client.Root).CombinedOutput(); err != nil {
		return fmt.Errorf("copy store: %w: %s", err, out)
	}
	return nil
}

// start starts the node with what its flags are by default, but for its directories, the
// upstream and the keys of the corpus.
func (h *host) start(flags ...string) error {
	argv := []string{
		filepath.Join(h.st.world.dir, binName), "serve", "--config", os.DevNull,
		"--state-dir", filepath.Join(h.dir, "state"), "--cache-dir", filepath.Join(h.dir, "cache"), "--store-root", h.client.Root,
		"--upstream", h.st.cache.url, "--trusted-public-key", h.st.corpus.PublicKey, "--share-key", keyName(h.st.corpus.PublicKey),
		"--log-level", "debug",
	}
	p, err := startIn(h.ns, h.logFile(), append(argv, flags...)...)
	h.node, h.begun = p, time.Now()
	return err
}

func keyName(key string) string {
	name, _, _ := strings.Cut(key, ":")
	return name
}

func (h *host) logFile() string { return filepath.Join(h.dir, "log") }

// stop ends the node and waits for that.
func (h *host) stop() {
	if h.node != nil {
		h.node.stop(3 * time.Second)
		h.http.CloseIdleConnections()
	}
}

// signal sends the node a signal.
func (h *host) signal(sig syscall.Signal) { h.node.signal(sig) }

// get asks the node or its admin listener.
func (h *host) get(ctx context.Context, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return h.http.Do(req)
}

// admin asks the API.
func (h *host) admin(ctx context.Context, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	resp, err := h.get(ctx, adminURL+"/api/v1/"+path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: status %d", path, resp.StatusCode)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// status is the part of /api/v1/status that is read here.
type status struct {
	StorePathsShared int64 `json:"store_paths_shared"`
	Peers            int
	Bytes            struct{ Store, Cache, Peer, Upstream int64 }
}

type peerStatus struct {
	ID            string
	Addresses     []string
	FoundBy       string  `json:"found_by"`
	RTT           float64 `json:"rtt_ms"`
	Paths         int64
	SentBytes     int64 `json:"sent_bytes"`
	ReceivedBytes int64 `json:"received_bytes"`
	Standing      string
}

func (h *host) status(ctx context.Context) (s status, err error) {
	return s, h.admin(ctx, "status", &s)
}

func (h *host) peers(ctx context.Context) (list []peerStatus, err error) {
	return list, h.admin(ctx, "peers", &list)
}

// pathsOf returns how many paths another host shares, as h knows from its inventory; -1 when
// they are not connected.
func (h *host) pathsOf(ctx context.Context, o *host) int64 {
	list, _ := h.peers(ctx)
	for _, p := range list {
		for _, a := range p.Addresses {
			if h.st.isAddr(a, o) {
				return p.Paths
			}
		}
	}
	return -1
}

// isAddr tells whether a multiaddr is one of a host's.
func (st *stage) isAddr(a string, h *host) bool {
	return strings.Contains(a, fmt.Sprintf("/10.77.%d.%d/", h.k/256, h.k%256)) || strings.Contains(a, fmt.Sprintf("/fd77::%x/", h.k))
}

// ready waits until the node answers.
func (h *host) ready(ctx context.Context) error {
	_, ok := until(ctx, 20*time.Second, func() bool {
		_, err := h.status(ctx)
		return err == nil || !h.node.running()
	})
	if !ok || !h.node.running() {
		return fmt.Errorf("%s: the node does not answer:\n%s", h, h.lastLog(10))
	}
	return nil
}

// narinfo asks the node as Nix does; status 0 is an error of the connection.
func (h *host) narinfo(ctx context.Context, hash string) (status int, text *nix.NarInfo, took time.Duration) {
	start := time.Now()
	resp, err := h.get(ctx, nodeURL+"/"+hash+".narinfo")
	took = time.Since(start)
	if err != nil {
		return 0, nil, took
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		buf := make([]byte, 1<<20)
		n, _ := readAll(resp.Body, buf)
		text, _ = nix.ParseNarInfo(buf[:n])
	}
	return resp.StatusCode, text, took
}

func readAll(r interface{ Read([]byte) (int, error) }, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var k int
		k, err = r.Read(buf[n:])
		n += k
	}
	return n, err
}

// realise is nix-store -r within a limit.
func (h *host) realise(ctx context.Context, limit time.Duration, paths ...string) (realnix.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return h.client.Realise(ctx, paths...)
}

// verify has Nix compare the whole store with its database.
func (h *host) verify(ctx context.Context, want int) error {
	if _, err := h.client.VerifyAll(ctx); err != nil {
		return err
	}
	paths, err := h.client.Paths(ctx)
	if err == nil && len(paths) < want {
		err = fmt.Errorf("%d valid paths, want %d", len(paths), want)
	}
	return err
}

// logLines returns the lines of the log that have all words.
func (h *host) logLines(words ...string) (lines []string) {
	f, err := os.Open(h.logFile())
	if err != nil {
		return nil
	}
	defer f.Close()
next:
	for s := bufio.NewScanner(f); s.Scan(); {
		for _, w := range words {
			if !strings.Contains(s.Text(), w) {
				continue next
			}
		}
		lines = append(lines, s.Text())
	}
	return lines
}

func (h *host) lastLog(n int) string {
	lines := h.logLines()
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// until looks every 20 ms until f is true, and returns how long that took.
func until(ctx context.Context, limit time.Duration, f func() bool) (time.Duration, bool) {
	start := time.Now()
	for {
		if f() {
			return time.Since(start), true
		}
		if time.Since(start) > limit || !pause(ctx, 20*time.Millisecond) {
			return time.Since(start), false
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

// commandError returns the end of what Nix said.
func commandError(err error) string {
	var ce *realnix.CommandError
	if !errors.As(err, &ce) {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(ce.Stderr), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], " / ")
}
