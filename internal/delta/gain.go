package delta

import "github.com/nixp2p/nixp2p/internal/compress"

// gain decides whether looking for matches pays, by what it has brought so far. Where a compiler has
// changed, nothing of the base returns, and finding that out costs several times what
// compressing does.
type gain struct {
	probe   *compress.ZstdWriter // compresses samples of what was looked for
	sampled counter
	asked   int64 // bytes given to probe

	indexed int64 // bytes that were looked for since the last verdict
	before  int64 // bytes that had been written then
	skip    int   // bytes that are not looked for
	factor  int   // of the next skip
	renew   bool  // the segment has to be ended before the next look
}

const (
	// A verdict is made after leastVerdict bytes. Matches pay if what is written is less than
	// poorRatio of what compressing alone would have taken.
	leastVerdict = 1 << 20
	poorRatio    = 0.6
	// After a poor verdict so many times as many bytes are skipped, up to mostFactor.
	firstFactor = 8
	mostFactor  = 64
	// sampleBytes of each chunk are compressed to compare with.
	sampleBytes = 32 << 10
	// probeBytes of each chunk that is skipped are looked for if that costs little.
	probeBytes = 32 << 10
)

// sample notes a part of the target that is looked for.
func (g *gain) sample(t []byte) {
	t = t[:min(len(t), sampleBytes)]
	g.asked += int64(len(t))
	_, _ = g.probe.Write(t) // a counter does not fail
}

// note takes what came of indexed bytes of the target, when out bytes had been written in all.
func (g *gain) note(indexed, out int64) {
	if g.indexed += indexed; g.indexed == 0 {
		g.before = out
	}
	if g.indexed < leastVerdict {
		return
	}
	_ = g.probe.Flush()
	plain := float64(g.sampled.n) / float64(g.asked) * float64(g.indexed)
	if float64(out-g.before) > poorRatio*plain {
		g.factor = min(max(2*g.factor, firstFactor), mostFactor)
		g.skip = g.factor * int(g.indexed)
	} else {
		g.factor = 0
	}
	g.indexed, g.before, g.sampled.n, g.asked = 0, out, 0, 0
}

// skips reports whether n bytes are not to be looked for.
func (g *gain) skips(n int) bool {
	if g.skip <= 0 {
		return false
	}
	g.skip -= n
	g.renew = g.skip <= 0
	return true
}

// skipsAll reports whether all of n bytes will be skipped.
func (g *gain) skipsAll(n int) bool { return g.skip >= n }

// fresh reports, once, that a look begins after a skip.
func (g *gain) fresh() bool {
	r := g.renew
	g.renew = false
	return r
}

// again looks at once: a large file is another matter than those before.
func (g *gain) again() { g.renew, g.skip = g.renew || g.skip > 0, 0 }
