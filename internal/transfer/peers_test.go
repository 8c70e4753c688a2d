package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
	"github.com/nixp2p/nixp2p/internal/transfer"
	"github.com/nixp2p/nixp2p/verify"
)

// TestPeers: what a peer has does not cross the uplink, and upstream goes on where a peer dies.
func TestPeers(t *testing.T) {
	p := nixtest.NewPath("hello", 3*mib)
	for _, spool := range []bool{true, false} {
		for _, dies := range []bool{false, true} {
			w := newWorld(t, withPeers, func(w *world) {
				if !spool {
					noCache(w)
				}
			})
			info, _ := w.up.AddFile(t, key, p, nix.Zstd, nil)
			w.peer.AddBytes(p.NarHash(), nix.Raw, p.NAR)
			w.peer.Trusted = true
			if dies {
				w.peer.SetFaults(sourcetest.Fault{Do: sourcetest.Die, At: 2 * mib})
			}
			for _, form := range []nix.Form{nix.Raw, formOf(t, info)} {
				got, err := w.whole(t.Context(), nameOf(p, form), transfer.Query{})
				if !form.IsRaw() && err == nil {
					got = decode(t, form.Compression, got)
				}
				if err != nil || !bytes.Equal(got, p.NAR) {
					t.Errorf("spool %v, dies %v, %s: %d bytes, error %v", spool, dies, form, len(got), err)
				}
			}
			if gave := w.up.Gave(); gave != 0 && !dies || dies && w.up.Offsets()[0] != 2*mib {
				t.Errorf("upstream gave %d bytes, opened at %v", gave, w.up.Offsets())
			}
		}
	}
}

// TestOnePlan: a cold NAR asks the peers once and makes one download, whatever forms are of use.
func TestOnePlan(t *testing.T) {
	p := nixtest.NewPath("hello", 3*mib)
	for _, has := range []string{"nobody", "the file", "raw"} {
		w := newWorld(t, withPeers)
		info, file := w.up.AddFile(t, key, p, nix.Zstd, nil)
		form := formOf(t, info)
		switch has {
		case "the file":
			w.peer.AddBytes(p.NarHash(), form, file.Bytes)
		case "raw":
			w.peer.AddBytes(p.NarHash(), nix.Raw, p.NAR)
		}
		got, err := w.whole(t.Context(), nameOf(p, form), transfer.Query{})
		if err != nil || !bytes.Equal(decode(t, nix.Zstd, got), p.NAR) {
			t.Errorf("%s: %d bytes, error %v", has, len(got), err)
		}
		if w.peers.Begun() != 1 || w.begun.Load() != 1 {
			t.Errorf("%s: %d sessions, %d downloads", has, w.peers.Begun(), w.begun.Load())
		}
		sessionEnds(w)
		if ended := w.peers.Ended(); len(ended) != 1 || ended[0].Outcome != source.Correct {
			t.Errorf("%s: ended as %+v", has, ended)
		}
	}
	// A machine that is alone asks nobody.
	w := newWorld(t)
	w.up.Add(t, key, p)
	w.wantWhole(nameOf(p, nix.Raw), p.NAR)
	if w.begun.Load() != 1 {
		t.Errorf("%d downloads", w.begun.Load())
	}
}

// TestOnlyNamedForms: only a file that an own upstream has named is fetched from peers. What is
// in the URL alone, or what a peer says, is not believed.
func TestOnlyNamedForms(t *testing.T) {
	w := newWorld(t, withPeers)
	p := nixtest.NewPath("hello", 100_000)
	info, _ := w.peer.AddFile(t, key, p, nix.XZ, nil)
	w.up.SetDown(true)
	garbage := formOf(t, info)
	w.peer.AddBytes(p.NarHash(), garbage, []byte("garbage"))
	got, err := w.whole(t.Context(), nameOf(p, garbage), transfer.Query{})
	if err != nil || !bytes.Equal(decode(t, nix.XZ, got), p.NAR) {
		t.Errorf("%d bytes, error %v", len(got), err)
	}
	if w.peer.Opened(garbage) != 0 {
		t.Error("the file was asked for")
	}
}

// TestPeersNotAsked: a question for a private NAR stays on this machine and with its upstreams.
func TestPeersNotAsked(t *testing.T) {
	w := newWorld(t, withPeers)
	secret, other := nixtest.NewPath("secret", 1000), nixtest.NewPath("other", 1000)
	w.up.Add(t, homeKey, secret, other)
	w.peer.AddBytes(secret.NarHash(), nix.Raw, secret.NAR)
	w.peer.OnNAR(func(context.Context, *verify.Info, nix.Form) error {
		t.Error("a peer was asked")
		return nil
	})
	w.wantWhole(nameOf(secret, nix.Raw), secret.NAR)
	if _, err := w.s.Prefetch(t.Context(), other.Hash(), false); err != nil {
		t.Error(err)
	}
	if w.peers.Begun() != 0 {
		t.Error("a session was begun")
	}
}

// TestWrongPeers: who sent all of a wrong NAR is blamed, several are not, and the NAR is taken
// from one source.
func TestWrongPeers(t *testing.T) {
	p := nixtest.NewPath("hello", 3*mib)
	for _, c := range []struct {
		name    string
		first   []sourcetest.Fault // of the first peer
		second  []sourcetest.Fault // of the second
		outcome source.Outcome
		blamed  []bool
	}{
		{"one", []sourcetest.Fault{{Do: sourcetest.Flip, At: 10}}, nil, source.Wrong, []bool{true, false}},
		{"one, too much", []sourcetest.Fault{{Do: sourcetest.Overflow}}, nil, source.Wrong, []bool{true, false}},
		{
			"the first of two", []sourcetest.Fault{{Do: sourcetest.Flip, At: 10, Times: 1}, {Do: sourcetest.Die, At: mib, Times: 1}}, nil,
			source.Wrong, []bool{false, false},
		},
		{
			"the second of two", []sourcetest.Fault{{Do: sourcetest.Die, At: mib, Times: 1}}, []sourcetest.Fault{{Do: sourcetest.Flip, At: 2 * mib}},
			source.Wrong, []bool{false, false},
		},
		{
			"with upstream", []sourcetest.Fault{{Do: sourcetest.Flip, At: 10}, {Do: sourcetest.Die, At: mib}}, []sourcetest.Fault{{Do: sourcetest.Die, At: 2 * mib}},
			source.Mixed, []bool{false, false},
		},
	} {
		for _, spool := range []bool{true, false} {
			for _, down := range []bool{false, true} {
				if down && c.outcome == source.Mixed {
					continue
				}
				t.Run(fmt.Sprint(c.name, " spool ", spool, " down ", down), func(t *testing.T) {
					second, third := sourcetest.NewPeer("second"), sourcetest.NewPeer("third")
					w := newWorld(t, withPeers, func(w *world) {
						w.peers.List = []*sourcetest.Peer{w.peer, second, third}
						if !spool {
							noCache(w)
						}
					})
					w.peer.Add(t, key, p)
					second.Add(t, key, p)
					if down {
						third.Add(t, key, p)
					}
					w.up.Add(t, key, p)
					w.peer.SetFaults(c.first...)
					second.SetFaults(c.second...)
					w.up.SetDown(down)
					got, err := w.twice(nameOf(p, nix.Raw))
					if err != nil || !bytes.Equal(got, p.NAR) {
						t.Errorf("%d bytes, error %v", len(got), err)
					}
					sessionEnds(w)
					if ended := w.peers.Ended(); len(ended) == 0 || ended[0].Outcome != c.outcome {
						t.Errorf("ended as %+v, want %v first", ended, c.outcome)
					}
					if b := []bool{w.peer.Blamed(), second.Blamed()}; fmt.Sprint(b) != fmt.Sprint(c.blamed) && !down {
						t.Errorf("blamed %v, want %v", b, c.blamed)
					}
					if len(w.up.Reports()) != 0 {
						t.Error("upstream was blamed")
					}
					if at := w.up.Offsets(); !down && (len(at) == 0 || at[len(at)-1] != 0) {
						t.Errorf("the right NAR is not all from upstream: %v", w.up.Offsets())
					}
				})
			}
		}
	}
}

// TestTwoWrongNARs: peers that sent a NAR wrong twice are not asked for it for a while.
func TestTwoWrongNARs(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, withPeers)
		second := sourcetest.NewPeer("second")
		third := sourcetest.NewPeer("third")
		w.peers.List = append(w.peers.List, second, third)
		for _, peer := range w.peers.List {
			peer.Add(t, key, p)
			peer.SetFaults(sourcetest.Fault{Do: sourcetest.Flip, At: 10})
		}
		w.up.Add(t, key, p)
		for range 3 {
			w.wantWhole(nameOf(p, nix.Raw), p.NAR)
			w.cache.Invalid(p.Info(t, key), nix.Raw, errors.New("as the test says"))
		}
		if !w.peer.Blamed() || !second.Blamed() || third.Opened(nix.Raw) != 0 {
			t.Errorf("blamed %v %v, the third was asked %d times", w.peer.Blamed(), second.Blamed(), third.Opened(nix.Raw))
		}
		pass(2 * time.Minute)
		w.wantWhole(nameOf(p, nix.Raw), p.NAR)
		if !third.Blamed() {
			t.Error("peers are not asked again after a while")
		}
	})
}

// TestUnverifiedPeers: nothing of an unverified peer leaves before the whole is proven, to
// nobody; of trusted ones all but the tail may.
func TestUnverifiedPeers(t *testing.T) {
	p := nixtest.NewPath("hello", 5*mib)
	for _, trusted := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, withPeers)
			w.peer.Add(t, key, p)
			w.peer.Trusted = trusted
			gate := make(chan struct{})
			w.peer.SetFaults(sourcetest.Fault{Do: sourcetest.Flip, At: 3 * mib}, sourcetest.Fault{Do: sourcetest.Wait, At: 4 * mib, Until: gate})
			w.up.SetDown(true) // there is no clock
			var got []byte
			var err error
			done := make(chan struct{})
			go func() {
				defer close(done)
				got, err = w.whole(t.Context(), nameOf(p, nix.Raw), transfer.Query{})
			}()
			pass(time.Minute)
			synctest.Wait()
			sent := w.count("nar_bytes_total")
			readable := int64(0)
			for _, d := range w.cache.Downloads(p.NarHash()) {
				readable = max(readable, d.Readable())
			}
			if trusted && (sent < 2*mib || readable < 2*mib) || !trusted && (sent != 0 || readable != 0) {
				t.Errorf("trusted %v: %v bytes sent, others can read %d", trusted, sent, readable)
			}
			close(gate)
			<-done
			if err == nil {
				t.Errorf("wrong bytes went through: %d", len(got))
			}
			if !trusted && len(got) != 0 {
				t.Errorf("%d bytes left", len(got))
			}
		})
	}
}

// TestUnverifiedAfterTrusted: an unverified peer in the middle holds back what it sends.
func TestUnverifiedAfterTrusted(t *testing.T) {
	p := nixtest.NewPath("hello", 5*mib)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, withPeers)
		second := sourcetest.NewPeer("second")
		w.peers.List = append(w.peers.List, second)
		w.peer.Add(t, key, p)
		second.Add(t, key, p)
		w.peer.Trusted = true
		w.up.Add(t, key, p)
		w.up.SetPace(source.Pace{Rate: 1 * mib})
		w.up.SetSpeed(0, 1*mib)
		w.peer.SetFaults(sourcetest.Fault{Do: sourcetest.Die, At: 2 * mib})
		second.SetFaults(sourcetest.Fault{Do: sourcetest.Flip, At: 3 * mib}, sourcetest.Fault{Do: sourcetest.Hang, At: 4 * mib})
		w.wantWhole(nameOf(p, nix.Raw), p.NAR)
		sessionEnds(w)
		if ended := w.peers.Ended(); len(ended) != 1 || ended[0].Outcome != source.GaveUp || !ended[0].Anyway {
			t.Errorf("ended as %+v", ended)
		}
	})
}

// TestCoordinator: who supplies is what the site says, from one turn to the next.
func TestCoordinator(t *testing.T) {
	p := nixtest.NewPath("hello", 5*mib)
	node := func(faults ...sourcetest.Fault) *sourcetest.Peer {
		n := sourcetest.NewPeer("node")
		n.AddBytes(p.NarHash(), nix.Raw, p.NAR)
		n.Trusted = true
		n.SetFaults(faults...)
		return n
	}
	for _, c := range []struct {
		name     string
		turns    []sourcetest.Decision // then fetch
		up       []sourcetest.Fault
		upGave   int64
		failures float64
	}{
		{"fetch", nil, nil, int64(len(p.NAR)), 0},
		{"follow", []sourcetest.Decision{{Follow: node()}}, nil, 0, 0},
		{"a node that dies", []sourcetest.Decision{{Follow: node(sourcetest.Fault{Do: sourcetest.Die, At: 2 * mib})}}, nil, int64(len(p.NAR)) - 2*mib, 1},
		{"upstream that dies", []sourcetest.Decision{{}, {Follow: node()}}, []sourcetest.Fault{{Do: sourcetest.Die, At: 2 * mib}}, 2 * mib, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, withPeers, func(w *world) {
				w.peers.Coordinator = func(_ context.Context, call int, _ int64) sourcetest.Decision {
					if call < len(c.turns) {
						return c.turns[call]
					}
					return sourcetest.Decision{}
				}
			})
			w.up.Add(t, key, p)
			w.up.SetFaults(c.up...)
			w.wantWhole(nameOf(p, nix.Raw), p.NAR)
			w.stop()
			if w.up.Gave() != c.upGave {
				t.Errorf("upstream gave %d bytes, want %d", w.up.Gave(), c.upGave)
			}
			sessionEnds(w)
			ended := w.peers.Ended()
			if len(ended) != 1 || ended[0].Received != int64(len(p.NAR)) || ended[0].Readable < ended[0].Received-verify.TailSize ||
				ended[0].Outcome != source.Correct {
				t.Errorf("ended as %+v", ended)
			}
			if n := w.count("failovers_total"); n != c.failures {
				t.Errorf("%v failovers", n)
			}
		})
	}
}

// TestCoordinatorYields: a fetcher that is told to leave it to another node goes on from there
// at the same byte, and nobody is blamed.
func TestCoordinatorYields(t *testing.T) {
	p := nixtest.NewPath("hello", 5*mib)
	synctest.Test(t, func(t *testing.T) {
		other := sourcetest.NewPeer("other")
		other.AddBytes(p.NarHash(), nix.Raw, p.NAR)
		other.Trusted = true
		over := make(chan struct{})
		w := newWorld(t, withPeers, func(w *world) {
			w.peers.Coordinator = func(_ context.Context, call int, off int64) sourcetest.Decision {
				if call == 0 {
					time.AfterFunc(100*time.Millisecond, func() { close(over) })
					return sourcetest.Decision{Over: over}
				}
				if off != 2*mib {
					t.Errorf("goes on at %d", off)
				}
				return sourcetest.Decision{Follow: other}
			}
		})
		w.up.Add(t, key, p)
		w.up.SetFaults(sourcetest.Fault{Do: sourcetest.Hang, At: 2 * mib})
		start := time.Now()
		w.wantWhole(nameOf(p, nix.Raw), p.NAR)
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("took %v", took)
		}
		if w.count("failovers_total") != 0 || len(w.up.Reports()) != 0 {
			t.Error("upstream was blamed")
		}
	})
}

// TestNobodyHasIt: where neither upstream nor a peer has it, the NAR is absent, and the session
// is given back.
func TestNobodyHasIt(t *testing.T) {
	p := nixtest.NewPath("hello", 1000)
	w := newWorld(t, withPeers)
	w.up.AddInfo(p.Info(t, key))
	_, err := w.whole(t.Context(), nameOf(p, nix.Raw), transfer.Query{})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	if ended := w.peers.Ended(); len(ended) != w.peers.Begun() || len(ended) == 0 || ended[0].Outcome != source.GaveUp {
		t.Errorf("%d begun, ended as %+v", w.peers.Begun(), ended)
	}
}

// TestLastChance: before a NAR is refused, peers that are only being looked for are waited for,
// not for long, and not where peers must not be asked.
func TestLastChance(t *testing.T) {
	p, home := nixtest.NewPath("hello", 3*mib), nixtest.NewPath("home", 3*mib)
	for _, c := range []struct {
		name  string
		takes time.Duration
		found bool
		path  nixtest.Path
		key   nixtest.Key
		scope source.Scope
		want  time.Duration
		asked int
	}{
		{"found", time.Second, true, p, key, source.All, time.Second, 1},
		{"nobody", time.Second, false, p, key, source.All, time.Second, 1},
		{"too late", time.Minute, true, p, key, source.All, 1500 * time.Millisecond, 1},
		{"private", time.Second, true, home, homeKey, source.All, 0, 0},
		{"from this machine only", time.Second, true, p, key, source.LocalOnly, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, withPeers)
				asked := 0
				w.peers.OnSearch = func(ctx context.Context) bool {
					asked++
					select {
					case <-time.After(c.takes):
					case <-ctx.Done():
						return false
					}
					if c.found {
						w.peer.Add(t, c.key, c.path)
					}
					return c.found
				}
				w.disk.AddInfo(c.path.Info(t, c.key))
				start := time.Now()
				got, err := w.whole(t.Context(), nameOf(c.path, nix.Raw), transfer.Query{Scope: c.scope})
				served := c.found && c.want == time.Second
				if (err == nil) != served || !served && !errors.Is(err, fs.ErrNotExist) || served && !bytes.Equal(got, c.path.NAR) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				if took := time.Since(start); took != c.want || asked != c.asked {
					t.Errorf("after %v, %d searches", took, asked)
				}
			})
		})
	}
}

// TestOtherBuild: the URL names another NAR than the best narinfo does.
func TestOtherBuild(t *testing.T) {
	p := nixtest.NewPath("hello", 1000)
	mine := p
	mine.NAR = nixtest.FileNAR([]byte("built here"))
	for _, where := range []string{"disk", "peer", "upstream", "store"} {
		w := newWorld(t, withPeers)
		first, second := w.store, map[string]*sourcetest.Fake{"disk": w.disk, "peer": w.peer.Fake, "upstream": w.up, "store": w.store}[where]
		if where == "store" {
			first = w.up
		}
		first.Add(t, key, mine)
		if where == "store" {
			_, _ = w.r.Info(t.Context(), p.Hash(), source.All) // is in memory before the path comes to the store
		}
		second.Add(t, key, p)
		w.up.AddBytes(p.NarHash(), nix.Raw, p.NAR)
		w.wantWhole(nameOf(p, nix.Raw), p.NAR)
		w.wantWhole(nameOf(mine, nix.Raw), mine.NAR)
	}
	w := newWorld(t)
	w.store.Add(t, key, mine)
	if _, err := w.whole(t.Context(), nameOf(p, nix.Raw), transfer.Query{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nobody has it: %v", err)
	}
	w.up.Add(t, homeKey, p)
	if _, err := w.whole(t.Context(), nameOf(p, nix.Raw), transfer.Query{Scope: source.PublicOnly}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is private: %v", err)
	}
}

// TestPublicOnly: a client on another machine gets public NARs, and no request with credentials
// is made for it.
func TestPublicOnly(t *testing.T) {
	w := newWorld(t)
	p, secret := nixtest.NewPath("hello", 100_000), nixtest.NewPath("secret", 1000)
	w.up.Add(t, key, p)
	w.up.Add(t, homeKey, secret)
	q := transfer.Query{Scope: source.PublicOnly}
	if got, err := w.whole(t.Context(), nameOf(p, nix.Raw), q); err != nil || !bytes.Equal(got, p.NAR) {
		t.Errorf("public: %d bytes, error %v", len(got), err)
	}
	if _, err := w.whole(t.Context(), nameOf(secret, nix.Raw), q); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("private: %v", err)
	}
	if n := w.up.AskedAll() + w.up.Opened(nix.Raw); n != w.up.AskedAnonymously() {
		t.Errorf("asked %d times, %d of them without credentials", n, w.up.AskedAnonymously())
	}
}

// sessionEnds waits for the end of a session, which comes after that of the response.
func sessionEnds(w *world) {
	for len(w.peers.Ended()) == 0 {
		runtime.Gosched()
	}
}
