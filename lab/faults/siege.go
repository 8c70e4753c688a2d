package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
	"github.com/nixp2p/nixp2p/lab/hostile"
	"github.com/nixp2p/nixp2p/lab/rig"
)

// siege is one attack that is going on.
type siege struct {
	world      *world
	binary     string
	dir        string
	args       []string // of the node
	node       *daemon  // that is attacked
	asked      *daemon  // that Nix asks
	peers      []*hostile.Peer
	ids        []string
	goes       sync.WaitGroup
	wrongFiles int    // for which the node blames its cache
	came       string // how far the attack came
}

// attackReport is what one Nix saw of one attack.
type attackReport struct {
	Name     string
	Outcomes []*outcome
	Joined   time.Duration // until the newcomer knew what the node has; 0: there was none
	Peak     int64         // memory of the node, bytes
	Blamed   string
	Came     string
}

// joinTime is how long a newcomer may take.
const joinTime = 45 * time.Second

func measureAttacks(ctx context.Context, o *options, n *realnix.Nix) (all []*attackReport, err error) {
	for _, a := range attacks() {
		if !o.only.MatchString(a.name) {
			continue
		}
		r, err := measureAttack(ctx, o, n, a)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", a.name, err)
		}
		fmt.Fprintf(os.Stderr, "%-7s %-55s %s, %s MiB, %s %s\n", n.Version, a.name, r, mib(r.Peak), r.Blamed, r.Came)
		all = append(all, r)
	}
	return all, nil
}

// newSiege starts a node that has the good cache as its upstream and knows nobody.
func newSiege(ctx context.Context, o *options) (s *siege, err error) {
	s = &siege{world: newWorld(ctx), binary: o.binary}
	if s.dir, err = os.MkdirTemp(o.dir, "cell"); err != nil {
		return nil, err
	}
	s.args = s.nodeArgs("node", s.world.good.URL())
	if s.node, err = startDaemon(ctx, o.binary, s.args); err != nil {
		return nil, err
	}
	s.asked = s.node
	rig.Pause(ctx, startTime)
	return s, nil
}

// leave ends the peers; what they do for others has to be over.
func (s *siege) leave() {
	for _, p := range s.peers {
		p.Close()
	}
	s.goes.Wait()
}

func (s *siege) close() {
	if s.asked != s.node {
		s.asked.stop()
	}
	s.node.stop()
	s.world.close()
	_ = realnix.RemoveAll(s.dir)
}

func measureAttack(ctx context.Context, o *options, n *realnix.Nix, a *attack) (*attackReport, error) {
	s, err := newSiege(ctx, o)
	if err != nil {
		return nil, err
	}
	defer s.close()
	defer s.leave()
	attacking, stop := context.WithCancel(ctx)
	defer stop()
	r := &attackReport{Name: a.name}
	if a.newcomer {
		if out, _, err := s.command(ctx, o, n); err != nil || !out.OK {
			return nil, fmt.Errorf("before the attack: %v, %w", out, err)
		}
	}
	if a.begin != nil {
		if err := a.begin(attacking, s); err != nil {
			return nil, err
		}
	}
	if a.newcomer {
		if r.Joined, err = s.join(attacking, a); err != nil {
			return nil, err
		}
	}
	for i := range 1 + len(a.again) {
		if i > 0 {
			if err := a.again[i-1](attacking, s); err != nil {
				return nil, err
			}
		}
		out, _, err := s.command(ctx, o, n)
		if err != nil {
			return nil, err
		}
		r.Outcomes = append(r.Outcomes, out)
		r.Peak = max(r.Peak, s.node.peak())
		n, err := s.node.metric(ctx, "nixp2p_verify_failures_total{")
		if err != nil {
			return nil, err
		}
		byPeers, err := s.node.metric(ctx, "nixp2p_verify_failures_total{", `source="peer"`)
		if err != nil {
			return nil, err
		}
		n -= byPeers
		s.wrongFiles = max(s.wrongFiles, int(n))
	}
	asked := 0
	for _, p := range s.peers {
		asked += p.Asked()
	}
	if asked > 0 {
		s.came = strings.TrimPrefix(fmt.Sprintf("%s, asked %d times", s.came, asked), ", ")
	}
	r.Came = s.came
	r.Blamed, err = s.blamed(ctx)
	return r, err
}

// nodeArgs are the flags of a node.
func (s *siege) nodeArgs(name, upstream string) []string {
	return append(daemonArgs(filepath.Join(s.dir, name), s.world.key.Public(), upstream),
		"--p2p=true", "--mdns=false", "--p2p-listen", "/ip4/127.0.0.1/tcp/0", "--share-key", s.world.key.Name)
}

// command has Nix build the closure in an empty store.
func (s *siege) command(ctx context.Context, o *options, n *realnix.Nix) (*outcome, *realnix.Client, error) {
	dir, err := os.MkdirTemp(s.dir, "client")
	if err != nil {
		return nil, nil, err
	}
	c, err := newClient(n, filepath.Join(dir, "c"), s.world.key.Public(), s.asked.url)
	if err != nil {
		return nil, nil, err
	}
	out, err := (&worker{world: s.world}).realise(ctx, o, c)
	return out, c, err
}

// join starts a newcomer, and returns how long it took until it knew what the node has.
func (s *siege) join(ctx context.Context, a *attack) (time.Duration, error) {
	args := s.nodeArgs("newcomer", "http://127.0.0.1:1")
	if a.introduce == nil {
		args = append(args, "--bootstrap", s.node.peer)
	}
	d, err := startDaemon(ctx, s.binary, args)
	if err != nil {
		return 0, err
	}
	s.asked = d
	begun := time.Now()
	if a.introduce != nil {
		if err := a.introduce(ctx, s); err != nil {
			return 0, err
		}
	}
	id := s.node.peer[strings.LastIndexByte(s.node.peer, '/')+1:]
	for {
		if known, err := d.knows(ctx, id); err != nil || known || time.Since(begun) > joinTime {
			return time.Since(begun), err
		}
		rig.Pause(ctx, 50*time.Millisecond)
	}
}

// blamed tells whom the node blames, and what it noticed of its caches.
func (s *siege) blamed(ctx context.Context) (string, error) {
	list, err := s.node.peers(ctx)
	if err != nil {
		return "", err
	}
	hostile, honest := 0, 0
	for _, p := range list {
		if !strings.HasPrefix(p.Standing, "liar") {
			continue
		}
		honest++
		for _, id := range s.ids {
			if p.ID == id {
				hostile, honest = hostile+1, honest-1
			}
		}
	}
	var parts []string
	if hostile > 0 {
		parts = append(parts, fmt.Sprintf("%d of %d", hostile, len(s.ids)))
	}
	if honest > 0 {
		parts = append(parts, fmt.Sprintf("**%d honest**", honest))
	}
	if s.wrongFiles > 0 {
		parts = append(parts, "the cache")
	}
	if len(parts) == 0 {
		return "nobody", nil
	}
	return strings.Join(parts, ", "), nil
}

// metric sums the metrics that begin so and have these labels.
func (d *daemon) metric(ctx context.Context, prefix string, labels ...string) (sum float64, err error) {
	page, err := d.get(ctx, "/metrics")
	if err != nil {
		return 0, err
	}
	defer page.Close()
	for lines := bufio.NewScanner(page); lines.Scan(); {
		if text := lines.Text(); strings.HasPrefix(text, prefix) && !slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(text, l) }) {
			f, _ := strconv.ParseFloat(text[strings.LastIndexByte(text, ' ')+1:], 64)
			sum += f
		}
	}
	return sum, nil
}

// peak is the most memory that the process had, in bytes.
func (d *daemon) peak() int64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kb << 10
		}
	}
	return 0
}

// fetch asks as Nix does.
func (d *daemon) fetch(ctx context.Context, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

func (r *attackReport) String() string {
	var parts []string
	for _, o := range r.Outcomes {
		parts = append(parts, o.String())
	}
	text := strings.Join(parts, "; ")
	switch {
	case r.Joined > joinTime:
		return fmt.Sprintf("**not in after %s**; %s", seconds(joinTime), text)
	case r.Joined > 0:
		return fmt.Sprintf("in after %s; %s", seconds(r.Joined), text)
	}
	return text
}
