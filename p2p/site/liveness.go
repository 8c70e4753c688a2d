package site

import "time"

const (
	// rttEvery is how often a round trip is measured while other bytes show that all is well.
	rttEvery = 10 * time.Second
	// When lostPings are lost and nothing was heard for deadAfter, the peer is gone, though its
	// connection would stay for another half a minute, and each look-up would wait for it.
	lostPings = 2
	deadAfter = 3 * time.Second
	// While most peers are silent it is this machine that hears nothing: it slept, its cable is
	// out, or it has no CPU time. To hang up on all of them and dial again is what an
	// overloaded machine needs least.
	isolatedDeadAfter = 15 * time.Second
)

// verdict is what a check of liveness leads to.
type verdict uint8

const (
	alive     verdict = iota
	pingAgain         // a ping is due
	dead              // the peer is gone
	deadConn          // this connection is gone, another one lives
)

// liveness decides whether a peer is alive, from the times at which something came from it.
// Any byte counts. It is not safe for concurrent use.
type liveness struct {
	beat    time.Duration // between two checks
	sent    time.Time     // of the ping that was not answered yet; zero: there is none
	lost    int           // pings in a row that were not answered within a beat
	checked time.Time
	rttAt   time.Time // of the last pong
}

// silence is for how long nothing has come.
type silence struct {
	conn     time.Duration // over the session's connection
	peer     time.Duration // over any connection
	isolated func() bool   // whether most peers are silent
}

func newLiveness(now time.Time, beat time.Duration) liveness {
	return liveness{beat: beat, checked: now}
}

// check is called at every beat.
func (l *liveness) check(now time.Time, s silence) verdict {
	gap := now.Sub(l.checked)
	l.checked = now
	switch {
	case gap > 2*l.beat:
		// This machine slept or has no CPU time: the pong may be in its buffers.
		l.lost = 0
	case !l.sent.IsZero():
		l.lost++
	}
	if l.lost >= lostPings && s.conn >= deadAfter && (s.conn >= isolatedDeadAfter || !s.isolated()) {
		if s.peer >= deadAfter {
			return dead
		}
		return deadConn
	}
	if s.conn < l.beat && now.Sub(l.rttAt) < rttEvery {
		l.sent, l.lost = time.Time{}, 0
		return alive
	}
	return pingAgain
}

// pinged notes that a ping was sent.
func (l *liveness) pinged(now time.Time) { l.sent = now }

// answered notes that the last ping was answered, and returns the round trip. There is none
// if no ping is out.
func (l *liveness) answered(now time.Time) (rtt time.Duration, ok bool) {
	if l.sent.IsZero() {
		return 0, false
	}
	rtt = now.Sub(l.sent)
	l.sent, l.lost, l.rttAt = time.Time{}, 0, now
	return rtt, true
}
