package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
	"github.com/nixp2p/nixp2p/lab/hostile"
	"github.com/nixp2p/nixp2p/lab/rig"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

// peerReport is what one Nix saw of one lying peer.
type peerReport struct {
	Name     string
	Outcome  *outcome
	Verified bool   // nix-store --verify --check-contents found nothing
	Standing string // what the peer was to the node at the end
	Came     string // how far an attack came
	Before   vitals
	During   vitals // the peak of memory, and what there was right after the command
	After    vitals // when the liar is gone
}

// vitals are taken from the node's own metrics.
type vitals struct {
	Goroutines int
	Heap       int64 // bytes that live after a collection
	Peak       int64 // bytes of memory, resident
}

const (
	// startTime is how long a node needs until all its parts work.
	startTime = 2 * time.Second
	// settleTime is how long goroutines may take to end when the liar is gone.
	settleTime = 10 * time.Second
	// idle goroutines belong to connections to the cache that are kept for later.
	idle = 16
	// meetTime is how long the node may take to find the liar and hear its inventory.
	meetTime = 15 * time.Second
)

func measurePeers(ctx context.Context, o *options, n *realnix.Nix) (all []*peerReport, err error) {
	w := newWorld(ctx)
	defer w.close()
	for _, l := range lies() {
		if !o.only.MatchString(l.name) || o.quick && !l.quick {
			continue
		}
		r, err := w.peerCell(ctx, o, n, l)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.name, err)
		}
		fmt.Fprintf(os.Stderr, "%-7s %-55s %s, %s\n", n.Version, l.name, r.Outcome, r.Standing)
		all = append(all, r)
	}
	return all, nil
}

// honest is what the peer would say without the lie.
func (w *world) honest(l *lie) func(ask wire.Request, off int64, head bool, out io.Writer) bool {
	return func(ask wire.Request, off int64, _ bool, out io.Writer) bool {
		for i, p := range w.paths {
			switch {
			case ask.IsInfo && ask.Question == p.Hash().Question():
				text := p.Signed(w.key).AppendText(nil)
				if l.info != nil {
					l.info(out, text, w.paths[(i+1)%len(w.paths)])
				} else {
					hostile.Reply(out, text)
				}
				return true
			case !ask.IsInfo && ask.Form == nix.Raw && ask.Nar == p.NarHash():
				if l.nar != nil {
					l.nar(out, p.NAR, off)
				} else {
					hostile.Give(out, p.NAR, off, int64(len(p.NAR)))
				}
				return true
			}
		}
		return false
	}
}

// peerCell runs one command on a node with the good cache and a lying peer.
func (w *world) peerCell(ctx context.Context, o *options, n *realnix.Nix, l *lie) (*peerReport, error) {
	dir, err := os.MkdirTemp(o.dir, "cell")
	if err != nil {
		return nil, err
	}
	defer realnix.RemoveAll(dir)
	peers := filepath.Join(dir, "peers")
	if err := os.WriteFile(peers, nil, 0o600); err != nil {
		return nil, err
	}
	d, err := startDaemon(ctx, o.binary, append(peerArgs(dir, w.key.Name, w.key.Public(), w.good.URL()), "--bootstrap", "file:"+peers))
	if err != nil {
		return nil, err
	}
	defer d.stop()
	r := &peerReport{Name: l.name}
	rig.Pause(ctx, startTime)
	if r.Before, err = d.vitals(ctx); err != nil {
		return nil, err
	}
	cfg := hostile.Config{Filter: l.filter, Answer: w.honest(l)}
	for _, p := range w.paths {
		cfg.Claim = append(cfg.Claim, p.Hash())
	}
	bad, err := hostile.New(cfg)
	if err != nil {
		return nil, err
	}
	gone := sync.OnceFunc(bad.Close)
	defer gone()
	if err := os.WriteFile(peers, []byte(bad.Addr()+"\n"), 0o600); err != nil {
		return nil, err
	}
	if err := w.realiseBeside(ctx, o, n, d, bad, l, r); err != nil {
		return nil, err
	}
	if r.Standing, err = d.standing(ctx, bad.ID()); err != nil {
		return nil, err
	}
	gone()
	for end := time.Now().Add(settleTime); ; {
		if r.After, err = d.vitals(ctx); err != nil || time.Now().After(end) || r.After.Goroutines <= r.Before.Goroutines+idle {
			return r, err
		}
		if !rig.Pause(ctx, time.Second) {
			return nil, ctx.Err()
		}
	}
}

// realiseBeside is the command, while the peer lies.
func (w *world) realiseBeside(ctx context.Context, o *options, n *realnix.Nix, d *daemon, bad *hostile.Peer, l *lie, r *peerReport) error {
	met := time.NewTimer(meetTime)
	defer met.Stop()
	select {
	case <-bad.Met():
	case <-met.C:
		return errors.New("the node does not talk to the hostile peer")
	}
	for range 20 { // the inventory comes right after, if it is one
		if known, err := d.knows(ctx, bad.ID()); err != nil || known {
			break
		}
		rig.Pause(ctx, 100*time.Millisecond)
	}
	attack, stop := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer stop()
	if l.attack != nil {
		ready := make(chan struct{})
		all.Go(func() { r.Came = l.attack(attack, bad, sync.OnceFunc(func() { close(ready) })) })
		select {
		case <-ready:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c, err := newClient(n, filepath.Join(o.dir, "client-"+bad.ID()), w.key.Public(), d.url)
	if err != nil {
		return err
	}
	if r.Outcome, err = (&worker{world: w}).realise(ctx, o, c); err != nil {
		return err
	}
	res, err := c.VerifyAll(ctx)
	r.Verified = err == nil && !strings.Contains(res.Stderr, "was modified")
	r.During, err = d.vitals(ctx)
	return err
}

// get gets a page of the admin listener.
func (d *daemon) get(ctx context.Context, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.admin+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("%s: %s", path, resp.Status)
	}
	return resp.Body, nil
}

// vitals has the node collect its garbage and measures it.
func (d *daemon) vitals(ctx context.Context) (v vitals, err error) {
	profile, err := d.get(ctx, "/debug/pprof/heap?gc=1")
	if err != nil {
		return v, err
	}
	_, _ = io.Copy(io.Discard, profile)
	_ = profile.Close()
	page, err := d.get(ctx, "/metrics")
	if err != nil {
		return v, err
	}
	defer page.Close()
	for lines := bufio.NewScanner(page); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		f, _ := strconv.ParseFloat(value, 64)
		switch name {
		case "go_goroutines":
			v.Goroutines = int(f)
		case "go_memstats_heap_alloc_bytes":
			v.Heap = int64(f)
		}
	}
	v.Peak = d.peak()
	return v, nil
}

type peerStatus struct {
	ID       string `json:"id"`
	Paths    int    `json:"paths"`
	Standing string `json:"standing"`
}

func (d *daemon) peers(ctx context.Context) (list []peerStatus, err error) {
	body, err := d.get(ctx, "/api/v1/peers")
	if err != nil {
		return nil, err
	}
	defer body.Close()
	err = json.NewDecoder(body).Decode(&list)
	return list, err
}

func (d *daemon) knows(ctx context.Context, id string) (bool, error) {
	list, err := d.peers(ctx)
	for _, p := range list {
		if p.ID == id && p.Paths > 0 {
			return true, nil
		}
	}
	return false, err
}

// standing returns what the peer is to the node.
func (d *daemon) standing(ctx context.Context, id string) (string, error) {
	list, err := d.peers(ctx)
	for _, p := range list {
		if p.ID == id {
			kind, _, _ := strings.Cut(p.Standing, ":")
			return kind, nil
		}
	}
	return "not connected any more", err
}

// keyName is the key of everything here.
const keyName = "faults-1"
