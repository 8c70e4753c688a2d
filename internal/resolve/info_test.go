package resolve_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
	"github.com/nixp2p/nixp2p/verify"
)

var errDisk = errors.New("input/output error")

func failing(err error) func(context.Context, nix.StoreHash) (*verify.Info, error) {
	return func(context.Context, nix.StoreHash) (*verify.Info, error) { return nil, err }
}

// hanging answers when its context ends.
func hanging(ctx context.Context, _ nix.StoreHash) (*verify.Info, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestInfoOrder: the cheapest source that has it answers, and none behind it is asked.
func TestInfoOrder(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	for at, name := range []string{"store", "disk", "peer", "upstream"} {
		w := newWorld(t, withPeers)
		w.peers.Positive.Store(true)
		sources := []*sourcetest.Fake{w.store, w.disk, w.peer.Fake, w.up}
		for _, s := range sources[at:] {
			s.Add(t, key, p)
		}
		a, err := w.r.Info(t.Context(), p.Hash(), source.All)
		if err != nil {
			t.Fatal(err)
		}
		if a.Info.NarHash() != p.NarHash() || !bytes.Contains(a.Text(), []byte("URL: "+nameOf(p, a.Form).URL()+"\n")) {
			t.Errorf("%s: answered %s", name, a.Text())
		}
		for i, s := range sources {
			if want := min(max(at-i+1, 0), 1); s.Asked(p.Hash()) != want {
				t.Errorf("%s has it: %s was asked %d times, want %d", name, s.Role(), s.Asked(p.Hash()), want)
			}
		}
		if got := w.count("narinfo_requests_total", "source", name, "result", "hit"); got != 1 {
			t.Errorf("%s: counted %v times", name, got)
		}
		if puts := len(w.disk.PutInfos()); puts != at/3 {
			t.Errorf("%s: %d infos put on disk", name, puts)
		}
	}
}

func TestInfoMemory(t *testing.T) {
	w := newWorld(t)
	p := nixtest.NewPath("hello", 100)
	w.up.Add(t, key, p)
	for range 3 {
		if _, err := w.r.Info(t.Context(), p.Hash(), source.All); err != nil {
			t.Fatal(err)
		}
	}
	if n := w.up.Asked(p.Hash()); n != 1 {
		t.Errorf("upstream was asked %d times", n)
	}
	if n := w.count("narinfo_requests_total", "source", "memory", "result", "hit"); n != 2 {
		t.Errorf("%v hits of the memory", n)
	}
	if info, err := w.r.ForNAR(t.Context(), nameOf(p, nix.Raw), source.All); err != nil || info.NarHash() != p.NarHash() {
		t.Errorf("for the NAR: %v", err)
	}
	if n := w.count("narinfo_requests_total"); n != 3 {
		t.Errorf("a NAR request was counted as one for a narinfo: %v", n)
	}
}

// TestRememberedMiss: only what every upstream itself said is remembered, for a minute, and longer each time.
func TestRememberedMiss(t *testing.T) {
	absent := nixtest.NewPath("absent", 1).Hash()
	for _, c := range []struct {
		name    string
		arrange func(w *world)
		kept    bool
		absent  bool // in the eyes of the asker
	}{
		{"absent", func(*world) {}, true, true},
		{"unavailable", func(w *world) { w.up.OnInfo(failing(errDisk)) }, false, false},
		{"invalid", func(w *world) { w.up.OnInfo(failing(invalid())) }, false, false},
		{"down", func(w *world) { w.up.SetDown(true) }, false, false},
		{"store unavailable", func(w *world) { w.store.OnInfo(failing(errDisk)) }, false, false},
		{"disk unavailable", func(w *world) { w.disk.OnInfo(failing(errDisk)) }, true, true},
		{"peers unavailable", func(w *world) { w.peers.OnInfo = failing(errDisk) }, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, withPeers)
				c.arrange(w)
				ask := func() {
					t.Helper()
					_, err := w.r.Info(t.Context(), absent, source.All)
					if err == nil || errors.Is(err, fs.ErrNotExist) != c.absent || errors.Is(err, resolve.ErrUnavailable) == c.absent {
						t.Errorf("error %v", err)
					}
				}
				for _, step := range []struct {
					wait time.Duration
					kept bool
				}{{0, false}, {59 * time.Second, true}, {2 * time.Second, false}, {119 * time.Second, true}, {2 * time.Second, false}} {
					pass(step.wait)
					before := w.store.Asked(absent)
					ask()
					if asked := w.store.Asked(absent) > before; asked == (step.kept && c.kept) {
						t.Errorf("%v later: sources asked: %v", step.wait, asked)
					}
				}
			})
		})
	}
}

// TestCallersLeave: whoever leaves, the flight goes on, and its answer is remembered.
func TestCallersLeave(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	for _, second := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.up.Add(t, key, p)
			open := make(chan struct{})
			w.up.OnInfo(func(ctx context.Context, _ nix.StoreHash) (*verify.Info, error) {
				select {
				case <-open:
					return nil, nil
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			})
			first, leave := context.WithCancel(t.Context())
			var group sync.WaitGroup
			group.Go(func() {
				if _, err := w.r.Info(first, p.Hash(), source.All); !errors.Is(err, context.Canceled) {
					t.Errorf("the first, who left: %v", err)
				}
			})
			synctest.Wait()
			if second {
				group.Go(func() {
					if _, err := w.r.Info(t.Context(), p.Hash(), source.All); err != nil {
						t.Errorf("the second, who stayed: %v", err)
					}
				})
			}
			synctest.Wait()
			leave()
			synctest.Wait()
			close(open)
			group.Wait()
			synctest.Wait()
			if _, err := w.r.Info(t.Context(), p.Hash(), source.All); err != nil {
				t.Errorf("later: %v", err)
			}
			if n := w.up.Asked(p.Hash()); n != 1 {
				t.Errorf("upstream was asked %d times", n)
			}
		})
	}
}

func TestSharedFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := nixtest.NewPath("hello", 100)
		w.up.Add(t, key, p)
		w.up.OnInfo(func(context.Context, nix.StoreHash) (*verify.Info, error) {
			pass(time.Second)
			return nil, nil
		})
		var group sync.WaitGroup
		for range 100 {
			group.Go(func() {
				if _, err := w.r.Info(t.Context(), p.Hash(), source.All); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if n := w.up.Asked(p.Hash()); n != 1 {
			t.Errorf("upstream was asked %d times", n)
		}
	})
}

func on(s func(*world) *sourcetest.Fake) func(*world) func(func(context.Context, nix.StoreHash) (*verify.Info, error)) {
	return func(w *world) func(func(context.Context, nix.StoreHash) (*verify.Info, error)) { return s(w).OnInfo }
}

func onPeers(w *world) func(func(context.Context, nix.StoreHash) (*verify.Info, error)) {
	return func(fn func(context.Context, nix.StoreHash) (*verify.Info, error)) {
		w.peers.OnInfo = fn
		w.peers.Positive.Store(fn != nil)
	}
}

// TestInfoDeadline: an answer comes in time whatever hangs, also what ignores its context.
func TestInfoDeadline(t *testing.T) {
	deaf := make(chan struct{})
	hangingDeaf := func(context.Context, nix.StoreHash) (*verify.Info, error) {
		<-deaf
		return nil, errDisk
	}
	p := nixtest.NewPath("hello", 100)
	for _, c := range []struct {
		name  string
		reach source.Scope
		edit  func(w *world, cfg *resolve.Config)
		hang  func(w *world) func(func(context.Context, nix.StoreHash) (*verify.Info, error))
		down  bool
		want  time.Duration
	}{
		{name: "upstream", hang: on(func(w *world) *sourcetest.Fake { return w.up }), want: 10 * time.Second},
		{name: "store", hang: on(func(w *world) *sourcetest.Fake { return w.store }), want: 10 * time.Second},
		{name: "store for this machine", reach: source.LocalOnly, hang: on(func(w *world) *sourcetest.Fake { return w.store }), want: 10 * time.Second},
		{name: "down", hang: on(func(w *world) *sourcetest.Fake { return w.store }), down: true, want: 100 * time.Millisecond},
		{name: "down with peers", edit: withPeers, hang: onPeers, down: true, want: time.Second},
		{
			name: "no upstream", edit: func(_ *world, cfg *resolve.Config) { cfg.Upstream = nil },
			hang: on(func(w *world) *sourcetest.Fake { return w.store }), want: 100 * time.Millisecond,
		},
	} {
		for name, fn := range map[string]func(context.Context, nix.StoreHash) (*verify.Info, error){"hears": hanging, "deaf": hangingDeaf} {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					deaf = make(chan struct{})
					w := newWorld(t, func(w *world, cfg *resolve.Config) {
						if c.edit != nil {
							c.edit(w, cfg)
						}
					})
					w.up.SetDown(c.down)
					c.hang(w)(fn)
					start := time.Now()
					_, err := w.r.Info(t.Context(), p.Hash(), c.reach)
					if took := time.Since(start); err == nil || took != c.want {
						t.Errorf("error %v after %v, want %v", err, took, c.want)
					}
					if errors.Is(err, fs.ErrNotExist) {
						t.Errorf("told as absent: %v", err)
					}
					synctest.Wait()
					// The source is well again: who asks now does not join what is over.
					c.hang(w)(nil)
					w.store.Add(t, key, p)
					if _, err := w.r.Info(t.Context(), p.Hash(), c.reach); err != nil {
						t.Errorf("later: %v", err)
					}
					close(deaf)
				})
			})
		}
	}
}

// TestSaturatedDeadline: while bytes come over the line, who waits in its queue waits on, up to a limit.
func TestSaturatedDeadline(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	for name, c := range map[string]struct {
		crowded, answered time.Duration // until then
		want              time.Duration
	}{
		"never crowded":              {0, time.Hour, 10 * time.Second},
		"answered late":              {time.Hour, 12 * time.Second, 12 * time.Second},
		"not crowded any more":       {12500 * time.Millisecond, time.Hour, 13 * time.Second},
		"crowded and no answer":      {time.Hour, time.Hour, 45 * time.Second},
		"answered while all is well": {0, time.Second, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.up.Add(t, key, p)
				w.up.SetSaturated(c.crowded > 0)
				time.AfterFunc(c.crowded, func() { w.up.SetSaturated(false) })
				w.up.OnInfo(func(ctx context.Context, _ nix.StoreHash) (*verify.Info, error) {
					select {
					case <-time.After(c.answered):
						return nil, nil
					case <-ctx.Done():
						return nil, ctx.Err()
					}
				})
				start := time.Now()
				_, err := w.r.Info(t.Context(), p.Hash(), source.All)
				if took := time.Since(start); took != c.want || (err == nil) != (c.answered == c.want) {
					t.Errorf("%v after %v, want %v", err, took, c.want)
				}
				if err != nil && w.count("narinfo_requests_total", "source", "none", "result", "timeout") != 1 {
					t.Error("not counted as a time-out")
				}
			})
		})
	}
}

func TestInfoTimeoutCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.up.OnInfo(hanging)
		_, _ = w.r.Info(t.Context(), nix.StoreHash{1}, source.All)
		if n := w.count("narinfo_requests_total", "source", "none", "result", "timeout"); n != 1 {
			t.Errorf("%v time-outs counted", n)
		}
	})
}

// TestThisMachine: a question that was here before goes no further, nor do its references.
func TestThisMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, withPeers)
		dep := nixtest.NewPath("dep", 100)
		here, there := nixtest.NewPath("here", 100, dep.StorePath), nixtest.NewPath("there", 100)
		w.store.Add(t, key, here)
		w.up.Add(t, key, here, there, dep)
		w.peer.Add(t, key, there)
		if _, err := w.r.Info(t.Context(), here.Hash(), source.LocalOnly); err != nil {
			t.Error(err)
		}
		_, err := w.r.Info(t.Context(), there.Hash(), source.LocalOnly)
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("what is elsewhere: %v", err)
		}
		// The second time the answer comes from memory.
		_, _ = w.r.Info(t.Context(), here.Hash(), source.LocalOnly)
		if _, err = w.r.ForNAR(t.Context(), nameOf(there, nix.Raw), source.LocalOnly); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("for a NAR that is elsewhere: %v", err)
		}
		synctest.Wait()
		if w.up.AskedAll()+w.peer.AskedAll() != 0 {
			t.Error("it was asked afar")
		}
		// That was no miss: an ordinary question finds it.
		if _, err := w.r.Info(t.Context(), there.Hash(), source.All); err != nil {
			t.Error(err)
		}
	})
}

func TestLookAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		deep := nixtest.NewPath("deep", 10)
		a, b := nixtest.NewPath("a", 10, deep.StorePath), nixtest.NewPath("b", 10)
		root := nixtest.NewPath("root", 10, a.StorePath, b.StorePath, nixtest.NewPath("root", 10).StorePath)
		w.up.Add(t, key, root, a, b, deep)
		for range 3 {
			if _, err := w.r.Info(t.Context(), root.Hash(), source.All); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		for _, c := range []struct {
			p    nixtest.Path
			want int
		}{{root, 1}, {a, 1}, {b, 1}, {deep, 0}} {
			if n := w.up.Asked(c.p.Hash()); n != c.want {
				t.Errorf("%s was asked for %d times, want %d", c.p.StorePath.Name(), n, c.want)
			}
		}
		if _, err := w.r.Info(t.Context(), a.Hash(), source.All); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if w.up.Asked(a.Hash()) != 1 || w.up.Asked(deep.Hash()) != 1 {
			t.Error("what was looked up ahead is not in memory, or the next are not looked up")
		}
		if n := w.count("narinfo_requests_total"); n != 4 {
			t.Errorf("%v requests counted, there were 4", n)
		}
	})
}

// TestLookAheadBounded: a path with very many references costs no more than the queue, holds
// nobody up, and does not ask an upstream that is down.
func TestLookAheadBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var refs []nix.StorePath
		for i := range 10_000 {
			refs = append(refs, nixtest.NewPath(fmt.Sprint("r", i), 0).StorePath)
		}
		root := nixtest.NewPath("root", 10, refs...)
		w.up.Add(t, key, root)
		var mu sync.Mutex
		running, most := 0, 0
		w.up.OnInfo(func(ctx context.Context, h nix.StoreHash) (*verify.Info, error) {
			if h == root.Hash() {
				return nil, nil
			}
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			<-ctx.Done()
			mu.Lock()
			running--
			mu.Unlock()
			return nil, ctx.Err()
		})
		start := time.Now()
		if _, err := w.r.Info(t.Context(), root.Hash(), source.All); err != nil || time.Since(start) != 0 {
			t.Errorf("error %v after %v", err, time.Since(start))
		}
		pass(25 * time.Second)
		mu.Lock()
		if most > 2*16 { // those whose time is over still end when the next begin
			t.Errorf("%d at once", most)
		}
		mu.Unlock()
		w.up.SetDown(true)
		pass(11 * time.Second)
		asked := w.up.AskedAll()
		pass(time.Hour)
		if w.up.AskedAll() != asked {
			t.Error("an upstream that is down was asked")
		}
	})
}

// TestInvalidInfo: a wrong narinfo is counted, and the next source is asked.
func TestInvalidInfo(t *testing.T) {
	w := newWorld(t, withPeers)
	p := nixtest.NewPath("hello", 100)
	w.up.Add(t, key, p)
	for _, s := range []*sourcetest.Fake{w.store, w.disk} {
		s.OnInfo(failing(fmt.Errorf("wrapped: %w", invalid())))
	}
	onPeers(w)(failing(fmt.Errorf("wrapped: %w", invalid())))
	if _, err := w.r.Info(t.Context(), p.Hash(), source.All); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]float64{"store": 1, "disk": 1, "peer": 0 /* they count their own */} {
		if n := w.count("verify_failures_total", "source", name, "reason", "bad_signature"); n != want {
			t.Errorf("%s: %v counted, want %v", name, n, want)
		}
	}
}

func TestForget(t *testing.T) {
	w := newWorld(t)
	p, q := nixtest.NewPath("hello", 100), nixtest.NewPath("later", 100)
	w.up.Add(t, key, p)
	ask := func(p nixtest.Path) error {
		_, err := w.r.Info(t.Context(), p.Hash(), source.All)
		return err
	}
	if ask(p) != nil || ask(q) == nil {
		t.Fatal("wrong from the beginning")
	}
	w.store.Add(t, key, p, q)
	if ask(q) == nil {
		t.Fatal("the miss was not remembered")
	}
	w.r.Forget(p.Hash(), q.Hash())
	if ask(p) != nil || ask(q) != nil || w.store.Asked(p.Hash()) != 2 {
		t.Error("not asked anew")
	}
}

// TestForgetInFlight: what is under way while a path comes leaves nothing behind, and nobody
// joins it.
func TestForgetInFlight(t *testing.T) {
	for i := range 4 {
		has, late := i&1 != 0, i&2 != 0
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			p := nixtest.NewPath("hello", 100)
			if has {
				w.up.Add(t, key, p)
			}
			w.up.OnInfo(func(context.Context, nix.StoreHash) (*verify.Info, error) {
				pass(time.Second)
				return nil, nil
			})
			var group sync.WaitGroup
			group.Go(func() {
				if _, err := w.r.Info(t.Context(), p.Hash(), source.All); (err == nil) != has {
					t.Errorf("upstream has it: %v; error %v", has, err)
				}
			})
			synctest.Wait()
			w.store.Add(t, key, p)
			w.r.Forget(p.Hash())
			if late {
				group.Wait()
			}
			start := time.Now()
			if _, err := w.r.Info(t.Context(), p.Hash(), source.All); err != nil || time.Since(start) != 0 || w.store.Asked(p.Hash()) != 2 {
				t.Errorf("upstream has it: %v; late: %v; error %v after %v", has, late, err, time.Since(start))
			}
			group.Wait()
		})
	}
}

// TestSharedOnly: for another machine, what is private is as what does not exist, in what is
// answered and in what is done for the answer.
func TestSharedOnly(t *testing.T) {
	for _, where := range []string{"nowhere", "store", "disk", "upstream", "memory"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			secret := nixtest.NewPath("secret", 100)
			switch where {
			case "store", "memory":
				w.store.Add(t, homeKey, secret)
			case "disk":
				w.disk.Add(t, homeKey, secret)
			case "upstream":
				w.up.Add(t, homeKey, secret)
			}
			if where == "memory" {
				if _, err := w.r.Info(t.Context(), secret.Hash(), source.All); err != nil {
					t.Fatal(err)
				}
			}
			asked := w.up.Asked(secret.Hash())
			trips := func() int { return w.up.AskedAnonymously() }
			for i := range 3 {
				_, err := w.r.Info(t.Context(), secret.Hash(), source.PublicOnly)
				if !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: told %v", where, err)
				}
				if trips() != 1 {
					t.Errorf("%s: question %d: %d round trips, want 1 and then none", where, i, trips())
				}
			}
			_, err := w.r.ForNAR(t.Context(), nameOf(secret, nix.Raw), source.PublicOnly)
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: for its NAR: %v", where, err)
			}
			if w.up.Asked(secret.Hash()) != w.up.AskedAnonymously()+asked {
				t.Errorf("%s: an upstream was asked with credentials", where)
			}
			_, err = w.r.Info(t.Context(), secret.Hash(), source.All)
			if (err == nil) != (where != "nowhere") {
				t.Errorf("%s: this machine's own question was spoilt: %v", where, err)
			}
			pass(61 * time.Second)
			_, _ = w.r.Info(t.Context(), secret.Hash(), source.PublicOnly)
		})
	}
}

// TestPublicView: for others, what is on this machine is asked by its view for others.
func TestPublicView(t *testing.T) {
	w := newWorld(t)
	p, kept := nixtest.NewPath("hello", 100), nixtest.NewPath("kept", 100)
	w.store.Add(t, key, p)
	w.disk.Add(t, key, kept)
	for range 2 {
		for _, h := range []nix.StoreHash{p.Hash(), kept.Hash()} {
			if _, err := w.r.Info(t.Context(), h, source.PublicOnly); err != nil {
				t.Error(err)
			}
		}
	}
	if w.store.AskedPublic() != 2 || w.store.AskedAll() != 2 || w.disk.AskedPublic() != 1 || w.disk.AskedAll() != 1 {
		t.Errorf("store asked %d times, %d of them by its public view; disk %d, %d",
			w.store.AskedAll(), w.store.AskedPublic(), w.disk.AskedAll(), w.disk.AskedPublic())
	}
}

func TestBestForm(t *testing.T) {
	p := nixtest.NewPath("hello", 10_000)
	for _, c := range []struct {
		name    string
		arrange func(w *world) nix.Form
	}{
		{"upstream xz", func(w *world) nix.Form {
			info, _ := w.up.AddFile(t, key, p, nix.XZ, nil)
			form, _ := info.FileForm()
			return form
		}},
		{"upstream gzip", func(w *world) nix.Form {
			w.up.AddFile(t, key, p, nix.Gzip, nil)
			return nix.Raw
		}},
		{"no file hash", func(w *world) nix.Form {
			w.up.AddFile(t, key, p, nix.XZ, func(n *nix.NarInfo) { n.FileHash = nix.FileHash{} })
			return nix.Raw
		}},
		{"raw in the cache", func(w *world) nix.Form {
			w.up.AddFile(t, key, p, nix.XZ, nil)
			w.cache.add(p.NarHash(), nix.Raw)
			return nix.Raw
		}},
		{"store", func(w *world) nix.Form {
			w.up.AddFile(t, key, p, nix.XZ, nil)
			w.store.Add(t, key, p)
			return nix.Raw
		}},
	} {
		w := newWorld(t)
		want := c.arrange(w)
		a, err := w.r.Info(t.Context(), p.Hash(), source.All)
		if err != nil || a.Form != want {
			t.Errorf("%s: %s, want %s, error %v", c.name, a.Form, want, err)
			continue
		}
		n, err := nix.ParseNarInfo(a.Text())
		if err != nil || n.URL != nameOf(p, want).URL() || n.NarHash != p.NarHash() || len(n.Sigs) != 1 {
			t.Errorf("%s: %v\n%s", c.name, err, a.Text())
		}
	}
}

func TestWhy(t *testing.T) {
	w := newWorld(t, withPeers)
	p := nixtest.NewPath("hello", 100)
	w.up.Add(t, key, p)
	w.store.OnInfo(failing(errDisk))
	w.cache.add(p.NarHash(), nix.Raw)
	var said []string
	for _, f := range w.r.Why(t.Context(), p.Hash()) {
		said = append(said, fmt.Sprint(f.Source.String(), f.Info != nil, errors.Is(f.Err, errDisk), len(f.Forms)))
	}
	want := []string{"storefalse true 0", "diskfalse false 0", "peerfalse false 0", "upstreamtrue false 0", "cachetrue false 1"}
	if fmt.Sprint(said) != fmt.Sprint(want) {
		t.Errorf("said %q", said)
	}
}

// TestShutdown: Run ends what is under way and waits for it, and what comes later is refused.
func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := nixtest.NewPath("hello", 100)
		w.up.OnInfo(hanging)
		var group sync.WaitGroup
		group.Go(func() {
			if _, err := w.r.Info(t.Context(), p.Hash(), source.All); err == nil {
				t.Error("a narinfo came out of it")
			}
		})
		synctest.Wait()
		start := time.Now()
		w.stop()
		group.Wait()
		if took := time.Since(start); took > 0 {
			t.Errorf("took %v", took)
		}
		if _, err := w.r.Info(t.Context(), p.Hash(), source.All); err == nil {
			t.Error("an answer after the end")
		}
	})
}

// TestMemoryBounded: memory is bounded in bytes, whatever narinfos are made of.
func TestMemoryBounded(t *testing.T) {
	w := newWorld(t)
	refs := make([]nix.StorePath, 8000)
	for i := range refs {
		refs[i] = nixtest.NewPath(fmt.Sprint("ref", i), 0).StorePath
	}
	first := nixtest.NewPath("first", 10)
	w.up.Add(t, key, first)
	const fat = 60 // about a megabyte each
	for i := range fat {
		w.up.Add(t, key, nixtest.NewPath(fmt.Sprint("fat", i), 10, refs...))
	}
	w.up.SetDown(false)
	for _, h := range []nix.StoreHash{first.Hash()} {
		if _, err := w.r.Info(t.Context(), h, source.PublicOnly); err != nil { // which looks nothing up in advance
			t.Fatal(err)
		}
	}
	for i := range fat {
		if _, err := w.r.Info(t.Context(), nixtest.NewPath(fmt.Sprint("fat", i), 10).Hash(), source.PublicOnly); err != nil {
			t.Fatal(err)
		}
	}
	if bytes := w.r.MemoryBytes(); bytes > 32<<20 || bytes < 16<<20 {
		t.Errorf("%d bytes", bytes)
	}
	before := w.up.Asked(first.Hash())
	_, _ = w.r.Info(t.Context(), first.Hash(), source.PublicOnly)
	last := nixtest.NewPath(fmt.Sprint("fat", fat-1), 10).Hash()
	_, _ = w.r.Info(t.Context(), last, source.PublicOnly)
	if w.disk.Asked(first.Hash()) != 2 || w.up.Asked(last) != 1 || before != 1 {
		t.Errorf("the least used was kept, or the last used was not: %d, %d", w.disk.Asked(first.Hash()), w.up.Asked(last))
	}
}

// TestDistrust: a file that was wrong is not offered again, and its narinfo is forgotten.
func TestDistrust(t *testing.T) {
	w := newWorld(t)
	p := nixtest.NewPath("hello", 10_000)
	info, _ := w.up.AddFile(t, key, p, nix.XZ, nil)
	form, _ := info.FileForm()
	if a, err := w.r.Info(t.Context(), p.Hash(), source.All); err != nil || a.Form != form {
		t.Fatalf("%+v, %v", a, err)
	}
	if got := w.r.FromUpstream(t.Context(), nameOf(p, form), source.All); got == nil || got.Hints().FileSize != info.Hints().FileSize {
		t.Error("the upstream's narinfo is not known")
	}
	w.r.Distrust(info, form)
	if got := w.disk.Forgotten(); len(got) != 1 || got[0] != p.Hash() {
		t.Errorf("forgotten on disk: %v", got)
	}
	if a, err := w.r.Info(t.Context(), p.Hash(), source.All); err != nil || !a.Form.IsRaw() || w.up.Asked(p.Hash()) != 2 {
		t.Errorf("%+v, %v, asked %d times", a, err, w.up.Asked(p.Hash()))
	}
}

// TestPeersFiles: what peers say about files is not believed.
func TestPeersFiles(t *testing.T) {
	w := newWorld(t, withPeers)
	p := nixtest.NewPath("hello", 10_000)
	info, _ := w.peer.AddFile(t, key, p, nix.XZ, nil)
	form, _ := info.FileForm()
	w.up.SetDown(true)
	if a, err := w.r.Info(t.Context(), p.Hash(), source.All); err != nil || !a.Form.IsRaw() {
		t.Errorf("%+v, %v", a, err)
	}
	if w.r.FromUpstream(t.Context(), nameOf(p, form), source.All) != nil {
		t.Error("a peer's narinfo is taken for one of an upstream")
	}
}
