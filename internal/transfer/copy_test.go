package transfer_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
	"github.com/nixp2p/nixp2p/internal/transfer"
)

// copying starts a copy of p and waits until it goes on.
func copying(t *testing.T, w *world, p nixtest.Path) (ended chan error) {
	t.Helper()
	a, err := w.r.Ahead(t.Context(), p.Hash())
	if err != nil {
		t.Fatal(err)
	}
	ended = make(chan error, 1)
	go func() {
		_, err := w.s.Copy(t.Context(), a, false)
		ended <- err
	}()
	pass(time.Minute)
	synctest.Wait()
	return ended
}

// TestCopy: what nobody waits for comes from peers alone, however long they take. A client that asks for it follows the
// copy from its beginning, and no second download begins; nor is it counted as a question of a client.
func TestCopy(t *testing.T) {
	p := nixtest.NewPath("hello", 5*mib)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, withPeers)
		w.peer.Trusted = true
		w.peer.Add(t, key, p)
		w.up.Add(t, key, p)
		w.up.SetPace(source.Pace{Rate: mib / 4}) // the peer is sooner, although it pauses
		gate := make(chan struct{})
		w.peer.SetFaults(sourcetest.Fault{Do: sourcetest.Wait, At: 4 * mib, Until: gate})
		ended := copying(t, w, p)
		if n := w.up.Opened(nix.Raw); n != 0 {
			t.Errorf("an upstream was asked %d times", n)
		}
		if n := w.count("narinfo_requests_total"); n != 0 {
			t.Errorf("%v requests of clients are counted", n)
		}
		if n := w.count("ahead_requests_total"); n != 1 {
			t.Errorf("%v look-ups are counted", n)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.wantWhole(nameOf(p, nix.Raw), p.NAR)
		}()
		pass(1100 * time.Millisecond) // in a second a wrong NAR would not be noticed
		synctest.Wait()
		if sent := w.count("nar_bytes_total"); sent < 2*mib {
			t.Errorf("%v bytes of the copy have been sent at once", sent)
		}
		close(gate)
		<-done
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if w.up.Opened(nix.Raw) != 0 || w.peer.Opened(nix.Raw) != 1 {
			t.Errorf("%d downloads from upstream, %d from peers", w.up.Opened(nix.Raw), w.peer.Opened(nix.Raw))
		}
	})
}

// TestCopyClaimed: a copy that hangs or breaks off is continued for a client that has come for it, within the time that
// peers have for any NAR.
func TestCopyClaimed(t *testing.T) {
	p := nixtest.NewPath("hello", 5*mib)
	for name, c := range map[string]struct {
		fault   sourcetest.Action
		trusted bool
		after   time.Duration // the fault shows this long after the client came
	}{
		"hangs, trusted":         {sourcetest.Hang, true, 0},
		"hangs, not trusted":     {sourcetest.Hang, false, 0},
		"breaks off":             {sourcetest.Die, true, time.Second},
		"breaks off, unverified": {sourcetest.Die, false, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, withPeers)
				w.peer.Trusted = c.trusted
				w.peer.Add(t, key, p)
				w.up.Add(t, key, p)
				w.up.SetPace(source.Pace{Rate: 5 * mib}) // T is a second
				w.up.SetSpeed(0, 5*mib)
				gate := make(chan struct{})
				w.peer.SetFaults(sourcetest.Fault{Do: sourcetest.Wait, At: 2 * mib, Until: gate}, sourcetest.Fault{Do: c.fault, At: 3 * mib})
				ended := copying(t, w, p)
				began := time.Now()
				if c.fault == sourcetest.Die {
					time.AfterFunc(c.after, func() { close(gate) })
				}
				w.wantWhole(nameOf(p, nix.Raw), p.NAR)
				if took, most := time.Since(began), time.Second+3*time.Second+time.Second/2; took > most {
					t.Errorf("took %v, may take %v", took, most)
				}
				if c.fault != sourcetest.Die {
					close(gate)
				}
				<-ended
			})
		})
	}
}

// TestCopyFails: without a client, what peers do not give is not fetched from elsewhere, and the next client gets it.
func TestCopyFails(t *testing.T) {
	p := nixtest.NewPath("hello", 5*mib)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, withPeers)
		w.peer.Add(t, key, p)
		w.up.Add(t, key, p)
		w.peer.SetFaults(sourcetest.Fault{Do: sourcetest.Die, At: 2 * mib})
		if err := <-copying(t, w, p); err == nil {
			t.Error("it did not fail")
		}
		if n := w.up.Opened(nix.Raw); n != 0 {
			t.Errorf("an upstream was asked %d times", n)
		}
		w.wantWhole(nameOf(p, nix.Raw), p.NAR)
		// Many clients at the moment at which a copy fails.
		other := nixtest.NewPath("other", 5*mib)
		gate := make(chan struct{})
		w.peer.Add(t, key, other)
		w.up.Add(t, key, other)
		w.peer.SetFaults(sourcetest.Fault{Do: sourcetest.Wait, At: 1, Until: gate}, sourcetest.Fault{Do: sourcetest.Die, At: 2})
		ended := copying(t, w, other)
		errs := make(chan error, 8)
		for range cap(errs) {
			go func() {
				_, err := w.whole(context.Background(), nameOf(other, nix.Raw), transfer.Query{})
				errs <- err
			}()
		}
		synctest.Wait()
		close(gate)
		for range cap(errs) {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		<-ended
	})
}
