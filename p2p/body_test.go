package p2p

import (
	"testing"
	"time"
)

// TestDrips: who gives next to nothing for long is left, and not asked for the next NAR either. Who
// gets the bytes itself at the moment is given more time, but not for ever.
func TestDrips(t *testing.T) {
	for _, c := range []struct {
		name    string
		partial bool
		since   time.Duration
		rate    int64
		left    bool
	}{
		{"a byte a second", false, floorTime + time.Second, 1, true},
		{"not for long", false, floorTime - time.Second, 1, false},
		{"slow, but goes on", false, floorTime + time.Second, 2 * slowFloor, false},
		{"comes in itself", true, floorTime + time.Second, 1, false},
		{"says that it comes in itself", true, 3*floorTime + time.Second, 1, true},
		{"comes in slowly", true, 3*floorTime + time.Second, slowFloor / 4, false},
	} {
		r := newRemote("x")
		s := &source{r: r, partial: c.partial, marked: time.Now().Add(-c.since), waited: c.since, slowTo: c.rate * int64(c.since/time.Second)}
		if got := s.crawls(0, func() bool { return false }); got != c.left || r.askable() == c.left {
			t.Errorf("%s: left %v, askable %v", c.name, got, r.askable())
		}
	}
}
