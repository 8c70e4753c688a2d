// Package quota bounds what this machine gives to others: uploads at a time, of one NAR, to
// one peer, and bytes a second. Few fast copies multiply, many slow ones crawl. It also
// remembers who got what, to name them to those whom it has to refuse. It sends nothing.
package quota

import (
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/nixp2p/nixp2p/internal/nix"
)

const (
	// MaxPerNAR is how many uploads of one NAR go on at a time, MaxUploads of all.
	MaxPerNAR  = 4
	MaxUploads = 16
	// Small: what is done in the time that a refusal takes does not count there, only
	// against a bound of its own.
	Small    = 1 << 20
	maxSmall = 64
	// maxGrowing uploads of downloads in progress go on besides: they wait more than they send,
	// and where all machines start at once each has many of them.
	maxGrowing = 128

	// wantedFor is how long a refused peer counts when shares are made.
	wantedFor = 2 * time.Second

	// maxKnown NARs and maxTakers of each are remembered for naming.
	maxKnown  = 1024
	maxTakers = 8
	takenFor  = 10 * time.Minute
)

// Uploads counts. It is safe for concurrent use.
type Uploads struct {
	mu      sync.Mutex
	total   int
	small   int
	growing int
	byNAR   map[nix.NarHash]int
	byPeer  map[string]int
	wanted  map[string]time.Time // refused lately

	takers map[nix.NarHash][]taker
}

type taker struct {
	peer string
	at   time.Time
}

// NewUploads returns an empty count.
func NewUploads() *Uploads {
	return &Uploads{byNAR: map[nix.NarHash]int{}, byPeer: map[string]int{}, wanted: map[string]time.Time{}, takers: map[nix.NarHash][]taker{}}
}

// Grow asks for a slot for an upload of what this machine gets itself at the moment. The rest is
// as with Begin.
func (u *Uploads) Grow(peer string, nar nix.NarHash, size int64) (end func(whole bool)) {
	if size < Small {
		return u.Begin(peer, nar, size)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.growing >= maxGrowing || u.byNAR[nar] >= MaxPerNAR {
		return nil
	}
	u.growing++
	u.byNAR[nar]++
	return func(whole bool) {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.growing--
		drop(u.byNAR, nar)
		if whole {
			u.took(nar, peer)
		}
	}
}

// Begin asks for a slot for an upload of size bytes of nar to peer. The caller calls end
// once, with whether all was sent. Without a slot end is nil.
func (u *Uploads) Begin(peer string, nar nix.NarHash, size int64) (end func(whole bool)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if size < Small {
		if u.small >= maxSmall {
			return nil
		}
		u.small++
		return func(bool) {
			u.mu.Lock()
			defer u.mu.Unlock()
			u.small--
		}
	}
	now := time.Now()
	if u.total >= MaxUploads || u.byNAR[nar] >= MaxPerNAR || u.byPeer[peer] >= u.share(peer, now) {
		u.wanted[peer] = now
		return nil
	}
	delete(u.wanted, peer)
	u.total++
	u.byNAR[nar]++
	u.byPeer[peer]++
	return func(whole bool) {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.total--
		drop(u.byNAR, nar)
		drop(u.byPeer, peer)
		if whole {
			u.took(nar, peer)
		}
	}
}

// share returns how many slots peer may have: all of them alone, an equal part when others
// have or want some.
func (u *Uploads) share(peer string, now time.Time) int {
	n := 1
	for p := range u.byPeer {
		if p != peer {
			n++
		}
	}
	for p, at := range u.wanted {
		if now.Sub(at) > wantedFor {
			delete(u.wanted, p)
		} else if p != peer && u.byPeer[p] == 0 {
			n++
		}
	}
	return max(MaxUploads/n, 1)
}

func drop[K comparable](m map[K]int, k K) {
	if m[k]--; m[k] <= 0 {
		delete(m, k)
	}
}

// took remembers that peer has all of nar now.
func (u *Uploads) took(nar nix.NarHash, peer string) {
	for k := range u.takers {
		if len(u.takers) < maxKnown {
			break
		}
		delete(u.takers, k)
	}
	list := slices.DeleteFunc(u.takers[nar], func(t taker) bool { return t.peer == peer })
	if len(list) >= maxTakers {
		list = list[1:]
	}
	u.takers[nar] = append(list, taker{peer, time.Now()})
}

// Takers returns peers that got all of nar from here lately, the last one first.
func (u *Uploads) Takers(nar nix.NarHash) []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	var list []string
	for _, t := range slices.Backward(u.takers[nar]) {
		if time.Since(t.at) < takenFor {
			list = append(list, t.peer)
		}
	}
	return list
}

// Active returns how many uploads go on.
func (u *Uploads) Active() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.total + u.small + u.growing
}

// Limiter bounds bytes a second over all uploads together. Nil is no limit.
type Limiter struct{ bucket *rate.Limiter }

// limitPiece is what is taken from the bucket at a time, so that uploads take turns.
const limitPiece = 64 << 10

// NewLimiter returns a Limiter of so many bytes a second; nil for 0.
func NewLimiter(perSecond int64) *Limiter {
	if perSecond <= 0 {
		return nil
	}
	return &Limiter{rate.NewLimiter(rate.Limit(perSecond), int(max(limitPiece, min(perSecond/10, 1<<20))))}
}

// Wait blocks until n bytes may be sent.
func (l *Limiter) Wait(ctx context.Context, n int) error {
	if l == nil {
		return nil
	}
	for n > 0 {
		k := min(n, limitPiece)
		if err := l.bucket.WaitN(ctx, k); err != nil {
			return err
		}
		n -= k
	}
	return nil
}
