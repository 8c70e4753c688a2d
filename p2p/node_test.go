package p2p

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/quota"
	"github.com/nixp2p/nixp2p/p2p/swarmkey"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

// TestChanges: what comes and goes is known to neighbours within three seconds.
func TestChanges(t *testing.T) {
	t.Parallel()
	first, second := nixtest.NewPath("first", 10), nixtest.NewPath("second", 10)
	h := newHolder(t, first)
	a := start(t, h, nil)
	b := join(t, nil, nil, a)
	wait(t, "the inventory", func() bool { return b.Positive(first.Hash()) })

	within := func(what string, cond func() bool) {
		t.Helper()
		began := time.Now()
		wait(t, what, cond)
		if d := time.Since(began); d > 3*time.Second {
			t.Errorf("%s took %v", what, d)
		}
	}
	a.Changed([]Held{h.put(t, second)}, nil)
	within("a path that came", func() bool { return b.Positive(second.Hash()) })
	if _, err := b.Info(t.Context(), second.Hash()); err != nil {
		t.Error(err)
	}
	gone, still := h.drop(first), h.put(t, second)
	a.Changed(nil, []Held{gone, still})
	within("a path that went", func() bool { return !b.Positive(first.Hash()) })
	if !b.Positive(second.Hash()) {
		t.Error("a path that is still there in another place is gone")
	}
}

// TestServerAsksOnlyHolder: a question of a peer goes nowhere else.
func TestServerAsksOnlyHolder(t *testing.T) {
	path := nixtest.NewPath("wanted", 100)
	h := newHolder(t, path)
	a := start(t, h, nil)
	b := join(t, newHolder(t), nil, a)
	wait(t, "the inventory", func() bool { return b.Positive(path.Hash()) })
	c := join(t, nil, nil, b)
	wait(t, "c knows b", func() bool { return c.table.get(b.self) != nil && c.table.get(b.self).member.Load() })
	h.mu.Lock()
	h.asked = 0
	h.mu.Unlock()
	r := c.table.get(b.self)
	for _, ask := range []wire.Request{{IsInfo: true, Question: path.Hash().Question()}, {Nar: path.NarHash()}} {
		resp, err := c.request(t.Context(), http.MethodGet, r, ask, nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: status %d", ask.Path(), resp.StatusCode)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.asked != 0 {
		t.Errorf("another peer was asked %d times", h.asked)
	}
}

// TestPrivateNAR: for what no share key signed nobody is asked.
func TestPrivateNAR(t *testing.T) {
	private := nixtest.NewKey("private-1")
	path := nixtest.NewPath("wanted", 2<<20)
	h := newHolder(t, path)
	a := start(t, h, nil)
	b := join(t, nil, nil, a)
	wait(t, "the inventory", func() bool { return b.Positive(path.Hash()) })
	if _, err := b.NAR(t.Context(), path.Info(t, private), nix.Raw, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.asked != 0 {
		t.Errorf("asked %d times", h.asked)
	}
}

func TestExchange(t *testing.T) {
	a := start(t, nil, nil)
	b := join(t, nil, nil, a)
	wait(t, "a and b", func() bool { return a.table.members() == 1 && b.table.members() == 1 })
	c := join(t, nil, nil, b)
	wait(t, "c hears of a from b", func() bool { return c.table.members() == 2 && a.table.members() == 2 })
}

// TestRestart: the identity stays, and those of last time are found without being told.
func TestRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	keep := func(c *Config) { c.StateDir = dir }
	a := start(t, nil, nil)
	b := join(t, nil, keep, a)
	// Only who told what it has, and where it is, is worth keeping.
	wait(t, "a and b", func() bool {
		r := b.table.get(a.self)
		return r != nil && r.view.Told() && len(b.reachable(*b.host.Load(), a.self)) > 0
	})
	id := b.ID()
	b.stop()
	for _, name := range []string{"identity.key", "peers.json"} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", fi, err)
		}
	}
	b = start(t, nil, keep)
	if b.ID() != id {
		t.Error("another identity")
	}
	wait(t, "a and b again", func() bool { return b.table.members() == 1 })
	if by := b.Peers()[0].FoundBy; by != "saved" && by != "inbound" {
		t.Errorf("found by %s", by)
	}
}

// TestUnknownID: an address without a peer ID is enough; our own does no harm.
func TestUnknownID(t *testing.T) {
	a := start(t, nil, nil)
	bare, _, _ := strings.Cut(a.Addrs()[0], "/p2p/")
	own := freePort(t)
	b := start(t, nil, func(c *Config) {
		c.Listen = []string{own}
		c.Bootstrap = []string{own, bare, "/ip4/127.0.0.1/tcp/1"}
	})
	wait(t, "a and b", func() bool { return b.table.members() == 1 && b.book.Len() > 1 })
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", l.Addr().(*net.TCPAddr).Port)
}

func keyFile(t *testing.T, keys ...string) func(*Config) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "swarm.key")
	if err := os.WriteFile(name, []byte(strings.Join(keys, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	return func(c *Config) { c.SwarmKeyFile = name }
}

// TestClosedSite: who holds the secret is in, who does not learns nothing.
func TestClosedSite(t *testing.T) {
	path := nixtest.NewPath("wanted", 100)
	old, fresh := swarmkey.New(), swarmkey.New()
	h := newHolder(t, path)
	a := start(t, h, keyFile(t, old))
	b := join(t, nil, keyFile(t, fresh, old), a) // in the middle of a change
	wait(t, "the inventory", func() bool { return b.Positive(path.Hash()) })
	if _, err := b.Info(t.Context(), path.Hash()); err != nil {
		t.Error(err)
	}
	h.mu.Lock()
	h.asked = 0
	h.mu.Unlock()
	for name, change := range map[string]func(*Config){"no key": nil, "another key": keyFile(t, swarmkey.New())} {
		c := join(t, newHolder(t, path), change, a)
		wait(t, name+" is refused", func() bool { return a.gate.isShut(c.self) || c.gate.isShut(a.self) })
		wait(t, name+" is disconnected", func() bool { return len(c.table.all()) == 0 })
		if c.Positive(path.Hash()) {
			t.Errorf("%s: knows the inventory", name)
		}
		c.stop()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.asked != 0 {
		t.Errorf("strangers got %d answers", h.asked)
	}
}

// TestClosedSiteStreams: a stranger who skips the proof is answered on no stream.
func TestClosedSiteStreams(t *testing.T) {
	path := nixtest.NewPath("wanted", 100)
	a := start(t, newHolder(t, path), keyFile(t, swarmkey.New()))
	s := start(t, nil, nil)
	h := *s.host.Load()
	h.RemoveStreamHandler(siteProtocol)
	info, err := peer.AddrInfoFromString(a.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Connect(t.Context(), *info); err != nil {
		t.Fatal(err)
	}
	request := "GET " + wire.Request{IsInfo: true, Question: path.Hash().Question()}.Path() + " HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, p := range []protocol.ID{httpProtocol, "/nixp2p/kad/1.0.0"} {
		st, err := h.NewStream(t.Context(), a.self, p)
		if err != nil {
			continue
		}
		_, _ = st.Write([]byte(request))
		_ = st.SetReadDeadline(time.Now().Add(5 * time.Second))
		if b, err := io.ReadAll(st); len(b) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %q, %v", p, b, err)
		}
	}
}

// fill makes a node believe that it has peers with inventories.
func fill(t testing.TB, n *Node, peers, paths int) {
	t.Helper()
	for i := range peers {
		own := inventory.NewOwn()
		keys := make(map[inventory.Key]struct{}, paths)
		for k := range paths {
			keys[inventory.Key(uint64(i*paths+k)*0x9e3779b97f4a7c15)] = struct{}{}
		}
		own.Replace(keys)
		if _, err := own.Flush(time.Now()); err != nil {
			t.Fatal(err)
		}
		full, _, _ := own.Since(inventory.Mark{})
		r, _ := n.table.add(peer.ID(fmt.Sprint(i)))
		if err := r.view.Full(full); err != nil {
			t.Fatal(err)
		}
	}
}

// relay passes TCP on, until it is frozen: then nothing comes and nothing ends, as with a
// laptop that was closed.
type relay struct {
	net.Listener
	to string

	mu     sync.Mutex
	frozen bool
	conns  []net.Conn
	thaw   *sync.Cond
	all    sync.WaitGroup
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{Listener: l, to: to}
	r.thaw = sync.NewCond(&r.mu)
	r.all.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			r.mu.Lock()
			r.conns = append(r.conns, in, out)
			r.mu.Unlock()
			r.all.Go(func() { r.pass(in, out) })
			r.all.Go(func() { r.pass(out, in) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		r.freeze(false)
		r.mu.Lock()
		for _, c := range r.conns {
			_ = c.Close()
		}
		r.mu.Unlock()
		r.all.Wait()
	})
	return r
}

func (r *relay) pass(from, to net.Conn) {
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		r.mu.Lock()
		for r.frozen {
			r.thaw.Wait()
		}
		r.mu.Unlock()
		if err != nil {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (r *relay) freeze(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frozen = on
	r.thaw.Broadcast()
}

// TestVanished: a peer that is gone without a word is forgotten within seconds, nobody waits
// for it meanwhile, and it is back soon after it is there again.
func TestVanished(t *testing.T) {
	t.Parallel()
	path := nixtest.NewPath("wanted", 100)
	a := start(t, newHolder(t, path), nil)
	m, err := ma.NewMultiaddr(a.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	port, _ := m.ValueForProtocol(ma.P_TCP)
	r := newRelay(t, "127.0.0.1:"+port)
	b := start(t, nil, func(c *Config) {
		c.Bootstrap = []string{fmt.Sprintf("/ip4/127.0.0.1/tcp/%d/p2p/%s", r.Addr().(*net.TCPAddr).Port, a.ID())}
	})
	wait(t, "the inventory", func() bool { return b.Positive(path.Hash()) })
	wait(t, "a round trip", func() bool { return b.Peers()[0].RTT > 0 })
	first := b.table.get(a.self)
	r.freeze(true)
	began := time.Now()
	if _, err := b.Info(t.Context(), path.Hash()); err == nil || time.Since(began) > infoTime+500*time.Millisecond {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	again := time.Now()
	if _, err := b.Info(t.Context(), path.Hash()); err == nil || time.Since(again) > 200*time.Millisecond {
		t.Errorf("waited for it again: %v, %v", err, time.Since(again))
	}
	// They may have a second connection, past the relay: then the dead one is given up.
	wait(t, "the vanished one is forgotten", func() bool {
		_, err := b.Info(t.Context(), path.Hash())
		return err == nil || b.table.get(a.self) != first
	})
	if d := time.Since(began); d > 6*time.Second {
		t.Errorf("that took %v", d)
	}
	r.freeze(false)
	wait(t, "it is back", func() bool { return b.Positive(path.Hash()) })
}

// TestBusy: a fifth copy of a NAR waits until one of the four is done.
func TestBusy(t *testing.T) {
	t.Parallel()
	path := nixtest.NewPath("wanted", 2<<20)
	h := newHolder(t, path)
	release := make(chan struct{})
	h.body = func(b []byte, off int64) io.ReadCloser {
		return io.NopCloser(io.MultiReader(bytes.NewReader(b[off:len(b)-1]), &blocking{r: bytes.NewReader(nil), done: release}, bytes.NewReader(b[len(b)-1:])))
	}
	a := start(t, h, nil)
	b := join(t, nil, nil, a)
	wait(t, "the inventory", func() bool { return b.Positive(path.Hash()) })
	info := path.Info(t, shareKey)
	var all sync.WaitGroup
	for range quota.MaxPerNAR + 1 {
		all.Go(func() {
			if got, err := fetched(t, b, info, nix.Raw, 0); err != nil || !bytes.Equal(got, path.NAR) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	wait(t, "four uploads", func() bool { return a.uploads.Active() == quota.MaxPerNAR })
	if again := pause(t.Context(), 300*time.Millisecond); !again || a.uploads.Active() != quota.MaxPerNAR {
		t.Errorf("%d uploads", a.uploads.Active())
	}
	list := a.Uploads()
	for _, u := range list {
		if u.Peer != b.self.String() || u.Nar != path.NarHash() || u.Size != int64(len(path.NAR)) || u.Bytes <= 0 || u.Bytes >= u.Size {
			t.Errorf("upload %+v", u)
		}
	}
	if peers := a.Peers(); len(list) != quota.MaxPerNAR || len(peers) != 1 || peers[0].SentBytes <= 0 {
		t.Errorf("%d uploads are listed; peers %+v", len(list), peers)
	}
	if got := b.Giver(path.NarHash(), nix.Raw); got != a.self.String() {
		t.Errorf("%q gives it", got)
	}
	close(release)
	all.Wait()
	wait(t, "the last upload ends", func() bool { return len(a.Uploads()) == 0 })
}

// TestNamedByBusy: who is refused is told of others, and goes there.
func TestNamedByBusy(t *testing.T) {
	path := nixtest.NewPath("wanted", 2<<20)
	a := start(t, newHolder(t, path), nil)
	b := join(t, newHolder(t), nil, a)
	wait(t, "b is there", func() bool { return a.table.members() == 1 && b.Positive(path.Hash()) })
	info := path.Info(t, shareKey)
	if _, err := fetched(t, b, info, nix.Raw, 0); err != nil {
		t.Fatal(err)
	}
	// b has it now, though no inventory says so yet.
	b.cfg.Holder.(*holder).put(t, path)
	for i := range quota.MaxPerNAR {
		if a.uploads.Begin(fmt.Sprint(i), path.NarHash(), 2<<20) == nil {
			t.Fatal("no slot")
		}
	}
	c := join(t, nil, nil, a)
	wait(t, "c knows both", func() bool { return c.table.members() == 2 && c.Positive(path.Hash()) })
	got, err := fetched(t, c, info, nix.Raw, 0)
	if err != nil || !bytes.Equal(got, path.NAR) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if n := b.table.get(c.self).sent.Load(); n < 2<<20 {
		t.Errorf("b sent %d bytes", n)
	}
}

func TestSlowLink(t *testing.T) {
	contents := bytes.Repeat([]byte("a text that compresses well\n"), 200_000)
	path := nixtest.NewPath("text", 0)
	path.Contents, path.NAR = contents, nixtest.FileNAR(contents)
	a := start(t, newHolder(t, path), nil)
	b := join(t, nil, nil, a)
	wait(t, "the inventory", func() bool { return b.Positive(path.Hash()) })
	info := path.Info(t, shareKey)
	r := b.table.get(a.self)
	for range 10 { // 20 MB/s
		r.meter.Waiting()
		<-time.After(25 * time.Millisecond)
		r.meter.Got(512 << 10)
	}
	before := r.received.Load()
	for _, off := range []int64{0, 1 << 20} {
		got, err := fetched(t, b, info, nix.Raw, off)
		if err != nil || !bytes.Equal(got, path.NAR[off:]) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}
	if n := r.received.Load() - before; n > int64(len(path.NAR)/4) {
		t.Errorf("%d bytes on the wire for %d", n, len(path.NAR))
	}
}

func TestUploadLimit(t *testing.T) {
	t.Parallel()
	path := nixtest.NewPath("wanted", 4<<20)
	a := start(t, newHolder(t, path), func(c *Config) { c.UploadLimit = 4 << 20 })
	b := join(t, nil, nil, a)
	wait(t, "the inventory", func() bool { return b.Positive(path.Hash()) })
	began := time.Now()
	if _, err := fetched(t, b, path.Info(t, shareKey), nix.Raw, 0); err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d < 800*time.Millisecond || d > 2*time.Second {
		t.Errorf("4 MiB at 4 MiB/s took %v", d)
	}
}

// TestDHT: a NAR of which no inventory tells is found and fetched.
func TestDHT(t *testing.T) {
	t.Parallel()
	t.Run("open site", func(t *testing.T) { t.Parallel(); testDHT(t, nil) })
	t.Run("closed site", func(t *testing.T) { t.Parallel(); testDHT(t, keyFile(t, swarmkey.New())) })
}

func testDHT(t *testing.T, change func(*Config)) {
	path := nixtest.NewPath("wanted", 2<<20)
	middle := start(t, nil, change)
	a := join(t, newHolder(t, path), change, middle)
	c := join(t, nil, change, middle)
	wait(t, "the inventory", func() bool { return c.Positive(path.Hash()) })
	wait(t, "all exchange inventories, so that the DHT is of no use", func() bool {
		return !a.untold() && !a.unheard() && !c.unheard()
	})
	c.table.get(a.self).mutedTill.Store(time.Now().Add(time.Hour).UnixNano())
	a.table.get(c.self).told.Store(false)
	info := path.Info(t, shareKey)
	began := time.Now()
	if _, err := c.NAR(t.Context(), info, nix.Raw, 0); err != nil && time.Since(began) > 200*time.Millisecond {
		t.Errorf("waited %v for the DHT", time.Since(began))
	}
	c.lookups.mu.Lock()
	clear(c.lookups.byNAR)
	c.lookups.mu.Unlock()
	wait(t, "the DHT tells", func() bool {
		c.lookups.mu.Lock()
		clear(c.lookups.byNAR)
		c.lookups.mu.Unlock()
		got, err := fetched(t, c, info, nix.Raw, 0)
		return err == nil && bytes.Equal(got, path.NAR)
	})
	c.lookups.mu.Lock()
	clear(c.lookups.byNAR)
	c.lookups.mu.Unlock()
	if !c.Find(t.Context(), info) || c.Find(t.Context(), nixtest.NewPath("small", 100).Info(t, shareKey)) {
		t.Error("not found, or looked for what nobody announces")
	}
	if got := c.Providers(t.Context(), path.NarHash()); !slices.Equal(got, []string{a.ID()}) {
		t.Errorf("providers %q", got)
	}
	if got := middle.Holders(path.Hash()); !slices.Equal(got, []string{a.ID()}) {
		t.Errorf("holders %q", got)
	}
}

// TestSlowLoris: who sends a request byte by byte, or opens streams and is silent, is cut.
func TestSlowLoris(t *testing.T) {
	t.Parallel()
	a := start(t, newHolder(t), nil)
	b := join(t, nil, nil, a)
	wait(t, "both", func() bool { return b.table.members() == 1 })
	h := *b.host.Load()
	var streams []network.Stream
	for range 500 {
		s, err := h.NewStream(t.Context(), a.self, httpProtocol)
		if err == nil {
			_, err = s.Write([]byte("GET /q/"))
		}
		if err == nil {
			streams = append(streams, s)
		}
	}
	if len(streams) == 0 {
		t.Fatal("no stream")
	}
	began := time.Now()
	cut := 0
	for _, s := range streams {
		_ = s.SetReadDeadline(time.Now().Add(headerTime + 5*time.Second))
		if _, err := io.ReadAll(s); !errors.Is(err, os.ErrDeadlineExceeded) {
			cut++
		}
	}
	if cut != len(streams) || time.Since(began) > headerTime+5*time.Second {
		t.Errorf("%d of %d streams were cut after %v", cut, len(streams), time.Since(began))
	}
	if a.table.members() != 1 {
		t.Error("the peer is lost")
	}
}

// TestEndlessChanges: a peer that sends a million changes is shown the door, and what it
// made us keep is given back.
func TestEndlessChanges(t *testing.T) {
	a := start(t, nil, nil)
	b := join(t, nil, nil, a)
	wait(t, "both", func() bool { return b.table.members() == 1 && a.table.members() == 1 })
	h := *b.host.Load()
	s, err := h.NewStream(t.Context(), a.self, siteProtocol)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.introduce(s, b.table.get(a.self)); err != nil {
		t.Fatal(err)
	}
	const keys = 10_000
	delta := make([]byte, 9+8*keys)
	delta[0] = 1
	binary.BigEndian.PutUint32(delta[1:], keys)
	for i := range 100 {
		for k := range keys {
			binary.BigEndian.PutUint64(delta[9+8*k:], uint64(i*keys+k)*0x9e3779b97f4a7c15)
		}
		if _, err = s.Write(wire.AppendFrame(nil, wire.Changes, delta)); err != nil {
			break
		}
	}
	wait(t, "the peer is shown the door", func() bool { return a.table.get(b.self) == nil && a.gate.isShut(b.self) })
}

// TestManyOfOneNetwork: 300 machines of one IPv6 network, at once.
func TestManyOfOneNetwork(t *testing.T) {
	for _, format := range []string{"/ip6/fd00::%x/tcp/4000", "/ip6/fe80::%x/tcp/4000", "/ip4/10.0.0.1/tcp/%d"} {
		g := newGate([]netip.Prefix{netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("10.0.0.0/8")}, false, false)
		m, err := resources(256, g.allow)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 300 {
			a, err := ma.NewMultiaddr(fmt.Sprintf(format, 4096+i))
			if err != nil {
				t.Fatal(err)
			}
			c, err := m.OpenConnection(network.DirInbound, true, a)
			if err != nil {
				t.Errorf("connection %d of %s: %v", i, format, err)
				break
			}
			defer c.Done()
		}
		_ = m.Close()
	}
}

func TestGate(t *testing.T) {
	var allow []netip.Prefix
	for _, c := range defaultCIDRs {
		allow = append(allow, netip.MustParsePrefix(c))
	}
	g, local := newGate(allow, false, false), newGate(allow, false, true)
	for a, want := range map[string]bool{
		"/ip4/192.168.1.5/tcp/1": true, "/ip4/10.1.2.3/tcp/1": true, "/ip4/8.8.8.8/tcp/1": false, "/ip6/2001:db8::1/tcp/1": false,
		"/ip6/fd00::1/tcp/1": true, "/ip6zone/eth0/ip6/fe80::1/tcp/1": true, "/ip4/127.0.0.1/tcp/1": false, "/dns/example.org/tcp/1": false,
		"/ip6/::ffff:8.8.8.8/tcp/1": false,
	} {
		m, err := ma.NewMultiaddr(a)
		if err != nil {
			t.Fatal(err)
		}
		if got := g.InterceptAddrDial("", m); got != want {
			t.Errorf("%s: %v", a, got)
		}
		if got := local.InterceptAddrDial("", m); got != (want || strings.Contains(a, "127.")) {
			t.Errorf("with loopback, %s: %v", a, got)
		}
	}
	if !listensOnLoopback([]string{"/ip4/0.0.0.0/tcp/1", "/ip6/::1/tcp/1"}) || listensOnLoopback(defaultListen) {
		t.Error("loopback listening is not recognised")
	}
}

// TestBeforeRun: a node that does not run yet, or not any more, knows nobody.
func TestBeforeRun(t *testing.T) {
	n := start(t, nil, nil)
	n.stop()
	path := nixtest.NewPath("wanted", 2<<20)
	if n.Positive(path.Hash()) || len(n.Peers()) != 0 || n.Addrs() != nil {
		t.Error("somebody is known")
	}
	if _, err := n.Info(t.Context(), path.Hash()); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := n.NAR(t.Context(), path.Info(t, shareKey), nix.Raw, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	n.Changed([]Held{{}}, nil)
}

// TestContextEnds: a fetch ends with its context.
func TestContextEnds(t *testing.T) {
	path := nixtest.NewPath("wanted", 2<<20)
	h := newHolder(t, path)
	h.body = func(b []byte, off int64) io.ReadCloser {
		return &blocking{r: bytes.NewReader(b[off:1000]), done: t.Context().Done()}
	}
	a := start(t, h, nil)
	b := join(t, nil, nil, a)
	wait(t, "the inventory", func() bool { return b.Positive(path.Hash()) })
	ctx, cancel := context.WithCancel(t.Context())
	claim, err := b.NAR(ctx, path.Info(t, shareKey), nix.Raw, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer claim.Body.Close()
	if _, err := io.ReadFull(claim.Body, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, cancel)
	began := time.Now()
	if _, err := claim.Body.Read(make([]byte, 1)); err == nil || time.Since(began) > time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

// crowded shares many paths of which nobody asks anything.
type crowded struct {
	*holder
	n int
}

func (c crowded) Held(context.Context) iter.Seq[Held] {
	return func(yield func(Held) bool) {
		for i := range c.n {
			var h nix.StoreHash
			binary.BigEndian.PutUint32(h[:], uint32(i))
			if !yield(Held{h.Question(), nix.NarHash{}, 1000}) {
				return
			}
		}
	}
}

// TestLargeStore: a store of 100,000 paths is known to the neighbour within seconds.
func TestLargeStore(t *testing.T) {
	const paths = 100_000
	began := time.Now()
	a := start(t, crowded{newHolder(t), paths}, nil)
	b := join(t, nil, nil, a)
	wait(t, "the inventory", func() bool { return len(b.Peers()) == 1 && b.Peers()[0].Paths == paths })
	t.Logf("%d paths are known after %v", paths, time.Since(began))
	var h nix.StoreHash
	binary.BigEndian.PutUint32(h[:], paths-1)
	if !b.Positive(h) {
		t.Error("the last one is missing")
	}
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("took %v", d)
	}
}

// TestComeAndGo: what a peer took is given back when it leaves.
func TestComeAndGo(t *testing.T) {
	a := start(t, newHolder(t), nil)
	settled := func() int {
		n := math.MaxInt
		for range 100 {
			if now := runtime.NumGoroutine(); now >= n {
				return n
			} else {
				n = now
			}
			<-time.After(50 * time.Millisecond)
		}
		return n
	}
	come := func() {
		b := join(t, newHolder(t), nil, a)
		wait(t, "the peer", func() bool { return a.table.members() == 1 && b.table.members() == 1 })
		b.stop()
		wait(t, "the peer is gone", func() bool { return len(a.table.all()) == 0 })
	}
	come()
	before := settled()
	for range 10 {
		come()
	}
	if after := settled(); after > before+20 {
		t.Errorf("%d goroutines before, %d after ten peers", before, after)
	}
}

// TestMesh: nodes that know only the first find all others, and leave each other in peace
// then.
func TestMesh(t *testing.T) {
	const n = 12
	var nodes []*testNode
	for range n {
		nodes = append(nodes, join(t, nil, nil, nodes[:min(len(nodes), 1)]...))
	}
	began := time.Now()
	wait(t, "everybody knows everybody", func() bool {
		return !slices.ContainsFunc(nodes, func(x *testNode) bool { return x.table.members() < n-1 })
	})
	t.Logf("%d nodes know each other after %v", n, time.Since(began))
	for _, x := range nodes {
		if due := x.book.Due(time.Now(), n); len(due) > 0 {
			t.Errorf("%s still dials %+v", x.ID(), due)
		}
		if c := len((*x.host.Load()).Network().Conns()); c > 2*(n-1) {
			t.Errorf("%s has %d connections to %d others", x.ID(), c, n-1)
		}
	}
}

// TestStrangersLast: a large NAR is fetched from a peer that has given right bytes before, if one
// has it.
func TestStrangersLast(t *testing.T) {
	t.Parallel()
	large, small := nixtest.NewPath("large", 2<<20), nixtest.NewPath("small", 1000)
	a := start(t, newHolder(t, large, small), nil)
	b := join(t, newHolder(t, large, small), nil, a)
	c := join(t, nil, nil, a, b)
	wait(t, "the inventories", func() bool { return len(c.Holders(large.Hash())) == 2 })
	for _, known := range []*testNode{a, b} {
		c.vouched.Clear()
		c.vouched.Store(known.ID(), true)
		for range 20 {
			f := c.newFetch(large.Info(t, shareKey), nix.Raw, 0)
			if r := f.candidate(t.Context(), map[peer.ID]bool{}); r.id != known.self {
				t.Fatalf("peer %s is asked for what is large", r.id)
			}
		}
	}
	f := c.newFetch(large.Info(t, shareKey), nix.Raw, 0)
	if r := f.candidate(t.Context(), map[peer.ID]bool{b.self: true}); r.id != a.self {
		t.Error("a stranger that alone has it is not asked")
	}
}
