package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
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
)

func measurePeers(ctx context.Context, o *options, n *realnix.Nix) (all []*peerReport, err error) {
	for _, l := range lies() {
		if !o.only.MatchString(l.name) || o.quick && !l.quick {
			continue
		}
		r, err := peerCell(ctx, o, n, l)
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
func peerCell(ctx context.Context, o *options, n *realnix.Nix, l *lie) (r *peerReport, err error) {
	s, err := newSiege(ctx, o)
	if err != nil {
		return nil, err
	}
	defer s.close()
	defer s.leave()
	r = &peerReport{Name: l.name}
	if r.Before, err = s.node.vitals(ctx); err != nil {
		return nil, err
	}
	if err := s.invite(ctx, 1, func() hostile.Config {
		cfg := s.claiming(s.world.honest(l))
		cfg.Filter = l.filter
		return cfg
	}); err != nil {
		return nil, err
	}
	if err := s.beside(ctx, o, n, l, r); err != nil {
		return nil, err
	}
	if r.Standing, err = s.node.standing(ctx, s.ids[0]); err != nil {
		return nil, err
	}
	s.leave()
	for end := time.Now().Add(settleTime); ; {
		if r.After, err = s.node.vitals(ctx); err != nil || time.Now().After(end) || r.After.Goroutines <= r.Before.Goroutines+idle {
			return r, err
		}
		if !rig.Pause(ctx, time.Second) {
			return nil, ctx.Err()
		}
	}
}

// beside is the command, while the peer lies.
func (s *siege) beside(ctx context.Context, o *options, n *realnix.Nix, l *lie, r *peerReport) error {
	attack, stop := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer stop()
	if l.attack != nil {
		ready := make(chan struct{})
		all.Go(func() { r.Came = l.attack(attack, s.peers[0], sync.OnceFunc(func() { close(ready) })) })
		select {
		case <-ready:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	out, c, err := s.command(ctx, o, n)
	if err != nil {
		return err
	}
	r.Outcome = out
	res, err := c.VerifyAll(ctx)
	r.Verified = err == nil && !strings.Contains(res.Stderr, "was modified")
	r.During, err = s.node.vitals(ctx)
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
	goroutines, err := d.metric(ctx, "go_goroutines ")
	if err != nil {
		return v, err
	}
	heap, err := d.metric(ctx, "go_memstats_heap_alloc_bytes ")
	if err != nil {
		return v, err
	}
	v.Goroutines, v.Heap = int(goroutines), int64(heap)
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
