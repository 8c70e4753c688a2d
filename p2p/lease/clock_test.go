package lease

import (
	"time"

	"github.com/nixp2p/nixp2p/internal/source"
)

// clock is the time budget of one NAR, by the rules of package transfer for peers that are
// trusted. Waiting for coordinators and peers uses it up; the bytes that peers sent extend it by
// what upstream would have taken for them. When it is used up, upstream is opened at the present
// offset, whatever the site says.
type clock struct {
	size     int64
	stagger  time.Duration // so that not all that wait for a node leave it at once
	waited   time.Duration
	received int64 // from peers
}

const (
	smallBase    = time.Second
	largeBase    = 2 * time.Second
	maxStagger   = time.Second / 2
	unknownFloor = 1 << 20 // bytes a second
)

// over reports whether the budget is used up at the present pace of upstream.
func (c *clock) over(p source.Pace) bool {
	base, floor := largeBase, p.Rate
	if c.size < smallNAR {
		base = min(smallBase+p.Time(c.size), largeBase)
	}
	if floor == 0 {
		floor = unknownFloor
	}
	worth := time.Duration(float64(c.received) / floor * float64(time.Second))
	return c.waited > base+p.Time(c.size)/2+c.stagger+worth
}
