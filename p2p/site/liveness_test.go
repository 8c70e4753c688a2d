package site

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/p2p/swarmkey"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

func newPipe() (a, b net.Conn) { return net.Pipe() }

// TestLiveness feeds the rule with times.
func TestLiveness(t *testing.T) {
	type step struct {
		after      time.Duration // since the last step
		conn, peer time.Duration // silent for
		want       verdict
		pong       bool // before the step
	}
	const s = time.Second
	for name, c := range map[string]struct {
		isolated bool
		steps    []step
	}{
		"bytes come, pings are spared": {steps: []step{
			{after: s, want: pingAgain}, {after: s, pong: true, want: alive}, {after: s, want: alive}, {after: s, want: alive},
		}},
		"silent: two lost pings and three seconds": {steps: []step{
			{after: s, conn: s, peer: s, want: pingAgain}, {after: s, conn: 2 * s, peer: 2 * s, want: pingAgain},
			{after: s, conn: 3 * s, peer: 3 * s, want: dead},
		}},
		"silent, but pings are younger": {steps: []step{
			{after: s, pong: true, want: alive}, {after: s, conn: 3 * s, peer: 3 * s, want: pingAgain}, {after: s, conn: 4 * s, peer: 4 * s, want: pingAgain},
			{after: s, conn: 5 * s, peer: 5 * s, want: dead},
		}},
		"pings are lost, other bytes come": {steps: []step{
			{after: s, want: pingAgain}, {after: s, want: pingAgain}, {after: s, want: pingAgain}, {after: s, want: pingAgain}, {after: 10 * s, want: pingAgain},
		}},
		"another connection lives": {steps: []step{
			{after: s, conn: s, want: pingAgain}, {after: s, conn: 2 * s, want: pingAgain}, {after: s, conn: 3 * s, want: deadConn},
		}},
		"this machine slept": {steps: []step{
			{after: s, conn: s, peer: s, want: pingAgain}, {after: s, conn: 2 * s, peer: 2 * s, want: pingAgain},
			{after: 3600 * s, conn: 3602 * s, peer: 3602 * s, want: pingAgain}, {after: s, conn: 3603 * s, peer: 3603 * s, want: pingAgain},
			{after: s, conn: 3604 * s, peer: 3604 * s, want: dead},
		}},
		"most peers are silent": {isolated: true, steps: []step{
			{after: s, conn: s, peer: s, want: pingAgain}, {after: s, conn: 2 * s, peer: 2 * s, want: pingAgain},
			{after: s, conn: 3 * s, peer: 3 * s, want: pingAgain}, {after: s, conn: 14 * s, peer: 14 * s, want: pingAgain},
			{after: s, conn: 15 * s, peer: 15 * s, want: dead},
		}},
	} {
		now := time.Unix(1000, 0)
		l := newLiveness(now, s)
		l.pinged(now)
		for i, step := range c.steps {
			now = now.Add(step.after)
			if step.pong {
				l.answered(now.Add(-s / 2))
			}
			got := l.check(now, silence{step.conn, step.peer, func() bool { return c.isolated }})
			if got != step.want {
				t.Errorf("%s, step %d: %d, want %d", name, i, got, step.want)
			}
			if got == pingAgain {
				l.pinged(now)
			}
		}
	}
}

// heardConn notes what comes, as streamConn does.
type heardConn struct {
	net.Conn
	p    *Peer
	conn *connActivity
}

func (c heardConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.p.activity.heard()
		c.conn.heard()
	}
	return n, err
}

func memoryPeer(at *pulse) *Peer {
	return newPeer("other", machine.Of(netip.MustParseAddr("10.0.0.1")), func() {}, at)
}

// TestSilentPeer runs the writing side against a peer that answers pings for a minute, and
// then not any more.
func TestSilentPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newPeerTable(nil)
		p := memoryPeer(&table.pulse)
		a, b := newPipe()
		conn := &connActivity{}
		conn.heard()
		in := heardConn{a, p, conn}
		var news signal
		news.init()
		w := &sessionWriter{
			peer: p, conn: conn, stream: in, local: inventory.NewLocal(), news: &news, zone: zoneNews{own: func() string { return "" }},
			sent: func(int) {}, isolated: table.isolated, named: func() []byte { return nil },
			every: func() time.Duration { return peersEvery },
		}
		began := time.Now()
		freeze := began.Add(time.Minute)
		pings := 0
		go func() {
			for {
				k, body, err := wire.ReadFrame(b, 0)
				if err != nil {
					return
				}
				if k == wire.Ping && time.Now().Before(freeze) {
					pings++
					_, _ = b.Write(wire.AppendFrame(nil, wire.Pong, body))
				}
			}
		}()
		pongs, done := make(chan []byte, 1), make(chan error, 1)
		go func() { done <- readPongs(t.Context(), in, pongs) }()
		err := w.run(t.Context(), pongs, done)
		took := time.Since(freeze)
		if !errors.Is(err, errDead) || took < deadAfter-time.Second || took > 5*time.Second {
			t.Errorf("%v, %v after the last pong", err, took)
		}
		if pings < 55 {
			t.Errorf("%d pings", pings)
		}
		_, _ = a.Close(), b.Close()
		synctest.Wait()
	})
}

// TestPauses: a peer that does not answer is left alone for ever longer, up to a minute, and
// one whose positives are wrong is muted.
func TestPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newPeerTable(nil)
		p := memoryPeer(&table.pulse)
		if !p.Usable() || !p.UsableForInfo() {
			t.Error("a new peer is not usable")
		}
		p.SlowAnswer()
		if !p.Usable() || p.UsableForInfo() {
			t.Error("slow for narinfos is slow for all, or for none")
		}
		p.Answered(time.Millisecond)
		for i := range 10 {
			p.TimedOut()
			began := time.Now()
			for !p.Usable() {
				time.Sleep(100 * time.Millisecond)
			}
			if d, want := time.Since(began), min(slowFirst<<i, slowMost); d < want || d > want+time.Second {
				t.Errorf("failure %d: left alone for %v", i, d)
			}
		}
		p.TooSlow()
		if p.Usable() {
			t.Error("too slow, and usable")
		}
		if err := newInventories(8, 0, func(peer.ID) bool { return false }).full(p, filter(t, 10)); err != nil {
			t.Fatal(err)
		}
		k := inventory.Key(0)
		if !p.Has(k) {
			t.Error("a path of the inventory is not found")
		}
		for i := range mutedOf {
			p.RecordPositive(i%3 == 0)
		}
		if p.Has(k) || !p.Muted() {
			t.Error("not muted")
		}
		time.Sleep(mutedFor)
		if !p.Has(k) {
			t.Error("muted for ever")
		}
		p.hear(&hearing{})
		if p.Usable() || !p.Suspect() {
			t.Error("a member that is silent is usable")
		}
	})
}

// TestHandshake: both sides agree who belongs to the site, whatever the other one sends.
func TestHandshake(t *testing.T) {
	keys := func(s string) swarmkey.Keys {
		if s == "" {
			return nil
		}
		k, err := swarmkey.Parse([]byte(s))
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	one, two := swarmkey.New(), swarmkey.New()
	for name, c := range map[string]struct {
		opener, answerer string
		room             bool
		opens, answers   error
	}{
		"open":             {"", "", true, nil, nil},
		"full":             {"", "", false, errFull, nil},
		"closed":           {one, one, true, nil, nil},
		"closed and full":  {one, one, false, errFull, nil},
		"other secret":     {one, two, true, errNotAdmitted, errNotAdmitted},
		"no secret":        {"", two, true, errNotAdmitted, errNotAdmitted},
		"secret, but open": {one, "", true, errNotAdmitted, nil},
	} {
		a, b := newPipe()
		opened := make(chan error, 1)
		admitted := false
		go func() {
			opened <- introduce(a, keys(c.opener), "a", "b", func() { admitted = true })
		}()
		room, err := receive(b, keys(c.answerer), "b", "a", func() bool { return c.room })
		oerr := <-opened
		if !errors.Is(err, c.answers) || !errors.Is(oerr, c.opens) || room != (c.room && c.answers == nil) {
			t.Errorf("%s: %v, %v, room %v", name, oerr, err, room)
		}
		if want := c.opens == nil || errors.Is(c.opens, errFull); admitted != want {
			t.Errorf("%s: admitted %v", name, admitted)
		}
		_, _ = a.Close(), b.Close()
	}
}

// bytesStream is a stream whose other side sends these bytes and takes everything.
type bytesStream struct {
	net.Conn
	in io.Reader
}

func (s bytesStream) Read(b []byte) (int, error)       { return s.in.Read(b) }
func (s bytesStream) Write(b []byte) (int, error)      { return len(b), nil }
func (s bytesStream) SetDeadline(time.Time) error      { return nil }
func (s bytesStream) SetReadDeadline(time.Time) error  { return nil }
func (s bytesStream) SetWriteDeadline(time.Time) error { return nil }

func FuzzSession(f *testing.F) {
	f.Add(wire.AppendFrame(wire.AppendFrame(nil, wire.Filter, []byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}), wire.Changes, changes(3)))
	f.Add(wire.AppendFrame(nil, wire.Peers, []byte("/ip4/10.0.0.1/tcp/1/p2p/x\n")))
	f.Add(wire.AppendFrame(wire.AppendFrame(nil, wire.Challenge, make([]byte, wire.ChallengeSize)), wire.Welcome, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		const most = 1 << 20
		c := newCrowd(4, most)
		p := c.add(1)
		r := newSessionReader(p, bytesStream{in: newReader(b)}, c.inventories)
		r.filters = rate.NewLimiter(rate.Inf, 1)
		r.received, r.named = func(int) {}, func([]string) {}
		if err := r.run(context.Background()); err == nil {
			t.Error("no error at the end")
		}
		if c.used() > most || c.incoming.Cost() != 0 {
			t.Errorf("%d bytes are kept, %d on their way", c.used(), c.incoming.Cost())
		}
		_ = introduce(bytesStream{in: newReader(b)}, nil, "a", "b", func() {})
		_, _ = receive(bytesStream{in: newReader(b)}, nil, "a", "b", func() bool { return true })
	})
}

func FuzzParseAddr(f *testing.F) {
	for _, s := range []string{
		"/ip4/10.0.0.1/tcp/1", "/ip6zone/eth0/ip6/fe80::1/tcp/1", "/dns4/a/tcp/1", "/dnsaddr/a", "/p2p/12D3KooWGBbRFJp3yZWHLF7oEDCbQgGVyCSoAd22iXbZGjPcSyrp",
		"/ip4/10.0.0.1/tcp/1/p2p/12D3KooWGBbRFJp3yZWHLF7oEDCbQgGVyCSoAd22iXbZGjPcSyrp", "/ip4/10.0.0.1/tcp/1/ws", "/ip4/10.0.0.1/udp/1/quic-v1", "/unix/a",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		addr, _, err := parseAddr(s)
		if err != nil {
			return
		}
		if _, ok := machine.Addr(addr); !ok || !dialable(addr) {
			t.Errorf("%q is an address", s)
		}
	})
}
