package p2p

import (
	"bytes"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
)

// TestHedgedOpen: a peer that hears a question and never begins costs a short wait, is cut off
// and nothing is held against it.
func TestHedgedOpen(t *testing.T) {
	path := nixtest.NewPath("wanted", 2<<20)
	var asked, cut atomic.Int32
	frozen := evil(t, func(_ *http.Request, s network.Stream) {
		asked.Add(1)
		_, _ = s.Read(make([]byte, 1)) // until the other side ends it
		cut.Add(1)
	}, nil, path)
	good := start(t, newHolder(t, path), nil)
	n := join(t, nil, nil, frozen, good)
	wait(t, "both inventories", func() bool {
		p := n.Peers()
		return len(p) == 2 && p[0].Paths+p[1].Paths == 2
	})
	info := path.Info(t, shareKey)
	n.table.get(good.self).meter.Asked(1 << 40) // so much to do that the other one is asked first
	began := time.Now()
	for rounds := 0; asked.Load() < 3; rounds++ {
		if rounds == 100 {
			t.Fatal("the frozen one is not asked")
		}
		start := time.Now()
		got, err := fetched(t, n, info, nix.Raw, 0)
		if err != nil || !bytes.Equal(got, path.NAR) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		if d := time.Since(start); d > openTime {
			t.Errorf("took %v", d)
		}
	}
	if liar(n, frozen) || n.table.get(frozen.self).fails.Load() != 0 {
		t.Errorf("held against it: %+v", n.Peers())
	}
	wait(t, "its streams have ended", func() bool { return cut.Load() == asked.Load() })
	sent := metric(t, n, "peer_hedges_total", "nar", "sent")
	won := metric(t, n, "peer_hedges_total", "nar", "won")
	if sent < 3 || won < 3 {
		t.Errorf("%v sent, %v won in %v", sent, won, time.Since(began))
	}
	wait(t, "no transfer is left", func() bool {
		for _, r := range n.table.all() {
			if r.busy.Load() != 0 {
				return false
			}
		}
		return true
	})
}

// TestHedgedOpenAtTheSameByte: a hedge in the middle goes on where the first peer died.
func TestHedgedOpenAtTheSameByte(t *testing.T) {
	path := nixtest.NewPath("wanted", 2<<20)
	frozen := evil(t, func(_ *http.Request, s network.Stream) { _, _ = s.Read(make([]byte, 1)) }, nil, path)
	good := start(t, newHolder(t, path), nil)
	n := join(t, nil, nil, frozen, good)
	wait(t, "both inventories", func() bool {
		p := n.Peers()
		return len(p) == 2 && p[0].Paths+p[1].Paths == 2
	})
	for range 8 {
		got, err := fetched(t, n, path.Info(t, shareKey), nix.Raw, 1<<20)
		if err != nil || !bytes.Equal(got, path.NAR[1<<20:]) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
}

// metric returns the value of one metric with these values of labels, 0 when there is none.
func metric(t testing.TB, n *testNode, name string, label ...string) float64 {
	t.Helper()
	families, err := n.cfg.Metrics.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != "nixp2p_"+name {
			continue
		}
		for _, m := range family.GetMetric() {
			has := 0
			for _, l := range m.GetLabel() {
				if slices.Contains(label, l.GetValue()) {
					has++
				}
			}
			if has == len(label) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return 0
}
