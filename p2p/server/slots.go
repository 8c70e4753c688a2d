package server

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/runclock"
	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/p2p/site"
)

const (
	// Uploads at a time: of NARs that are here, of small ones, which are done in the time that
	// a refusal takes, and of downloads that are still running, which wait more than they send.
	maxWhole   = 16
	maxSmall   = 64
	maxPartial = 128
	smallNAR   = 1 << 20
	// maxPerNAR uploads of one NAR go on at a time: few fast copies multiply.
	maxPerNAR = 4

	// An upload whose peer has not taken a piece (128 KiB) for stuckTime gives way to whoever
	// waits. One that ran for settleTime at less than fastRate gives way if its machine, or
	// its peer, has two more uploads than the one that waits.
	stuckTime  = 2 * time.Second
	settleTime = 2 * time.Second
	fastRate   = 8 << 20 // bytes a second
	// wantedFor is how long a machine that was refused counts when parts are made.
	wantedFor = 2 * time.Second
	maxWanted = 1024

	// For naming others: maxKnown NARs and maxTakers of each, for takenFor.
	maxKnown  = 1024
	maxTakers = 8
	takenFor  = 10 * time.Minute
)

// kind is the limit that an upload counts against.
type kind uint8

const (
	whole kind = iota
	small
	partial
	kinds
)

var most = [kinds]int{maxWhole, maxSmall, maxPartial}

func kindOf(size int64, isPartial bool) kind {
	switch {
	case size < smallNAR:
		return small
	case isPartial:
		return partial
	default:
		return whole
	}
}

// uploads are those on their way.
type uploads struct {
	clock *runclock.Clock

	mu     sync.Mutex
	active map[*upload]struct{}
	wanted map[waiting]time.Time // refused lately
	taken  map[nix.NarHash][]taker
}

// waiting is a machine that was refused an upload of a kind.
type waiting struct {
	machine machine.ID
	kind    kind
}

// taker is a peer that got all of a NAR.
type taker struct {
	peer peer.ID
	at   time.Time
}

func newUploads(clock *runclock.Clock) *uploads {
	return &uploads{clock: clock, active: map[*upload]struct{}{}, wanted: map[waiting]time.Time{}, taken: map[nix.NarHash][]taker{}}
}

// begin takes a slot for u, from another upload if that has to give way, and reports whether
// it did. The caller calls end.
func (s *uploads) begin(u *upload) bool {
	s.mu.Lock()
	ok, victims := s.admit(u, s.clock.Now())
	if ok {
		s.active[u] = struct{}{}
		delete(s.wanted, waiting{u.to.Machine, u.kind})
	} else if len(s.wanted) < maxWanted {
		s.wanted[waiting{u.to.Machine, u.kind}] = s.clock.Now()
	}
	for _, v := range victims {
		delete(s.active, v)
	}
	s.mu.Unlock()
	for _, v := range victims {
		v.cancel()
	}
	return ok
}

// admit reports whether u finds a slot, and which uploads give way for it.
func (s *uploads) admit(u *upload, now time.Time) (ok bool, victims []*upload) {
	same := s.those(func(v *upload) bool { return v.kind == u.kind })
	if len(same) >= most[u.kind] {
		v := victim(same, u, now)
		if v == nil {
			return false, nil
		}
		victims = append(victims, v)
	} else if mine := s.those(func(v *upload) bool { return v.kind == u.kind && v.to.Machine == u.to.Machine }); len(mine) >= s.part(u, now) {
		return false, nil
	}
	if u.kind == small {
		return true, victims
	}
	nar := s.those(func(v *upload) bool {
		return v.kind != small && v.hash == u.hash && !slices.Contains(victims, v)
	})
	if len(nar) >= maxPerNAR {
		v := victim(nar, u, now)
		if v == nil {
			return false, nil
		}
		victims = append(victims, v)
	}
	return true, victims
}

func (s *uploads) those(keep func(*upload) bool) (list []*upload) {
	for v := range s.active {
		if keep(v) {
			list = append(list, v)
		}
	}
	return list
}

// part returns how many slots of its kind the machine of u may have: all of them alone, an
// equal part when others were refused lately.
func (s *uploads) part(u *upload, now time.Time) int {
	n := 0
	for w, at := range s.wanted {
		if now.Sub(at) > wantedFor {
			delete(s.wanted, w)
		} else if w.kind == u.kind && w.machine != u.to.Machine {
			n++
		}
	}
	if n == 0 {
		return most[u.kind]
	}
	seen := map[machine.ID]bool{u.to.Machine: true}
	for v := range s.active {
		if _, waits := s.wanted[waiting{v.to.Machine, v.kind}]; v.kind == u.kind && !waits {
			seen[v.to.Machine] = true
		}
	}
	return max(most[u.kind]/(len(seen)+n), 1)
}

// victim returns the upload of a list that gives way to u, nil if none has to.
func victim(list []*upload, u *upload, now time.Time) *upload {
	if v := stuckest(list, now); v != nil {
		return v
	}
	byMachine, byPeer := map[machine.ID]int{}, map[peer.ID]int{}
	for _, v := range list {
		byMachine[v.to.Machine]++
		byPeer[v.to.ID]++
	}
	var found *upload
	slowest := float64(fastRate)
	for _, v := range list {
		ran := now.Sub(v.began)
		rate := float64(v.flow.Load()) / max(ran, time.Millisecond).Seconds()
		unfair := byMachine[v.to.Machine] >= byMachine[u.to.Machine]+2
		if v.to.Machine == u.to.Machine {
			unfair = byPeer[v.to.ID] >= byPeer[u.to.ID]+2
		}
		if unfair && ran >= settleTime && rate < slowest {
			found, slowest = v, rate
		}
	}
	return found
}

// stuckest returns the upload whose peer has not taken a piece for longest, nil if all do.
func stuckest(list []*upload, now time.Time) (found *upload) {
	longest := stuckTime
	for _, v := range list {
		if d := v.stuck(now); d >= longest {
			found, longest = v, d
		}
	}
	return found
}

// cutStuck ends an upload whose peer does not take it.
func (s *uploads) cutStuck(which func(*upload) bool) {
	s.mu.Lock()
	v := stuckest(s.those(which), s.clock.Now())
	s.mu.Unlock()
	if v != nil {
		v.cancel()
	}
}

// end gives the slot of u back, if it still has it. All says that all of the NAR was sent.
func (s *uploads) end(u *upload, all bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.active, u)
	if !all || u.kind == small {
		return
	}
	for k := range s.taken {
		if len(s.taken) < maxKnown {
			break
		}
		delete(s.taken, k)
	}
	list := slices.DeleteFunc(s.taken[u.hash], func(t taker) bool { return t.peer == u.to.ID })
	if len(list) >= maxTakers {
		list = list[1:]
	}
	s.taken[u.hash] = append(list, taker{u.to.ID, time.Now()})
}

// takers returns peers that got all of a NAR from here lately, the last one first.
func (s *uploads) takers(nar nix.NarHash) (list []peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range slices.Backward(s.taken[nar]) {
		if time.Since(t.at) < takenFor {
			list = append(list, t.peer)
		}
	}
	return list
}

// decodingFor returns how many uploads to a peer decode a file.
func (s *uploads) decodingFor(p *site.Peer) (n int) {
	for _, u := range s.all() {
		if u.to == p && u.nar.Decodes() {
			n++
		}
	}
	return n
}

// all returns the uploads that are on their way.
func (s *uploads) all() []*upload {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.those(func(*upload) bool { return true })
}

// limiter bounds bytes a second over all uploads together. Nil is no limit.
type limiter struct{ bucket *rate.Limiter }

// limitPiece is what is taken from the bucket at a time, so that uploads take turns.
const limitPiece = 64 << 10

func newLimiter(perSecond int64) *limiter {
	if perSecond <= 0 {
		return nil
	}
	return &limiter{rate.NewLimiter(rate.Limit(perSecond), int(max(limitPiece, min(perSecond/10, 1<<20))))}
}

// wait blocks until n bytes may be sent.
func (l *limiter) wait(ctx context.Context, n int) error {
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
