package mdns

import (
	"context"
	"net/netip"
	"slices"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const id = "12D3KooWExample"

func TestPackets(t *testing.T) {
	q, err := query()
	if err != nil {
		t.Fatal(err)
	}
	h, err := parse(q)
	if err != nil || !h.asked {
		t.Errorf("%+v, %v", h, err)
	}
	addrs := []string{"/ip4/10.0.0.5/tcp/7656/p2p/" + id, "/ip6/fe80::5/tcp/7656/p2p/" + id}
	for _, legacy := range []uint16{0, 77} {
		a, err := answer(legacy, "abc", addrs)
		if err != nil {
			t.Fatal(err)
		}
		if len(a) > 400 {
			t.Errorf("an answer has %d bytes", len(a))
		}
		h, err = parse(a)
		if err != nil || h.asked || !slices.Equal(h.addrs, addrs) {
			t.Errorf("%+v, %v", h, err)
		}
	}
	for _, bad := range [][]byte{nil, {1}, q[:len(q)-1], make([]byte, 12)} {
		if h, err := parse(bad); err == nil {
			t.Errorf("%x is %+v", bad, h)
		}
	}
}

func TestAddresses(t *testing.T) {
	any4, any6 := netip.MustParseAddrPort("0.0.0.0:7656"), netip.MustParseAddrPort("[::]:7657")
	link := []netip.Addr{netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("fd00::5"), netip.MustParseAddr("fe80::5"), netip.MustParseAddr("fd00::6")}
	for _, c := range []struct {
		listens []netip.AddrPort
		want    []string
	}{
		{[]netip.AddrPort{any4, any6}, []string{"/ip4/10.0.0.5/tcp/7656/p2p/x", "/ip6/fd00::5/tcp/7657/p2p/x", "/ip6/fd00::6/tcp/7657/p2p/x"}},
		{[]netip.AddrPort{any4}, []string{"/ip4/10.0.0.5/tcp/7656/p2p/x"}},
		{[]netip.AddrPort{netip.MustParseAddrPort("[fd00::6]:1")}, []string{"/ip6/fd00::6/tcp/1/p2p/x"}},
		{[]netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}, nil},
	} {
		if got := addresses("x", c.listens, link); !slices.Equal(got, c.want) {
			t.Errorf("%v: %q", c.listens, got)
		}
	}
}

func TestLocal(t *testing.T) {
	link := []netip.Prefix{netip.MustParsePrefix("10.0.0.5/24")}
	for a, want := range map[string]bool{"10.0.0.9": true, "10.0.1.9": false, "fe80::1%eth0": true, "8.8.8.8": false, "::ffff:10.0.0.9": true} {
		if local(netip.MustParseAddr(a), link) != want {
			t.Errorf("%s is local: %v", a, !want)
		}
	}
}

// TestRunEnds: with and without multicast, Run ends with its context.
func TestRunEnds(t *testing.T) {
	s, err := New(Config{
		ID: id, Listens: func() []netip.AddrPort { return nil },
		Peers: func() int { return enough }, Found: func([]string) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	q, _ := query()
	f.Add(q)
	a, _ := answer(0, "abc", []string{"/ip4/10.0.0.5/tcp/7656/p2p/" + id})
	f.Add(a)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parse(b)
		if err == nil && !h.asked && len(h.addrs) == 0 {
			t.Error("a packet that says nothing")
		}
		if len(h.addrs) > maxAnswers*2*maxAddrs {
			t.Errorf("%d addresses", len(h.addrs))
		}
	})
}
