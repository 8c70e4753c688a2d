package p2p

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"

	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/swarmkey"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

// Each node opens one session to each connected peer: it proves there that it belongs to the
// site, tells its inventory, and sends pings. What it is told comes over the session that the
// other one opened.
const (
	handshakeTime = 10 * time.Second
	writeTime     = 10 * time.Second
	filterTime    = 30 * time.Second

	// beatFew is how often a peer is heard at least, beatMany the same where there are more than
	// manyPeers: there a machine at rest would do little else, and one silent peer matters less.
	beatFew   = time.Second
	beatMany  = 2 * time.Second
	manyPeers = 32
	// rttEvery is how often a round trip is measured where other bytes say that all is well.
	rttEvery = 10 * time.Second
	// Two pings lost and nothing heard for deadAfter: the peer is gone, though its
	// connection would stay for another half a minute, and each look-up wait for it.
	lostPings = 2
	deadAfter = 3 * time.Second

	// Where most peers fall silent at once it is this machine that hears nothing: it slept,
	// its cable is out, or it has no CPU time to spare. Nobody waits for silent peers, and to
	// hang up on all of them and dial anew is what an overloaded machine needs least.
	allDeadAfter = 15 * time.Second
	fewPeers     = 3 // of fewer, nothing can be told

	// againAfter a session that broke, fullAfter one that found no room, a new one is tried.
	againAfter = time.Second
	fullAfter  = 5 * time.Minute
	// foreignAfter is the same for one who does not speak of sessions.
	foreignAfter = time.Minute
	// strangerFor is how long one who cannot prove to belong here is kept out, offenderFor
	// one who does not keep to the protocol.
	strangerFor = 10 * time.Minute
	offenderFor = 10 * time.Minute

	peersEvery = 5 * time.Minute
	// peersOften is the same for a node that is not connected to all: then others rank those
	// whom it knows as coordinators, too.
	peersOften = 5 * time.Second
	peersTold  = 32
)

var (
	errNotWelcome = errors.New("the other side is no part of this site")
	errNoRoom     = errors.New("the other side has no room for another inventory")
	errDead       = errors.New("nothing heard")
	errDeadLane   = errors.New("nothing heard over this connection, but over another one")
)

// admitted tells whether a peer may be answered, or asked.
func (n *Node) admitted(r *remote) bool {
	if len(n.swarm) == 0 {
		return r != nil
	}
	if r == nil {
		return false
	}
	select {
	case <-r.in:
		return true
	default:
		return false
	}
}

// session keeps a session open while the peer is connected.
func (n *Node) session(ctx context.Context, h host.Host, r *remote) {
	for ctx.Err() == nil {
		err := n.oneSession(ctx, h, r)
		wait := againAfter
		if ctx.Err() == nil {
			n.cfg.Metrics.PeerSessionsEnded.WithLabelValues(reasonOf(err)).Inc()
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errNotWelcome):
			n.expel(h, r, strangerFor)
			n.log.Debug("peer of another site", "peer", r.id)
			return
		case errors.Is(err, errDead):
			n.log.Debug("peer is silent", "peer", r.id, "silent", r.silent())
			n.hangUp(h, r.id)
			return
		case errors.Is(err, errDeadLane):
			wait = 0
		case errors.Is(err, errNoRoom):
			wait = fullAfter
		case errors.As(err, new(multistream.ErrNotSupported[protocol.ID])):
			wait = foreignAfter // a program that is none of ours, or much older or newer
		case errors.Is(err, wire.ErrFrame):
			n.offended(h, r, err)
			return
		}
		n.log.Debug("session ended", "peer", r.id, "err", err)
		if !pause(ctx, wait) {
			return
		}
	}
}

// reasonOf is why a session ended, for the metric.
func reasonOf(err error) string {
	switch {
	case errors.Is(err, errNotWelcome):
		return "stranger"
	case errors.Is(err, errDead), errors.Is(err, errDeadLane):
		return "silent"
	case errors.Is(err, errNoRoom):
		return "full"
	case errors.Is(err, wire.ErrFrame), errors.As(err, new(multistream.ErrNotSupported[protocol.ID])):
		return "protocol"
	}
	return "lost"
}

// hangUp closes the connections to a peer. Closing may wait for what is still to be sent.
func (n *Node) hangUp(h host.Host, id peer.ID) {
	if d := n.dht.Load(); d != nil {
		d.Remove(id)
	}
	n.crew.start(func() { _ = h.Network().ClosePeer(id) })
}

// expel hangs up and does not let the peer in again for some time.
func (n *Node) expel(h host.Host, r *remote, pause time.Duration) {
	n.gate.close(r.id, pause)
	n.book.Forget(r.key, time.Now(), pause)
	n.hangUp(h, r.id)
}

// offended expels one who does not keep to the protocol.
func (n *Node) offended(h host.Host, r *remote, err error) {
	n.log.Warn("peer does not keep to the protocol", "peer", r.id, "err", err)
	n.trouble(r.key, "does not keep to the protocol", err)
	n.expel(h, r, offenderFor)
}

// oneSession opens a session and keeps it until it breaks.
func (n *Node) oneSession(ctx context.Context, h host.Host, r *remote) error {
	sctx, cancel := context.WithTimeout(network.WithNoDial(ctx, "session"), handshakeTime)
	s, err := h.NewStream(sctx, r.id, siteProtocol)
	cancel()
	if err != nil {
		return err
	}
	defer func() { _ = s.Reset() }()
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	if err := n.introduce(s, r); err != nil {
		return err
	}
	r.letIn()
	r.told.Store(true)
	defer r.told.Store(false)

	ctx, cancel = context.WithCancel(ctx)
	pongs := make(chan []byte, 1)
	done := make(chan error, 1)
	go func() { done <- readPongs(ctx, newStreamConn(s, r), pongs) }()
	t := &teller{n: n, host: h, r: r, s: s, lane: r.laneOf(s.Conn())}
	err = t.run(ctx, pongs, done)
	cancel()
	if errors.Is(err, errDeadLane) {
		n.crew.start(func() { _ = s.Conn().Close() })
	}
	_ = s.Reset()
	<-done
	return err
}

// introduce proves to the other side that this node belongs to its site, and has it prove
// the same.
func (n *Node) introduce(s network.Stream, r *remote) error {
	_ = s.SetDeadline(time.Now().Add(handshakeTime))
	defer func() { _ = s.SetDeadline(time.Time{}) }()
	pair := swarmkey.Pair{Opener: string(n.self), Answerer: string(r.id)}
	k, challenge, err := wire.ReadFrame(s, wire.Challenge)
	if err != nil {
		return fmt.Errorf("session: %w", err)
	}
	if k != wire.Challenge || len(challenge) != wire.ChallengeSize {
		return fmt.Errorf("%w: no challenge", wire.ErrFrame)
	}
	proof := n.swarm.Open(pair, challenge)
	if _, err := s.Write(wire.AppendFrame(nil, wire.Proof, proof)); err != nil {
		return fmt.Errorf("session: %w", err)
	}
	k, welcome, err := wire.ReadFrame(s, wire.Welcome)
	switch {
	case err != nil:
		return fmt.Errorf("session: %w", err)
	case k == wire.Refused:
		return errNotWelcome
	case k != wire.Welcome && k != wire.Full:
		return fmt.Errorf("%w: no welcome", wire.ErrFrame)
	case !n.swarm.Welcomed(pair, challenge, proof, welcome):
		return errNotWelcome
	case k == wire.Full:
		r.letIn()
		return errNoRoom
	}
	return nil
}

// readPongs passes pongs on until the stream ends. It never waits for the one who takes
// them: what is late is worthless.
func readPongs(ctx context.Context, s io.Reader, pongs chan<- []byte) error {
	for ctx.Err() == nil {
		k, body, err := wire.ReadFrame(s, 0)
		if err != nil {
			return err
		}
		if k == wire.Pong {
			select {
			case pongs <- body:
			default:
			}
		}
	}
	return ctx.Err()
}

// teller is the writing side of a session.
type teller struct {
	n    *Node
	host host.Host
	r    *remote
	s    network.Stream
	lane *lane // of the connection of s

	mark   inventory.Mark
	seq    uint64
	sent   time.Time // of the ping that was not answered yet; zero: there is none
	lost   int
	lived  time.Time // last call of live
	rttAt  time.Time
	peerAt time.Time
}

func (t *teller) run(ctx context.Context, pongs <-chan []byte, done chan error) error {
	beat := t.n.table.beat()
	tick := time.NewTicker(beat)
	defer tick.Stop()
	t.lived = time.Now()
	// The first ping measures the round trip at once, before anybody chooses by it.
	if err := t.ping(time.Now()); err != nil {
		return err
	}
	for {
		news := t.n.news.next()
		if err := t.tell(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-done:
			done <- err
			return err
		case body := <-pongs:
			t.pong(body)
		case <-news:
		case <-tick.C:
			if err := t.live(time.Now(), beat); err != nil {
				return err
			}
			if b := t.n.table.beat(); b != beat {
				beat = b
				tick.Reset(b)
			}
		}
	}
}

// tell sends what the peer does not know yet.
func (t *teller) tell() error {
	full, deltas, mark := t.n.own.Since(t.mark)
	if full != nil {
		if err := t.send(wire.Filter, full, filterTime); err != nil {
			return err
		}
	}
	told := len(full)
	for _, d := range deltas {
		told += len(d)
		if err := t.send(wire.Changes, d, writeTime); err != nil {
			return err
		}
	}
	t.mark = mark
	if told > 0 {
		t.n.cfg.Metrics.InventoryBytes.WithLabelValues("sent").Add(float64(told))
	}
	every := peersEvery
	if t.n.table.members() >= t.n.cfg.MaxPeers {
		every = peersOften
	}
	if now := time.Now(); now.Sub(t.peerAt) > every {
		t.peerAt = now
		if list := t.n.tellPeers(t.host, t.r.id); len(list) > 0 {
			return t.send(wire.Peers, list, writeTime)
		}
	}
	return nil
}

func (t *teller) send(k wire.Kind, body []byte, limit time.Duration) error {
	_ = t.s.SetWriteDeadline(time.Now().Add(limit))
	_, err := t.s.Write(wire.AppendFrame(make([]byte, 0, len(body)+8), k, body))
	return err
}

// live finds out whether the peer lives. Any byte counts: where the peer's own pings come in,
// none is sent but now and then for the round trip.
func (t *teller) live(now time.Time, beat time.Duration) error {
	gap := now.Sub(t.lived)
	t.lived = now
	switch {
	case gap > 2*beat:
		// This machine slept or has no time for us: the pong may lie in its buffers. To hang
		// up on everybody now and to dial anew would only make it worse.
		t.lost = 0
	case !t.sent.IsZero():
		t.lost++
	}
	silent := t.lane.silent()
	if t.lost >= lostPings && silent >= deadAfter && (silent >= allDeadAfter || !t.n.deaf()) {
		if t.r.silent() >= deadAfter {
			return errDead
		}
		return errDeadLane
	}
	if silent < beat && now.Sub(t.rttAt) < rttEvery {
		t.sent, t.lost = time.Time{}, 0
		return nil
	}
	return t.ping(now)
}

// deaf tells whether most peers are silent.
func (n *Node) deaf() bool {
	silent, all := 0, n.table.all()
	for _, r := range all {
		if r.silent() > n.table.suspectAfter() {
			silent++
		}
	}
	return len(all) >= fewPeers && 2*silent > len(all)
}

func (t *teller) ping(now time.Time) error {
	t.seq++
	t.sent = now
	return t.send(wire.Ping, binary.BigEndian.AppendUint64(nil, t.seq), writeTime)
}

func (t *teller) pong(body []byte) {
	if len(body) != wire.PingSize || binary.BigEndian.Uint64(body) != t.seq || t.sent.IsZero() {
		return
	}
	now := time.Now()
	t.r.meter.Answered(now.Sub(t.sent))
	t.sent, t.lost, t.rttAt = time.Time{}, 0, now
}

// tellPeers returns addresses of other nodes of the site for one that may not know them.
func (n *Node) tellPeers(h host.Host, to peer.ID) []byte {
	all := n.table.all()
	var list []string
	for _, i := range rand.Perm(len(all)) {
		r := all[i]
		if len(list) >= peersTold {
			break
		}
		if r.id == to || !r.member.Load() || n.gate.isShut(r.id) {
			continue
		}
		if addrs := n.reachable(h, r.id); len(addrs) > 0 {
			list = append(list, fullAddrs(peer.AddrInfo{ID: r.id, Addrs: addrs[:1]})...)
		}
	}
	return wire.AppendPeers(nil, list)
}
