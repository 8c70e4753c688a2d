package transfer

import (
	"time"

	"github.com/nixp2p/nixp2p/internal/source"
)

// clock is the time budget of one NAR. All peers, coordinators and waiting share it, from the
// moment the NAR was asked for. It holds the sizes only: time and progress are given, so that
// it can be tested without either.
//
// The rule that it enforces: whatever peers and coordinators do, a NAR that upstream delivers
// in T arrives within T + 3 s + T/2. With T estimated by the present pace of the upstreams:
//
//   - base is spent freely, and so is T/2 up to reserveMost (nothing if the pace is unknown).
//     Where upstream is slow to begin, the line or this machine is busy, as all are when a site
//     starts at once, and peers are slow to begin as well: base grows with its latency.
//   - Bytes of trusted peers are a prefix of what upstream sends, which then goes on from
//     there: a part f of the NAR extends the budget by f·T, what upstream would have taken.
//   - Bytes of an unverified peer may be useless. They only prove that it is not silent: f of
//     the NAR is worth f·T/2, which is not counted twice with the T/2 above.
type clock struct {
	nar  int64 // bytes of the raw NAR
	file int64 // bytes that an upstream would send for it
}

const (
	// smallNAR is a NAR that should have arrived within a second.
	smallNAR    = 1 << 20
	smallBase   = time.Second
	largeBase   = 2 * time.Second
	baseLatency = 3 // times the latency of upstream is added, up to baseMost
	baseMost    = 3*time.Second - spreadMost
	reserveMost = 15 * time.Second

	// Floors in bytes a second while the pace of the upstreams is unknown.
	trustedFloor    = 1 << 20
	unverifiedFloor = 4 << 20

	// usualRatio is what compression gains where no upstream has said: a low estimate of what
	// an upstream would send keeps the budget short.
	usualRatio = 4
)

// progress is how far the peers have come with a NAR.
type progress struct {
	got, size int64 // bytes of the form in which they send it
	trusted   bool  // all who sent bytes have delivered a whole, correct NAR before
	sharers   int   // machines that get it at the same time; 0 is 1
}

// budget returns how long the peers may take until they have got so far.
func (c clock) budget(pace source.Pace, p progress) time.Duration {
	part := 0.0
	if p.size > 0 {
		part = float64(p.got) / float64(p.size)
	}
	base := largeBase
	if c.nar < smallNAR || pace.Rate <= 0 {
		base = smallBase
	}
	base = min(base+baseLatency*pace.Latency, baseMost)
	if pace.Rate <= 0 {
		at := func(floor float64) time.Duration {
			return base + time.Duration(part*float64(c.file)/floor*float64(time.Second))
		}
		if p.trusted {
			return at(trustedFloor)
		}
		return min(at(unverifiedFloor), baseMost)
	}
	whole := pace.Time(c.file)
	earned := time.Duration(part * float64(whole-pace.Latency))
	budget := base + max(min(whole/2, reserveMost), earned/2)
	if p.trusted {
		// If all who follow went upstream, each would have a part of its line.
		budget += time.Duration(max(p.sharers, 1)) * earned
	}
	return budget
}

// left returns how much of the budget is left after elapsed; 0 or less: upstream is opened.
func (c clock) left(elapsed time.Duration, pace source.Pace, p progress) time.Duration {
	return c.budget(pace, p) - elapsed
}
