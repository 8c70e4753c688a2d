package httpfront

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/delta"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
	"github.com/nixp2p/nixp2p/internal/update"
	"github.com/nixp2p/nixp2p/verify"
)

// versions is a front whose store has two public versions of a path and a private one.
type versions struct {
	*Handler
	nars           map[nix.NARName]*fakeNAR
	m              *metrics.Metrics
	trees          *sourcetest.Trees
	old, now, home nixtest.Path
}

func newVersions(t testing.TB) *versions {
	t.Helper()
	v := &versions{m: metrics.New(), old: nixtest.NewPath("app-1.0", 300_000), now: nixtest.NewPath("app-1.1", 1000), home: nixtest.NewPath("app-1.2", 300_000)}
	v.now.NAR = bytes.Clone(v.old.NAR)
	copy(v.now.NAR[150_000:], "another version")
	v.trees = &sourcetest.Trees{Fake: sourcetest.NewFake(source.Store).Share(key.Name)}
	v.trees.Add(t, key, v.old, v.now)
	v.trees.Add(t, homeKey, v.home)
	f := newFake(t)
	for p, k := range map[*nixtest.Path]nixtest.Key{&v.old: key, &v.now: key, &v.home: homeKey} {
		info := p.Info(t, k)
		f.infos[p.Hash()] = info
		f.nars[nameOf(*p)] = &fakeNAR{info: info, data: p.NAR, ranges: true, stop: -1}
	}
	v.nars = f.nars
	v.Handler = newHandler(t, f, func(c *Config) { c.Encoder, c.Private = update.NewEncoder(v.trees, nil, v.m, nil), true })
	return v
}

func nameOf(p nixtest.Path) nix.NARName { return nix.NARName{Store: p.Hash(), Nar: p.NarHash()} }

// ask asks for a NAR as a node elsewhere that has some bases.
func (v *versions) ask(p nixtest.Path, edit func(*http.Request), bases ...nix.NarHash) *httptest.ResponseRecorder {
	r := from(http.MethodGet, "/"+nameOf(p).URL(), "192.0.2.1:7")
	r.Header.Set("Accept-Encoding", update.Coding)
	r.Header.Set(update.DictionaryHeader, update.FormatDictionaries(bases))
	if edit != nil {
		edit(r)
	}
	return answer(v, r)
}

func TestDelta(t *testing.T) {
	v := newVersions(t)
	if w := answer(v, from(http.MethodGet, "/nix-cache-info", "192.0.2.1:7")); w.Header().Get(update.OfferHeader) != "1" {
		t.Error("not offered")
	}
	unknown := nix.NarHash{1}
	at := "/" + deltaURL(nameOf(v.now), v.old.NarHash())
	for name, tt := range map[string]struct {
		w     *httptest.ResponseRecorder
		delta bool
		kept  bool
	}{
		"negotiated":      {v.ask(v.now, nil, unknown, v.old.NarHash()), true, false},
		"by its URL":      {answer(v, from(http.MethodGet, at, "192.0.2.1:7")), true, true},
		"unknown base":    {v.ask(v.now, nil, unknown), false, true},
		"private base":    {v.ask(v.now, nil, v.home.NarHash()), false, true},
		"the same":        {v.ask(v.now, nil, v.now.NarHash()), false, true},
		"a range":         {v.ask(v.now, func(r *http.Request) { r.Header.Set("Range", "bytes=0-") }, v.old.NarHash()), false, true},
		"Nix":             {v.ask(v.now, func(r *http.Request) { r.Header.Set("Accept-Encoding", "deflate, gzip, br, zstd") }, v.old.NarHash()), false, true},
		"no base":         {v.ask(v.now, func(r *http.Request) { r.Header.Del(update.DictionaryHeader) }), false, true},
		"unreadable":      {v.ask(v.now, func(r *http.Request) { r.Header.Set(update.DictionaryHeader, ":x:") }), false, true},
		"over a proxy":    {v.ask(v.now, func(r *http.Request) { r.RemoteAddr = "127.0.0.1:9" }, v.old.NarHash()), true, false},
		"several codings": {v.ask(v.now, func(r *http.Request) { r.Header.Set("Accept-Encoding", "gzip,"+update.Coding) }, v.old.NarHash()), true, false},
	} {
		h := tt.w.Header()
		if coded := h.Get("Content-Encoding") == update.Coding; coded != tt.delta || tt.w.Code >= 300 {
			t.Errorf("%s: status %d, coding %q", name, tt.w.Code, h.Get("Content-Encoding"))
		}
		if kept := strings.Contains(h.Get("Cache-Control"), "immutable"); kept != tt.kept {
			t.Errorf("%s: Cache-Control %q", name, h.Get("Cache-Control"))
		}
		got := tt.w.Body.Bytes()
		switch {
		case tt.delta:
			if h.Get(update.BaseHeader) != v.old.NarHash().Nix32() || h.Get("Content-Length") != "" || h.Get("Accept-Ranges") != "" || len(got) > 5000 {
				t.Errorf("%s: %v, %d bytes", name, h, len(got))
			}
			if tag := h.Get("Etag"); tag != deltaTag(v.now.NarHash(), v.old.NarHash()) {
				t.Errorf("%s: tag %s", name, tag)
			}
			got = decode(t, v, got)
		case h.Get("Etag") != narTag(nameOf(v.now)):
			t.Errorf("%s: tag %s", name, h.Get("Etag"))
		}
		if name != "by its URL" && h.Get("Vary") != deltaVary[0] {
			t.Errorf("%s: Vary %q", name, h.Get("Vary"))
		}
		if !bytes.Equal(got, v.now.NAR) {
			t.Errorf("%s: %d bytes, wrong", name, len(got))
		}
	}
	if v.trees.Open.Load() != 0 {
		t.Error("trees are open")
	}
}

func decode(t *testing.T, v *versions, b []byte) []byte {
	t.Helper()
	r := delta.NewReader(bytes.NewReader(b), bytes.NewReader(v.old.NAR), int64(len(v.old.NAR)), int64(len(v.now.NAR)))
	defer r.Close()
	var out bytes.Buffer
	if _, err := out.ReadFrom(r); err != nil {
		t.Error(err)
	}
	return out.Bytes()
}

// TestDeltaURL: what has no delta is not there, for whatever reason.
func TestDeltaURL(t *testing.T) {
	v := newVersions(t)
	good := "/" + deltaURL(nameOf(v.now), v.old.NarHash())
	for name, path := range map[string]string{
		"unknown base":  "/" + deltaURL(nameOf(v.now), nix.NarHash{1}),
		"private base":  "/" + deltaURL(nameOf(v.now), v.home.NarHash()),
		"private NAR":   "/" + deltaURL(nameOf(v.home), v.old.NarHash()),
		"unknown NAR":   "/" + deltaURL(nix.NARName{Store: v.now.Hash(), Nar: nix.NarHash{1}}, v.old.NarHash()),
		"a file":        good + ".xz",
		"no base named": "/delta/" + nameOf(v.now).String(),
	} {
		w := answer(v, from(http.MethodGet, path, "192.0.2.1:7"))
		keep := noStore // for want of an encoder, perhaps
		if parsePath(path).kind == nothing {
			keep = forMinute
		}
		if w.Code != http.StatusNotFound || w.Header().Get("Cache-Control") != keep[0] || w.Body.Len() > 0 {
			t.Errorf("%s: status %d, %v", name, w.Code, w.Header())
		}
	}
	r := from(http.MethodGet, good, "192.0.2.1:7")
	r.Header.Set("If-None-Match", deltaTag(v.now.NarHash(), v.old.NarHash()))
	if w := answer(v, r); w.Code != http.StatusNotModified {
		t.Errorf("unchanged: status %d", w.Code)
	}
	if v.trees.Open.Load() != 0 {
		t.Error("trees are open")
	}
}

// TestDeltaOff: without an encoder, nothing says that there are deltas.
func TestDeltaOff(t *testing.T) {
	v := newVersions(t)
	v.cfg.Encoder = nil
	w := answer(v, from(http.MethodGet, "/nix-cache-info", "192.0.2.1:7"))
	nar := v.ask(v.now, nil, v.old.NarHash())
	if w.Header().Get(update.OfferHeader) != "" || nar.Header().Get("Content-Encoding") != "" || nar.Header().Get("Vary") != "" {
		t.Errorf("%v\n%v", w.Header(), nar.Header())
	}
}

// TestDeltaWrong: a NAR of the store that is wrong is not ended, and the store is told.
func TestDeltaWrong(t *testing.T) {
	v := newVersions(t)
	damaged := bytes.Clone(v.now.NAR)
	damaged[2000] ^= 1
	v.trees.AddBytes(v.now.NarHash(), nix.Raw, damaged)
	url, client := serve(t, v)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/"+deltaURL(nameOf(v.now), v.old.NarHash()), nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := client.Do(r)
	if err == nil {
		defer res.Body.Close()
		_, err = new(bytes.Buffer).ReadFrom(res.Body)
	}
	if err == nil {
		t.Error("it came to its end")
	}
	if len(v.trees.Reports()) != 1 {
		t.Error("the store is not told")
	}
}

// TestDeltaSlowClient: a client that takes too little gives its encoder back.
func TestDeltaSlowClient(t *testing.T) {
	w := &deltaWriter{w: httptest.NewRecorder(), began: time.Now()}
	w.control = http.NewResponseController(deadlines{w.w, func(at time.Time) {
		if left := at.Sub(w.began); left < deltaGrace || left > deltaGrace+time.Duration(w.sent)*time.Second/deltaLeast {
			t.Errorf("%v for %d bytes", left, w.sent)
		}
	}})
	for range 10 {
		if _, err := w.Write(make([]byte, 100_000)); err != nil {
			t.Fatal(err)
		}
	}
}

type deadlines struct {
	http.ResponseWriter
	set func(time.Time)
}

func (d deadlines) SetWriteDeadline(at time.Time) error { d.set(at); return nil }
func (d deadlines) FlushError() error                   { return nil }

// TestDeltaProbes: what a client learns by proposing bases, or by asking for deltas of NARs, does not depend
// on which private paths are here: not the answer, nor what is read for it.
func TestDeltaProbes(t *testing.T) {
	v := newVersions(t)
	looked := 0
	v.trees.OnInfo(func(context.Context, nix.StoreHash) (*verify.Info, error) { looked++; return nil, nil })
	probe := func(base nix.NarHash) (status, bytes, reads int, header string) {
		before := looked
		w := v.ask(v.now, nil, base)
		h := w.Header()
		return w.Code, w.Body.Len(), looked - before, h.Get("Content-Encoding") + h.Get("Etag") + h.Get("Cache-Control")
	}
	s1, b1, r1, h1 := probe(nix.NarHash{1})
	for i := range 1000 {
		base := v.home.NarHash()
		if i%2 == 0 {
			base = nix.NarHash{byte(i), byte(i >> 8), 9}
		}
		if s, b, r, h := probe(base); s != s1 || b != b1 || r != r1 || h != h1 {
			t.Fatalf("probe %d: %d %d %d %s, not %d %d %d %s", i, s, b, r, h, s1, b1, r1, h1)
		}
	}
}

// TestDeltaOfFile: a request for a file may be answered with a delta of its NAR, else the file comes. Files of the
// mirror are decoded only for a client that would wait longer for the file.
func TestDeltaOfFile(t *testing.T) {
	v := newVersions(t)
	file := nameOf(v.now)
	file.Form = nix.Form{Compression: nix.XZ, File: nix.FileHash{7}}
	v.nars[file] = &fakeNAR{info: v.now.Info(t, key), data: []byte("a file"), ranges: true, stop: -1}
	for name, tt := range map[string]struct {
		packed nix.Compression
		rate   string
		base   nix.NarHash
		delta  bool
	}{
		"raw here":      {nix.None, "", v.old.NarHash(), true},
		"no base":       {nix.None, "", nix.NarHash{1}, false},
		"files, slow":   {nix.XZ, "1", v.old.NarHash(), true},
		"files, fast":   {nix.XZ, "100000000", v.old.NarHash(), false},
		"files, unsaid": {nix.XZ, "", v.old.NarHash(), false},
		"files, silly":  {nix.XZ, "-1", v.old.NarHash(), false},
		"unknown":       {nix.Brotli, "1", v.old.NarHash(), false},
	} {
		v.trees.Packed = tt.packed
		r := from(http.MethodGet, "/"+file.URL(), "192.0.2.1:7")
		r.Header.Set("Accept-Encoding", update.Coding)
		r.Header.Set(update.DictionaryHeader, update.FormatDictionaries([]nix.NarHash{tt.base}))
		r.Header.Set(update.RateHeader, tt.rate)
		w := answer(v, r)
		got := w.Body.Bytes()
		if coded := w.Header().Get("Content-Encoding") == update.Coding; coded != tt.delta || w.Code != http.StatusOK {
			t.Errorf("%s: status %d, delta %v", name, w.Code, coded)
			continue
		}
		want := []byte("a file")
		if tt.delta {
			got, want = decode(t, v, got), v.now.NAR
			if at := w.Header().Get("Content-Location"); at != "../"+deltaURL(nameOf(v.now), v.old.NarHash()) {
				t.Errorf("%s: Content-Location %q", name, at)
			}
		}
		if !bytes.Equal(got, want) || w.Header().Get("Vary") != deltaVary[0] {
			t.Errorf("%s: %d bytes, Vary %q", name, len(got), w.Header().Get("Vary"))
		}
		if v.trees.Open.Load() != 0 {
			t.Errorf("%s: trees are open", name)
		}
	}
}
