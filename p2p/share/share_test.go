package share

import (
	"bytes"
	"context"
	"errors"
	"github.com/nixp2p/nixp2p/p2p/machine"
	"io"
	"io/fs"
	"iter"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/wire"
	"github.com/nixp2p/nixp2p/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var key, home = nixtest.NewKey("site-1"), nixtest.NewKey("home-1")

// fakeStore is a Store.
type fakeStore struct {
	*sourcetest.Fake
	mu    sync.Mutex
	paths []Path
}

func newFakeStore(t testing.TB, paths ...nixtest.Path) *fakeStore {
	t.Helper()
	s := &fakeStore{Fake: sourcetest.NewFake(source.Store).Share(key.Name)}
	s.Add(t, key, paths...)
	for _, p := range paths {
		s.paths = append(s.paths, pathIn(p))
	}
	return s
}

func pathIn(p nixtest.Path) Path {
	return Path{Store: p.Hash(), Nar: p.NarHash(), Size: int64(len(p.NAR))}
}

func (s *fakeStore) Shares() iter.Seq[Path] {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Values(slices.Clone(s.paths))
}

func (s *fakeStore) Listed(h nix.StoreHash) (Path, bool) {
	for p := range s.Shares() {
		if p.Store == h {
			return p, true
		}
	}
	return Path{}, false
}

// fakeCache has types of its own, as the real one.
type fakeCache struct {
	*sourcetest.Fake
	mu        sync.Mutex
	sizes     map[nix.NarHash][]source.Sized
	downloads map[nix.NarHash][]*fakeDownload
	proofs    int
	proof     error // of Prove
}

func newFakeCache() *fakeCache {
	return &fakeCache{Fake: sourcetest.NewFake(source.Cache), sizes: map[nix.NarHash][]source.Sized{}, downloads: map[nix.NarHash][]*fakeDownload{}}
}

func (c *fakeCache) keep(nar nix.NarHash, form nix.Form, b []byte) {
	c.AddBytes(nar, form, b)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sizes[nar] = append(c.sizes[nar], source.Sized{Form: form, Size: int64(len(b))})
}

func (c *fakeCache) Sizes(nar nix.NarHash) []source.Sized {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sizes[nar]
}

func (c *fakeCache) Prove(context.Context, *verify.Info, nix.Form) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.proofs++
	return c.proof
}

func (c *fakeCache) Proven(nix.NarHash, nix.Form) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.proofs > 0
}

func (c *fakeCache) Downloads(nar nix.NarHash) []*fakeDownload {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.downloads[nar]
}

func (c *fakeCache) drop(nar nix.NarHash) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sizes, nar)
	delete(c.downloads, nar)
}

// fakeDownload has a part of its bytes.
type fakeDownload struct {
	form nix.Form
	size int64
	b    []byte
}

type reader struct{ *bytes.Reader }

func (reader) Close() error { return nil }

func (d *fakeDownload) Form() nix.Form  { return d.form }
func (d *fakeDownload) Size() int64     { return d.size }
func (d *fakeDownload) Readable() int64 { return int64(len(d.b)) }
func (d *fakeDownload) PeerReader(off int64) *reader {
	return &reader{bytes.NewReader(d.b[min(off, int64(len(d.b))):])}
}

// fakeInfos is an Infos.
type fakeInfos []*verify.Info

func (f fakeInfos) Public(_ context.Context, h nix.StoreHash) (*verify.Info, error) {
	for _, i := range f {
		if i.StorePath().Hash() == h {
			return i, nil
		}
	}
	return nil, fs.ErrNotExist
}

func (f fakeInfos) Each(_ context.Context, keep func(nix.StoreHash, nix.NarHash) bool) iter.Seq[*verify.Info] {
	return func(yield func(*verify.Info) bool) {
		for _, i := range f {
			if keep(i.StorePath().Hash(), i.NarHash()) && !yield(i) {
				return
			}
		}
	}
}

// holder returns a Holder of these, which has counted the store.
func holder(t testing.TB, s *fakeStore, c *fakeCache, infos ...*verify.Info) *Holder {
	t.Helper()
	cfg := Config{Store: s, Infos: fakeInfos(infos), ShareKeys: []string{key.Name}}
	if c != nil {
		cfg.Cache = CacheOf(c)
	}
	h := New(cfg)
	h.recall(t.Context())
	h.recount(t.Context())
	return h
}

// TestAbsent: a path that is not shared looks like one that does not exist, and nothing is
// read for either.
func TestAbsent(t *testing.T) {
	shared, private, unsigned, absent := nixtest.NewPath("shared", 10), nixtest.NewPath("private", 10), nixtest.NewPath("unsigned", 10), nixtest.NewPath("absent", 10)
	s := newFakeStore(t, shared)
	s.Add(t, home, private)
	s.AddBytes(unsigned.NarHash(), nix.Raw, unsigned.NAR)
	h := holder(t, s, newFakeCache())
	h.Downloading(private.Info(t, home))
	for name, p := range map[string]nixtest.Path{"private": private, "unsigned": unsigned, "absent": absent} {
		_, err := h.Info(t.Context(), p.Hash().Question())
		_, errNAR := h.NAR(t.Context(), p.NarHash(), nix.Raw)
		if err != errAbsent || errNAR != errAbsent { //nolint:errorlint // exactly the same
			t.Errorf("%s: %v, %v", name, err, errNAR)
		}
	}
	if n := s.AskedAll() + s.Opened(nix.Raw); n != 0 {
		t.Errorf("the store was asked %d times", n)
	}
	a, err := h.Info(t.Context(), shared.Hash().Question())
	if err != nil || len(a.Text) > wire.MaxInfo || len(a.Forms) != 1 {
		t.Fatalf("%v, %v", a.Forms, err)
	}
	if _, err := nixtest.Keys(t, key).Open(a.Text, shared.Hash()); err != nil {
		t.Error(err)
	}
	q := shared.Hash().Question()
	q[len(q)-1]++                                           // the same key
	if _, err := h.Info(t.Context(), q); err != errAbsent { //nolint:errorlint // as above
		t.Errorf("another question with the same key: %v", err)
	}
}

// send returns what leaves.
func send(t *testing.T, h *Holder, p nixtest.Path, form nix.Form, off int64) ([]byte, error) {
	t.Helper()
	n, err := h.NAR(t.Context(), p.NarHash(), form)
	if err != nil {
		return nil, err
	}
	done, err := n.Ready(t.Context(), machine.ID{})
	if err != nil {
		return nil, err
	}
	defer done()
	var out bytes.Buffer
	err = n.Send(t.Context(), &out, off)
	return out.Bytes(), err
}

func TestSend(t *testing.T) {
	stored, cached, growing := nixtest.NewPath("stored", 3<<20), nixtest.NewPath("cached", 2<<20), nixtest.NewPath("growing", 2<<20)
	c := newFakeCache()
	xz := nix.Form{Compression: nix.XZ, File: nix.FileHash(cached.NarHash())}
	c.keep(cached.NarHash(), xz, cached.NAR) // a file whose hash is right
	c.AddBytes(cached.NarHash(), nix.Raw, cached.NAR)
	c.downloads[growing.NarHash()] = []*fakeDownload{{nix.Raw, int64(len(growing.NAR)), growing.NAR[:1<<20]}}
	h := holder(t, newFakeStore(t, stored), c, cached.Info(t, key))
	h.Downloading(growing.Info(t, key))
	for _, test := range []struct {
		name string
		path nixtest.Path
		form nix.Form
		off  int64
		want []byte
		err  error
	}{
		{"store", stored, nix.Raw, 0, stored.NAR, nil},
		{"store, from the middle", stored, nix.Raw, 1<<20 + 7, stored.NAR[1<<20+7:], nil},
		{"store, another form", stored, xz, 0, nil, fs.ErrNotExist},
		{"file", cached, xz, 5, cached.NAR[5:], nil},
		{"decoded", cached, nix.Raw, 5, cached.NAR[5:], nil},
		{"growing, cut", growing, nix.Raw, 100, growing.NAR[100 : 1<<20], io.ErrUnexpectedEOF},
	} {
		got, err := send(t, h, test.path, test.form, test.off)
		if !errors.Is(err, test.err) || !bytes.Equal(got, test.want) {
			t.Errorf("%s: %d bytes, %v", test.name, len(got), err)
		}
	}
	if c.proofs != 1 {
		t.Errorf("the file was proven %d times", c.proofs)
	}
	a, err := h.Info(t.Context(), growing.Hash().Question())
	if want := (wire.Present{Form: nix.Raw, Bytes: 1 << 20, Size: int64(len(growing.NAR))}); err != nil || !slices.Equal(a.Forms, []wire.Present{want}) {
		t.Errorf("%v, %v", a.Forms, err)
	}
}

// TestWrongBytes: what the disk damaged does not leave as a whole, and is reported.
func TestWrongBytes(t *testing.T) {
	p := nixtest.NewPath("damaged", 3<<20)
	s := newFakeStore(t, p)
	wrong := bytes.Clone(p.NAR)
	wrong[len(wrong)/2] ^= 1
	s.AddBytes(p.NarHash(), nix.Raw, wrong)
	got, err := send(t, holder(t, s, nil), p, nix.Raw, 0)
	if source.Invalid(err) == nil || len(got) > len(wrong)-verify.TailSize {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if len(s.Reports()) != 1 {
		t.Errorf("%v", s.Reports())
	}
}

// TestUnprovenFile: a file whose hash is right and whose contents are not reaches no peer.
func TestUnprovenFile(t *testing.T) {
	p := nixtest.NewPath("file", 1000)
	c := newFakeCache()
	c.proof = &verify.InvalidError{Reason: verify.ReasonHash, Err: errors.New("decoded")}
	form := nix.Form{Compression: nix.Zstd, File: nix.FileHash{1}}
	c.keep(p.NarHash(), form, []byte("anything"))
	h := holder(t, newFakeStore(t), c, p.Info(t, key))
	if got, err := send(t, h, p, form, 0); len(got) > 0 || source.Invalid(err) == nil {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if n := c.Opened(form); n != 0 {
		t.Error("it was read")
	}
}

// TestDecodeSlots: decoding for peers is bounded.
func TestDecodeSlots(t *testing.T) {
	p := nixtest.NewPath("file", 1000)
	c := newFakeCache()
	c.keep(p.NarHash(), nix.Form{Compression: nix.XZ, File: nix.FileHash{1}}, []byte("x"))
	h := holder(t, newFakeStore(t), c, p.Info(t, key))
	n, err := h.NAR(t.Context(), p.NarHash(), nix.Raw)
	if err != nil || !n.Decodes() || n.Size != int64(len(p.NAR)) {
		t.Fatalf("%+v, %v", n, err)
	}
	done, err := n.Ready(t.Context(), machine.ID{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Ready(t.Context(), machine.ID{}); !errors.Is(err, ErrBusy) {
		t.Errorf("%v", err)
	}
	done()
	if done, err = n.Ready(t.Context(), machine.ID{}); err != nil {
		t.Fatal(err)
	}
	done()
	if c.Opened(nix.Raw) != 0 {
		t.Error("something was decoded before Send")
	}
}

// TestSet holds the set against a simple model.
func TestSet(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	s := newSet(inventory.NewLocal())
	type at struct {
		p     Path
		where place
	}
	model := map[nix.StoreHash]at{}
	large := map[nix.NarHash]bool{}
	for range 20_000 {
		h := nix.StoreHash{byte(r.IntN(40))}
		p := Path{Store: h, Nar: nix.NarHash{byte(r.IntN(8))}, Size: largeNAR}
		where := place(1 << r.IntN(2))
		m, ok := model[h]
		if r.IntN(2) == 0 {
			s.add(p, where, nil)
			if ok && m.p != p {
				m.where = 0
			}
			model[h] = at{p, m.where | where}
		} else {
			s.remove(h, where)
			if m.where &^= where; m.where == 0 {
				delete(model, h)
			} else {
				model[h] = m
			}
		}
		came, went := s.takeLarge()
		for _, nar := range came {
			large[nar] = true
		}
		for _, nar := range went {
			delete(large, nar)
		}
	}
	nars := map[nix.NarHash]bool{}
	for h, m := range model {
		nars[m.p.Nar] = true
		if rec, ok := s.byQuestion(h.Question()); !ok || rec.path != m.p || rec.where != m.where {
			t.Errorf("%v, want %v", rec, m)
		}
		if rec, ok := s.byNAR(m.p.Nar); !ok || rec.path.Nar != m.p.Nar {
			t.Errorf("by NAR: %v, %v", rec, ok)
		}
	}
	if s.Len() != len(model) || len(s.byNar) != len(nars) || len(large) != len(nars) {
		t.Errorf("%d paths, want %d; %d NARs, %d large, want %d", s.Len(), len(model), len(s.byNar), len(large), len(nars))
	}
	left := 0
	for _, list := range s.more {
		left += len(list)
	}
	if left != len(model)-len(nars) {
		t.Errorf("%d further paths, want %d", left, len(model)-len(nars))
	}
}

// directory is a DHT.
type directory struct{ nars map[nix.NarHash]bool }

func (d *directory) Provide(nars []nix.NarHash) {
	for _, n := range nars {
		d.nars[n] = true
	}
}

func (d *directory) Withdraw(nars []nix.NarHash) {
	for _, n := range nars {
		delete(d.nars, n)
	}
}

// TestAnnouncer: the inventory and the DHT follow the store, the cache and downloads.
func TestAnnouncer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stored, cached, growing := nixtest.NewPath("stored", 2<<20), nixtest.NewPath("cached", 1000), nixtest.NewPath("growing", 2<<20)
		s, c := newFakeStore(t, stored), newFakeCache()
		c.keep(cached.NarHash(), nix.Raw, cached.NAR)
		h := New(Config{Store: s, Cache: CacheOf(c), Infos: fakeInfos{cached.Info(t, key)}, ShareKeys: []string{key.Name}})
		a, d := NewAnnouncer(h), &directory{map[nix.NarHash]bool{}}
		a.DHT = d
		told := 0
		a.Changed = func() { told++ }
		var run sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		run.Go(func() { a.Run(ctx) })
		check := func(what string, want ...nixtest.Path) {
			t.Helper()
			synctest.Wait()
			var view inventory.Remote
			full, deltas, _ := h.Inventory().Since(inventory.Mark{})
			if err := view.Full(full); err != nil {
				t.Fatal(err)
			}
			for _, b := range deltas {
				if err := view.Delta(b); err != nil {
					t.Fatal(err)
				}
			}
			large := 0
			for _, p := range []nixtest.Path{stored, cached, growing} {
				in := slices.ContainsFunc(want, func(w nixtest.Path) bool { return w.StorePath == p.StorePath })
				if in && len(p.NAR) >= largeNAR {
					large++
				}
				if got := view.Has(keyOf(p.Hash())); got != in {
					t.Errorf("%s: %s is listed: %v", what, p.StorePath.Base(), got)
				}
			}
			if len(d.nars) != large {
				t.Errorf("%s: %d announced, want %d", what, len(d.nars), large)
			}
		}
		check("at the start", stored, cached)
		c.mu.Lock()
		c.downloads[growing.NarHash()] = []*fakeDownload{{form: nix.Raw, size: 5}}
		c.mu.Unlock()
		h.Downloading(growing.Info(t, key))
		time.Sleep(2 * tellEvery)
		check("a download", stored, cached, growing)
		c.drop(cached.NarHash())
		s.mu.Lock()
		s.paths = nil
		s.mu.Unlock()
		h.StoreChanged(nil, []nix.StoreHash{stored.Hash()})
		time.Sleep(sweepEvery + tellEvery)
		check("some have gone", growing)
		a.Withdraw()
		time.Sleep(tellEvery)
		check("withdrawn")
		if told < 3 {
			t.Errorf("told %d times", told)
		}
		cancel()
		run.Wait()
	})
}

// TestTwins: several paths have one NAR. What is shared does not depend on for which of them it came.
func TestTwins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := nixtest.NewPath("first", 1000)
		twin := func(name string) *verify.Info {
			other := nixtest.NewPath(name, 10)
			other.NAR, other.Contents = p.NAR, p.Contents
			return other.Info(t, key)
		}
		before, during, after, private := twin("before"), twin("during"), twin("after"), nixtest.NewPath("private", 10)
		private.NAR = p.NAR
		c := newFakeCache()
		h := New(Config{Cache: CacheOf(c), Infos: fakeInfos{before}, ShareKeys: []string{key.Name}})
		var run sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		run.Go(func() { NewAnnouncer(h).Run(ctx) })
		check := func(what string, want int) {
			t.Helper()
			synctest.Wait()
			if n := h.Len(); n != want {
				t.Errorf("%s: %d paths are shared, want %d", what, n, want)
			}
		}
		h.Known(after) // too early
		check("nothing is here", 0)
		c.mu.Lock()
		c.downloads[p.NarHash()] = []*fakeDownload{{form: nix.Raw, size: 5}}
		c.mu.Unlock()
		h.Downloading(p.Info(t, key))
		h.Known(during)
		check("a download", 2)
		time.Sleep(sweepEvery + tellEvery)
		check("remembered before", 3)
		c.keep(p.NarHash(), nix.Raw, p.NAR)
		h.Known(after)
		h.Known(private.Info(t, home))
		check("known afterwards", 4)
		for _, info := range []*verify.Info{before, during, after} {
			if a, err := h.Info(t.Context(), info.StorePath().Hash().Question()); err != nil || len(a.Forms) == 0 {
				t.Errorf("%s: %v", info.StorePath(), err)
			}
		}
		c.mu.Lock()
		delete(c.downloads, p.NarHash())
		c.mu.Unlock()
		c.drop(p.NarHash())
		time.Sleep(2 * (sweepEvery + tellEvery))
		check("it has gone", 0)
		cancel()
		run.Wait()
	})
}

// TestForget: the narinfo of a download is not kept in memory once it is remembered elsewhere.
func TestForget(t *testing.T) {
	p := nixtest.NewPath("x", 10)
	info := p.Info(t, key)
	c := newFakeCache()
	c.keep(p.NarHash(), nix.Raw, p.NAR)
	h := holder(t, newFakeStore(t), c, info)
	h.Downloading(info)
	h.sweep(t.Context())
	if r, ok := h.set.byQuestion(p.Hash().Question()); !ok || r.info != nil {
		t.Errorf("%+v, %v", r, ok)
	}
	if _, err := h.Info(t.Context(), p.Hash().Question()); err != nil {
		t.Error(err)
	}
}

// TestVersion: what deltas are made of is what is shared; a private NAR is like one that does not exist, and nothing is
// read for either.
func TestVersion(t *testing.T) {
	stored, private, raw, file, away := nixtest.NewPath("stored", 10), nixtest.NewPath("private", 10), nixtest.NewPath("raw", 10), nixtest.NewPath("file", 10), nixtest.NewPath("away", 10)
	s, c := newFakeStore(t, stored), newFakeCache()
	s.Add(t, home, private)
	xz := nix.Form{Compression: nix.XZ, File: nix.FileHash{1}}
	c.keep(raw.NarHash(), nix.Raw, raw.NAR)
	c.keep(raw.NarHash(), xz, []byte("x"))
	c.keep(file.NarHash(), xz, []byte("x"))
	c.keep(private.NarHash(), nix.Raw, private.NAR)
	h := holder(t, s, c, raw.Info(t, key), file.Info(t, key), private.Info(t, home))
	for p, want := range map[*nixtest.Path]nix.Compression{&stored: nix.None, &raw: nix.None, &file: nix.XZ, &private: "", &away: ""} {
		before := s.AskedPublic()
		info, packed, err := h.Version(t.Context(), p.NarHash())
		switch {
		case want == "" && (!errors.Is(err, errAbsent) || s.AskedPublic() != before):
			t.Errorf("%s: %v, %d reads", p.StorePath.Name(), err, s.AskedPublic()-before)
		case want != "" && (err != nil || packed != want || info.NarHash() != p.NarHash()):
			t.Errorf("%s: %v %q", p.StorePath.Name(), err, packed)
		}
		if want != nix.None {
			continue
		}
		tree, err := h.Tree(t.Context(), info)
		if err != nil || tree.Size() != int64(len(p.NAR)) {
			t.Errorf("%s: tree %v", p.StorePath.Name(), err)
		}
	}
}
