package resolve_test

import (
	"bytes"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/internal/resolve/sourcetest"
	"github.com/nixp2p/nixp2p/verify"
)

// jury is a peer source that waits for the right bytes once it was suspected.
type jury struct {
	*sourcetest.Fake
	suspected int
	saw       bytes.Buffer
	proven    int
}

func (j *jury) Suspect(*verify.Info, nix.Form) { j.suspected++ }

func (j *jury) Right(*verify.Info, nix.Form) (io.Writer, func()) {
	if j.suspected == 0 || j.proven > 0 {
		return nil, nil
	}
	j.saw.Reset()
	return &j.saw, func() { j.proven++ }
}

// TestRightBytesShown: of wrong bytes that peers and the upstream gave together, the upstream alone
// gives the right ones within the same response, and the peers are shown them.
func TestRightBytesShown(t *testing.T) {
	for _, spool := range []bool{true, false} {
		var j *jury
		edit := []func(*world, *resolve.Config){func(w *world, cfg *resolve.Config) {
			j = &jury{Fake: w.peers}
			cfg.Peers = j
		}}
		if !spool {
			edit = append(edit, noCache)
		}
		w := newWorld(t, edit...)
		p := nixtest.NewPath("hello", 3*mib)
		w.peers.Add(t, key, p)
		w.up.Add(t, key, p)
		w.peers.SetFaults(sourcetest.Fault{Do: sourcetest.Flip, At: 10}, sourcetest.Fault{Do: sourcetest.Die, At: mib})
		w.wantWhole(nameOf(p, nix.Raw), p.NAR)
		if j.suspected != 1 || j.proven != 1 || !bytes.Equal(j.saw.Bytes(), p.NAR) {
			t.Errorf("spool %v: suspected %d times, shown %d bytes, %d proofs", spool, j.suspected, j.saw.Len(), j.proven)
		}
		if n := len(w.peers.Convicted()) + len(w.up.Convicted()); n != 0 {
			t.Errorf("%d convicted", n)
		}
	}
}

// TestWrongBytesNotShown: what is not proven shows nothing, and the peers stay avoided.
func TestWrongBytesNotShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j *jury
		w := newWorld(t, func(w *world, cfg *resolve.Config) {
			j = &jury{Fake: w.peers}
			cfg.Peers = j
		})
		p := nixtest.NewPath("hello", 3*mib)
		w.peers.Add(t, key, p)
		w.up.Add(t, key, p)
		w.peers.SetFaults(sourcetest.Fault{Do: sourcetest.Die, At: mib})
		w.up.SetFaults(sourcetest.Fault{Do: sourcetest.Flip, At: 2 * mib})
		if _, err := w.whole(t.Context(), nameOf(p, nix.Raw), resolve.Query{}); err == nil {
			t.Fatal("wrong bytes went through")
		}
		if j.suspected == 0 || j.proven != 0 {
			t.Errorf("suspected %d times, proven %d", j.suspected, j.proven)
		}
		if len(w.up.Convicted()) == 0 {
			t.Error("the upstream gave all bytes, and is not convicted")
		}
		w.peers.SetFaults()
		before := w.peers.Gave()
		pass(59 * time.Minute)
		_, _ = w.whole(t.Context(), nameOf(p, nix.Raw), resolve.Query{})
		if w.peers.Gave() != before {
			t.Error("the peers are asked again")
		}
	})
}
