package bucket_test

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/bucket"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/nixtest/objectstore"
	"github.com/nixp2p/nixp2p/verify"
)

func TestMain(m *testing.M) {
	// The transport of minio-go keeps idle connections.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

var public, private = nixtest.NewKey("cache.example.org-1"), nixtest.NewKey("home-1")

// files is what this machine has.
type files struct {
	mu  sync.Mutex
	has map[nix.NarHash][]byte
}

func (f *files) NAR(_ context.Context, info *verify.Info, _ nix.Form, off int64) (*verify.Unverified, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, ok := f.has[info.NarHash()]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return &verify.Unverified{Body: io.NopCloser(bytes.NewReader(b[off:])), Size: int64(len(b))}, nil
}

// memory is what this machine remembers over restarts: narinfos, and what waits.
type memory struct {
	mu      sync.Mutex
	infos   map[nix.StoreHash]*verify.Info
	waiting map[string][]byte
}

func (m *memory) Info(_ context.Context, h nix.StoreHash) (*verify.Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if info := m.infos[h]; info != nil {
		return info, nil
	}
	return nil, fs.ErrNotExist
}

func (m *memory) Load() map[string][]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.waiting)
}

func (m *memory) Put(name string, value []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waiting[name] = bytes.Clone(value)
}

func (m *memory) Delete(name string) { m.mu.Lock(); defer m.mu.Unlock(); delete(m.waiting, name) }

type world struct {
	*bucket.Bucket
	t      *testing.T
	store  *objectstore.Store
	files  *files
	memory *memory
	m      *metrics.Metrics
	end    func()
}

func newWorld(t *testing.T, vars ...string) *world {
	s := objectstore.Start(t, "nix")
	t.Setenv("AWS_ACCESS_KEY_ID", objectstore.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", objectstore.SecretKey)
	for i := 0; i < len(vars); i += 2 {
		t.Setenv(vars[i], vars[i+1])
	}
	w := &world{
		t: t, store: s, files: &files{has: map[nix.NarHash][]byte{}}, m: metrics.New(),
		memory: &memory{infos: map[nix.StoreHash]*verify.Info{}, waiting: map[string][]byte{}},
	}
	w.start()
	return w
}

// start runs the bucket as after a start of the program.
func (w *world) start() {
	at, err := bucket.Parse(w.store.URL("nix", "site/a"), os.Getenv)
	if err != nil {
		w.t.Fatal(err)
	}
	transport := &http.Transport{}
	w.t.Cleanup(transport.CloseIdleConnections)
	w.Bucket, err = bucket.New(bucket.Config{
		Location: at, ShareKeys: []string{public.Name}, Files: w.files, Infos: w.memory, Unwritten: w.memory,
		Metrics: w.m, Transport: transport,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(w.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = w.Run(ctx) }()
	w.end = sync.OnceFunc(func() { stop(); <-done })
	w.t.Cleanup(w.end)
}

// put has a path written as the xz of an upstream.
func (w *world) put(name string, key nixtest.Key) (nixtest.Path, *verify.Info) {
	p := nixtest.NewPath(name, 200_000)
	file := nixtest.Compress(w.t, nix.XZ, p.NAR)
	info, err := nixtest.Keys(w.t, public, private).Open(file.NarInfo(p, key).AppendText(nil), p.Hash())
	if err != nil {
		w.t.Fatal(err)
	}
	form, _ := info.FileForm()
	w.files.mu.Lock()
	w.files.has[info.NarHash()] = file.Bytes
	w.files.mu.Unlock()
	w.memory.mu.Lock()
	w.memory.infos[p.Hash()] = info
	w.memory.mu.Unlock()
	w.Put(info, form)
	return p, info
}

func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("not in a minute: %s; %+v", what, w.Health())
		}
	}
}

func (w *world) count(result string) int64 {
	return metrics.Value(w.m.BucketWrites.WithLabelValues(result))
}

// list returns the names of the objects.
func (w *world) list() (names []string) {
	root := filepath.Join(w.store.Dir, "nix")
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			name, _ := filepath.Rel(root, path)
			names = append(names, name)
		}
		return nil
	})
	return names
}

// TestWrites: what a share key signed becomes a plain binary cache; nothing else does.
func TestWrites(t *testing.T) {
	w := newWorld(t)
	p, info := w.put("hello", public)
	w.put("secret", private)
	w.until("one written", func() bool { return w.count("written") == 1 && w.Health().Waiting == 0 })
	form, _ := info.FileForm()
	nar := "site/a/" + nix.NARName{Store: p.Hash(), Nar: p.NarHash(), Form: form}.URL()
	want := []string{nar, "site/a/" + p.Hash().String() + ".narinfo", "site/a/nix-cache-info"}
	slices.Sort(want)
	if got := w.list(); !slices.Equal(got, want) {
		t.Fatalf("has %q, want %q", got, want)
	}
	text, _ := os.ReadFile(filepath.Join(w.store.Dir, "nix", "site/a", p.Hash().String()+".narinfo"))
	got, err := nixtest.Keys(t, public).Open(text, p.Hash())
	if err != nil || got.Hints().FileHash != info.Hints().FileHash || "site/a/"+got.Hints().URL != nar {
		t.Errorf("%v\n%s", err, text)
	}
	// The same again costs nothing, and from another node a question; and a wrong file.
	w.Put(info, form)
	if n := w.Health().Waiting; n != 0 {
		t.Errorf("%d wait that were written", n)
	}
	w.end()
	w.start()
	w.Put(info, form)
	w.until("found there", func() bool { return w.count("there") == 1 })
	bad := nixtest.NewPath("bad", 100).Info(t, public)
	w.files.mu.Lock()
	w.files.has[bad.NarHash()] = make([]byte, bad.NarSize())
	w.files.mu.Unlock()
	w.Put(bad, nix.Raw)
	w.until("refused", func() bool { return w.count("failed") == 1 })
	for _, name := range w.list() {
		if strings.Contains(name, bad.StorePath().Hash().String()+".narinfo") {
			t.Error("a narinfo for wrong bytes")
		}
	}
}

// TestRestart: what waits when the program ends is written after its next start, and what it cannot
// find any more is given up.
func TestRestart(t *testing.T) {
	w := newWorld(t)
	w.store.Set(objectstore.Gone)
	p, _ := w.put("hello", public)
	lost, _ := w.put("lost", public)
	_, raw := w.put("raw", public)        // has another file by now,
	_, rebuilt := w.put("again", public)  // was built again,
	_, withdrawn := w.put("mine", public) // is not for others any more
	w.until("failed", func() bool { return w.Health().LastError != "" })
	w.end()
	w.memory.mu.Lock()
	delete(w.memory.infos, lost.Hash())
	w.memory.infos[raw.StorePath().Hash()] = raw.WithoutHints()
	w.memory.infos[rebuilt.StorePath().Hash()] = nixtest.NewPath("other", 1000).Info(t, public)
	w.memory.infos[withdrawn.StorePath().Hash()] = nixtest.NewPath("mine", 200_000).Info(t, private)
	w.memory.waiting["other"] = []byte("no name of a NAR")
	w.memory.mu.Unlock()
	w.store.Set(objectstore.None)
	w.start()
	w.until("one written", func() bool { return w.count("written") == 1 && w.count("failed") == 4 && len(w.memory.Load()) == 0 })
	for _, name := range w.list() {
		if strings.HasSuffix(name, ".narinfo") && name != "site/a/"+p.Hash().String()+".narinfo" {
			t.Errorf("has %s", name)
		}
	}
	if !slices.Contains(w.list(), "site/a/"+p.Hash().String()+".narinfo") {
		t.Errorf("%s is not there: %q", p.StorePath, w.list())
	}
}

// TestSign: what Sign signed is answered, and not without it.
func TestSign(t *testing.T) {
	w := newWorld(t)
	p, _ := w.put("hello", public)
	w.until("written", func() bool { return w.count("written") == 1 })
	for _, sign := range []bool{true, false} {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+w.store.Endpoint+"/nix/site/a/"+p.Hash().String()+".narinfo", nil)
		r.Header.Set("Range", "bytes=0-8")
		if sign {
			if err := w.Sign(r); err != nil {
				t.Fatal(err)
			}
		}
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if ok := resp.StatusCode == http.StatusPartialContent && string(text) == "StorePath"; ok != sign {
			t.Errorf("signed %v: %d %q", sign, resp.StatusCode, text)
		}
	}
}

// TestComesBack: while the bucket cannot be reached, paths wait; then they are written.
func TestComesBack(t *testing.T) {
	for _, fault := range []objectstore.Fault{objectstore.Gone, objectstore.Cut} {
		w := newWorld(t)
		w.store.Set(fault)
		w.put("hello", public)
		if fault == objectstore.Gone {
			w.until("noticed", func() bool { return w.Health().LastError != "" })
		}
		w.store.Set(objectstore.None)
		w.until("written", func() bool { return w.count("written") == 1 })
		if h := w.Health(); h != (bucket.Health{}) {
			t.Errorf("%+v", h)
		}
		w.end()
	}
}

// TestDenied: a bucket that denies access is given up, path by path.
func TestDenied(t *testing.T) {
	w := newWorld(t, "AWS_SECRET_ACCESS_KEY", "wrong")
	w.put("hello", public)
	w.until("given up", func() bool { return w.count("failed") == 1 })
	if h := w.Health(); h.LastError == "" || h.Waiting != 0 {
		t.Errorf("%+v", h)
	}
}

// TestFlush: what waits when Run is to end is written before it does.
func TestFlush(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		w.put(name, public)
	}
	w.end()
	if n := w.count("written"); n != 6 {
		t.Errorf("%d of 6 written", n)
	}
}

func TestParse(t *testing.T) {
	env := func(k string) string { return map[string]string{"AWS_REGION": "eu-1"}[k] }
	for text, want := range map[string]string{
		"s3://nix":                                           "https://nix.s3.eu-1.amazonaws.com/",
		"s3://nix/a/b/":                                      "https://nix.s3.eu-1.amazonaws.com/a/b/",
		"s3://nix.example/?region=us-9":                      "https://s3.us-9.amazonaws.com/nix.example/",
		"s3://nix/a?endpoint=s3.example.org:9000":            "https://s3.example.org:9000/nix/a/",
		"s3://nix/a?endpoint=s3.example.org&scheme=http":     "http://s3.example.org/nix/a/",
		"s3://nix?endpoint=http://[fd00::1]:7070/&profile=x": "http://[fd00::1]:7070/nix/",
	} {
		if l, err := bucket.Parse(text, env); err != nil || l.URL() != want {
			t.Errorf("%s: %q, %v", text, l.URL(), err)
		}
	}
	for _, text := range []string{"", "nix", "s3:nix", "s3:///a", "https://nix", "s3://u:p@nix", "s3://nix?a=b", "s3://nix?endpoint=a/b", "s3://nix?scheme=ftp", "s3://nix?endpoint=%zz"} {
		if l, err := bucket.Parse(text, env); err == nil {
			t.Errorf("%q: %+v", text, l)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("s3://nix/a?endpoint=http://x:1&region=r")
	f.Add("s3://:")
	f.Add("s3://nix?region=:")
	f.Fuzz(func(t *testing.T, text string) {
		l, err := bucket.Parse(text, func(string) string { return "" })
		if err != nil {
			return
		}
		if _, err := http.NewRequest(http.MethodGet, l.URL(), nil); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	})
}
