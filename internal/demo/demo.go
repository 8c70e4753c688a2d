// Package demo shows on one machine what nodes do for each other. It makes up signed store paths
// and an upstream cache behind a slow line, starts three daemons, fetches all paths through each
// of them, kills one meanwhile, and counts where the bytes came from. All of it is on loopback
// and in one temporary directory, which is removed at the end. The machine's Nix store, its
// configuration and a node that runs there are not touched.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/nixp2p/nixp2p/internal/atomicfile"
)

// Errors of Run wrap these if the machine, not nixp2p, is the reason.
var (
	ErrNoSpace  = errors.New("not enough space")
	ErrLoopback = errors.New("programs cannot talk to each other on 127.0.0.1")
	ErrUpstream = errors.New("although A has them")
)

// Config says what is shown.
type Config struct {
	// Node is the command, with its first arguments, that runs a daemon with the flags of
	// `serve` until its standard input ends. Required.
	Node []string

	Paths  int
	Size   int64  // bytes of all NARs together
	Uplink int64  // bytes a second that the upstream sends
	LAN    int64  // bytes a second that a node sends to others
	Lie    bool   // the upstream sends wrong bytes for one path: then the demo fails
	Dir    string // the parent of the temporary directory

	// Tell is called as each step begins and ends, Progress many times a second, never both
	// at the same time.
	Tell     func(text string)
	Progress func(Progress)
}

// Progress is how far a node is.
type Progress struct {
	Node                    string
	FromUpstream, FromPeers int64 // bytes of NARs, unpacked
	Elapsed                 time.Duration
}

// Node is what one node did.
type Node struct {
	Name         string  `json:"name"`
	Paths        int     `json:"paths"`         // that arrived with the signed hash
	FromUpstream int64   `json:"from_upstream"` // bytes of NARs, unpacked, by the node's own status
	FromPeers    int64   `json:"from_peers"`
	FromCache    int64   `json:"from_cache"`
	Uplink       int64   `json:"uplink_bytes"` // NAR bytes that the upstream sent meanwhile
	Seconds      float64 `json:"seconds"`
}

// Result is what a run found.
type Result struct {
	OK       bool   `json:"ok"`
	Error    string `json:"error,omitempty"`
	Paths    int    `json:"paths"`
	NarBytes int64  `json:"nar_bytes"`  // of all paths, raw
	Files    int64  `json:"file_bytes"` // of all paths, as the upstream has them
	Nodes    []Node `json:"nodes"`

	// KilledAfter is how many bytes C had when A was killed; 0: A was not killed.
	KilledAfter int64 `json:"killed_after"`

	UplinkBytes   int64   `json:"uplink_bytes"`         // NAR bytes that the upstream sent,
	UplinkWithout int64   `json:"uplink_bytes_without"` // and would have sent to three machines without nodes
	Seconds       float64 `json:"seconds"`
}

// run is one run. died ends it.
type run struct {
	cfg   Config
	dir   string // locked while the run uses it
	lock  *os.File
	up    *upstream
	nodes []*node
	died  context.CancelCauseFunc
	res   Result
}

// Run shows everything and cleans up, also if ctx ends. The error is nil, and Result.OK set, if
// all paths arrived as they were signed, the second node needed nothing from the upstream, and
// the third finished although the first was killed.
func Run(ctx context.Context, cfg Config) (res Result, err error) {
	began := time.Now()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := &run{cfg: cfg, died: cancel}
	for _, step := range []func(context.Context) error{r.prepare, r.start, r.cold, r.near, r.killed} {
		if err = step(ctx); err != nil {
			break
		}
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause // if a node ends, everything else fails
	}
	if free, ferr := freeBytes(cfg.Dir); err != nil && (errors.Is(err, syscall.ENOSPC) || ferr == nil && free < 4<<20) && !errors.Is(err, ErrNoSpace) {
		err = fmt.Errorf("%w in %s: %w", ErrNoSpace, cfg.Dir, err)
	}
	err = errors.Join(err, r.clean())
	res = r.res
	res.Seconds = time.Since(began).Seconds()
	if res.OK = err == nil; err != nil {
		res.Error = err.Error()
	}
	return res, err
}

// clean ends what was started and removes what was written.
func (r *run) clean() error {
	for _, n := range r.nodes {
		n.kill()
	}
	if r.up != nil {
		r.up.stop()
	}
	if r.lock == nil {
		return nil
	}
	err := os.RemoveAll(r.dir)
	_ = r.lock.Close()
	return err
}

func (r *run) tell(format string, args ...any) { r.cfg.Tell(fmt.Sprintf(format, args...)) }

// dirPrefix begins the names of the temporary directories.
const dirPrefix = "nixp2p-demo-"

// prepare makes the directory and the upstream.
func (r *run) prepare(ctx context.Context) (err error) {
	removeOld(r.cfg.Dir)
	needed := r.cfg.Size*5/2 + 64e6 // the caches of three nodes, one of them compressed
	if free, err := freeBytes(r.cfg.Dir); err == nil && free < needed {
		return fmt.Errorf("%w in %s: %s are free, up to %s are needed", ErrNoSpace, r.cfg.Dir, FormatMB(free), FormatMB(needed))
	}
	if r.dir, err = os.MkdirTemp(r.cfg.Dir, dirPrefix); err != nil {
		return err
	}
	if r.lock, err = atomicfile.Lock(r.dir); err != nil {
		return errors.Join(err, os.RemoveAll(r.dir))
	}
	if r.up, err = startUpstream(ctx, r.cfg.Paths, r.cfg.Size, r.cfg.Uplink, r.cfg.Lie); err != nil {
		return err
	}
	r.res.Paths, r.res.NarBytes, r.res.Files = r.cfg.Paths, r.up.narBytes, r.up.fileBytes
	r.res.UplinkWithout = 3 * r.up.fileBytes
	r.tell("An upstream cache with %d made-up paths, %s, %s as zstd files, signed with a new key.\n"+
		"It is %d ms away and sends %.4g Mbit/s.",
		r.cfg.Paths, FormatMB(r.up.narBytes), FormatMB(r.up.fileBytes), upstreamDelay.Milliseconds(), float64(r.cfg.Uplink)*8/1e6)
	return nil
}

// removeOld removes the directories of this user's runs that were killed. A run that is in
// progress holds the lock, or has just begun.
func removeOld(parent string) {
	old, _ := filepath.Glob(filepath.Join(parent, dirPrefix+"*"))
	for _, dir := range old {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || time.Since(info.ModTime()) < time.Minute {
			continue
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
			continue
		}
		if lock, err := atomicfile.Lock(dir); err == nil {
			_ = os.RemoveAll(dir)
			_ = lock.Close()
		}
	}
}

// freeBytes returns how much an ordinary user can write there.
func freeBytes(dir string) (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(s.Bavail) * int64(s.Bsize), nil
}

// start starts the nodes one after the other; each knows those before it.
func (r *run) start(ctx context.Context) error {
	var peers []string
	for _, name := range []string{"A", "B", "C"} {
		n, err := r.startNode(ctx, name, peers)
		if err != nil {
			return err
		}
		r.nodes = append(r.nodes, n)
		peers = append(peers, n.peer)
	}
	for _, n := range r.nodes {
		if err := n.knows(ctx, len(r.nodes)-1, 0); err != nil {
			return err
		}
	}
	r.tell("Three nodes that know each other, A, B and C, with empty stores and caches.")
	return nil
}

// cold fetches through A what no node has.
func (r *run) cold(ctx context.Context) error {
	r.tell("A fetches all paths. No node has them, so they come from the upstream.")
	if err := r.fetch(ctx, 0); err != nil {
		return err
	}
	return r.nodes[1].knows(ctx, 1, r.cfg.Paths)
}

// near fetches through B what A has.
func (r *run) near(ctx context.Context) error {
	r.tell("B fetches the same. A has them, so the upstream is not needed.")
	if err := r.fetch(ctx, 1); err != nil {
		return err
	}
	// On a busy machine a NAR may miss its time budget, and then it comes from the upstream as well.
	if b := r.res.Nodes[1]; b.Uplink > r.res.Nodes[0].Uplink/10 {
		return fmt.Errorf("node B took %s of NARs from the upstream %w", FormatMB(b.Uplink), ErrUpstream)
	}
	return r.nodes[2].knows(ctx, 2, r.cfg.Paths)
}

// killed fetches through C while A dies.
func (r *run) killed(ctx context.Context) error {
	r.tell("C fetches the same, and A is killed meanwhile.")
	if err := r.fetch(ctx, 2); err != nil {
		return err
	}
	if r.res.KilledAfter == 0 {
		return errors.New("C had everything before A could be killed: choose a larger --size or a slower --lan")
	}
	return nil
}

// fetch fetches through a node, and notes what the node did.
func (r *run) fetch(ctx context.Context, i int) error {
	n := r.nodes[i]
	before, began := r.up.sent.Load(), time.Now()
	fctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var arrived int
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		arrived, err = n.fetch(fctx, r.up)
	}()
	r.watch(ctx, i, began, done)
	did := Node{Name: n.name, Paths: arrived, Seconds: time.Since(began).Seconds(), Uplink: r.up.sent.Load() - before}
	status, serr := n.status(context.WithoutCancel(ctx)) // of interest also after a failure
	did.FromUpstream, did.FromPeers, did.FromCache = status.Unpacked.Upstream, status.Unpacked.Peer, status.Unpacked.Cache
	r.res.Nodes = append(r.res.Nodes, did)
	r.res.UplinkBytes = r.up.sent.Load()
	if err != nil {
		if w := n.lastWarning(); w != "" {
			err = fmt.Errorf("%w (node %s logged: %s)", err, n.name, w)
		}
		return fmt.Errorf("fetch through node %s: %w", n.name, err)
	}
	if serr != nil {
		return serr
	}
	r.tell("%d of %d paths arrived with the signed hash, in %.1f s: %s of NARs from the upstream, %s from peers.",
		did.Paths, r.cfg.Paths, did.Seconds, FormatMB(did.FromUpstream), FormatMB(did.FromPeers))
	return nil
}

// watch reports progress until done. When C has a third, with some files whole, some in
// progress and some not begun, A is killed.
func (r *run) watch(ctx context.Context, i int, began time.Time, done <-chan struct{}) {
	tick := time.NewTicker(15 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		s, err := r.nodes[i].status(ctx)
		if err != nil {
			continue // the fetch will fail
		}
		if got := s.Unpacked.Upstream + s.Unpacked.Peer + s.Unpacked.Cache + s.Unpacked.Store; i == 2 && r.res.KilledAfter == 0 && got >= r.up.narBytes/3 {
			r.nodes[0].kill()
			r.res.KilledAfter = got
			r.tell("A is killed: C has %s of %s.", FormatMB(got), FormatMB(r.up.narBytes))
		}
		r.cfg.Progress(Progress{r.nodes[i].name, s.Unpacked.Upstream, s.Unpacked.Peer, time.Since(began)})
	}
}

// FormatMB writes bytes in the units in which lines are sold.
func FormatMB(n int64) string {
	if n < 10e6 && n > 0 {
		return fmt.Sprintf("%.2f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f MB", float64(n)/1e6)
}
