//go:build linux

// Package stranger is a node of the site that is not nixp2p: it connects as any machine on the
// link can, says that it has what it is told to say, asks for what it likes, times the answers
// and keeps what it is asked. It shows what others can learn of a node; it does not judge it.
package stranger

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/dht"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/swarmkey"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

const (
	httpProtocol = protocol.ID("/nixp2p/http/1")
	siteProtocol = protocol.ID("/nixp2p/site/1")

	// settleTime is how long inventories may take to come.
	settleTime = 4 * time.Second
	timeout    = 10 * time.Second
	// announceTime is how long a node may take to announce when it has learned for whom.
	announceTime = 25 * time.Second
)

// Task is what a stranger does.
type Task struct {
	Connect []string        // full multiaddrs; the first is the target
	Claim   []nix.StoreHash // paths that it says it has
	Look    []nix.StoreHash // to be looked for in the target's inventory
	Probes  []string        // request paths, each asked once, in this order
	NARs    []nix.NarHash   // to be looked up in the DHT; the last one is shared, and large
	Lie     string          // directory of a cache: it says that it has all of it, and gives other bytes
}

// Answer is how a probe went.
type Answer struct {
	Status  int // 0: none
	Bytes   int64
	Took    time.Duration
	Headers int // number of header lines
}

// Report is what the stranger learned.
type Report struct {
	Told    bool // an inventory came
	Count   int  // of paths, as it says
	Bytes   int  // of the inventory and its changes
	Seen    []bool
	Answers []Answer
	Holders []int // providers that the DHT names, for each NAR
}

// Asked is what the stranger was asked by others: request lines.
type Asked struct{ Paths []string }

type stranger struct {
	host host.Host
	own  *inventory.Own

	mu    sync.Mutex
	views map[peer.ID]*inventory.View
	sizes map[peer.ID]int
	tells map[peer.ID]bool // a session to it is open
	hears map[network.Stream]bool
	full  bool // no session is heard
	asked []string
	lies  *lies // nil: it has nothing
}

// Run reads a Task from in, writes a Report to out, goes on answering until in ends, and writes
// what it was Asked.
func Run(ctx context.Context, in io.Reader, out io.Writer) error {
	dec := json.NewDecoder(in)
	var task Task
	if err := dec.Decode(&task); err != nil {
		return err
	}
	h, err := libp2p.New(
		libp2p.ListenAddrStrings("/ip4/0.0.0.0/tcp/7656"),
		libp2p.NoTransports, libp2p.Transport(tcp.NewTCPTransport),
		libp2p.Security(libp2ptls.ID, libp2ptls.New),
		libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
		libp2p.ResourceManager(&network.NullResourceManager{}),
		libp2p.DisableRelay(), libp2p.ForceReachabilityPrivate(),
	)
	if err != nil {
		return err
	}
	defer h.Close()
	s := &stranger{host: h, own: inventory.NewOwn(), views: map[peer.ID]*inventory.View{}, sizes: map[peer.ID]int{}, tells: map[peer.ID]bool{}, hears: map[network.Stream]bool{}}
	if task.Lie != "" {
		if s.lies, err = readLies(task.Lie); err != nil {
			return err
		}
		task.Claim = append(task.Claim, s.lies.hashes...)
	}
	keys := map[inventory.Key]struct{}{}
	for _, hash := range task.Claim {
		keys[inventory.KeyOf(hash.Question())] = struct{}{}
	}
	s.own.Replace(keys)
	if _, err := s.own.Flush(time.Now()); err != nil {
		return err
	}
	h.SetStreamHandler(siteProtocol, s.hear)
	h.SetStreamHandler(httpProtocol, s.answer)
	d, err := dht.Open(dht.Config{Host: h})
	if err != nil {
		return err
	}
	defer d.Close()
	report, err := s.work(ctx, d, &task)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(out).Encode(report); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, io.MultiReader(dec.Buffered(), in))
	s.mu.Lock()
	defer s.mu.Unlock()
	return json.NewEncoder(out).Encode(Asked{s.asked})
}

func (s *stranger) work(ctx context.Context, d *dht.DHT, task *Task) (*Report, error) {
	var target peer.ID
	for i, addr := range task.Connect {
		info, err := peer.AddrInfoFromString(addr)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			target = info.ID
		}
		if err := s.join(ctx, *info); err != nil {
			return nil, fmt.Errorf("join %s: %w", addr, err)
		}
	}
	timer := time.NewTimer(settleTime)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	r := &Report{}
	s.mu.Lock()
	view := s.views[target]
	r.Bytes = s.sizes[target]
	s.mu.Unlock()
	if view != nil && view.Told() {
		r.Told, r.Count = true, view.Count()
		for _, hash := range task.Look {
			r.Seen = append(r.Seen, view.Has(inventory.KeyOf(hash.Question())))
		}
	}
	for _, p := range task.Probes {
		a, err := s.probe(ctx, target, p)
		if err != nil {
			return nil, fmt.Errorf("probe %s: %w", p, err)
		}
		r.Answers = append(r.Answers, a)
	}
	if len(task.NARs) > 0 {
		s.hearing(false)
		defer s.hearing(true)
		// The last one is known to be announced, as soon as anything is.
		for until := time.Now().Add(announceTime); time.Now().Before(until) && ctx.Err() == nil; {
			if holders(ctx, d, task.NARs[len(task.NARs)-1]) > 0 {
				break
			}
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	}
	for _, nar := range task.NARs {
		r.Holders = append(r.Holders, holders(ctx, d, nar))
	}
	return r, nil
}

func holders(ctx context.Context, d *dht.DHT, nar nix.NarHash) int {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return len(d.Find(ctx, nar))
}

// hearing says whether inventories are taken. A node that has no room for more takes none, and
// others announce in the DHT for such ones alone.
func (s *stranger) hearing(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = !on
	for st := range s.hears {
		_ = st.Reset()
	}
	clear(s.hears)
}

// note keeps a session that others opened, so that it can be ended. False: none is wanted.
func (s *stranger) note(st network.Stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.full {
		s.hears[st] = true
	}
	return !s.full
}

// join connects and opens a session.
func (s *stranger) join(ctx context.Context, info peer.AddrInfo) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := s.host.Connect(ctx, info); err != nil {
		return err
	}
	return s.tell(ctx, info.ID)
}

// tell opens a session, unless there is one: it tells the inventory and sends pings until the
// other side goes.
func (s *stranger) tell(ctx context.Context, id peer.ID) error {
	s.mu.Lock()
	open := s.tells[id]
	s.tells[id] = true
	s.mu.Unlock()
	if open {
		return nil
	}
	st, err := s.introduce(ctx, id)
	if err != nil {
		s.untell(id)
		return err
	}
	go func() { // ends with the host at the latest
		defer s.untell(id)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for n := uint64(1); ; n++ {
			<-tick.C
			if _, err := st.Write(wire.AppendFrame(nil, wire.Ping, binary.BigEndian.AppendUint64(nil, n))); err != nil {
				return
			}
			if _, _, err := wire.ReadFrame(st, 0); err != nil {
				return
			}
		}
	}()
	return nil
}

// tellAgain opens a session to a node that came back, once the old one is seen to have ended.
func (s *stranger) tellAgain(id peer.ID) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for range 10 {
		_ = s.tell(ctx, id)
		<-tick.C
	}
}

func (s *stranger) untell(id peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tells, id)
}

// introduce is the opener's side of a session up to the inventory.
func (s *stranger) introduce(ctx context.Context, id peer.ID) (network.Stream, error) {
	st, err := s.host.NewStream(ctx, id, siteProtocol)
	if err != nil {
		return nil, err
	}
	_, challenge, err := wire.ReadFrame(st, wire.Challenge)
	if err != nil {
		return nil, err
	}
	proof := swarmkey.Keys(nil).Open(swarmkey.Pair{Opener: string(s.host.ID()), Answerer: string(id)}, challenge)
	if _, err := st.Write(wire.AppendFrame(nil, wire.Proof, proof)); err != nil {
		return nil, err
	}
	kind, _, err := wire.ReadFrame(st, wire.Welcome)
	if err != nil || kind != wire.Welcome {
		return nil, fmt.Errorf("no welcome: %d %w", kind, err)
	}
	full, _, _ := s.own.Since(inventory.Mark{})
	_, err = st.Write(wire.AppendFrame(nil, wire.Filter, full))
	return st, err
}

// hear takes what another node tells of itself.
func (s *stranger) hear(st network.Stream) {
	defer st.Reset()
	if !s.note(st) {
		return
	}
	if _, err := st.Write(wire.AppendFrame(nil, wire.Challenge, swarmkey.Challenge())); err != nil {
		return
	}
	if _, _, err := wire.ReadFrame(st, wire.Proof); err != nil {
		return
	}
	if _, err := st.Write(wire.AppendFrame(nil, wire.Welcome, nil)); err != nil {
		return
	}
	id := st.Conn().RemotePeer()
	go s.tellAgain(id)
	for {
		kind, body, err := wire.ReadFrame(st, 0)
		if err != nil {
			return
		}
		s.mu.Lock()
		view := s.views[id]
		if view == nil {
			view = &inventory.View{}
			s.views[id] = view
		}
		s.mu.Unlock()
		if kind == wire.Filter || kind == wire.Changes {
			s.mu.Lock()
			s.sizes[id] += len(body)
			s.mu.Unlock()
		}
		switch kind {
		case wire.Ping:
			_, err = st.Write(wire.AppendFrame(nil, wire.Pong, body))
		case wire.Filter:
			err = view.Full(body)
		case wire.Changes:
			err = view.Delta(body)
		}
		if err != nil {
			return
		}
	}
}

// answer keeps what it is asked and has nothing, or lies.
func (s *stranger) answer(st network.Stream) {
	defer st.Close()
	in := bufio.NewReader(st)
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		var text strings.Builder
		_ = req.Write(&text)
		s.mu.Lock()
		s.asked = append(s.asked, text.String())
		s.mu.Unlock()
		if s.lies != nil && s.lies.answer(st, req) {
			continue
		}
		if _, err := io.WriteString(st, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"); err != nil {
			return
		}
	}
}

// probe asks once, on a stream of its own, as nodes do.
func (s *stranger) probe(ctx context.Context, target peer.ID, path string) (a Answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	st, err := s.host.NewStream(ctx, target, httpProtocol)
	if err != nil {
		return a, err
	}
	defer st.Reset()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://peer"+path, nil)
	if err != nil {
		return a, err
	}
	_ = st.SetDeadline(time.Now().Add(timeout))
	start := time.Now()
	if err := req.Write(st); err != nil {
		return a, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(st), req)
	if err != nil {
		return a, err
	}
	a.Bytes, err = io.Copy(io.Discard, resp.Body)
	a.Took = time.Since(start)
	a.Status, a.Headers = resp.StatusCode, len(resp.Header)
	return a, err
}
