package server

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
	"github.com/nixp2p/nixp2p/p2p/lease"
	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/p2p/share"
	"github.com/nixp2p/nixp2p/p2p/site"
	"github.com/nixp2p/nixp2p/p2p/wire"
	"github.com/nixp2p/nixp2p/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var key = nixtest.NewKey("site-1")

// peers is a Site in memory.
type peers struct {
	mu   sync.Mutex
	byID map[peer.ID]*site.Peer
}

func newPeers() *peers { return &peers{byID: map[peer.ID]*site.Peer{}} }

func (p *peers) Peer(id peer.ID) *site.Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.byID[id]
}

func (p *peers) Reachable(id peer.ID) []string {
	return []string{"/ip4/10.0.0.1/tcp/1/p2p/" + id.String()}
}

// ids are valid peer IDs.
func idOf(n int) peer.ID {
	return peer.ID(append([]byte{0x12, 0x20}, fmt.Appendf(nil, "%032d", n)...))
}

// on returns the peer n on a machine of 10.0.0.0/24.
func (p *peers) on(n int, host byte) *site.Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	id := idOf(n)
	if p.byID[id] == nil {
		p.byID[id] = &site.Peer{ID: id, Key: id.String(), Place: site.Place{Machine: machine.Of(netip.AddrFrom4([4]byte{10, 0, 0, host}))}, Since: time.Now()}
	}
	return p.byID[id]
}

// store is a share.Store in memory.
type store struct {
	*sourcetest.Fake
	paths []share.Path
}

func newStore(t testing.TB, paths ...nixtest.Path) *store {
	t.Helper()
	s := &store{Fake: sourcetest.NewFake(source.Store).Share(key.Name)}
	s.Add(t, key, paths...)
	for _, p := range paths {
		s.paths = append(s.paths, share.Path{Store: p.Hash(), Nar: p.NarHash(), Size: int64(len(p.NAR))})
	}
	return s
}

func (s *store) Shares() iter.Seq[share.Path] { return slices.Values(s.paths) }

func (s *store) Listed(h nix.StoreHash) (share.Path, bool) { return share.Path{}, false }

// cache has one whole file of a NAR.
type cache struct {
	*sourcetest.Fake
	nar    nix.NarHash
	form   nix.Form
	proofs int
}

type noDownload struct{ share.Download }

func (c *cache) Sizes(nar nix.NarHash) []source.Sized {
	if nar == c.nar {
		return []source.Sized{{Form: c.form, Size: 1000}}
	}
	return nil
}
func (c *cache) Prove(context.Context, *verify.Info, nix.Form) error { c.proofs++; return nil }
func (c *cache) Proven(nix.NarHash, nix.Form) bool                   { return false }
func (c *cache) Downloads(nix.NarHash) []noDownload                  { return nil }

// pipes is a listener of streams in memory.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	over  chan struct{}
}

type conn struct {
	net.Conn
	from peer.ID
}

type addr peer.ID

func (a addr) Network() string      { return "libp2p" }
func (a addr) String() string       { return fmt.Sprintf("%x", string(a)) }
func (c conn) RemoteAddr() net.Addr { return addr(c.from) }
func (p *pipes) Addr() net.Addr     { return addr("") }
func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.over:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.over) })
	return nil
}

// world is a server with peers.
type world struct {
	*Server
	peers *peers
	pipes *pipes
	store *store
}

// serve returns a server of these paths that runs until the test ends.
func serve(t *testing.T, edit func(*Config), paths []nixtest.Path) *world {
	t.Helper()
	w := &world{peers: newPeers(), pipes: &pipes{conns: make(chan net.Conn), over: make(chan struct{})}, store: newStore(t, paths...)}
	h := share.New(share.Config{Store: w.store, ShareKeys: []string{key.Name}})
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { share.NewAnnouncer(h).Run(ctx) })
	cfg := Config{Site: w.peers, Holder: h, Metrics: metrics.New()}
	if edit != nil {
		edit(&cfg)
	}
	w.Server = New(cfg)
	run.Go(func() { w.Serve(ctx, w.pipes) })
	t.Cleanup(func() {
		cancel()
		run.Wait()
	})
	synctest.Wait()
	return w
}

// dial opens a stream of a peer.
func (w *world) dial(p *site.Peer) net.Conn {
	a, b := net.Pipe()
	select {
	case w.pipes.conns <- conn{b, p.ID}:
	case <-w.pipes.over:
	}
	return a
}

// get asks for a path, and reads the head of the answer.
func (w *world) get(t *testing.T, p *site.Peer, method, path, header string) (*http.Response, net.Conn) {
	t.Helper()
	c := w.dial(p)
	if _, err := io.WriteString(c, method+" "+path+" HTTP/1.1\r\nHost: peer\r\n"+header+"\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp, c
}

func narPath(p nixtest.Path) string { return wire.Request{Nar: p.NarHash()}.Path() }

func infoPath(p nixtest.Path) string {
	return wire.Request{IsInfo: true, Question: p.Hash().Question()}.Path()
}

func TestAnswers(t *testing.T) {
	small, large, absent := nixtest.NewPath("small", 1000), nixtest.NewPath("large", 3<<20), nixtest.NewPath("absent", 10)
	synctest.Test(t, func(t *testing.T) {
		w := serve(t, nil, []nixtest.Path{small, large})
		p := w.peers.on(1, 1)
		for _, test := range []struct {
			method, path, header string
			status               int
			body                 []byte
		}{
			{"GET", narPath(small), "", 200, small.NAR},
			{"GET", narPath(large), "", 200, large.NAR},
			{"GET", narPath(large), "Range: bytes=2000000-\r\n", 206, large.NAR[2000000:]},
			{"GET", narPath(small), "Range: bytes=99999-\r\n", 416, nil},
			{"GET", narPath(small), "Range: bytes=5-6\r\n", 404, nil},
			{"GET", narPath(small), "Nixp2p-At-Hand: 1\r\n", 200, small.NAR}, // of the last release
			{"HEAD", narPath(large), "", 200, nil},
			{"GET", narPath(absent), "", 404, nil},
			{"GET", infoPath(absent), "", 404, nil},
			{"GET", infoPath(small), "", 200, small.Info(t, key).Offer(nix.Raw)},
			{"GET", "/etc/passwd", "", 404, nil},
			{"PUT", narPath(small), "", 405, nil},
			{"POST", LeasePath, "", 404, nil},
		} {
			resp, c := w.get(t, p, test.method, test.path, test.header)
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != test.status || !bytes.Equal(body, test.body) {
				t.Errorf("%s %s: %d, %d bytes, %v", test.method, test.path, resp.StatusCode, len(body), err)
			}
			_ = c.Close()
		}
		if resp, c := w.get(t, p, "GET", infoPath(small), ""); resp.Header.Get(wire.FormsHeader) != fmt.Sprintf("raw=%d", len(small.NAR)) {
			t.Errorf("%v", resp.Header)
		} else {
			_ = c.Close()
		}
	})
}

// TestHead: HEAD opens and decodes nothing.
func TestHead(t *testing.T) {
	p := nixtest.NewPath("file", 5000)
	c := &cache{Fake: sourcetest.NewFake(source.Cache), nar: p.NarHash(), form: nix.Form{Compression: nix.XZ, File: nix.FileHash{1}}}
	h := share.New(share.Config{Cache: share.CacheOf(c), ShareKeys: []string{key.Name}})
	h.Downloading(p.Info(t, key))
	synctest.Test(t, func(t *testing.T) {
		w := serve(t, func(cfg *Config) { cfg.Holder = h }, nil)
		for _, path := range []string{narPath(p), wire.Request{Nar: p.NarHash(), Form: c.form}.Path(), infoPath(p)} {
			resp, s := w.get(t, w.peers.on(1, 1), "HEAD", path, "")
			if resp.StatusCode != 200 || resp.ContentLength <= 0 {
				t.Errorf("%s: %d, %d bytes", path, resp.StatusCode, resp.ContentLength)
			}
			_ = s.Close()
		}
		if c.proofs != 0 || c.Opened(nix.Raw) != 0 {
			t.Errorf("%d proofs, %d decoded", c.proofs, c.Opened(nix.Raw))
		}
	})
}

// TestBodies: a body that does not come is not waited for.
func TestBodies(t *testing.T) {
	p := nixtest.NewPath("small", 1000)
	coordinate := func(*site.Peer, lease.Request) lease.Answer { return lease.Answer{Kind: lease.Noted} }
	synctest.Test(t, func(t *testing.T) {
		w := serve(t, func(c *Config) { c.Coordinate = coordinate }, []nixtest.Path{p})
		for _, test := range []struct {
			method, path, header string
			within               time.Duration
		}{
			{"GET", narPath(p), "Content-Length: 100\r\n", 0},
			{"GET", narPath(p), "Transfer-Encoding: chunked\r\n", 0},
			{"HEAD", narPath(p), "Content-Length: 100\r\n", 0},
			{"GET", LeasePath, "Content-Length: 9\r\n", 0},
			{"POST", LeasePath, "Content-Length: 99999999\r\n", time.Second}, // net/http waits before it closes
			{"POST", LeasePath, "Content-Length: 9\r\n", bodyTime},
			{"POST", LeasePath, "Transfer-Encoding: chunked\r\n", bodyTime},
		} {
			began := time.Now()
			c := w.dial(w.peers.on(1, 1))
			_, _ = io.WriteString(c, test.method+" "+test.path+" HTTP/1.1\r\nHost: peer\r\n"+test.header+"\r\n")
			answer, _ := io.ReadAll(c) // to the end of the stream
			if took := time.Since(began); took > test.within || !strings.Contains(string(answer), " 4") {
				t.Errorf("%s %s %q: %q after %v", test.method, test.path, test.header, answer, took)
			}
			_ = c.Close()
		}
		// A request whose head does not come ends as well.
		c := w.dial(w.peers.on(1, 1))
		_, _ = io.WriteString(c, "GET /")
		began := time.Now()
		_, _ = io.ReadAll(c)
		if took := time.Since(began); took > headerTime {
			t.Errorf("half a head: %v", took)
		}
	})
}

// TestKeepAlive: one stream may ask for several narinfos and for what is not here, and ends when
// it asks nothing.
func TestKeepAlive(t *testing.T) {
	p := nixtest.NewPath("small", 1000)
	synctest.Test(t, func(t *testing.T) {
		w := serve(t, nil, []nixtest.Path{p})
		c := w.dial(w.peers.on(1, 1))
		in := bufio.NewReader(c)
		for _, path := range []string{narPath(nixtest.NewPath("absent", 1)), infoPath(p), infoPath(nixtest.NewPath("absent", 1)), infoPath(p)} {
			_, _ = io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: peer\r\n\r\n")
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.Close {
				t.Errorf("%s: %v, closed %v", path, err, resp.Close)
			}
		}
		began := time.Now()
		if _, err := in.ReadByte(); err == nil || time.Since(began) > headerTime {
			t.Errorf("an idle stream: %v after %v", err, time.Since(began))
		}
		_ = c.Close()
	})
}

// TestSlotsExhausted: peers that take a NAR slowly do not keep others from theirs, whether they
// are one machine or many, for small NARs and large ones.
func TestSlotsExhausted(t *testing.T) {
	for _, size := range []int{200_000, 3 << 20} {
		for name, hosts := range map[string]int{"one machine": 1, "many machines": 200} {
			t.Run(fmt.Sprint(name, " ", size), func(t *testing.T) {
				p, q := nixtest.NewPath("attacked", size), nixtest.NewPath("wanted", size)
				synctest.Test(t, func(t *testing.T) {
					w := serve(t, nil, []nixtest.Path{p, q})
					var readers sync.WaitGroup
					var conns []net.Conn
					for i := range 100 {
						c := w.dial(w.peers.on(i, byte(1+i%hosts)))
						conns = append(conns, c)
						which := narPath([]nixtest.Path{p, q}[i%2])
						readers.Go(func() {
							_, _ = io.WriteString(c, "GET "+which+" HTTP/1.1\r\nHost: peer\r\n\r\n")
							for err := error(nil); err == nil; time.Sleep(10 * time.Second) {
								_, err = io.CopyN(io.Discard, c, 64<<10)
							}
						})
					}
					time.Sleep(time.Second)
					began := time.Now()
					for {
						resp, c := w.get(t, w.peers.on(1000, 1), "GET", narPath(q), "")
						body, err := io.ReadAll(resp.Body)
						_ = c.Close()
						if resp.StatusCode == 200 && err == nil && bytes.Equal(body, q.NAR) {
							break
						}
						if time.Since(began) > 4*time.Second {
							t.Errorf("status %d after %v", resp.StatusCode, time.Since(began))
							break
						}
						time.Sleep(100 * time.Millisecond)
					}
					for _, c := range conns {
						_ = c.Close()
					}
					readers.Wait()
				})
			})
		}
	}
}

// TestDrain: no upload begins, and the running one is waited for.
func TestDrain(t *testing.T) {
	p := nixtest.NewPath("large", 3<<20)
	synctest.Test(t, func(t *testing.T) {
		w := serve(t, nil, []nixtest.Path{p})
		resp, c := w.get(t, w.peers.on(1, 1), "GET", narPath(p), "")
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			w.Drain(t.Context())
		}()
		synctest.Wait()
		select {
		case <-drained:
			t.Error("an upload was not waited for")
		default:
		}
		if len(w.Uploads()) != 1 {
			t.Errorf("%v", w.Uploads())
		}
		other, d := w.get(t, w.peers.on(2, 2), "GET", narPath(p), "")
		if other.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("status %d", other.StatusCode)
		}
		_ = d.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Error(err)
		}
		<-drained
		_ = c.Close()
	})
}
