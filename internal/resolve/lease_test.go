package resolve_test

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/internal/resolve/sourcetest"
	"github.com/nixp2p/nixp2p/verify"
)

// leases is a site that says what is written in turns.
type leases struct {
	mu    sync.Mutex
	turns []resolve.NARSource // nil is upstream; after the last one it is upstream
	cut   func()              // ends the turn that goes on

	begun, ended, whole int
	forms               []nix.Form
	bytes, got          int64
}

func (l *leases) Lease(_ context.Context, _ *verify.Info, form nix.Form, _ int64) resolve.Lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begun++
	l.forms = append(l.forms, form)
	return l
}

func (l *leases) Next(ctx context.Context) (from resolve.NARSource, turn context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	turn, l.cut = context.WithCancel(ctx)
	if len(l.turns) > 0 {
		from, l.turns = l.turns[0], l.turns[1:]
	}
	return from, turn
}

func (l *leases) Moved(bytes, got int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes, l.got = bytes, got
}

func (l *leases) End(_ context.Context, whole bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended++
	if whole {
		l.whole++
	}
	l.cut()
}

func withLeases(l *leases) func(*world, *resolve.Config) {
	return func(w *world, cfg *resolve.Config) {
		cfg.Peers, cfg.Leases = w.peers, l
	}
}

// TestLease: who gives the bytes is what the site says, from one turn to the next.
func TestLease(t *testing.T) {
	p := nixtest.NewPath("hello", 5*mib)
	for _, c := range []struct {
		name     string
		turns    func(w, other *sourcetest.Fake) []resolve.NARSource
		other    []sourcetest.Fault // of the node that is followed
		up       []sourcetest.Fault
		wantUp   bool // upstream gave bytes
		leases   int
		failures float64
	}{
		{"upstream", func(_, _ *sourcetest.Fake) []resolve.NARSource { return nil }, nil, nil, true, 1, 0},
		{"another node", func(_, o *sourcetest.Fake) []resolve.NARSource { return []resolve.NARSource{o} }, nil, nil, false, 1, 0},
		{
			"a node that dies, and upstream", func(_, o *sourcetest.Fake) []resolve.NARSource { return []resolve.NARSource{o} },
			[]sourcetest.Fault{{Do: sourcetest.Die, At: 2 * mib}}, nil, true, 1, 1,
		},
		{
			"upstream that dies, and a node", func(_, o *sourcetest.Fake) []resolve.NARSource { return []resolve.NARSource{nil, o} },
			nil, []sourcetest.Fault{{Do: sourcetest.Die, At: 2 * mib}}, true, 1, 1,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := &leases{}
			w := newWorld(t, withLeases(l))
			w.up.Add(t, key, p)
			other := sourcetest.NewFake("peer")
			other.AddBytes(p.NarHash(), nix.Raw, p.NAR)
			other.SetFaults(c.other...)
			w.up.SetFaults(c.up...)
			l.turns = c.turns(w.up, other)
			w.wantWhole(nameOf(p, nix.Raw), p.NAR)
			w.stop()
			if got := w.up.Gave() > 0; got != c.wantUp {
				t.Errorf("upstream gave %d bytes", w.up.Gave())
			}
			if w.up.Gave() > int64(len(p.NAR)) {
				t.Errorf("upstream gave %d bytes of %d", w.up.Gave(), len(p.NAR))
			}
			if l.begun != c.leases || l.ended != c.leases || l.whole != 1 || l.got != int64(len(p.NAR)) || l.bytes != l.got-verify.TailSize {
				t.Errorf("%d begun, %d ended, %d whole, %d of %d bytes to be had", l.begun, l.ended, l.whole, l.bytes, l.got)
			}
			if n := w.count("failovers_total"); n != c.failures {
				t.Errorf("%v failovers", n)
			}
		})
	}
}

// TestLeaseYields: a fetcher that is told to leave it to another node goes on from there at the
// same byte, and nobody is blamed.
func TestLeaseYields(t *testing.T) {
	p := nixtest.NewPath("hello", 5*mib)
	l := &leases{}
	w := newWorld(t, withLeases(l))
	w.up.Add(t, key, p)
	w.up.SetFaults(sourcetest.Fault{Do: sourcetest.Hang, At: 2 * mib})
	other := sourcetest.NewFake("peer")
	other.AddBytes(p.NarHash(), nix.Raw, p.NAR)
	l.turns = []resolve.NARSource{nil, other}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for t.Context().Err() == nil {
			l.mu.Lock()
			cut, got := l.cut, l.got
			l.mu.Unlock()
			if got >= 2*mib {
				cut()
				return
			}
		}
	}()
	w.wantWhole(nameOf(p, nix.Raw), p.NAR)
	<-ended
	if w.count("failovers_total") != 0 || len(w.up.Convicted()) != 0 {
		t.Error("upstream was blamed")
	}
}

// TestLeaseNobody: where upstream has it not, and nobody else, the NAR is absent, and the lease
// is given back.
func TestLeaseNobody(t *testing.T) {
	p := nixtest.NewPath("hello", 1000)
	l := &leases{}
	w := newWorld(t, withLeases(l))
	w.up.AddInfo(p.Info(t, key))
	_, err := w.whole(t.Context(), nameOf(p, nix.Raw), resolve.Query{})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	w.stop()
	if l.ended != l.begun || l.whole != 0 {
		t.Errorf("%d begun, %d ended, %d whole", l.begun, l.ended, l.whole)
	}
}

// TestLeaseOtherForm: others get it in another form than the one wanted here.
func TestLeaseOtherForm(t *testing.T) {
	p := nixtest.NewPath("hello", 3*mib)
	l := &leases{}
	w := newWorld(t, withLeases(l))
	info, file := w.up.AddFile(t, key, p, nix.Zstd, nil)
	form := formOf(t, info)
	other := sourcetest.NewFake("peer")
	other.AddBytes(p.NarHash(), nix.Raw, p.NAR)
	l.turns = []resolve.NARSource{otherForm{other}, other}
	got, err := w.whole(t.Context(), nameOf(p, form), resolve.Query{})
	if err != nil || string(decode(t, nix.Zstd, got)) != string(p.NAR) || w.up.Gave() != 0 {
		t.Errorf("%d bytes, %v; upstream gave %d", len(got), err, w.up.Gave())
	}
	if len(l.forms) != 2 || l.forms[0] != form || !l.forms[1].IsRaw() {
		t.Errorf("asked for %v", l.forms)
	}

	// Nothing that anybody has is of use: upstream it is.
	l = &leases{}
	w = newWorld(t, withLeases(l))
	w.up.AddFile(t, key, p, nix.Zstd, nil)
	l.turns = []resolve.NARSource{otherForm{other}, otherForm{other}, otherForm{other}}
	w.wantWhole(nameOf(p, form), file.Bytes)
}

type otherForm struct{ *sourcetest.Fake }

func (otherForm) NAR(context.Context, *verify.Info, nix.Form, int64) (*verify.Unverified, error) {
	return nil, &resolve.OtherFormError{}
}

// later is peers that have only the file of a NAR.
type later struct {
	*sourcetest.Fake
	instead *verify.Info
}

type laterError struct{ info *verify.Info }

func (laterError) Error() string           { return "only the file" }
func (e laterError) Instead() *verify.Info { return e.info }
func (l later) Info(context.Context, nix.StoreHash) (*verify.Info, error) {
	return nil, laterError{l.instead}
}

// TestPeersHaveOnlyTheFile: what peers would have to decode is offered as upstream's file while
// there is an upstream that knows it, and as their raw NAR else.
func TestPeersHaveOnlyTheFile(t *testing.T) {
	p := nixtest.NewPath("hello", 3*mib)
	for _, c := range []struct {
		name string
		up   func(*world)
		raw  bool
	}{
		{"upstream has it", func(w *world) { w.up.AddFile(t, key, p, nix.Zstd, nil) }, false},
		{"upstream is down", func(w *world) { w.up.SetDown(true) }, true},
		{"upstream has it not", func(*world) {}, true},
		{"upstream is silent", func(w *world) {
			w.up.OnInfo(func(ctx context.Context, _ nix.StoreHash) (*verify.Info, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			})
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, func(w *world, cfg *resolve.Config) { cfg.Peers = later{w.peers, p.Info(t, key)} })
			c.up(w)
			for range 2 {
				a, err := w.r.Info(t.Context(), p.Hash(), resolve.Anywhere)
				if err != nil || a.Form.IsRaw() != c.raw {
					t.Fatalf("%+v, %v", a, err)
				}
			}
		})
	}
}

// TestNobodyDecodes: who can take the file has no peer decode it.
func TestNobodyDecodes(t *testing.T) {
	p := nixtest.NewPath("hello", 3*mib)
	w := newWorld(t, func(w *world, cfg *resolve.Config) {
		cfg.Peers, cfg.AtHand = w.peers, sourcetest.NewFake("peer")
	})
	w.peers.AddBytes(p.NarHash(), nix.Raw, p.NAR)
	info, file := w.up.AddFile(t, key, p, nix.Zstd, nil)
	w.wantWhole(nameOf(p, formOf(t, info)), file.Bytes)
	if w.peers.Gave() != 0 {
		t.Error("a peer decoded it")
	}
	w.wantWhole(nameOf(p, nix.Raw), p.NAR)
}

// TestChangedInCache: bytes that came into the cache right and changed there do not leave.
func TestChangedInCache(t *testing.T) {
	p := nixtest.NewPath("hello", 3*mib)
	for _, at := range []int{0, mib, 3*mib - 1} {
		w := newWorld(t, func(_ *world, cfg *resolve.Config) { cfg.Store = nil })
		w.up.Add(t, key, p)
		w.wantWhole(nameOf(p, nix.Raw), p.NAR)
		gave := w.up.Gave()
		w.wantWhole(nameOf(p, nix.Raw), p.NAR)
		if w.up.Gave() != gave {
			t.Fatal("it was fetched again")
		}
		other := append([]byte(nil), p.NAR...)
		other[at] ^= 1
		w.cache.AddBytes(p.NarHash(), nix.Raw, other)
		got, err := w.whole(t.Context(), nameOf(p, nix.Raw), resolve.Query{})
		if err == nil && string(got) != string(p.NAR) || len(got) > at && got[at] != p.NAR[at] {
			t.Errorf("byte %d: %d bytes, %v", at, len(got), err)
		}
		if len(w.cache.Convicted()) != 1 {
			t.Errorf("byte %d: convicted: %v", at, w.cache.Convicted())
		}
	}
}

// vouched is peers of whom all or none have given right bytes before.
type vouched struct {
	*sourcetest.Fake
	all    bool
	proven int
}

func (v *vouched) Proven(*verify.Info, nix.Form)       { v.proven++ }
func (v *vouched) Vouched(*verify.Info, nix.Form) bool { return v.all }

// TestStrangersAreProven: the first lie of a peer that nobody vouches for does not leave, even
// when it takes its time.
func TestStrangersAreProven(t *testing.T) {
	p := nixtest.NewPath("hello", 3*mib)
	for _, all := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			v := &vouched{all: all}
			w := newWorld(t, func(w *world, cfg *resolve.Config) {
				v.Fake = w.peers
				cfg.Peers = v
			})
			w.peers.Add(t, key, p)
			w.up.Add(t, key, p)
			gate := make(chan struct{})
			time.AfterFunc(40*time.Second, func() { close(gate) })
			w.peers.SetFaults(sourcetest.Fault{Do: sourcetest.Flip, At: 10}, sourcetest.Fault{Do: sourcetest.Wait, At: 2 * mib, Until: gate})
			got, err := w.whole(t.Context(), nameOf(p, nix.Raw), resolve.Query{})
			if right := err == nil && string(got) == string(p.NAR); right == all {
				t.Errorf("vouched %t: %d bytes, %v", all, len(got), err)
			}
		})
	}
	v := &vouched{}
	w := newWorld(t, func(w *world, cfg *resolve.Config) {
		v.Fake = w.peers
		cfg.Peers = v
	})
	w.peers.Add(t, key, p)
	w.wantWhole(nameOf(p, nix.Raw), p.NAR)
	other := nixtest.NewPath("other", mib)
	w.up.Add(t, key, other)
	w.wantWhole(nameOf(other, nix.Raw), other.NAR) // peers gave nothing of it
	w.stop()
	if v.proven != 1 {
		t.Errorf("%d proven", v.proven)
	}
}

// TestStrangersAreNotPassedOn: what comes from a peer that nobody vouches for is not offered to
// others before it is proven.
func TestStrangersAreNotPassedOn(t *testing.T) {
	p := nixtest.NewPath("hello", 5*mib)
	for _, all := range []bool{false, true} {
		l := &leases{}
		w := newWorld(t, func(w *world, cfg *resolve.Config) {
			cfg.Peers, cfg.Leases = &vouched{Fake: w.peers, all: all}, l
		})
		w.up.Add(t, key, p)
		other := sourcetest.NewFake("peer")
		other.AddBytes(p.NarHash(), nix.Raw, p.NAR)
		w.up.SetFaults(sourcetest.Fault{Do: sourcetest.Die, At: 2 * mib, Times: 1})
		l.turns = []resolve.NARSource{nil, other}
		w.wantWhole(nameOf(p, nix.Raw), p.NAR)
		w.stop()
		want := int64(2 * mib) // from upstream
		if all {
			want = int64(len(p.NAR)) - verify.TailSize
		}
		if l.got != int64(len(p.NAR)) || l.bytes != want {
			t.Errorf("vouched %t: %d of %d bytes to be had, want %d", all, l.bytes, l.got, want)
		}
	}
}

// TestTwoLies: peers that sent a NAR wrong twice are not asked for it a third time.
func TestTwoLies(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, withPeers)
		w.peers.Add(t, key, p)
		w.up.Add(t, key, p)
		w.peers.SetForgiving()
		w.peers.SetFaults(sourcetest.Fault{Do: sourcetest.Flip, At: 10, Times: 3})
		w.wantWhole(nameOf(p, nix.Raw), p.NAR)
		if n := w.peers.Opened(nix.Raw); n != 2 {
			t.Errorf("asked %d times", n)
		}
	})
}
