package site

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/swarmkey"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testSite is a site that runs on a loopback address.
type testSite struct {
	*Site
	local *inventory.Local
	stop  func()
}

// start runs a site on 127.0.0.m until the test ends.
func start(t testing.TB, m int, change func(*Config), keys ...inventory.Key) *testSite {
	t.Helper()
	local, set := inventory.NewLocal(), inventory.Keys{}
	for _, k := range keys {
		set[k] = struct{}{}
	}
	if _, err := local.Flush(time.Now(), set); err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Listen:    []string{fmt.Sprintf("/ip4/127.0.0.%d/tcp/0", m)},
		Inventory: local, Metrics: metrics.New(),
	}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	n := &testSite{Site: s, local: local}
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(n.stop)
	select {
	case <-s.Ready():
	case err := <-done:
		done <- nil
		t.Fatal(err)
	}
	return n
}

// near returns a change of the configuration by which a site finds others.
func near(others ...*testSite) func(*Config) {
	return func(c *Config) {
		for _, o := range others {
			c.Bootstrap = append(c.Bootstrap, o.Addrs()[0])
		}
	}
}

// within waits up to limit until cond is true.
// wait waits until cond holds. Whoever is kept out is so for as long as an attack lasts, or
// for five minutes; a busy machine takes seconds.
func wait(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for !cond() {
		if !pause(ctx, 10*time.Millisecond) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// has reports whether n knows what another site shares.
func (n *testSite) has(of *testSite, k inventory.Key) bool {
	p := n.Peer(of.ID())
	return p != nil && p.Has(k)
}

// serve answers the requests of peers.
func (n *testSite) serve(t testing.TB, h http.HandlerFunc) {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	var done sync.WaitGroup
	done.Go(func() { _ = srv.Serve(n.Listen()) })
	t.Cleanup(func() {
		n.stop()
		_ = srv.Close()
		done.Wait()
	})
}

// ask sends a request to another site.
func (n *testSite) ask(ctx context.Context, of *testSite) (string, error) {
	p := n.Peer(of.ID())
	if p == nil {
		return "", errors.New("not connected")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://peer/hello", nil)
	if err != nil {
		return "", err
	}
	resp, err := n.RoundTrip(p, req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func key(i int) inventory.Key {
	return inventory.KeyOf(nix.StoreHash{byte(i), byte(i >> 8)}.Question())
}

// TestTwoSites: two sites find each other, learn what the other one shares, and speak HTTP.
func TestTwoSites(t *testing.T) {
	lost := make(chan *Peer, 1)
	a := start(t, 1, func(c *Config) { c.OnLost = func(p *Peer) { lost <- p } }, key(1))
	b := start(t, 2, near(a), key(2))
	wait(t, "both know what the other one shares", func() bool { return a.has(b, key(2)) && b.has(a, key(1)) })
	if a.has(b, key(1)) {
		t.Error("a positive of what nobody shares")
	}
	p := a.Peer(b.ID())
	if !p.Admitted() || !p.Member() || !p.Usable() || !p.UsableForInfo() || p.Paths() != 1 || p.Machine.String() != "127.0.0.2" {
		t.Errorf("admitted %v, member %v, %d paths, on %v", p.Admitted(), p.Member(), p.Paths(), p.Machine)
	}
	wait(t, "a round trip is measured", func() bool { return p.Meter().RTT() > 0 && p.Told() })
	if a.FoundBy(b.ID()) != "inbound" || b.FoundBy(a.ID()) != "static" || len(a.RemoteAddrs(b.ID())) == 0 || len(a.Reachable(b.ID())) == 0 {
		t.Errorf("found by %q and %q", a.FoundBy(b.ID()), b.FoundBy(a.ID()))
	}
	b.serve(t, func(w http.ResponseWriter, req *http.Request) {
		id, err := PeerOf(req.RemoteAddr)
		fmt.Fprint(w, id == a.ID(), err)
	})
	if text, err := a.ask(t.Context(), b); err != nil || text != "true <nil>" {
		t.Errorf("%q, %v", text, err)
	}
	b.local.Changed(key(3), true)
	if _, err := b.local.Flush(time.Now(), inventory.Keys{key(2): {}, key(3): {}}); err != nil {
		t.Fatal(err)
	}
	b.InventoryChanged()
	wait(t, "a change is told", func() bool { return a.has(b, key(3)) })
	b.stop()
	if got := <-lost; got != p || a.Peer(b.ID()) != nil {
		t.Errorf("lost %v", got.ID)
	}
}

// TestNames: machines that exchange names know each other's, and one that does not neither tells
// its own nor takes theirs.
func TestNames(t *testing.T) {
	named := func(name string, also func(*Config)) func(*Config) {
		return func(c *Config) {
			c.Name = name
			if also != nil {
				also(c)
			}
		}
	}
	a := start(t, 1, named("ada", nil), key(1))
	b := start(t, 2, named("grace", near(a)), key(2))
	c := start(t, 3, near(a), key(3))
	nameOf := func(of, at *testSite) string {
		if p := at.Peer(of.ID()); p != nil {
			return p.Name()
		}
		return "not connected"
	}
	wait(t, "both know the other's name", func() bool { return nameOf(a, b) == "ada" && nameOf(b, a) == "grace" })
	wait(t, "all know what the third shares", func() bool { return a.has(c, key(3)) && c.has(a, key(1)) })
	if nameOf(c, a) != "" || nameOf(a, c) != "" {
		t.Errorf("%q, %q", nameOf(c, a), nameOf(a, c))
	}
}

func TestRunTwice(t *testing.T) {
	a := start(t, 1, nil)
	if err := a.Run(t.Context()); err == nil {
		t.Error("a second Run succeeds")
	}
}

func TestBeforeRun(t *testing.T) {
	s, err := New(Config{Inventory: inventory.NewLocal(), Metrics: metrics.New()})
	if err != nil {
		t.Fatal(err)
	}
	if s.Addrs() != nil || len(s.Peers()) != 0 || s.Host() != nil || s.Peer(s.ID()) != nil {
		t.Error("somebody is known")
	}
	if _, err := s.Connect(t.Context(), s.ID(), ""); !errors.Is(err, errNotRunning) {
		t.Error(err)
	}
	for _, bad := range []Config{
		{Metrics: metrics.New()}, {Inventory: inventory.NewLocal()},
		{Listen: []string{"x"}}, {Bootstrap: []string{"x"}},
	} {
		if bad.Metrics == nil && bad.Inventory == nil {
			bad.Metrics, bad.Inventory = metrics.New(), inventory.NewLocal()
		}
		if _, err := New(bad); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}

// TestQuickReconnect: a connection that ends and comes back before its event is seen starts no
// second session, and none is left when the peer is gone.
func TestQuickReconnect(t *testing.T) {
	a, b := start(t, 1, nil), start(t, 1, nil)
	h := a.core.host.Load()
	info, err := peer.AddrInfoFromString(b.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	for range 300 {
		_ = h.Connect(t.Context(), *info)
		_ = h.Network().ClosePeer(b.ID())
	}
	a.Ban(b.ID(), nil, time.Hour) // neither comes back
	b.Ban(a.ID(), nil, time.Hour)
	wait(t, "all sessions have ended", func() bool {
		buf := make([]byte, 8<<20)
		return !bytes.Contains(buf[:runtime.Stack(buf, true)], []byte("site.(*sessions).keep("))
	})
}

// stranger is a node of the attacker's.
type stranger struct {
	host.Host
	t testing.TB
}

// newStranger returns a node with an identity of its own on 127.0.0.m.
func newStranger(t testing.TB, m int) *stranger {
	t.Helper()
	priv, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	g := newGate(&Config{Listen: []string{"/ip4/127.0.0.1/tcp/0"}})
	h, err := newHost(hostParts{
		identity: priv,
		door:     newDoor(g, 256, func(peer.ID) bool { return false }), addrs: &advertiser{loopback: true}, maxPeers: 256,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	if err := h.Network().Listen(ma.StringCast(fmt.Sprintf("/ip4/127.0.0.%d/tcp/0", m))); err != nil {
		t.Fatal(err)
	}
	return &stranger{h, t}
}

func (s *stranger) connect(n *testSite) error {
	info, err := peer.AddrInfoFromString(n.Addrs()[0])
	if err != nil {
		return err
	}
	return s.Connect(s.t.Context(), *info)
}

// join connects and opens a session, as an honest peer with no secret does.
func (s *stranger) join(n *testSite) (network.Stream, error) {
	if err := s.connect(n); err != nil {
		return nil, err
	}
	st, err := s.NewStream(s.t.Context(), n.ID(), siteProtocol)
	if err != nil {
		return nil, err
	}
	return st, introduce(st, nil, s.ID(), n.ID(), func() {})
}

func send(st network.Stream, k wire.Kind, body []byte) error {
	_, err := st.Write(wire.AppendFrame(nil, k, body))
	return err
}

// filter returns an inventory of n made-up paths.
func filter(t testing.TB, n int) []byte {
	t.Helper()
	local, keys := inventory.NewLocal(), inventory.Keys{}
	for i := range n {
		keys[inventory.Key(uint64(i)*0x9e3779b97f4a7c15)] = struct{}{}
	}
	if _, err := local.Flush(time.Now(), keys); err != nil {
		t.Fatal(err)
	}
	full, _, _ := local.Since(inventory.Mark{})
	return full
}

func swarmKeyFile(t testing.TB) func(*Config) {
	t.Helper()
	name := t.TempDir() + "/key"
	if err := writeFile(name, swarmkey.New()); err != nil {
		t.Fatal(err)
	}
	return func(c *Config) { c.SwarmKeyFile = name }
}

func both(changes ...func(*Config)) func(*Config) {
	return func(c *Config) {
		for _, f := range changes {
			f(c)
		}
	}
}

// TestClosedSite: who has no secret, or another one, is not admitted, and asks nothing.
func TestClosedSite(t *testing.T) {
	secret := swarmKeyFile(t)
	seen := func(board *source.Conditions) func(*Config) { return func(c *Config) { c.Conditions = board } }
	var here source.Conditions
	a := start(t, 1, both(secret, seen(&here)), key(1))
	b := start(t, 2, both(secret, near(a)))
	wait(t, "members know each other", func() bool { return b.has(a, key(1)) })
	for name, change := range map[string]func(*Config){"another secret": swarmKeyFile(t), "none": func(*Config) {}} {
		var there source.Conditions
		here.Clear("other-site")
		c := start(t, 3, both(change, both(near(a), seen(&there))))
		wait(t, name+" is reported on both sides", func() bool {
			return strings.Contains(fmt.Sprint(here.List()), "swarm key") && strings.Contains(fmt.Sprint(there.List()), "swarm key")
		})
		wait(t, name+" is banned", func() bool { // by the side that noticed first
			return a.core.gate.bans.Has(c.ID()) || c.core.gate.bans.Has(a.ID())
		})
		if c.has(a, key(1)) {
			t.Errorf("%s: the inventory was told", name)
		}
	}
	s := newStranger(t, 4)
	if err := s.connect(a); err != nil {
		t.Fatal(err)
	}
	st, err := s.NewStream(t.Context(), a.ID(), httpProtocol)
	if err == nil {
		_, _ = io.WriteString(st, "GET / HTTP/1.1\r\nHost: peer\r\n\r\n")
		_, err = st.Read(make([]byte, 1))
	}
	if err == nil {
		t.Error("a peer that is not admitted is answered")
	}
}

// TestSilentConnections: connections that say nothing, of one machine, keep nobody out, neither
// of other machines nor of the same one; on an open site and on a closed one.
func TestSilentConnections(t *testing.T) {
	secret := swarmKeyFile(t)
	for name, change := range map[string]func(*Config){"open": func(*Config) {}, "closed": secret} {
		a := start(t, 1, change, key(1))
		addr := a.core.host.Load().Network().ListenAddresses()[0]
		_, text, err := manetArgs(addr)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var flood sync.WaitGroup
		var opened atomic.Int64
		for range 1024 {
			flood.Go(func() {
				d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
				for ctx.Err() == nil {
					c, err := d.DialContext(ctx, "tcp", text)
					if err == nil {
						opened.Add(1)
						_, _ = io.Copy(io.Discard, readUntil(ctx, c))
						_ = c.Close()
					}
					pause(ctx, 200*time.Millisecond)
				}
			})
		}
		wait(t, "the flood has begun", func() bool { return opened.Load() > 1500 })
		for _, m := range []int{2, 3} {
			b := start(t, m, both(change, near(a)))
			wait(t, fmt.Sprintf("%s: a newcomer on machine %d is a member", name, m), func() bool { return b.has(a, key(1)) })
		}
		if n := a.core.door.handshakes.Len(); n > maxHandshakes {
			t.Errorf("%d handshakes", n)
		}
		cancel()
		flood.Wait()
	}
}

// TestManyIdentities: one machine with many identities takes the place of nobody: neither of
// members, nor of newcomers, even of the same machine. Peers from before stay.
func TestManyIdentities(t *testing.T) {
	old := start(t, 3, nil, key(3))
	a := start(t, 1, func(c *Config) {
		c.MaxPeers = 8
		c.Saved = &memory{old.Addrs()}
	})
	wait(t, "the peer from before is a member", func() bool { return a.has(old, key(3)) })
	empty := filter(t, 0)
	for range 40 {
		s := newStranger(t, 2)
		if st, err := s.join(a); err == nil {
			_ = send(st, wire.Filter, empty)
		}
	}
	if n := a.core.table.members(); n > 8+spareMembers {
		t.Errorf("%d members", n)
	}
	for _, m := range []int{2, 4} {
		b := start(t, m, near(a), key(10+m))
		wait(t, "the newcomer's inventory is taken", func() bool { return a.has(b, key(10+m)) })
	}
	if !a.has(old, key(3)) {
		t.Error("the peer from before had to give way")
	}
}

type memory struct{ list []string }

func (m *memory) Load() []string  { return m.list }
func (m *memory) Save(l []string) { m.list = l }

// TestSaved: members are saved, and found again by that alone.
func TestSaved(t *testing.T) {
	a := start(t, 1, nil, key(1))
	m := &memory{}
	b := start(t, 2, both(near(a), func(c *Config) { c.Saved = m }))
	wait(t, "b knows a", func() bool { return b.has(a, key(1)) })
	b.stop()
	if len(m.list) != 1 || m.list[0] != a.Addrs()[0] {
		t.Fatalf("saved %q", m.list)
	}
	c := start(t, 2, func(c *Config) { c.Saved = m })
	wait(t, "c knows a", func() bool { return c.has(a, key(1)) })
	if by := c.FoundBy(a.ID()); by != "saved" {
		t.Errorf("found by %q", by)
	}
}

// TestMesh: sites that know one find all.
func TestMesh(t *testing.T) {
	first := start(t, 1, nil)
	all := []*testSite{first}
	for i := range 6 {
		all = append(all, start(t, 2+i, near(first)))
	}
	// Told at the start of a session, and then only every few minutes: whoever comes later
	// tells those that it meets.
	wait(t, "everybody knows everybody", func() bool {
		return !slices.ContainsFunc(all, func(n *testSite) bool { return n.core.table.members() < len(all)-1 })
	})
}

// TestConnect: a node that a peer names is connected to when somebody needs it, by one dial.
func TestConnect(t *testing.T) {
	a, b := start(t, 1, nil), start(t, 2, nil)
	var all sync.WaitGroup
	got := make([]*Peer, 8)
	for i := range got {
		all.Go(func() {
			var err error
			if got[i], err = a.Connect(t.Context(), b.ID(), b.Addrs()[0]); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, p := range got {
		if p == nil || p != got[0] || p.ID != b.ID() {
			t.Fatalf("%v", got)
		}
	}
	gone := newStranger(t, 3)
	addr := fmt.Sprintf("%s/p2p/%s", gone.Addrs()[0], gone.ID())
	_ = gone.Close()
	if _, err := a.Connect(t.Context(), gone.ID(), addr); err == nil || !a.Unreachable(gone.ID()) {
		t.Errorf("a node that is gone: %v, unreachable %v", err, a.Unreachable(gone.ID()))
	}
	// Names are never looked up, whoever gives them.
	if _, err := a.Connect(t.Context(), randomID(t), "/dns4/attacker.example/tcp/1"); err == nil {
		t.Error("a name is dialled")
	}
	a.dials.rate.Every = time.Hour // no more is allowed meanwhile, however long a dial takes
	for range 2 * namedBurst {
		_, err := a.Connect(t.Context(), randomID(t), addr)
		if errors.Is(err, errManyDials) {
			return
		}
	}
	t.Error("dials that lead to nothing are not limited")
}

func randomID(t testing.TB) peer.ID {
	t.Helper()
	_, pub, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestNamedByPeers: what a peer names is dialled if it is an address, and never looked up.
func TestNamedByPeers(t *testing.T) {
	a, b := start(t, 1, nil), start(t, 2, nil)
	s := newStranger(t, 3)
	st, err := s.join(a)
	if err != nil {
		t.Fatal(err)
	}
	list := []string{
		"/dns4/attacker.example/tcp/1/p2p/" + randomID(t).String(), "/dnsaddr/attacker.example", "nonsense",
		"/ip4/8.8.8.8/tcp/1/p2p/" + randomID(t).String(), b.Addrs()[0],
	}
	if err := send(st, wire.Peers, wire.AppendPeers(nil, list)); err != nil {
		t.Fatal(err)
	}
	wait(t, "a meets b", func() bool { return a.Peer(b.ID()) != nil })
	if n := a.Peer(s.ID()).Neighbours(); len(n) != 1 || n[0].ID != b.ID() || n[0].Key != b.ID().String() {
		t.Errorf("neighbours %+v", n)
	}
	if ids := a.Learn(a.Peer(s.ID()), list); len(ids) != 1 || ids[0] != b.ID() {
		t.Errorf("learnt %v", ids)
	}
}

// TestViolations: peers that break the protocol are banned.
func TestViolations(t *testing.T) {
	a := start(t, 1, nil)
	for name, body := range map[string][]byte{
		"no filter":                   wire.AppendFrame(nil, wire.Filter, []byte{99}),
		"changes before a filter":     wire.AppendFrame(nil, wire.Changes, []byte{1, 0, 0, 0, 0, 0, 0, 0, 0}),
		"a list that is none":         wire.AppendFrame(nil, wire.Peers, []byte("x")),
		"a frame that is too long":    {byte(wire.Ping), 0xff, 0xff, 0xff, 0xff},
		"frames without end or pause": bytes.Repeat(wire.AppendFrame(nil, 200, nil), 2*frameBurst),
	} {
		s := newStranger(t, 2)
		st, err := s.join(a)
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.Copy(io.Discard, st) }()
		_, _ = st.Write(body)
		wait(t, name, func() bool { return a.core.gate.bans.Has(s.ID()) && a.Peer(s.ID()) == nil })
		if _, err := s.join(a); err == nil {
			t.Errorf("%s: it comes back", name)
		}
	}
	if n := a.core.book.Len(); n != 0 {
		t.Errorf("%d banned peers are in the book", n)
	}
}

// TestSilentRequests: requests that never come, of one machine, keep no other one's waiting.
func TestSilentRequests(t *testing.T) {
	a := start(t, 1, nil)
	a.serve(t, func(w http.ResponseWriter, req *http.Request) {
		if req.ContentLength > 0 {
			_, _ = io.Copy(io.Discard, req.Body)
		}
		fmt.Fprint(w, "hello")
	})
	ctx, cancel := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	var opened atomic.Int64
	for range 6 {
		s := newStranger(t, 2)
		if err := s.connect(a); err != nil {
			t.Fatal(err)
		}
		for range perPeerRequests {
			flood.Go(func() {
				for ctx.Err() == nil {
					if st, err := s.NewStream(ctx, a.ID(), httpProtocol); err == nil {
						opened.Add(1)
						_, _ = io.WriteString(st, "GET / HTTP/1.1\r\nHost: peer\r\nContent-Length: 200000\r\n\r\nx")
						stop := context.AfterFunc(ctx, func() { _ = st.Reset() })
						_, _ = st.Read(make([]byte, 1))
						stop()
						_ = st.Reset()
					}
					pause(ctx, 200*time.Millisecond)
				}
			})
		}
	}
	wait(t, "the flood has begun", func() bool { return opened.Load() > 6*perPeerRequests-100 })
	a.listener.open.mu.Lock()
	if n := a.listener.open.total; n > maxRequestsBy {
		t.Errorf("%d requests of one machine", n)
	}
	a.listener.open.mu.Unlock()
	for _, m := range []int{2, 3} {
		b := start(t, m, near(a))
		wait(t, "an honest peer is answered", func() bool {
			text, err := b.ask(t.Context(), a)
			return err == nil && text == "hello"
		})
	}
	cancel()
	flood.Wait()
}

// TestGate: networks that are not allowed are neither accepted nor dialled.
func TestGate(t *testing.T) {
	g := newGate(&Config{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}})
	for addr, want := range map[string]bool{
		"10.1.2.3": true, "::ffff:10.1.2.3": true, "fd00::1%eth0": true, "11.0.0.1": false, "127.0.0.1": false, "::1": false,
	} {
		if g.allowed(netip.MustParseAddr(addr)) != want {
			t.Errorf("%s is allowed: %v", addr, !want)
		}
	}
	if !newGate(&Config{Listen: []string{"/ip6/::1/tcp/1"}}).allowed(netip.MustParseAddr("127.0.0.1")) {
		t.Error("loopback is not allowed where it is listened on")
	}
}
