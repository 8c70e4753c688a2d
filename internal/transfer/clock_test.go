package transfer

import (
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/source"
)

const mib = 1 << 20

// TestClock: what silence, trickles and real bytes are worth.
func TestClock(t *testing.T) {
	known := source.Pace{Latency: 100 * time.Millisecond, Rate: 1 * mib}
	large := clock{nar: 40 * mib, file: 10 * mib} // 10.1 s from upstream
	small := clock{nar: 500_000, file: mib / 10}  // 0.2 s
	for _, c := range []struct {
		name string
		clock
		pace source.Pace
		p    progress
		want time.Duration
	}{
		{"silent", large, known, progress{trusted: true}, 2300*time.Millisecond + 5050*time.Millisecond},
		{"silent, small", small, known, progress{trusted: true}, 1300*time.Millisecond + 100*time.Millisecond},
		{"half of trusted peers", large, known, progress{got: 20 * mib, size: 40 * mib, trusted: true}, 2300*time.Millisecond + 5050*time.Millisecond + 5000*time.Millisecond},
		{"all of trusted peers", large, known, progress{got: 40 * mib, size: 40 * mib, trusted: true}, 2300*time.Millisecond + 5050*time.Millisecond + 10000*time.Millisecond},
		{"the same as a file", large, known, progress{got: 10 * mib, size: 10 * mib, trusted: true}, 2300*time.Millisecond + 5050*time.Millisecond + 10000*time.Millisecond},
		{"half of an unverified peer", large, known, progress{got: 20 * mib, size: 40 * mib}, 2300*time.Millisecond + 5050*time.Millisecond},
		{"a huge one, silent", clock{4 << 30, 1 << 30}, known, progress{}, 2300*time.Millisecond + 15*time.Second},
		{"busy", small, source.Pace{Latency: time.Second, Rate: 1 * mib}, progress{trusted: true}, baseMost + 550*time.Millisecond},
		{"four get it, silent", large, known, progress{trusted: true, sharers: 4}, 2300*time.Millisecond + 5050*time.Millisecond},
		{"four get it, half", large, known, progress{got: 20 * mib, size: 40 * mib, trusted: true, sharers: 4}, 2300*time.Millisecond + 5050*time.Millisecond + 20000*time.Millisecond},
		{"unknown pace, silent", large, source.Pace{}, progress{trusted: true}, time.Second},
		{"unknown pace, trusted", large, source.Pace{}, progress{got: 40 * mib, size: 40 * mib, trusted: true}, 11 * time.Second},
		{"unknown pace, unverified", large, source.Pace{}, progress{got: 40 * mib, size: 40 * mib}, baseMost},
	} {
		got := c.budget(c.pace, c.p)
		if d := got - c.want; d < -10*time.Millisecond || d > 10*time.Millisecond {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		if c.left(got-time.Second, c.pace, c.p) != time.Second || c.left(got, c.pace, c.p) > 0 {
			t.Errorf("%s: wrong time left", c.name)
		}
	}
}

// TestClockBound: when the budget is used up, at whatever point, upstream still delivers in time:
// T + 3 s + T/2, where it delivers in T at the pace that is known.
func TestClockBound(t *testing.T) {
	for _, rate := range []float64{10_000, 1 * mib, 100 * mib} {
		for _, latency := range []time.Duration{0, 50 * time.Millisecond, 2 * time.Second} {
			pace := source.Pace{Latency: latency, Rate: rate}
			for _, file := range []int64{1, 50_000, mib, 100 * mib} {
				for _, ratio := range []int64{1, 4} {
					c := clock{nar: file * ratio, file: file}
					whole := pace.Time(file)
					for part := int64(0); part <= 100; part += 5 {
						for _, trusted := range []bool{true, false} {
							p := progress{got: file * part / 100, size: file, trusted: trusted}
							end := c.budget(pace, p) + whole // unverified: from the beginning
							if trusted {                     // from where the peers stopped
								end = c.budget(pace, p) + latency + time.Duration(float64(whole-latency)*float64(file-p.got)/float64(file))
							}
							if limit := whole + 3*time.Second + whole/2; end > limit {
								t.Errorf("%v, %d bytes, %d %%, trusted %v: %v, limit %v", pace, file, part, trusted, end, limit)
							}
						}
					}
				}
			}
		}
	}
}
