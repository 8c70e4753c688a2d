package dht

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"
	"unique"

	ds "github.com/ipfs/go-datastore"
	dsq "github.com/ipfs/go-datastore/query"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p-kad-dht/records"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	mh "github.com/multiformats/go-multihash"
	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/machine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func node(t *testing.T, known ...host.Host) (host.Host, *DHT) {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.NoTransports, libp2p.Transport(tcp.NewTCPTransport), libp2p.DisableRelay(), libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	d, err := Open(Config{Host: h})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.Close()
		_ = h.Close()
	})
	for _, k := range known {
		if err := h.Connect(t.Context(), peer.AddrInfo{ID: k.ID(), Addrs: k.Addrs()}); err != nil {
			t.Fatal(err)
		}
	}
	return h, d
}

func finds(t *testing.T, d *DHT, nar nix.NarHash, who host.Host) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	return slices.ContainsFunc(d.Find(ctx, nar), func(p peer.AddrInfo) bool { return p.ID == who.ID() && len(p.Addrs) > 0 })
}

func TestAnnounce(t *testing.T) {
	before, late, gone := nix.NarHash{1}, nix.NarHash{2}, nix.NarHash{3}
	ha, a := node(t)
	a.Provide([]nix.NarHash{before})
	hb, b := node(t, ha)
	_, c := node(t, hb)
	for name, d := range map[string]*DHT{"b": b, "c": c} {
		for range 100 {
			if finds(t, d, before, ha) {
				break
			}
			<-time.After(50 * time.Millisecond)
		}
		if !finds(t, d, before, ha) {
			t.Fatalf("%s does not find what was announced before anybody was there (%d nodes)", name, d.Nodes())
		}
	}
	a.Provide([]nix.NarHash{late, gone})
	a.Withdraw([]nix.NarHash{gone})
	for range 100 {
		if finds(t, c, late, ha) {
			break
		}
		<-time.After(50 * time.Millisecond)
	}
	if !finds(t, c, late, ha) {
		t.Error("what was announced later is not found")
	}
	if finds(t, c, nix.NarHash{9}, ha) {
		t.Error("what nobody has is found")
	}
	b.Remove(ha.ID())
}

func TestStore(t *testing.T) {
	s, ctx := newStore(nil), t.Context()
	key := func(mh, peer string) ds.Key { return ds.RawKey("/providers/" + mh + "/" + peer) }
	for _, k := range []ds.Key{key("A", "p"), key("A", "q"), key("B", "p")} {
		if err := s.Put(ctx, k, []byte("1")); err != nil {
			t.Fatal(err)
		}
	}
	_ = s.Put(ctx, key("A", "p"), []byte("2"))
	keys := func(prefix string) string {
		res, err := s.Query(ctx, dsq.Query{Prefix: prefix})
		if err != nil {
			t.Fatal(err)
		}
		all, err := res.Rest()
		if err != nil {
			t.Fatal(err)
		}
		var list []string
		for _, e := range all {
			list = append(list, e.Key+"="+string(e.Value))
		}
		slices.Sort(list)
		return fmt.Sprint(list)
	}
	for _, c := range []struct{ prefix, want string }{
		{"/providers/A", "[/providers/A/p=2 /providers/A/q=1]"},
		{"/providers/A/", "[/providers/A/p=2 /providers/A/q=1]"},
		{"/providers/C", "[]"},
		{"/providers/", "[/providers/A/p=2 /providers/A/q=1 /providers/B/p=1]"},
		{"", "[/providers/A/p=2 /providers/A/q=1 /providers/B/p=1]"},
	} {
		if got := keys(c.prefix); got != c.want {
			t.Errorf("%q: %s", c.prefix, got)
		}
	}
	_ = s.Delete(ctx, key("A", "p"))
	_ = s.Delete(ctx, key("B", "p"))
	_ = s.Delete(ctx, key("B", "p"))
	if got := keys("/providers"); got != "[/providers/A/q=1]" || s.n != 1 {
		t.Errorf("%s, %d records", got, s.n)
	}
	if v, err := s.Get(ctx, key("A", "q")); err != nil || string(v) != "1" {
		t.Errorf("%q, %v", v, err)
	}
	if ok, err := s.Has(ctx, key("A", "p")); ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
}

// TestStoreShares: identities cost nothing, so a flood by one machine does not keep records of
// others out, nor those of another peer on the same machine.
func TestStoreShares(t *testing.T) {
	on := map[peer.ID]machine.ID{
		"a": machine.Of(netip.MustParseAddr("10.0.0.1")), "b": machine.Of(netip.MustParseAddr("10.0.0.1")),
		"c": machine.Of(netip.MustParseAddr("10.0.0.2")),
	}
	s := newStore(func(id peer.ID) machine.ID { return on[id] })
	s.most = 100
	put := func(id peer.ID, n int) (kept int) {
		name := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString([]byte(id))
		for i := range n {
			_ = s.Put(t.Context(), ds.RawKey(fmt.Sprintf("/providers/%d/%s", i, name)), []byte("1"))
		}
		if o := s.byPeer[unique.Make(name)]; o != nil {
			kept = o.n
		}
		return kept
	}
	if n := put("a", 1000); n != 100 {
		t.Errorf("alone: %d records", n)
	}
	if n := put("c", 60); n < 49 || n > 51 {
		t.Errorf("another machine: %d records", n)
	}
	if n := put("b", 60); n < 24 || n > 26 {
		t.Errorf("another peer of the first machine: %d records", n)
	}
	sum := 0
	for _, n := range s.byMachine {
		sum += n
	}
	if s.n > 100 || sum != s.n {
		t.Errorf("%d records, %d by machine", s.n, sum)
	}
}

// BenchmarkProviders256k has the library's own record keeper on a full store, of 256 peers, five for each NAR.
func BenchmarkProviders256k(b *testing.B) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	book, err := pstoremem.NewPeerstore()
	if err != nil {
		b.Fatal(err)
	}
	defer book.Close()
	s := newStore(nil)
	m, err := records.NewProviderManager("self", book, s, records.ProvideValidity(validity))
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	key := func(i int) mh.Multihash {
		return multihash(sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i))))
	}
	const nars = maxRecords / replication
	began := time.Now()
	for i := range nars * replication {
		nar, k := i/replication, i%replication
		if err := m.AddProvider(b.Context(), key(nar), peer.AddrInfo{ID: peer.ID(key(-1 - (nar+k*51)%256))}); err != nil {
			b.Fatal(err)
		}
	}
	added := time.Since(began)
	runtime.GC()
	runtime.ReadMemStats(&after)

	var hits, misses []time.Duration
	for b.Loop() {
		i := rand.IntN(2 * nars) // every other one is absent
		began := time.Now()
		got, err := m.GetProviders(b.Context(), key(i))
		took := time.Since(began)
		switch {
		case err != nil || i < nars && len(got) != replication || i >= nars && len(got) != 0:
			b.Fatalf("%d providers, %v", len(got), err)
		case i < nars:
			hits = append(hits, took)
		default:
			misses = append(misses, took)
		}
	}
	b.ReportMetric(float64(added.Microseconds())/(nars*replication), "µs/add")
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB")
	for name, list := range map[string][]time.Duration{"hit": hits, "miss": misses} {
		if len(list) == 0 {
			continue
		}
		slices.Sort(list)
		b.ReportMetric(float64(list[len(list)/2].Nanoseconds())/1000, "µs/"+name+"-p50")
		b.ReportMetric(float64(list[len(list)*99/100].Nanoseconds())/1000, "µs/"+name+"-p99")
	}
	began = time.Now()
	res, err := s.Query(b.Context(), dsq.Query{Prefix: "/providers"})
	if err != nil {
		b.Fatal(err)
	}
	swept := 0
	for range res.Next() {
		swept++
	}
	if swept < nars*replication-256 { // the keeper writes so many at a time
		b.Fatalf("%d records", swept)
	}
	b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms/sweep")
}
