package transfer_test

import (
	"bytes"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
	"github.com/nixp2p/nixp2p/internal/transfer"
)

// TestDelta: nothing of what an upstream sends as a delta is seen before all of it is verified, so that a wrong
// one costs a second fetch and no build.
func TestDelta(t *testing.T) {
	p := nixtest.NewPath("hello", 3*mib)
	for name, tt := range map[string]struct {
		fault *sourcetest.Fault
		edit  func(*world)
	}{
		"right":           {nil, nil},
		"wrong":           {&sourcetest.Fault{Do: sourcetest.Flip, At: 2 * mib, Times: 1}, nil},
		"wrong, peers":    {&sourcetest.Fault{Do: sourcetest.Flip, At: 2 * mib, Times: 1}, withPeers},
		"breaks off":      {&sourcetest.Fault{Do: sourcetest.Die, At: 2 * mib, Times: 1}, nil},
		"right, no cache": {nil, noCache},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(w *world) {
				if tt.edit != nil {
					tt.edit(w)
				}
			})
			w.up.Add(t, key, p)
			w.up.SetDelta(true)
			w.up.SetForgiving()
			if tt.fault != nil {
				w.up.SetFaults(*tt.fault)
			}
			got, err := w.whole(t.Context(), nameOf(p, nix.Raw), transfer.Query{})
			if name == "breaks off" { // the fake does not go on by itself, as upstreams do
				if len(got) > 0 {
					t.Errorf("%d bytes were seen", len(got))
				}
				return
			}
			if err != nil || !bytes.Equal(got, p.NAR) {
				t.Errorf("%d bytes, error %v", len(got), err)
			}
			if n := len(w.up.Reports()); n != 0 != (tt.fault != nil) {
				t.Errorf("%d reports", n)
			}
		})
	}
}

// TestDeltaHidden: a client gets its first byte when all of it has come.
func TestDeltaHidden(t *testing.T) {
	p := nixtest.NewPath("hello", 3*mib)
	w := newWorld(t)
	w.up.Add(t, key, p)
	w.up.SetDelta(true)
	seen := -1
	n, err := w.s.NAR(t.Context(), nameOf(p, nix.Raw), transfer.Query{})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	err = n.Send(t.Context(), writer(func(b []byte) (int, error) {
		if seen < 0 {
			seen = int(w.up.Gave())
		}
		return len(b), nil
	}), 0, n.Size())
	if err != nil || seen != len(p.NAR) {
		t.Errorf("%d of %d bytes had come: %v", seen, len(p.NAR), err)
	}
}

type writer func(b []byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }
