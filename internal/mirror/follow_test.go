package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var key = nixtest.NewKey("cache.example.org-1")

// world is a site with one list at a URL, a cache, and sources of paths.
type world struct {
	t       *testing.T
	mu      sync.Mutex
	etag    int
	text    string // of the list
	status  int
	paths   map[nix.StoreHash]nixtest.Path // what sources have
	cache   map[nix.NarHash]int64
	stored  map[string][]byte
	fetched int64 // bytes
	broken  bool  // no NAR can be fetched
	asked   []string
	m       *metrics.Metrics
}

func newWorld(t *testing.T) *world {
	return &world{t: t, status: http.StatusOK, paths: map[nix.StoreHash]nixtest.Path{}, cache: map[nix.NarHash]int64{}, stored: map[string][]byte{}, m: metrics.New()}
}

func (w *world) Load() map[string][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.stored)
}

func (w *world) Put(name string, value []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stored[name] = bytes.Clone(value)
}

func (w *world) Delete(name string) { w.mu.Lock(); defer w.mu.Unlock(); delete(w.stored, name) }

// RoundTrip answers for the publisher of the list: the channel redirects to its release.
func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	tag := fmt.Sprintf(`"%d"`, w.etag)
	w.asked = append(w.asked, r.URL.Path)
	answer := func(status int, body string) *http.Response {
		return &http.Response{StatusCode: status, Status: http.StatusText(status), Header: http.Header{"Etag": {tag}}, Request: r,
			ContentLength: int64(len(body)), Body: io.NopCloser(strings.NewReader(body))}
	}
	switch {
	case w.status != http.StatusOK:
		return answer(w.status, ""), nil
	case r.Header.Get("If-None-Match") == tag:
		return answer(http.StatusNotModified, ""), nil
	case strings.HasPrefix(r.URL.Path, "/channel/"):
		resp := answer(http.StatusFound, "")
		resp.Header.Set("Location", fmt.Sprintf("/releases/%d/store-paths", w.etag))
		return resp, nil
	}
	return answer(http.StatusOK, w.text), nil
}

// publish makes the list one of paths.
func (w *world) publish(paths ...nixtest.Path) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.etag++
	w.text = ""
	for _, p := range paths {
		w.text += p.StorePath.String() + "\n"
	}
}

func (w *world) have(paths ...nixtest.Path) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range paths {
		w.paths[p.Hash()] = p
	}
}

func (w *world) Fetch(ctx context.Context, h nix.StoreHash, dry bool) (Fetched, error) {
	w.mu.Lock()
	p, ok := w.paths[h]
	broken := w.broken
	_, here := w.cache[p.NarHash()]
	w.mu.Unlock()
	if !ok {
		return Fetched{}, fs.ErrNotExist
	}
	size := int64(len(p.NAR))
	f := Fetched{Info: p.Info(w.t, key), Size: size}
	if f.Here = here; dry || here {
		return f, nil
	}
	if broken {
		return f, errors.New("broken")
	}
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return f, ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cache[p.NarHash()] = size
	w.fetched += size
	return f, nil
}

func (w *world) follower(room int64, lists ...string) *Follower {
	cfg := Config{
		Room: room, Storage: w, Client: &http.Client{Transport: w}, Fetch: w.Fetch, Metrics: w.m,
		Have: func(n nix.NarHash) bool { w.mu.Lock(); defer w.mu.Unlock(); _, ok := w.cache[n]; return ok },
		Collect: func(nars []nix.NarHash) {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, n := range nars {
				delete(w.cache, n)
			}
		},
		Closure: func(context.Context, string) ([]nix.StoreHash, error) { return nil, nil },
	}
	for _, text := range lists {
		l, err := ParseList(text)
		if err != nil {
			w.t.Fatal(err)
		}
		cfg.Lists = append(cfg.Lists, l)
	}
	return New(cfg)
}

// run runs f for d.
func run(t *testing.T, f *Follower, d time.Duration) {
	ctx, stop := context.WithTimeout(t.Context(), d)
	defer stop()
	_ = f.Run(ctx)
}

func (w *world) cached(p nixtest.Path) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.cache[p.NarHash()]
	return ok
}

const listURL = "http://example.org/channel/x?keep=2"

// TestReleases: of each new release, what is new is fetched, and what only the first had is
// collected after the third.
func TestReleases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		lib := nixtest.NewPath("lib", 1000)
		var old, kept, new []nixtest.Path
		for i := range 20 {
			old = append(old, nixtest.NewPath(fmt.Sprint("old", i), 500))
			kept = append(kept, nixtest.NewPath(fmt.Sprint("kept", i), 600, lib.StorePath))
			new = append(new, nixtest.NewPath(fmt.Sprint("new", i), 700))
		}
		w.have(append(slices.Concat(old, kept, new), lib)...)
		f := w.follower(1<<20, listURL)
		var want int64
		for _, release := range [][]nixtest.Path{slices.Concat(old, kept), kept, slices.Concat(kept, new)} {
			w.publish(release...)
			for _, p := range append(release, lib) {
				if !w.cached(p) {
					want += int64(len(p.NAR))
				}
			}
			run(t, f, 2*time.Hour)
			if w.fetched != want {
				t.Errorf("%d bytes fetched, %d are new", w.fetched, want)
			}
			s := f.Status()[0]
			if s.Error != "" || s.MissingPaths != 0 || !s.Generations[0].Complete || !strings.Contains(s.Generations[0].From, "/releases/") {
				t.Errorf("%+v", s)
			}
		}
		for _, p := range old {
			if w.cached(p) || f.Kept(p.NarHash()) {
				t.Error("what only the first release had is still here")
			}
		}
		for _, p := range slices.Concat(kept, new, []nixtest.Path{lib}) {
			if !w.cached(p) || !f.Kept(p.NarHash()) {
				t.Error("what the last releases have is gone")
			}
		}
		if n := len(f.Status()[0].Generations); n != 2 || len(w.stored) != 2 {
			t.Errorf("%d generations, %d stored", n, len(w.stored))
		}
	})
}

// TestNothingLost: whatever the publisher does, what is kept stays, and it is said.
func TestNothingLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := nixtest.NewPath("a", 100), nixtest.NewPath("b", 100)
		w.have(a, b)
		f := w.follower(1<<20, listURL)
		w.publish(a, b)
		run(t, f, time.Minute)
		for _, c := range []struct {
			name  string
			spoil func()
		}{
			{"empty", func() { w.publish() }},
			{"error", func() { w.status = http.StatusInternalServerError }},
			{"gone", func() { w.status = http.StatusNotFound }},
			{"a page", func() { w.etag++; w.text = "<html>please log in</html>\n" }},
			{"cut", func() { w.etag++; w.text = a.StorePath.String() + "\n/nix/store/abc" }},
			{"cut xz", func() { w.etag++; w.text = "\xfd7zXZ\x00\x00\x04" }},
		} {
			w.status = http.StatusOK
			c.spoil()
			run(t, f, time.Minute)
			s := f.Status()[0]
			if s.Error == "" || len(s.Generations) != 1 || !f.Kept(a.NarHash()) || !w.cached(b) {
				t.Errorf("%s: %+v", c.name, s)
			}
		}
		// A process that starts knows what is kept before anything else.
		if f := w.follower(1<<20, listURL); !f.Kept(a.NarHash()) || !f.Kept(b.NarHash()) {
			t.Error("forgotten over a restart")
		}
		// Back to an earlier state and again: no generation is lost or doubled.
		w.status = http.StatusOK
		for range 3 {
			w.publish(a)
			run(t, f, time.Minute)
			w.publish(a, b)
			run(t, f, time.Minute)
		}
		if s := f.Status()[0]; s.Error != "" || len(s.Generations) != 2 || !f.Kept(a.NarHash()) || !f.Kept(b.NarHash()) || w.fetched != int64(len(a.NAR)+len(b.NAR)) {
			t.Errorf("%+v, %d fetched", s, w.fetched)
		}
	})
}

// TestRoom: what does not fit is reported and not fetched, again and again neither; the old
// generation gives way.
func TestRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var one, two []nixtest.Path
		for i := range 10 {
			one = append(one, nixtest.NewPath(fmt.Sprint("one", i), 1000))
			two = append(two, nixtest.NewPath(fmt.Sprint("two", i), 1000))
		}
		w.have(slices.Concat(one, two)...)
		size := int64(len(one[0].NAR))
		f := w.follower(size*8*10/9+10, listURL) // room for eight
		w.publish(one...)
		run(t, f, 5*time.Hour)
		s := f.Status()[0]
		if s.LeftOutPaths != 2 || s.LeftOutBytes != 2*size || w.fetched != 8*size {
			t.Errorf("%+v, %d fetched", s, w.fetched)
		}
		w.publish(two...)
		run(t, f, 5*time.Hour)
		if s := f.Status()[0]; s.LeftOutPaths != 2 || w.fetched != 16*size || f.Kept(one[0].NarHash()) || !f.Kept(two[0].NarHash()) {
			t.Errorf("%+v, %d fetched", s, w.fetched)
		}
	})
}

// TestFailures: what cannot be fetched now is fetched later; what no source has is no failure.
func TestFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, none := nixtest.NewPath("a", 100), nixtest.NewPath("none", 100)
		w.have(a)
		w.broken = true
		f := w.follower(1<<20, listURL)
		w.publish(a, none)
		ctx, stop := context.WithCancel(t.Context())
		var end sync.WaitGroup
		end.Go(func() { _ = f.Run(ctx) })
		time.Sleep(time.Minute)
		s := f.Status()[0]
		if s.Error == "" || s.MissingPaths != 1 || s.Absent != 1 || s.Generations[0].Complete {
			t.Errorf("%+v", s)
		}
		if n := metrics.Value(w.m.FollowMissing.WithLabelValues("http://example.org/channel/x")); n != int64(len(a.NAR)) {
			t.Errorf("%d bytes missing", n)
		}
		w.mu.Lock()
		w.broken = false
		w.mu.Unlock()
		time.Sleep(10 * time.Minute)
		if s := f.Status()[0]; s.Error != "" || s.MissingPaths != 0 || !s.Generations[0].Complete || !w.cached(a) {
			t.Errorf("%+v", s)
		}
		if err := f.Now(ctx); err != nil {
			t.Error(err)
		}
		stop()
		end.Wait()
	})
}

// TestPlan: it says what would be fetched, and fetches and remembers nothing.
func TestPlan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		lib := nixtest.NewPath("lib", 1000)
		a, none := nixtest.NewPath("a", 100, lib.StorePath), nixtest.NewPath("none", 100)
		w.have(a, lib)
		w.cache[lib.NarHash()] = 1
		w.publish(a, none)
		plans, err := w.follower(1<<20, listURL).Plan(t.Context())
		if err != nil || len(plans) != 1 {
			t.Fatal(plans, err)
		}
		p := plans[0]
		if p.Paths != 3 || p.Here != 1 || p.MissingPaths != 1 || p.MissingBytes != int64(len(a.NAR)) || p.Absent != 1 || p.Failed != 0 || len(w.stored)+int(w.fetched) != 0 {
			t.Errorf("%+v", p)
		}
	})
}

func TestParseList(t *testing.T) {
	for text, want := range map[string]string{
		"channel:nixos-unstable":          "https://channels.nixos.org/nixos-unstable/store-paths.xz",
		"https://example.org/a.xz?keep=3": "https://example.org/a.xz",
		"file:/etc/list":                  "/etc/list",
		"path:/run/current-system":        "/run/current-system",
	} {
		if l, err := ParseList(text); err != nil || l.at != want {
			t.Errorf("%s: %+v, %v", text, l, err)
		}
	}
	for _, text := range []string{"", "nixos", "channel:", "channel:a/b", "file:a", "path:", "http://", "channel:a?keep=0", "channel:a?keep=x", "channel:a?x=1", "channel:a?include=["} {
		if l, err := ParseList(text); err == nil {
			t.Errorf("%q: %+v", text, l)
		}
	}
	l, _ := ParseList("channel:x?include=firefox*,*-lib&exclude=*-doc")
	for name, want := range map[string]bool{"firefox-1": true, "a-lib": true, "firefox-doc": false, "hello": false} {
		if l.wants(name) != want {
			t.Errorf("%s: wanted %v", name, !want)
		}
	}
}

func FuzzParseList(f *testing.F) {
	f.Add("channel:x?include=a*&keep=3")
	f.Fuzz(func(t *testing.T, text string) {
		if l, err := ParseList(text); err == nil && (l.Keep < 1 || l.at == "") {
			t.Errorf("%q: %+v", text, l)
		}
	})
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("/nix/store/6lwdzpbig6zz8678blcqr5f5q1caxjw2-hello\n"))
	f.Add([]byte("\xfd7zXZ\x00"))
	f.Fuzz(func(_ *testing.T, text []byte) {
		l := List{}
		_, _ = l.read(bytes.NewReader(text))
	})
}

func FuzzGeneration(f *testing.F) {
	f.Add(newGeneration("x", 1, "y", []nix.StoreHash{{1}, {2}}).marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := parseGeneration(b)
		if err != nil {
			return
		}
		if again, err := parseGeneration(g.marshal()); err != nil || !slices.Equal(again.paths, g.paths) {
			t.Error(err)
		}
	})
}
