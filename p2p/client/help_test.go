package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/httprange"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/reputation"
	"github.com/nixp2p/nixp2p/p2p/site"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var key = nixtest.NewKey("site-1")

// idOf returns a valid peer ID.
func idOf(n int) peer.ID {
	return peer.ID(append([]byte{0x12, 0x20}, fmt.Appendf(nil, "%032d", n)...))
}

// fakePeer answers requests. Its fields say how; nil funcs and zero values are honest.
type fakePeer struct {
	*site.Peer
	paths []nixtest.Path
	forms string        // of Nixp2p-Forms; "": an older version
	delay time.Duration // before an answer
	info  func(text []byte) []byte
	nar   func(p nixtest.Path, off int64) (*http.Response, error)

	mu    sync.Mutex
	asked []string // paths of requests
}

// fakeSite is a Site: all peers list all paths.
type fakeSite struct {
	mu    sync.Mutex
	peers []*fakePeer
	named []string
}

// add puts in a peer that has these paths.
func (s *fakeSite) add(paths ...nixtest.Path) *fakePeer {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := idOf(len(s.peers) + 1)
	p := &fakePeer{Peer: &site.Peer{ID: id, Key: id.String(), Since: time.Now()}, paths: paths}
	if len(paths) > 0 {
		p.forms = fmt.Sprintf("raw=%d", len(paths[0].NAR))
	}
	s.peers = append(s.peers, p)
	return p
}

func (s *fakeSite) Any() bool { return len(s.peers) > 0 }

func (s *fakeSite) Holders(k inventory.Key) (list []*site.Peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		if slices.ContainsFunc(p.paths, func(x nixtest.Path) bool { return inventory.KeyOf(x.Hash().Question()) == k }) {
			list = append(list, p.Peer)
		}
	}
	return list
}

func (s *fakeSite) get(id peer.ID) *fakePeer {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		if p.ID == id {
			return p
		}
	}
	return nil
}

func (s *fakeSite) Peer(id peer.ID) *site.Peer {
	if p := s.get(id); p != nil {
		return p.Peer
	}
	return nil
}

func (s *fakeSite) Connect(_ context.Context, id peer.ID, _ string) (*site.Peer, error) {
	if p := s.Peer(id); p != nil {
		return p, nil
	}
	return nil, errors.New("unreachable")
}

func (s *fakeSite) Learn(_ *site.Peer, addrs []string) (ids []peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.named = append(s.named, addrs...)
	for _, p := range s.peers {
		if slices.Contains(addrs, p.Key) {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

func (s *fakeSite) RoundTrip(to *site.Peer, req *http.Request) (*http.Response, error) {
	p := s.get(to.ID)
	p.mu.Lock()
	p.asked = append(p.asked, req.URL.Path)
	p.mu.Unlock()
	select {
	case <-req.Context().Done():
		return nil, req.Context().Err()
	case <-time.After(p.delay):
	}
	ask, err := wire.ParseRequest(req.URL.Path)
	if err != nil {
		return nil, err
	}
	for _, x := range p.paths {
		switch {
		case ask.IsInfo && x.Hash().Question() == ask.Question:
			text := x.Signed(key).AppendText(nil)
			if p.info != nil {
				text = p.info(text)
			}
			r := respond(200, text)
			if p.forms != "" {
				r.Header.Set(wire.FormsHeader, p.forms)
			}
			return r, nil
		case !ask.IsInfo && x.NarHash() == ask.Nar:
			off, err := httprange.ParseFrom(req.Header.Get("Range"))
			if err != nil {
				return nil, err
			}
			if p.nar == nil {
				return from(x.NAR, off, bytes.NewReader(x.NAR[off:])), nil
			}
			r, err := p.nar(x, off)
			if r != nil {
				body := r.Body
				r.Body = &bound{body, req.Context().Done()}
			}
			return r, err
		}
	}
	return respond(404, nil), nil
}

// bound ends with a context.
type bound struct {
	io.ReadCloser
	done <-chan struct{}
}

func (b *bound) Read(p []byte) (int, error) {
	select {
	case <-b.done:
		return 0, context.Canceled
	default:
		return b.ReadCloser.Read(p)
	}
}

func respond(status int, body []byte) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{}, ContentLength: int64(len(body)), Body: io.NopCloser(bytes.NewReader(body))}
}

// from answers with what r gives of a NAR from byte off on.
func from(nar []byte, off int64, r io.Reader) *http.Response {
	resp := respond(200, nil)
	resp.ContentLength = int64(len(nar)) - off
	if off > 0 {
		resp.StatusCode = 206
		resp.Header.Set("Content-Range", httprange.ContentRange(off, resp.ContentLength, int64(len(nar))))
	}
	resp.Body = io.NopCloser(r)
	if c, ok := r.(io.ReadCloser); ok {
		resp.Body = c
	}
	return resp
}

// slow gives its bytes in pieces, with a pause before each.
type slow struct {
	b     []byte
	piece int
	pause time.Duration
	end   error // after the last byte; nil: EOF

	once   sync.Once
	closed chan struct{}
}

func newSlow(b []byte, piece int, pause time.Duration, end error) *slow {
	return &slow{b: b, piece: piece, pause: pause, end: end, closed: make(chan struct{})}
}

func (s *slow) Read(p []byte) (int, error) {
	select {
	case <-s.closed:
		return 0, io.ErrClosedPipe
	case <-time.After(s.pause):
	}
	if len(s.b) == 0 {
		if s.end != nil {
			return 0, s.end
		}
		return 0, io.EOF
	}
	n := copy(p, s.b[:min(len(s.b), s.piece)])
	s.b = s.b[n:]
	return n, nil
}

func (s *slow) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

// newSite returns a client of a site without peers, and what happens there.
func newSite(t *testing.T) (*Client, *fakeSite, *[]source.Event) {
	t.Helper()
	s := &fakeSite{}
	var mu sync.Mutex
	var events []source.Event
	c := New(Config{
		Site: s, Keys: nixtest.Keys(t, key), ShareKeys: []string{key.Name}, Reputation: reputation.New(nil), Metrics: metrics.New(),
		Events: func(e source.Event) {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, e)
		},
	})
	t.Cleanup(c.Close)
	return c, s, &events
}

func rawOf(p nixtest.Path) []source.Sized {
	return []source.Sized{{Form: nix.Raw, Size: int64(len(p.NAR))}}
}

// pull reads a NAR through a session, to its end or until no peer is left.
func pull(ctx context.Context, s source.Session) (got []byte, err error) {
	for {
		turn, err := s.Next(ctx, int64(len(got)))
		if err != nil {
			return got, err
		}
		b, err := io.ReadAll(turn.Stream.Body)
		_ = turn.Stream.Body.Close()
		if got = append(got, b...); err == nil {
			return got, nil
		}
	}
}
