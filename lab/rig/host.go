//go:build linux

package rig

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
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

// Where a node listens, in its host.
const (
	NodeURL  = "http://127.0.0.1:7654"
	AdminURL = "http://127.0.0.1:7655"
)

// Site is what the hosts of a LAN have in common.
type Site struct {
	Dir    string // of the lab
	Files  string // directory of the hosts' files
	LAN    *LAN
	Cache  *Cache
	Nix    *realnix.Nix
	Corpus *realnix.Corpus
}

// Host is a machine of the site: a namespace, a store with its Nix, and a node.
type Host struct {
	K      int // its number, from 1
	NS     string
	Dir    string
	Client *realnix.Client // asks this host's node
	Node   *Process        // nil: was never started
	Begun  time.Time       // of the node
	Env    []string        // NAME=VALUE, for the node

	Upstream string // URL; that of the site's cache if empty

	site *Site
	http *http.Client
}

func (h *Host) String() string { return fmt.Sprintf("h%d", h.K) }

// NewHost returns host number k, with an empty store; its node does not run.
func (s *Site) NewHost(k int) (*Host, error) {
	name := fmt.Sprintf("h%d", k)
	h := &Host{site: s, K: k, NS: s.LAN.Place(name), Dir: filepath.Join(s.Files, name)}
	h.http = httpIn(h.NS)
	return h, h.NewClient("client")
}

// NewClient gives the host a Nix with an empty store. A node that runs goes on with the store
// that it has.
func (h *Host) NewClient(name string) (err error) {
	h.Client, err = h.site.Nix.NewClient(filepath.Join(h.Dir, name), h.site.Corpus.PublicKey)
	if err != nil {
		return err
	}
	h.Client.Prefix = []string{"ip", "netns", "exec", h.NS}
	h.Client.Substituters = []string{NodeURL}
	return nil
}

// Fill gives the host a copy of a store, as if it had been there for long.
func (h *Host) Fill(ctx context.Context, root string) error {
	if out, err := exec.CommandContext(ctx, "cp", "-a", root, h.Client.Root).CombinedOutput(); err != nil {
		return fmt.Errorf("copy store: %w: %s", err, out)
	}
	return nil
}

// Start starts the node with what its flags are by default, but for its directories, the
// upstream and the keys of the corpus.
func (h *Host) Start(flags ...string) error {
	key, upstream := h.site.Corpus.PublicKey, cmp.Or(h.Upstream, h.site.Cache.URL)
	name, _, _ := strings.Cut(key, ":")
	argv := append([]string{"env"}, h.Env...)
	argv = append(argv,
		Binary(h.site.Dir), "serve", "--config", os.DevNull,
		"--state-dir", filepath.Join(h.Dir, "state"), "--cache-dir", filepath.Join(h.Dir, "cache"), "--store-root", h.Client.Root,
		"--upstream", upstream, "--trusted-public-key", key, "--share-key", name,
	)
	p, err := StartIn(h.NS, h.logFile(), append(argv, flags...)...)
	h.Node, h.Begun = p, time.Now()
	return err
}

func (h *Host) logFile() string { return filepath.Join(h.Dir, "log") }

// Stop ends the node and waits for that.
func (h *Host) Stop() {
	if h.Node != nil {
		h.Node.Stop(3 * time.Second)
		h.http.CloseIdleConnections()
	}
}

// End ends the node at once, if it runs.
func (h *Host) End() {
	if h.Node != nil {
		h.Node.Kill()
	}
	h.http.CloseIdleConnections()
}

// Signal sends the node a signal.
func (h *Host) Signal(sig syscall.Signal) { h.Node.Signal(sig) }

// Get asks the node or its admin listener.
func (h *Host) Get(ctx context.Context, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return h.http.Do(req)
}

// Admin asks the API.
func (h *Host) Admin(ctx context.Context, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	resp, err := h.Get(ctx, AdminURL+"/api/v1/"+path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: status %d", path, resp.StatusCode)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// Status is the part of /api/v1/status that labs read.
type Status struct {
	StorePathsShared int64 `json:"store_paths_shared"`
	Peers            int
	Bytes            struct{ Store, Cache, Peer, Upstream int64 }
	Deltas           struct{ NARs int64 }
}

// PeerStatus is an element of /api/v1/peers.
type PeerStatus struct {
	ID            string
	Addresses     []string
	FoundBy       string  `json:"found_by"`
	RTT           float64 `json:"rtt_ms"`
	Paths         int64
	SentBytes     int64 `json:"sent_bytes"`
	ReceivedBytes int64 `json:"received_bytes"`
	Standing      string
}

// Status asks the node how it is.
func (h *Host) Status(ctx context.Context) (s Status, err error) {
	return s, h.Admin(ctx, "status", &s)
}

// Peers asks the node for its peers.
func (h *Host) Peers(ctx context.Context) (list []PeerStatus, err error) {
	return list, h.Admin(ctx, "peers", &list)
}

// PathsOf returns how many paths another host shares, as h knows from its inventory; -1 when
// they are not connected.
func (h *Host) PathsOf(ctx context.Context, o *Host) int64 {
	list, _ := h.Peers(ctx)
	for _, p := range list {
		for _, a := range p.Addresses {
			if o.HasAddr(a) {
				return p.Paths
			}
		}
	}
	return -1
}

// HasAddr tells whether a multiaddr is one of the host's.
func (h *Host) HasAddr(a string) bool {
	return strings.Contains(a, fmt.Sprintf("/10.77.%d.%d/", h.K/256, h.K%256)) || strings.Contains(a, fmt.Sprintf("/fd77::%x/", h.K))
}

// AddrOf returns the multiaddr of another host's node, with its ID, as h knows it.
func (h *Host) AddrOf(ctx context.Context, o *Host) (string, error) {
	list, err := h.Peers(ctx)
	if err != nil {
		return "", err
	}
	for _, p := range list {
		for _, a := range p.Addresses {
			if o.HasAddr(a) {
				if !strings.Contains(a, "/p2p/") {
					a += "/p2p/" + p.ID
				}
				return a, nil
			}
		}
	}
	return "", fmt.Errorf("%s does not know %s", h, o)
}

// Ready waits until the node answers.
func (h *Host) Ready(ctx context.Context) error {
	_, ok := Until(ctx, 20*time.Second, func() bool {
		_, err := h.Status(ctx)
		return err == nil || !h.Node.Running()
	})
	if !ok || !h.Node.Running() {
		return fmt.Errorf("%s: the node does not answer:\n%s", h, h.LastLog(10))
	}
	return nil
}

// NarInfo asks the node as Nix does; status 0 is an error of the connection.
func (h *Host) NarInfo(ctx context.Context, hash string) (status int, text *nix.NarInfo, took time.Duration) {
	start := time.Now()
	resp, err := h.Get(ctx, NodeURL+"/"+hash+".narinfo")
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

// Realise is nix-store -r within a limit.
func (h *Host) Realise(ctx context.Context, limit time.Duration, paths ...string) (realnix.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return h.Client.Realise(ctx, paths...)
}

// Verify has Nix compare the whole store with its database.
func (h *Host) Verify(ctx context.Context, want int) error {
	if _, err := h.Client.VerifyAll(ctx); err != nil {
		return err
	}
	paths, err := h.Client.Paths(ctx)
	if err == nil && len(paths) < want {
		err = fmt.Errorf("%d valid paths, want %d", len(paths), want)
	}
	return err
}

// LogLines returns the lines of the node's log that have all words.
func (h *Host) LogLines(words ...string) (lines []string) {
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

// LastLog returns the last lines of the node's log.
func (h *Host) LastLog(n int) string {
	lines := h.LogLines()
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
