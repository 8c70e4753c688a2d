package sourcetest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// Peer is one node of a fake site. What it has, how fast and how wrong it sends is said by
// its Fake.
type Peer struct {
	*Fake
	ID      string
	Trusted bool // has delivered a whole, correct NAR before
	blamed  bool
}

// NewPeer returns a peer that has nothing.
func NewPeer(id string) *Peer { return &Peer{Fake: NewFake(source.Peer), ID: id} }

// Decision is what a coordinator says: the bytes come from Follow, or, if nil, from upstream.
type Decision struct {
	Follow *Peer
	Over   <-chan struct{} // ends the turn
	Err    error           // the answer is this error instead
}

// Ended is how a session ended.
type Ended struct {
	Want               source.Want
	Outcome            source.Outcome
	Peers              int
	Anyway             bool // FetchAnyway was called
	Readable, Received int64
}

// Peers is a site of fake peers. It keeps to the contract of source.Peers: it asks each peer
// for a NAR, then the coordinator. Its fields are set before it is used.
type Peers struct {
	List  []*Peer
	Share []string // names of keys
	// Coordinator answers the calls of Next for which no peer in List has the NAR, counted from
	// 0. It may block. If nil, this machine fetches.
	Coordinator func(ctx context.Context, call int, off int64) Decision
	// OnSearch answers Search. If nil, nothing is found.
	OnSearch func(ctx context.Context) bool
	// OnInfo answers Info instead of the peers; nil, nil leaves it to them.
	OnInfo func(ctx context.Context, h nix.StoreHash) (*verify.Info, error)
	// Positive makes MayHave true for all paths, as an inventory may say wrongly.
	Positive atomic.Bool

	mu    sync.Mutex
	begun int
	ended []Ended
}

var _ source.Peers = (*Peers)(nil)

// Info asks the peers in order.
func (p *Peers) Info(ctx context.Context, h nix.StoreHash) (*verify.Info, error) {
	if p.OnInfo != nil {
		if info, err := p.OnInfo(ctx, h); info != nil || err != nil {
			return info, err
		}
	}
	for _, peer := range p.List {
		if info, err := peer.Info(ctx, h); err == nil && info.SignedByAny(p.Share) {
			return info, nil
		}
	}
	return nil, fmt.Errorf("peers: %w", fs.ErrNotExist)
}

// MayHave reports whether a peer has the narinfo.
func (p *Peers) MayHave(h nix.StoreHash) bool {
	return p.Positive.Load() || slices.ContainsFunc(p.List, func(peer *Peer) bool {
		return count(peer.Fake, func() bool { return peer.infos[h] != nil })
	})
}

// Search calls OnSearch.
func (p *Peers) Search(ctx context.Context, _ *verify.Info) bool {
	return p.OnSearch != nil && p.OnSearch(ctx)
}

// Begin begins a session. It returns nil if there are no peers or the path is private.
func (p *Peers) Begin(_ context.Context, want source.Want) source.Session {
	if len(p.List) == 0 && p.Coordinator == nil || !want.Info.SignedByAny(p.Share) {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begun++
	return &session{p: p, want: want, tried: map[*Peer]bool{}, sent: map[*Peer]int64{}}
}

// Begun returns how many sessions began.
func (p *Peers) Begun() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.begun
}

// Ended returns how the sessions ended, in order.
func (p *Peers) Ended() []Ended {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.ended)
}

type session struct {
	p                  *Peers
	want               source.Want
	tried              map[*Peer]bool
	form               *nix.Form
	asked              int
	anyway             atomic.Bool
	readable, received atomic.Int64

	mu   sync.Mutex
	sent map[*Peer]int64
}

func (s *session) Next(ctx context.Context, off int64) (source.Turn, error) {
	if s.want.Whole && off > 0 {
		return source.Turn{}, errors.New("peers: the one that was to send all has failed")
	}
	for _, sized := range s.want.Forms {
		for _, peer := range s.p.List {
			if turn, err := s.open(ctx, peer, sized, off); err == nil {
				return turn, nil
			}
			if ctx.Err() != nil {
				return source.Turn{}, ctx.Err()
			}
		}
	}
	if !s.want.Coordinate {
		return source.Turn{}, fmt.Errorf("peers: %w", fs.ErrNotExist)
	}
	if s.p.Coordinator == nil {
		return source.Turn{}, source.ErrFetch
	}
	for ctx.Err() == nil {
		d := s.p.Coordinator(ctx, s.asked, off)
		s.asked++
		switch {
		case d.Err != nil:
			return source.Turn{}, d.Err
		case d.Follow == nil:
			return source.Turn{Over: d.Over}, source.ErrFetch
		}
		for _, sized := range s.want.Forms {
			if turn, err := s.open(ctx, d.Follow, sized, off); err == nil {
				turn.Over = d.Over
				return turn, nil
			}
		}
	}
	return source.Turn{}, ctx.Err()
}

// open opens a form at a peer unless it failed before.
func (s *session) open(ctx context.Context, peer *Peer, sized source.Sized, off int64) (source.Turn, error) {
	if s.tried[peer] || count(peer.Fake, func() bool { return peer.blamed }) || s.form != nil && *s.form != sized.Form {
		return source.Turn{}, fs.ErrNotExist
	}
	c, err := peer.NAR(ctx, s.want.Info, sized.Form, off)
	if err != nil {
		return source.Turn{}, err
	}
	s.tried[peer] = true
	s.form = &sized.Form
	return source.Turn{Stream: &source.Stream{
		Body: &counted{Unverified: c, s: s, peer: peer}, Form: sized.Form, Size: c.Size, Peer: peer.ID,
	}}, nil
}

// counted notes who sent bytes.
type counted struct {
	*verify.Unverified
	s    *session
	peer *Peer
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Body.Read(b)
	if n > 0 {
		c.s.mu.Lock()
		c.s.sent[c.peer] += int64(n)
		c.s.mu.Unlock()
	}
	return n, err
}

func (c *counted) Close() error { return c.Body.Close() }

func (s *session) Progress(readable, received int64) {
	s.readable.Store(readable)
	s.received.Store(received)
}

// Sharers is part of source.Session.
func (s *session) Sharers() int { return 1 }

func (s *session) FetchAnyway() { s.anyway.Store(true) }

func (s *session) Trusted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for peer := range s.sent {
		if !count(peer.Fake, func() bool { return peer.Trusted }) {
			return false
		}
	}
	return true
}

func (s *session) Peers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sent)
}

// End draws the conclusions that the contract names.
func (s *session) End(_ context.Context, o source.Outcome) {
	n := s.Peers()
	s.mu.Lock()
	for peer := range s.sent {
		count(peer.Fake, func() bool {
			switch {
			case o == source.Correct:
				peer.Trusted = true
			case o == source.Wrong && n == 1:
				peer.blamed = true
			case o != source.GaveUp:
				peer.Trusted = false
			}
			return true
		})
	}
	s.mu.Unlock()
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.p.ended = append(s.p.ended, Ended{s.want, o, n, s.anyway.Load(), s.readable.Load(), s.received.Load()})
}

// Blamed reports whether the peer alone sent a wrong NAR.
func (p *Peer) Blamed() bool { return count(p.Fake, func() bool { return p.blamed }) }

// Raw reports whether a peer has the raw NAR.
func (p *Peers) Raw(info *verify.Info) bool {
	return slices.ContainsFunc(p.List, func(peer *Peer) bool {
		return count(peer.Fake, func() bool { return peer.blobs[info.NarHash()][nix.Raw] != nil })
	})
}

// FileSize returns the size of a file that a peer has.
func (p *Peers) FileSize(info *verify.Info) (size int64) {
	for _, peer := range p.List {
		count(peer.Fake, func() bool {
			for form, blob := range peer.blobs[info.NarHash()] {
				if !form.IsRaw() {
					size = int64(len(blob))
				}
			}
			return true
		})
	}
	return size
}
