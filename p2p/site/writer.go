package site

import (
	"context"
	"encoding/binary"
	"io"
	"time"

	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

const (
	peersEvery = 5 * time.Minute
	// peersOften is the same for a node that is not connected to all: then others rank those
	// that it knows as coordinators, too.
	peersOften = 5 * time.Second
)

// sessionWriter is the writing side of a session: it tells a peer what this node shares, names
// other nodes, and checks that the peer is alive.
type sessionWriter struct {
	peer     *Peer
	conn     *connActivity // of the session's connection
	stream   stream
	local    *inventory.Local
	news     *signal              // the inventory has changed
	sent     func(bytes int)      // counts bytes of inventories
	isolated func() bool          // whether most peers are silent
	named    func() []byte        // a list of other nodes
	name     string               // of this machine; "": the peer is not told
	every    func() time.Duration // between two such lists
	zone     zoneNews

	mark   inventory.Mark
	seq    uint64 // of the last ping
	live   liveness
	peerAt time.Time // of the last list of nodes
}

// zoneNews is the zone that this node is in.
type zoneNews struct {
	own  func() string
	told string // to the peer
}

// run writes until ctx ends or the peer is dead. Pongs are the bodies of those that come in;
// done has the error with which the other direction ended.
func (w *sessionWriter) run(ctx context.Context, pongs <-chan []byte, done <-chan error) error {
	beat := time.Duration(w.peer.pulse.beat.Load())
	tick := time.NewTicker(beat)
	defer tick.Stop()
	w.live = newLiveness(time.Now(), beat)
	// The first ping measures the round trip at once, before anybody chooses by it.
	if err := w.ping(time.Now()); err != nil {
		return err
	}
	if w.name != "" {
		if err := w.send(wire.Name, []byte(w.name), writeTime); err != nil {
			return err
		}
	}
	for {
		news := w.news.next()
		if err := w.tell(time.Now()); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-done:
			return err
		case body := <-pongs:
			w.pong(body, time.Now())
		case <-news:
		case <-tick.C:
			if err := w.check(time.Now()); err != nil {
				return err
			}
			if b := time.Duration(w.peer.pulse.beat.Load()); b != w.live.beat {
				w.live.beat = b
				tick.Reset(b)
			}
		}
	}
}

// tell sends what the peer does not know yet.
func (w *sessionWriter) tell(now time.Time) error {
	if zone := w.zone.own(); zone != w.zone.told {
		if err := w.send(wire.Zone, []byte(zone), writeTime); err != nil {
			return err
		}
		w.zone.told = zone
	}
	full, deltas, mark := w.local.Since(w.mark)
	if full != nil {
		if err := w.send(wire.Filter, full, filterTime); err != nil {
			return err
		}
	}
	told := len(full)
	for _, d := range deltas {
		told += len(d)
		if err := w.send(wire.Changes, d, writeTime); err != nil {
			return err
		}
	}
	w.mark = mark
	if told > 0 {
		w.sent(told)
	}
	if now.Sub(w.peerAt) > w.every() {
		w.peerAt = now
		if list := w.named(); len(list) > 0 {
			return w.send(wire.Peers, list, writeTime)
		}
	}
	return nil
}

func (w *sessionWriter) send(k wire.Kind, body []byte, limit time.Duration) error {
	_ = w.stream.SetWriteDeadline(time.Now().Add(limit))
	_, err := w.stream.Write(wire.AppendFrame(make([]byte, 0, len(body)+8), k, body))
	return err
}

func (w *sessionWriter) check(now time.Time) error {
	switch w.live.check(now, silence{conn: w.conn.silent(), peer: w.peer.Silent(), isolated: w.isolated}) {
	case dead:
		return errDead
	case deadConn:
		return errDeadConn
	case pingAgain:
		return w.ping(now)
	}
	return nil
}

func (w *sessionWriter) ping(now time.Time) error {
	w.seq++
	w.live.pinged(now)
	return w.send(wire.Ping, binary.BigEndian.AppendUint64(nil, w.seq), writeTime)
}

func (w *sessionWriter) pong(body []byte, now time.Time) {
	if len(body) != wire.PingSize || binary.BigEndian.Uint64(body) != w.seq {
		return
	}
	if rtt, ok := w.live.answered(now); ok {
		w.peer.meter.Answered(rtt)
	}
}

// readPongs passes pongs on until the stream ends. It never waits for the receiver: a late
// one is worthless.
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
