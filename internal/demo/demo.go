// Package demo shows on one machine what nodes do for each other: it makes up a signed closure
// and an upstream cache behind a slow line, starts three nodes that are processes of their own,
// lets each fetch the closure, kills one meanwhile, and counts where the bytes came from. All
// that it makes is on loopback and in one temporary directory, and is gone at the end. It
// touches neither the machine's Nix store, its configuration, nor a node that runs there.
package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/nixconf"
)

// What keeps a machine from running the demo, wrapped by errors of Run.
var (
	ErrNoRoom   = errors.New("no room")
	ErrLoopback = errors.New("programs cannot talk to each other on 127.0.0.1")
	ErrNix      = errors.New("nix copy")
	ErrNotNear  = errors.New("although A has them")
)

// Config says what is shown. Zero fields mean what is said beside them.
type Config struct {
	// Node is the command, with its first arguments, that runs a node with the flags of
	// `serve` and ends when its standard input does. Required.
	Node []string

	Paths  int   // 80
	Size   int64 // bytes of all NARs together; 80 MB
	Uplink int64 // bytes a second that the upstream sends; 50 Mbit/s
	LAN    int64 // bytes a second that a node sends to others; 1 Gbit/s

	// WithoutNix fetches with the built-in client although there is Nix.
	WithoutNix bool
	// Lie makes the upstream send wrong bytes for one path: then the demo has to fail.
	Lie bool

	TempDir string // os.TempDir()
	Getenv  func(string) string

	// Tell is given each step as it begins and ends, Progress how the bytes come in, some
	// times a second; both from the goroutine of Run or one that it waits for, never at the
	// same time. Nil is allowed.
	Tell     func(text string)
	Progress func(p Progress)
}

// Progress is how far a node has come.
type Progress struct {
	Node         string
	FromUpstream int64 // bytes
	FromPeers    int64
	Elapsed      time.Duration
}

// Node is what one node did.
type Node struct {
	Name         string  `json:"name"`
	Paths        int     `json:"paths"`         // that its client got, each with the signed hash
	FromUpstream int64   `json:"from_upstream"` // NAR bytes sent to the client, as its own status says
	FromPeers    int64   `json:"from_peers"`
	FromCache    int64   `json:"from_cache"`
	Uplink       int64   `json:"uplink_bytes"` // NAR bytes that the upstream sent meanwhile, as it counted them itself
	Seconds      float64 `json:"seconds"`
	AskedAgain   int     `json:"asked_again"` // files that the built-in client had to ask for again
}

// Result is what a run found.
type Result struct {
	OK       bool   `json:"ok"`
	Error    string `json:"error,omitempty"` // why it is not
	Client   string `json:"client"`
	Paths    int    `json:"paths"`
	NarBytes int64  `json:"nar_bytes"`  // of the closure, raw
	Files    int64  `json:"file_bytes"` // of the closure, as the upstream has it
	Nodes    []Node `json:"nodes"`

	// KilledAfter is what C had got, of NarBytes, when A was killed; 0 when it was not.
	KilledAfter int64 `json:"killed_after"`

	// What the upstream sent, and would have sent to three machines without nodes.
	UplinkBytes     int64   `json:"uplink_bytes"`
	UplinkWithout   int64   `json:"uplink_bytes_without"`
	NarinfoRequests int64   `json:"narinfo_requests"`
	NarRequests     int64   `json:"nar_requests"`
	Seconds         float64 `json:"seconds"`
}

func (cfg *Config) defaults() {
	if cfg.Paths <= 0 {
		cfg.Paths = 80
	}
	if cfg.Size <= 0 {
		cfg.Size = 80e6
	}
	if cfg.Uplink <= 0 {
		cfg.Uplink = 50e6 / 8
	}
	if cfg.LAN <= 0 {
		cfg.LAN = 1e9 / 8
	}
	if cfg.TempDir == "" {
		cfg.TempDir = os.TempDir()
	}
	if cfg.Getenv == nil {
		cfg.Getenv = os.Getenv
	}
	if cfg.Tell == nil {
		cfg.Tell = func(string) {}
	}
	if cfg.Progress == nil {
		cfg.Progress = func(Progress) {}
	}
}

// run is one run on its way.
type run struct {
	cfg     Config
	room    *room
	client  client
	closure *closure
	up      *upstream
	nodes   map[string]*node
	died    context.CancelCauseFunc
	result  Result
}

// Run shows everything and cleans up behind itself, also when ctx ends. The result holds what
// was found so far; OK, and a nil error, mean that all paths arrived as they were signed, that
// the second node needed nothing from the upstream, and that the third one finished although
// the first was killed.
func Run(ctx context.Context, cfg Config) (res Result, err error) {
	cfg.defaults()
	began := time.Now()
	r := &run{cfg: cfg, nodes: map[string]*node{}}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.died = cancel
	defer func() {
		if cause := context.Cause(ctx); err != nil && cause != nil {
			err = cause // a node that ended makes everything else fail
		}
		err = errors.Join(r.withRoom(err), r.clean())
		res = r.result
		res.Seconds = time.Since(began).Seconds()
		if res.OK = err == nil; err != nil {
			res.Error = err.Error()
		}
	}()
	for _, step := range []func(context.Context) error{r.prepare, r.start, r.cold, r.near, r.killed} {
		if err := step(ctx); err != nil {
			return r.result, err
		}
	}
	return r.result, nil
}

// withRoom adds to an error that there is no room left, where that is so: programs that run
// out of it say so each in its own way, or not at all.
func (r *run) withRoom(err error) error {
	const little = 4 << 20
	if err == nil || errors.Is(err, ErrNoRoom) || r.room == nil {
		return err
	}
	if free, ferr := freeBytes(r.room.dir); errors.Is(err, syscall.ENOSPC) || ferr == nil && free < little {
		return fmt.Errorf("%w in %s: %w", ErrNoRoom, r.cfg.TempDir, err)
	}
	return err
}

// clean ends what was started and removes what was written.
func (r *run) clean() error {
	for _, n := range r.nodes {
		n.kill()
	}
	if r.up != nil {
		r.up.stop()
	}
	if r.room == nil {
		return nil
	}
	if err := r.room.close(); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	return nil
}

// prepare makes closure and upstream and finds out who fetches.
func (r *run) prepare(ctx context.Context) (err error) {
	cfg := &r.cfg
	r.client = builtin{}
	// The NARs in the caches of three nodes, the first of them compressed.
	needed := cfg.Size*5/2 + 64e6
	var found *nixconf.Nix
	if !cfg.WithoutNix {
		// One that does not even say its version is as good as none.
		if found, err = nixconf.Find(ctx, cfg.Getenv); err == nil {
			needed += cfg.Size
		}
	}
	if r.room, err = openRoom(cfg.TempDir, needed); err != nil {
		return err
	}
	if found != nil {
		r.client = &realNix{path: found.Path, version: found.Version, dir: r.room.dir}
	}
	r.result.Client = r.client.name()
	if r.closure, err = makeClosure(ctx, cfg.Paths, cfg.Size); err != nil {
		return err
	}
	r.result.Paths, r.result.NarBytes, r.result.Files = cfg.Paths, r.closure.narBytes, r.closure.fileBytes
	r.result.UplinkWithout = 3 * r.closure.fileBytes
	if r.up, err = startUpstream(ctx, r.closure, cfg.Uplink, cfg.Lie); err != nil {
		return err
	}
	r.tell("An upstream cache with a made-up package and all that it needs: %d paths, %s,\n"+
		"%s as zstd files, signed with a key made just now. It is %d ms away and sends %.4g Mbit/s.",
		cfg.Paths, FormatMB(r.closure.narBytes), FormatMB(r.closure.fileBytes), upstreamDelay.Milliseconds(), float64(cfg.Uplink)*8/1e6)
	return nil
}

func (r *run) tell(format string, args ...any) { r.cfg.Tell(fmt.Sprintf(format, args...)) }

// start starts the nodes one after the other, each knowing those before it.
func (r *run) start(ctx context.Context) error {
	var known []string
	for _, name := range []string{"A", "B", "C"} {
		n, err := startNode(ctx, nodeConfig{
			name: name, dir: filepath.Join(r.room.dir, name), command: r.cfg.Node, upstream: r.up.url,
			publicKey: r.closure.publicKey, lan: r.cfg.LAN, bootstrap: known,
		}, r.died)
		if err != nil {
			return err
		}
		r.nodes[name] = n
		known = append(known, n.peer)
	}
	for _, n := range r.nodes {
		if err := n.knows(ctx, len(r.nodes)-1, 0); err != nil {
			return err
		}
	}
	r.tell("Three nodes that know each other, A, B and C, with nothing in their stores and caches.")
	return nil
}

// cold lets A fetch what nobody near has.
func (r *run) cold(ctx context.Context) error {
	r.tell("A fetches with %s. Nobody near has anything, so all comes from the upstream.", r.client.name())
	if err := r.fetch(ctx, "A"); err != nil {
		return err
	}
	return r.nodes["B"].knows(ctx, 1, r.cfg.Paths)
}

// near lets B fetch what A has.
func (r *run) near(ctx context.Context) error {
	r.tell("B fetches the same. A has it, so the upstream is not needed.")
	if err := r.fetch(ctx, "B"); err != nil {
		return err
	}
	b := r.result.Nodes[1]
	if b.Uplink != 0 || b.FromUpstream != 0 {
		return fmt.Errorf("node B took %s of NARs from the upstream %w", FormatMB(max(b.Uplink, b.FromUpstream)), ErrNotNear)
	}
	return r.nodes["C"].knows(ctx, 2, r.cfg.Paths)
}

// killed lets C fetch while A dies.
func (r *run) killed(ctx context.Context) error {
	r.tell("C fetches the same, and A is killed in between.")
	if err := r.fetch(ctx, "C"); err != nil {
		return err
	}
	if r.result.KilledAfter == 0 {
		return errors.New("node C had all before A could be killed: choose a larger --size or a slower --lan")
	}
	return nil
}

// fetch lets the client fetch from a node, and notes what the node did.
func (r *run) fetch(ctx context.Context, name string) error {
	n := r.nodes[name]
	before := r.up.narBytes.Load()
	began := time.Now()
	got, again, err := r.watched(ctx, n, began)
	did := Node{Name: name, Seconds: time.Since(began).Seconds(), Uplink: r.up.narBytes.Load() - before, Paths: len(got), AskedAgain: again}
	// What was found is told also after a failure; what else failed is the reason then.
	status, serr := n.status(context.WithoutCancel(ctx))
	did.FromUpstream, did.FromPeers, did.FromCache = status.Bytes.Upstream, status.Bytes.Peer, status.Bytes.Cache
	r.result.Nodes = append(r.result.Nodes, did)
	r.result.UplinkBytes = r.up.narBytes.Load()
	r.result.NarRequests, r.result.NarinfoRequests = r.up.narRequests.Load(), r.up.narinfoRequests.Load()
	if err != nil {
		if said := n.complaint(); said != "" {
			err = fmt.Errorf("%w (node %s says: %s)", err, name, said)
		}
		return fmt.Errorf("fetch through node %s: %w", name, err)
	}
	if serr != nil {
		return serr
	}
	for _, p := range r.closure.paths {
		if !got[p.path] {
			return fmt.Errorf("fetch through node %s: %s did not arrive", name, p.path)
		}
	}
	r.tell("%d of %d paths arrived as they were signed, in %.1f s: %s from the upstream, %s from peers.",
		did.Paths, r.cfg.Paths, did.Seconds, FormatMB(did.FromUpstream), FormatMB(did.FromPeers))
	return nil
}

// watched runs the client and looks at its node meanwhile. While C fetches, A is killed.
func (r *run) watched(ctx context.Context, n *node, began time.Time) (got arrived, again int, err error) {
	const every = 15 * time.Millisecond
	fctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		got, again, err = r.client.fetch(fctx, n.url, r.closure)
	}()
	// A is killed when C has a third: some files are whole, some half, some not begun.
	victim, due := r.nodes["A"], r.closure.narBytes/3
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return got, again, err
		case <-tick.C:
		}
		s, serr := n.status(ctx)
		if serr != nil {
			continue // the client will say what is wrong
		}
		if n.name == "C" && r.result.KilledAfter == 0 && sum(s) >= due {
			victim.kill()
			r.result.KilledAfter = sum(s)
			r.tell("A is killed: C has %s of %s.", FormatMB(r.result.KilledAfter), FormatMB(r.closure.narBytes))
		}
		r.cfg.Progress(Progress{Node: n.name, FromUpstream: s.Bytes.Upstream, FromPeers: s.Bytes.Peer, Elapsed: time.Since(began)})
	}
}

// sum returns how many NAR bytes a node has sent to its client.
func sum(s admin.Status) int64 {
	return s.Bytes.Upstream + s.Bytes.Peer + s.Bytes.Cache + s.Bytes.Store
}

// FormatMB writes bytes for people, in the units in which lines are sold.
func FormatMB(n int64) string {
	if n < 10e6 && n > 0 {
		return fmt.Sprintf("%.2f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f MB", float64(n)/1e6)
}
