package hostile

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/lab/rig"
	"github.com/nixp2p/nixp2p/p2p/dht"
	"github.com/nixp2p/nixp2p/p2p/inventory"
)

const (
	// settleTime is how long inventories may take to arrive.
	settleTime = 4 * time.Second
	// announceTime is how long a node may take to announce its NARs in the DHT.
	announceTime = 25 * time.Second
)

// Task is what a Peer is to do and to find out.
type Task struct {
	Connect []string        // full multiaddrs; the first is the target
	Claim   []nix.StoreHash // paths that it says it has
	Look    []nix.StoreHash // to be looked for in the target's inventory
	Probes  []string        // request paths, each asked once, in this order
	NARs    []nix.NarHash   // to be looked up in the DHT; the last one is shared, and large
	Lie     string          // directory of a cache that it knows
	Kind    string          // what it does with that; "" is Wrong
}

// Answer is how a probe went.
type Answer struct {
	Status  int // 0: none
	Bytes   int64
	Took    time.Duration
	Headers int // number of header lines
}

// Report is what it learned.
type Report struct {
	Told    bool // an inventory came
	Count   int  // of paths, as it says
	Bytes   int  // of the inventory and its changes
	Seen    []bool
	Answers []Answer
	Holders []int // providers that the DHT names, for each NAR
}

// Asked is what others requested of it.
type Asked struct{ Paths []string }

// Run reads a Task from in, writes a Report to out, goes on answering until in ends, and writes what
// it was Asked. A program of the lab runs it in a process of its own.
func Run(ctx context.Context, in io.Reader, out io.Writer) error {
	dec := json.NewDecoder(in)
	var task Task
	if err := dec.Decode(&task); err != nil {
		return err
	}
	var p *Peer
	cfg := Config{Listen: "/ip4/0.0.0.0/tcp/7656", Claim: task.Claim}
	if task.Lie != "" {
		c, err := ReadWrong(task.Lie)
		if err != nil {
			return err
		}
		c.behave(&cfg, cmp.Or(task.Kind, Wrong), func() string { return p.ID() })
	}
	p, err := New(cfg)
	if err != nil {
		return err
	}
	defer p.Close()
	d, err := dht.Open(dht.Config{Host: p.host})
	if err != nil {
		return err
	}
	defer d.Close()
	report, err := p.work(ctx, d, &task)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(out).Encode(report); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, io.MultiReader(dec.Buffered(), in))
	p.mu.Lock()
	defer p.mu.Unlock()
	return json.NewEncoder(out).Encode(Asked{p.asked})
}

func (p *Peer) work(ctx context.Context, d *dht.DHT, task *Task) (*Report, error) {
	var target peer.ID
	for i, addr := range task.Connect {
		id, err := p.Join(ctx, addr)
		if err != nil {
			return nil, fmt.Errorf("join %s: %w", addr, err)
		}
		if i == 0 {
			target = id
		}
	}
	if !rig.Pause(ctx, settleTime) {
		return nil, ctx.Err()
	}
	r := &Report{}
	p.mu.Lock()
	view := p.views[target]
	r.Bytes = p.sizes[target]
	p.mu.Unlock()
	if view != nil && view.Loaded() {
		r.Told, r.Count = true, view.Count()
		for _, hash := range task.Look {
			r.Seen = append(r.Seen, view.Has(inventory.KeyOf(hash.Question())))
		}
	}
	for _, path := range task.Probes {
		a, err := p.probe(ctx, target, path)
		if err != nil {
			return nil, fmt.Errorf("probe %s: %w", path, err)
		}
		r.Answers = append(r.Answers, a)
	}
	if n := len(task.NARs); n > 0 {
		p.Deaf(true)
		defer p.Deaf(false)
		// The last one is announced as soon as any is.
		for until := time.Now().Add(announceTime); time.Now().Before(until); {
			if providers(ctx, d, task.NARs[n-1]) > 0 || !rig.Pause(ctx, time.Second) {
				break
			}
		}
	}
	for _, nar := range task.NARs {
		r.Holders = append(r.Holders, providers(ctx, d, nar))
	}
	return r, nil
}

func providers(ctx context.Context, d *dht.DHT, nar nix.NarHash) int {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return len(d.Find(ctx, nar))
}

// probe sends one request on a stream of its own, as nodes do.
func (p *Peer) probe(ctx context.Context, target peer.ID, path string) (a Answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := time.Now()
	st, resp, err := p.request(ctx, target, http.MethodGet, path, nil)
	if err != nil {
		return a, err
	}
	defer func() { _ = st.Reset() }()
	a.Bytes, err = io.Copy(io.Discard, resp.Body)
	a.Took = time.Since(start)
	a.Status, a.Headers = resp.StatusCode, len(resp.Header)
	return a, err
}
