package httpfront

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/transfer"
	"github.com/nixp2p/nixp2p/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	key, homeKey = nixtest.NewKey("cache.example.org-1"), nixtest.NewKey("home-1")
	hello        = nixtest.NewPath("hello", 50_000)
	secret       = nixtest.NewPath("secret", 50_000)
	helloName    = nix.NARName{Store: hello.Hash(), Nar: hello.NarHash()}
	secretName   = nix.NARName{Store: secret.Hash(), Nar: secret.NarHash()}
)

// fake is a resolver that has hello, and secret for this machine alone or for all, as told.
type fake struct {
	infos map[nix.StoreHash]*verify.Info
	mu    sync.Mutex // of nars
	nars  map[nix.NARName]*fakeNAR
	err   error // instead of absence
	asked func(ctx context.Context, scope source.Scope, resume bool)
}

func newFake(t testing.TB) *fake {
	f := &fake{infos: map[nix.StoreHash]*verify.Info{}, nars: map[nix.NARName]*fakeNAR{}}
	for _, p := range []struct {
		nixtest.Path
		nixtest.Key
	}{{hello, key}, {secret, homeKey}} {
		info := p.Info(t, p.Key)
		f.infos[p.Hash()] = info
		f.nars[nix.NARName{Store: p.Hash(), Nar: p.NarHash()}] = &fakeNAR{info: info, data: p.NAR, ranges: true, stop: -1}
	}
	return f
}

func (f *fake) Narinfo(ctx context.Context, h nix.StoreHash, scope source.Scope) ([]byte, *verify.Info, error) {
	if f.asked != nil {
		f.asked(ctx, scope, false)
	}
	info, ok := f.infos[h]
	if !ok {
		return nil, nil, f.no()
	}
	return info.Offer(nix.Raw), info, nil
}

func (f *fake) NAR(ctx context.Context, name nix.NARName, q transfer.Query) (nar, error) {
	if f.asked != nil {
		f.asked(ctx, q.Scope, q.Resume)
	}
	f.mu.Lock()
	n, ok := f.nars[name]
	f.mu.Unlock()
	if !ok {
		return nil, f.no()
	}
	n.opened.Add(1)
	return n, nil
}

// set puts another NAR in place while a server runs.
func (f *fake) set(name nix.NARName, n *fakeNAR) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nars[name] = n
}

func (f *fake) no() error {
	if f.err != nil {
		return f.err
	}
	return fs.ErrNotExist
}

type fakeNAR struct {
	info           *verify.Info
	data           []byte
	ranges         bool
	stop           int64 // fails after so many bytes, -1 never; set before the request
	opened, closed atomic.Int32
	send           func(ctx context.Context, w io.Writer) error
}

func (n *fakeNAR) Info() *verify.Info { return n.info }
func (n *fakeNAR) Size() int64        { return int64(len(n.data)) }
func (n *fakeNAR) Ranges() bool       { return n.ranges }
func (n *fakeNAR) Close()             { n.closed.Add(1) }

var errSource = errors.New("the source died")

func (n *fakeNAR) Send(ctx context.Context, w io.Writer, from, count int64) error {
	if n.send != nil {
		return n.send(ctx, w)
	}
	b := n.data[from : from+count]
	fails := n.stop >= 0 && n.stop < count
	if fails {
		b = b[:n.stop]
	}
	if len(b) > 0 {
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	if fails {
		return errSource
	}
	return nil
}

// sources is what stands behind a Handler.
type sources interface {
	Narinfo(ctx context.Context, h nix.StoreHash, scope source.Scope) ([]byte, *verify.Info, error)
	NAR(ctx context.Context, name nix.NARName, q transfer.Query) (nar, error)
}

func newHandler(t testing.TB, s sources, edit ...func(*Config)) *Handler {
	t.Helper()
	cfg := Config{Metrics: metrics.New(), Share: []string{key.Name}, Priority: 30, ID: "me"}
	for _, fn := range edit {
		fn(&cfg)
	}
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	h.info, h.nar = s.Narinfo, s.NAR
	return h
}

// serve starts a server on loopback and returns its address and a client without habits.
func serve(t *testing.T, h http.Handler) (url string, client *http.Client) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	transport := &http.Transport{DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return s.URL, &http.Client{Transport: transport}
}

// from is a request of a client elsewhere, or of this machine for "".
func from(method, path, remote string) *http.Request {
	r := httptest.NewRequest(method, path, nil)
	r.Host = "127.0.0.1:7654"
	var local net.Addr = &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 7654}
	if remote == "@" {
		local = &net.UnixAddr{Name: "/run/front"}
	}
	r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, local))
	if r.RemoteAddr = remote; remote == "" {
		r.RemoteAddr = "127.0.0.1:1234"
	}
	return r
}

func answer(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestPaths(t *testing.T) {
	f := newFake(t)
	h := newHandler(t, f)
	hash, nar := hello.Hash().String(), "/"+helloName.URL()
	for _, c := range []struct {
		path   string
		status int
		kind   string
	}{
		{"/nix-cache-info", 200, cacheInfoType[0]},
		{"/" + hash + ".narinfo", 200, narinfoType[0]},
		{nar, 200, narType[0]},
		{"/" + hash + "%2enarinfo", 200, narinfoType[0]},
		{"/" + hash + ".narinfo?x=y", 200, narinfoType[0]},
		{"/nar%2F" + helloName.String(), 200, narType[0]},
		{"//nix-cache-info", 200, cacheInfoType[0]}, // as Nix asks a URL that ends in a slash too many
		{"//" + hash + ".narinfo", 200, narinfoType[0]},
		{"/" + nar, 200, narType[0]},
		{"/./" + hash + ".narinfo", 200, narinfoType[0]}, // as other servers do
		{"/x/../" + hash + ".narinfo", 200, narinfoType[0]},
		{"/%2e/" + hash + ".narinfo", 200, narinfoType[0]},
		{"/nar//" + helloName.String(), 200, narType[0]},
		{"/nar/../" + hash + ".narinfo", 200, narinfoType[0]},

		{"/", 404, ""},
		{"/nix-cache-info/", 404, ""},
		{"/Nix-Cache-Info", 404, ""},
		{"/" + hash + ".narinfo%00", 404, ""},
		{"/%00" + hash + ".narinfo", 404, ""},
		{"/" + hash + ".narinfo/", 404, ""},
		{"/" + strings.ToUpper(hash) + ".narinfo", 404, ""},
		{"/" + hash[1:] + ".narinfo", 404, ""},
		{"/" + hash + "a.narinfo", 404, ""},
		{"/" + strings.Repeat("e", 32) + ".narinfo", 404, ""},
		{"/" + hash + ".ls", 404, ""},
		{"/.narinfo", 404, ""},
		{"/" + hash, 404, ""},
		{"/nar/", 404, ""},
		{nar + ".xz", 404, ""},
		{"/nar/" + hello.NarHash().Nix32() + ".nar", 404, ""},
		{"/nar/" + secret.Hash().String() + "-" + hello.NarHash().Nix32() + ".nar", 404, ""},
		{"/log/" + hash + "-hello.drv", 404, ""},
		{"/realisations/sha256:00!out.doi", 404, ""},
		{"/realisations/sha256:00%21out.doi", 404, ""},
		{"/debuginfo/00", 404, ""},
		{"/favicon.ico", 404, ""},
		{"/" + strings.Repeat("a", 1<<20), 404, ""},
		{"/nar/" + strings.Repeat("-", 1<<20) + ".nar", 404, ""},
	} {
		w := answer(h, from(http.MethodGet, c.path, ""))
		show := c.path[:min(len(c.path), 80)]
		if w.Code != c.status {
			t.Errorf("%s: status %d, want %d", show, w.Code, c.status)
		}
		want := c.kind
		if c.status == 404 {
			want = "text/plain"
			if w.Body.Len() != 0 {
				t.Errorf("%s: %d bytes beside 404", show, w.Body.Len())
			}
		}
		if got := w.Header().Get("Content-Type"); got != want {
			t.Errorf("%s: Content-Type %q, want %q", show, got, want)
		}
		got := w.Header().Get("Content-Length")
		if left := got == "" && c.status == 200 && w.Body.Len() < counted; !left && got != strconv.Itoa(w.Body.Len()) {
			t.Errorf("%s: Content-Length %q of %d", show, got, w.Body.Len())
		}
		if w.Header().Get("Content-Encoding") != "" {
			t.Errorf("%s: has a Content-Encoding", show)
		}
	}
	if n := f.nars[helloName]; n.opened.Load() == 0 || n.opened.Load() != n.closed.Load() {
		t.Errorf("%d NARs opened, %d closed", n.opened.Load(), n.closed.Load())
	}
}

func TestBodies(t *testing.T) {
	h := newHandler(t, newFake(t))
	w := answer(h, from(http.MethodGet, "/nix-cache-info", ""))
	if got := w.Body.String(); got != "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n" {
		t.Errorf("nix-cache-info: %q", got)
	}
	w = answer(h, from(http.MethodGet, "/"+hello.Hash().String()+".narinfo", ""))
	n, err := nix.ParseNarInfo(w.Body.Bytes())
	if err != nil || n.StorePath != hello.StorePath || n.URL != helloName.URL() {
		t.Errorf("narinfo: %v\n%s", err, w.Body)
	}
	w = answer(h, from(http.MethodGet, "/"+n.URL, ""))
	if !bytes.Equal(w.Body.Bytes(), hello.NAR) {
		t.Errorf("NAR: %d bytes", w.Body.Len())
	}
}

func TestMethods(t *testing.T) {
	h := newHandler(t, newFake(t))
	for _, method := range []string{"PUT", "POST", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE", "FOO", "get"} {
		for _, path := range []string{"/nix-cache-info", "/" + hello.Hash().String() + ".narinfo", "/" + helloName.URL(), "/nothing"} {
			r := from(http.MethodGet, path, "")
			r.Method = method
			if w := answer(h, r); w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" {
				t.Errorf("%s %s: %d, Allow %q", method, path, w.Code, w.Header().Get("Allow"))
			}
		}
	}
}

// TestHead: the headers are those of GET, and nothing is sent.
func TestHead(t *testing.T) {
	f := newFake(t)
	stored := nix.NARName{Store: hello.Hash(), Nar: hello.NarHash(), Form: nix.Form{Compression: nix.XZ, File: nix.FileHash{1}}}
	f.nars[stored] = &fakeNAR{info: f.infos[hello.Hash()], data: []byte("stored"), stop: -1}
	url, client := serve(t, newHandler(t, f))
	for _, path := range []string{
		"/nix-cache-info", "/" + hello.Hash().String() + ".narinfo", "/" + helloName.URL(), "/" + stored.URL(), "/nothing",
	} {
		var heads []http.Header
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			r, err := http.NewRequestWithContext(t.Context(), method, url+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if method == http.MethodHead {
				r.Header.Set("Range", "bytes=5-") // is for GET only
			}
			res, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if err != nil || method == http.MethodHead && len(body) > 0 {
				t.Errorf("%s %s: %d bytes, error %v", method, path, len(body), err)
			}
			res.Header.Del("Date")
			res.Header.Set("Status", res.Status)
			heads = append(heads, res.Header)
		}
		if !maps.EqualFunc(heads[0], heads[1], func(a, b []string) bool { return fmt.Sprint(a) == fmt.Sprint(b) }) {
			t.Errorf("%s: GET %v, HEAD %v", path, heads[0], heads[1])
		}
	}
}

func TestRange(t *testing.T) {
	f := newFake(t)
	size := int64(len(hello.NAR))
	last := strconv.FormatInt(size-1, 10)
	var resumed bool
	f.asked = func(_ context.Context, _ source.Scope, resume bool) { resumed = resume }
	h := newHandler(t, f)
	for _, c := range []struct {
		header      string
		from, count int64 // -1: the whole with 200; -2: 416
	}{
		{"bytes=0-", 0, size},
		{"bytes=0-0", 0, 1},
		{"bytes=10-", 10, size - 10},
		{"bytes=10-19", 10, 10},
		{"bytes= 10-19 ", 10, 10},
		{"bytes=10-" + last, 10, size - 10},
		{"bytes=10-99999999999", 10, size - 10},
		{"bytes=" + last + "-", size - 1, 1},
		{"bytes=-1", size - 1, 1},
		{"bytes=-100", size - 100, 100},
		{"bytes=-99999999999", 0, size},
		{"bytes=" + strconv.FormatInt(size, 10) + "-", -2, 0},
		{"bytes=9223372036854775807-", -2, 0},
		{"bytes=9223372036854775808-", -1, 0},
		{"bytes=5-4", -1, 0},
		{"bytes=-0", -2, 0},
		{"bytes=-", -1, 0},
		{"bytes=--5", -1, 0},
		{"bytes=+5-9", -1, 0},
		{"bytes=5-+9", -1, 0},
		{"bytes=0x5-9", -1, 0},
		{"bytes=1_0-", -1, 0},
		{"bytes=0-1,5-6", -1, 0},
		{"bytes=a-b", -1, 0},
		{"lines=1-2", -1, 0},
		{"bytes", -1, 0},
		{"", -1, 0},
	} {
		r := from(http.MethodGet, "/"+helloName.URL(), "")
		r.Header.Set("Range", c.header)
		w := answer(h, r)
		wantStatus, wantBody, wantRange := http.StatusPartialContent, hello.NAR[max(c.from, 0):max(c.from, 0)+c.count], ""
		switch c.from {
		case -1:
			wantStatus, wantBody = http.StatusOK, hello.NAR
		case -2:
			wantStatus, wantRange = http.StatusRequestedRangeNotSatisfiable, fmt.Sprintf("bytes */%d", size)
		default:
			wantRange = fmt.Sprintf("bytes %d-%d/%d", c.from, c.from+c.count-1, size)
		}
		if w.Code != wantStatus || w.Header().Get("Content-Range") != wantRange || w.Header().Get("Accept-Ranges") != "bytes" {
			t.Errorf("%q: %d, Content-Range %q, Accept-Ranges %q", c.header, w.Code, w.Header().Get("Content-Range"), w.Header().Get("Accept-Ranges"))
		}
		if c.from != -2 && (!bytes.Equal(w.Body.Bytes(), wantBody) || w.Header().Get("Content-Length") != strconv.Itoa(len(wantBody))) {
			t.Errorf("%q: %d bytes, Content-Length %s, want %d", c.header, w.Body.Len(), w.Header().Get("Content-Length"), len(wantBody))
		}
		if want := c.from > 0 || c.from == -2 || strings.HasPrefix(c.header, "bytes=-") && c.from >= 0; resumed != want {
			t.Errorf("%q: asked as one who resumes: %v", c.header, resumed)
		}
	}
	for _, edit := range []func(r *http.Request){
		func(r *http.Request) { r.Header.Add("Range", "bytes=7-8") },
		func(r *http.Request) { r.Header.Set("If-Range", `"etag"`) },
		func(r *http.Request) { f.nars[helloName].ranges = false },
	} {
		r := from(http.MethodGet, "/"+helloName.URL(), "")
		r.Header.Set("Range", "bytes=5-6")
		edit(r)
		if w := answer(h, r); w.Code != http.StatusOK || w.Header().Get("Content-Range") != "" || w.Body.Len() != len(hello.NAR) {
			t.Errorf("%v: %d, %d bytes", r.Header, w.Code, w.Body.Len())
		}
	}
	if w := answer(h, from(http.MethodGet, "/"+helloName.URL(), "")); w.Header().Get("Accept-Ranges") != "" {
		t.Error("ranges are offered for what has none")
	}
}

// TestValidators: what a CDN or a proxy asks to save bytes or to go on. The rows are answered by nginx
// with the same statuses.
func TestValidators(t *testing.T) {
	f := newFake(t)
	h := newHandler(t, f)
	nar, info := "/"+helloName.URL(), "/"+hello.Hash().String()+".narinfo"
	tagOf := func(path string) string {
		w := answer(h, from(http.MethodGet, path, ""))
		tag := w.Header().Get("ETag")
		if again := answer(h, from(http.MethodHead, path, "")).Header().Get("ETag"); len(tag) < 3 || again != tag {
			t.Errorf("%s: tags %s and %s", path, tag, again)
		}
		return tag
	}
	tags := map[string]string{nar: tagOf(nar), info: tagOf(info), "/nix-cache-info": tagOf("/nix-cache-info")}
	for path, tag := range tags {
		for _, c := range []struct {
			key, value string
			status     int
		}{
			{"If-None-Match", tag, 304},
			{"If-None-Match", "W/" + tag, 304},
			{"If-None-Match", `"x", ` + tag, 304},
			{"If-None-Match", "*", 304},
			{"If-None-Match", `"x"`, 200},
			{"If-Match", tag, 200},
			{"If-Match", "*", 200},
			{"If-Match", `"x"`, 412},
			{"If-Match", "W/" + tag, 412},
			{"If-Modified-Since", "Mon, 01 Jan 2035 00:00:00 GMT", 200}, // no date is sent
		} {
			for _, method := range []string{http.MethodGet, http.MethodHead} {
				r := from(method, path, "")
				r.Header.Set(c.key, c.value)
				w := answer(h, r)
				if w.Code != c.status || w.Code == 304 && (w.Body.Len() > 0 || w.Header().Get("ETag") != tag) {
					t.Errorf("%s %s, %s: %s: %d, %d bytes, ETag %s", method, path, c.key, c.value, w.Code, w.Body.Len(), w.Header().Get("ETag"))
				}
			}
		}
	}
	for value, status := range map[string]int{tags[nar]: 206, `"x"`: 200, "W/" + tags[nar]: 200, "Mon, 01 Jan 2035 00:00:00 GMT": 200} {
		r := from(http.MethodGet, nar, "")
		r.Header.Set("Range", "bytes=5-6")
		r.Header.Set("If-Range", value)
		if w := answer(h, r); w.Code != status {
			t.Errorf("If-Range %s: %d", value, w.Code)
		}
	}
	// What is missing, or not for this client, has no validator and is kept for a moment.
	for _, path := range []string{"/" + secretName.URL(), "/" + strings.Repeat("0", 32) + ".narinfo", "/nothing"} {
		r := from(http.MethodGet, path, "192.0.2.1:99")
		r.Header.Set("If-None-Match", "*")
		if w := answer(h, r); w.Code != 404 || w.Header().Get("ETag") != "" || w.Header().Get("Cache-Control") != "max-age=60" {
			t.Errorf("%s: %d, %v", path, w.Code, w.Header())
		}
	}
	f.nars[helloName].ranges = false // other bytes another time
	if w := answer(h, from(http.MethodGet, nar, "")); w.Header().Get("ETag") != "" || w.Header().Get("Cache-Control") != "" {
		t.Errorf("a container that is made up: %v", w.Header())
	}
}

// TestCut: a client never takes for whole what could not be proven.
func TestCut(t *testing.T) {
	f := newFake(t)
	h := newHandler(t, f)
	url, client := serve(t, h)
	nar := f.nars[helloName]
	for _, asked := range []string{"", "bytes=100-"} {
		for _, stop := range []int64{1, 100, 5000, int64(len(hello.NAR)) - 101} {
			f.set(helloName, &fakeNAR{info: nar.info, data: nar.data, ranges: true, stop: stop})
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/"+helloName.URL(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if asked != "" {
				r.Header.Set("Range", asked)
			}
			res, err := client.Do(r)
			if err != nil {
				continue // cut before the headers left
			}
			got, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if err == nil || int64(len(got)) > stop || res.ContentLength <= stop {
				t.Errorf("stopped at %d: status %d, %d of %d bytes, error %v", stop, res.StatusCode, len(got), res.ContentLength, err)
			}
		}
	}
	// A response that ends early without an error is no whole one either.
	f.set(helloName, &fakeNAR{info: nar.info, data: nar.data, send: func(_ context.Context, w io.Writer) error {
		_, err := w.Write(hello.NAR[:10_000])
		return err
	}})
	res, err := client.Get(url + "/" + helloName.URL()) //nolint:noctx // of a test's own server
	if err == nil {
		_, err = io.ReadAll(res.Body)
		_ = res.Body.Close()
	}
	if err == nil {
		t.Error("a short response was taken for whole")
	}
}

// TestRefused: before the first byte an answer becomes the same 404 as for what is not there.
func TestRefused(t *testing.T) {
	f := newFake(t)
	h := newHandler(t, f)
	want := answer(h, from(http.MethodGet, "/nothing", ""))
	f.nars[helloName].stop = 0
	for _, asked := range []string{"", "bytes=100-"} {
		r := from(http.MethodGet, "/"+helloName.URL(), "")
		if asked != "" {
			r.Header.Set("Range", asked)
		}
		same(t, "a NAR that fails at once", answer(h, r), want)
	}
	for _, err := range []error{errSource, context.DeadlineExceeded, &verify.InvalidError{Reason: verify.ReasonHash, Err: errSource}} {
		f.err = err
		same(t, "narinfo", answer(h, from(http.MethodGet, "/"+strings.Repeat("0", 32)+".narinfo", "")), want)
		other := helloName
		other.Nar[0]++
		same(t, "NAR", answer(h, from(http.MethodGet, "/"+other.URL(), "")), want)
	}
}

func same(t *testing.T, what string, got, want *httptest.ResponseRecorder) {
	t.Helper()
	for _, w := range []*httptest.ResponseRecorder{got, want} {
		w.Header().Del("Date") // a second may have passed
	}
	if got.Code != want.Code || fmt.Sprint(got.Header()) != fmt.Sprint(want.Header()) || !bytes.Equal(got.Body.Bytes(), want.Body.Bytes()) {
		t.Errorf("%s: %d %v %q, want %d %v %q", what, got.Code, got.Header(), got.Body, want.Code, want.Header(), want.Body)
	}
}

// TestElsewhere: a client on another machine sees what is shared, and of all else not that it is there.
func TestElsewhere(t *testing.T) {
	f := newFake(t)
	var scope source.Scope
	f.asked = func(_ context.Context, r source.Scope, _ bool) { scope = r }
	h := newHandler(t, f)
	absent := answer(h, from(http.MethodGet, "/"+strings.Repeat("0", 32)+".narinfo", "10.0.0.2:99"))
	for _, c := range []struct {
		remote string
		here   bool
	}{
		{"127.0.0.1:1", true},
		{"127.9.9.9:1", true},
		{"[::1]:1", true},
		{"[::ffff:127.0.0.1]:1", true},
		{"@", true}, // a unix socket
		{"", true},
		{"10.0.0.1:1", true}, // this machine's own address
		{"[::ffff:10.0.0.1]:1", true},
		{"10.0.0.2:1", false},
		{"192.0.2.1:1", false},
		{"[fe80::1%eth0]:1", false},
		{"[2001:db8::1]:1", false},
		{"[::ffff:10.0.0.2]:1", false},
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			for _, path := range []string{"/" + hello.Hash().String() + ".narinfo", "/" + helloName.URL(), "/nix-cache-info"} {
				if w := answer(h, from(method, path, c.remote)); w.Code != http.StatusOK {
					t.Errorf("%s %s from %s: %d", method, path, c.remote, w.Code)
				}
			}
			for _, path := range []string{"/" + secret.Hash().String() + ".narinfo", "/" + secretName.URL()} {
				w := answer(h, from(method, path, c.remote))
				if c.here && w.Code != http.StatusOK {
					t.Errorf("%s %s from %s: %d", method, path, c.remote, w.Code)
				}
				if !c.here {
					same(t, path+" from "+c.remote, w, absent)
				}
				if (scope&source.PublicOnly == 0) != c.here {
					t.Errorf("from %s: asked with scope %b", c.remote, scope)
				}
			}
		}
	}
	if n := f.nars[secretName]; n.opened.Load() != n.closed.Load() {
		t.Errorf("%d NARs opened, %d closed", n.opened.Load(), n.closed.Load())
	}
}

// TestProxied: whoever a proxy on this machine asks for is on another machine: it says so, or it passes on the
// name by which they know this node.
func TestProxied(t *testing.T) {
	f := newFake(t)
	h := newHandler(t, f, func(c *Config) { c.Public = []string{"cache.example.org"} })
	for name, c := range map[string]struct {
		edit func(r *http.Request)
		own  bool
	}{
		"Nix of this machine":    {func(*http.Request) {}, true},
		"the public name":        {func(r *http.Request) { r.Host = "Cache.Example.Org:443" }, false},
		"X-Forwarded-For":        {func(r *http.Request) { r.Header.Set("X-Forwarded-For", "192.0.2.1") }, false},
		"X-Real-IP":              {func(r *http.Request) { r.Header.Set("X-Real-IP", "192.0.2.1") }, false},
		"Forwarded":              {func(r *http.Request) { r.Header.Set("Forwarded", "for=192.0.2.1") }, false},
		"a node on this machine": {func(r *http.Request) { r.Header.Set("Via", "nixp2p/other") }, true},
	} {
		for _, client := range []string{"", "@"} { // also through a socket of the file system
			absent := from(http.MethodGet, "/"+strings.Repeat("0", 32)+".narinfo", client)
			c.edit(absent)
			none := answer(h, absent)
			for _, path := range []string{"/" + secret.Hash().String() + ".narinfo", "/" + secretName.URL()} {
				r := from(http.MethodGet, path, client)
				c.edit(r)
				w := answer(h, r)
				if c.own != (w.Code == http.StatusOK) {
					t.Errorf("%s: %s: status %d", name, path, w.Code)
				}
				if !c.own {
					same(t, name+": "+path, w, none)
				}
			}
			r := from(http.MethodGet, "/"+hello.Hash().String()+".narinfo", client)
			c.edit(r)
			if w := answer(h, r); w.Code != http.StatusOK || (w.Header().Get("Cache-Control") == "") != c.own {
				t.Errorf("%s: what is public: status %d, %v", name, w.Code, w.Header())
			}
		}
	}
}

// TestKeptMisses: a proxy keeps for a moment that there is none, and nothing that depends on who asked, how,
// or when: one client must not be able to spoil a path for others.
func TestKeptMisses(t *testing.T) {
	f := newFake(t)
	h := newHandler(t, f)
	none := "/" + strings.Repeat("0", 32) + ".narinfo"
	for name, c := range map[string]struct {
		path, key, value, client, want string
	}{
		"absent":          {none, "", "", "192.0.2.1:1", "max-age=60"},
		"no such file":    {"/log/x.drv", "", "", "192.0.2.1:1", "max-age=60"},
		"of this machine": {none, "", "", "", "no-store"},
		"a browser":       {"/" + hello.Hash().String() + ".narinfo", "User-Agent", "Mozilla/5.0", "192.0.2.1:1", "no-store"},
		"asked in a ring": {none, "Via", h.via, "192.0.2.1:1", "no-store"},
		"a range":         {none, "Range", "bytes=5-", "192.0.2.1:1", "no-store"},
	} {
		r := from(http.MethodGet, c.path, c.client)
		if c.key != "" {
			r.Header.Set(c.key, c.value)
		}
		if w := answer(h, r); w.Code != http.StatusNotFound || w.Header().Get("Cache-Control") != c.want {
			t.Errorf("%s: %d, %v", name, w.Code, w.Header())
		}
	}
	h.info = func(context.Context, nix.StoreHash, source.Scope) ([]byte, *verify.Info, error) {
		return nil, nil, fmt.Errorf("%w: %w", resolve.ErrUnavailable, fs.ErrNotExist)
	}
	if w := answer(h, from(http.MethodGet, none, "192.0.2.1:1")); w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("nobody could say: %v", w.Header())
	}
}

// TestMissTime: the time of a miss tells a client on another machine nothing.
func TestMissTime(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{
		0: missTick, time.Microsecond: missTick, missTick - 1: missTick, missTick + missTick/2: 2 * missTick,
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(t)
			f.asked = func(context.Context, source.Scope, bool) { time.Sleep(took) }
			for _, private := range []bool{true, false} {
				h := newHandler(t, f, func(cfg *Config) { cfg.Private = private })
				for _, path := range []string{secret.Hash().String() + ".narinfo", strings.Repeat("0", 32) + ".narinfo", secretName.URL()} {
					for _, remote := range []string{"192.0.2.1:1", "127.0.0.1:1"} {
						want := want
						if !private || remote == "127.0.0.1:1" {
							want = took
						}
						began := time.Now()
						answer(h, from(http.MethodGet, "/"+path, remote))
						if got := time.Since(began); got != want {
							t.Errorf("%s from %s, private %v, source took %v: %v, want %v", path, remote, private, took, got, want)
						}
					}
				}
			}
		})
	}
}

// TestVia: a question that comes back is told from one that comes.
func TestVia(t *testing.T) {
	f := newFake(t)
	var scope source.Scope
	var chain string
	f.asked = func(ctx context.Context, r source.Scope, _ bool) { scope, chain = r, nix.Via(ctx) }
	h := newHandler(t, f)
	for _, c := range []struct {
		via   []string
		back  bool
		chain string
	}{
		{nil, false, ""},
		{[]string{"nixp2p/other"}, false, "nixp2p/other"},
		{[]string{"nixp2p/me"}, true, "nixp2p/me"},
		{[]string{"1.1 nixp2p/me"}, true, "1.1 nixp2p/me"},
		{[]string{"1.1 nixp2p/me (the one)"}, true, "1.1 nixp2p/me (the one)"},
		{[]string{"1.1 squid, nixp2p/me , 1.1 nginx"}, true, "1.1 squid, nixp2p/me , 1.1 nginx"},
		{[]string{"1.1 squid", "nixp2p/me"}, true, "1.1 squid, nixp2p/me"},
		{[]string{"nixp2p/me2"}, false, "nixp2p/me2"},
		{[]string{"nixp2p/m"}, false, "nixp2p/m"},
		{[]string{"xnixp2p/me"}, false, "xnixp2p/me"},
		{[]string{""}, false, ""},
	} {
		for _, path := range []string{"/" + hello.Hash().String() + ".narinfo", "/" + helloName.URL()} {
			r := from(http.MethodGet, path, "")
			if c.via != nil {
				r.Header["Via"] = c.via
			}
			answer(h, r)
			if (scope&source.LocalOnly != 0) != c.back || chain != c.chain {
				t.Errorf("Via %q: scope %b, chain %q", c.via, scope, chain)
			}
		}
	}
}

// pipes is a listener without a network, for tests in fake time.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipes) Close() error   { close(l.closed); return nil }
func (l *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// dial sends a request and returns the connection.
func (l *pipes) dial(t *testing.T, request string) net.Conn {
	t.Helper()
	client, server := net.Pipe()
	l.conns <- server
	if _, err := io.WriteString(client, request); err != nil {
		t.Fatal(err)
	}
	return client
}

// TestStalled: a client that takes nothing loses its connection, one that is only slow does not.
func TestStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		const stall = time.Minute
		l := &pipes{make(chan net.Conn), make(chan struct{})}
		srv := &http.Server{Handler: newHandler(t, f, func(cfg *Config) { cfg.Stall = stall })}
		done := make(chan error, 1)
		go func() { done <- srv.Serve(l) }()
		defer func() { _ = srv.Close(); <-done }()

		nar, piece := f.nars[helloName], make([]byte, 10_000)
		ended := make(chan error, 1)
		pause := time.Duration(0)
		nar.send = func(_ context.Context, w io.Writer) (err error) {
			defer func() { ended <- err }()
			for range len(hello.NAR) / len(piece) {
				time.Sleep(pause)
				if _, err := w.Write(piece); err != nil {
					return err
				}
			}
			_, err = w.Write(make([]byte, len(hello.NAR)%len(piece)))
			return err
		}
		request := "GET /" + helloName.URL() + " HTTP/1.1\r\nHost: localhost\r\n\r\n"
		silent := l.dial(t, request)
		defer silent.Close()
		began := time.Now()
		if err := <-ended; err == nil || time.Since(began) != stall {
			t.Errorf("after %v: %v", time.Since(began), err)
		}

		// A source that is slow, and a connection that rests, are no stall.
		pause = stall / 2
		slow := l.dial(t, request)
		defer slow.Close()
		for range 2 {
			answered(t, bufio.NewReader(slow))
			if err := <-ended; err != nil {
				t.Errorf("slow source: %v", err)
			}
			time.Sleep(2 * stall)
			go func() { _, _ = io.WriteString(slow, request) }()
		}
		answered(t, bufio.NewReader(slow))
		<-ended
	})
}

// TestClientLeaves: the source is told, and nothing is logged as a failure of ours.
func TestClientLeaves(t *testing.T) {
	f := newFake(t)
	h := newHandler(t, f)
	url, client := serve(t, h)
	ended := make(chan error, 1)
	f.nars[helloName].send = func(ctx context.Context, w io.Writer) error {
		_, err := w.Write(hello.NAR[:10_000])
		<-ctx.Done()
		ended <- ctx.Err()
		return errors.Join(err, ctx.Err())
	}
	res, err := client.Get(url + "/" + helloName.URL()) //nolint:noctx // of a test's own server
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestLongURL: what is too long for the server is not an error that Nix would try again.
func TestLongURL(t *testing.T) {
	url, client := serve(t, newHandler(t, newFake(t)))
	res, err := client.Get(url + "/" + strings.Repeat("a", 1<<20-1000) + ".narinfo") //nolint:noctx // of a test's own server
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusNotFound {
		t.Errorf("status %d", res.StatusCode)
	}
}

func FuzzPath(f *testing.F) {
	for _, s := range []string{
		"/", "", "/nix-cache-info", "/" + hello.Hash().String() + ".narinfo", "/" + helloName.URL(),
		"/nar/" + helloName.String() + ".xz", "/nar/0-0-0.nar.zst", "//", "/\x00.narinfo", "/nar/-.nar",
		"/" + deltaURL(helloName, secret.NarHash()), "/delta/",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := parsePath(s)
		var back string
		switch got.kind {
		case nothing:
			return
		case theCacheInfo:
			back = "/nix-cache-info"
		case aNarinfo:
			back = "/" + got.nar.Store.String() + ".narinfo"
		case aNAR:
			back = "/" + got.nar.URL()
		case aDelta:
			back = "/" + deltaURL(got.nar, got.base)
		}
		if back != "/"+strings.TrimLeft(s, "/") { // more slashes in front change nothing
			t.Errorf("%q was read as %q", s, back)
		}
	})
}

// sinkWriter is a ResponseWriter that keeps nothing.
type sinkWriter struct {
	header http.Header
	n      int
}

func (w *sinkWriter) Header() http.Header { return w.header }
func (w *sinkWriter) WriteHeader(int)     {}
func (w *sinkWriter) Write(p []byte) (int, error) {
	w.n += len(p)
	return len(p), nil
}
func (w *sinkWriter) SetWriteDeadline(time.Time) error { return nil }

// remembered is a resolver that costs nothing.
type remembered struct {
	text []byte
	info *verify.Info
}

func (r *remembered) Narinfo(_ context.Context, h nix.StoreHash, _ source.Scope) ([]byte, *verify.Info, error) {
	if h != hello.Hash() {
		return nil, nil, fs.ErrNotExist
	}
	return r.text, r.info, nil
}

func (r *remembered) NAR(context.Context, nix.NARName, transfer.Query) (nar, error) {
	return nil, fs.ErrNotExist
}

func hot(t testing.TB, path string) func() {
	info := hello.Info(t, key)
	h := newHandler(t, &remembered{info.Offer(nix.Raw), info})
	r := from(http.MethodGet, path, "")
	w := &sinkWriter{header: http.Header{}}
	return func() {
		clear(w.header)
		h.ServeHTTP(w, r)
	}
}

// TestNarinfoAllocs: what is asked most often costs next to nothing beside the server itself.
func TestNarinfoAllocs(t *testing.T) {
	for _, path := range []string{"/" + hello.Hash().String() + ".narinfo", "/" + strings.Repeat("0", 32) + ".narinfo"} {
		if n := testing.AllocsPerRun(100, hot(t, path)); n >= 6 {
			t.Errorf("%s: %v allocations", path, n)
		}
	}
}

func BenchmarkNarinfo(b *testing.B) {
	for name, path := range map[string]string{"hit": "/" + hello.Hash().String() + ".narinfo", "miss": "/" + strings.Repeat("0", 32) + ".narinfo"} {
		b.Run(name, func(b *testing.B) {
			serve := hot(b, path)
			b.ReportAllocs()
			for b.Loop() {
				serve()
			}
		})
	}
}

// TestLength: what the handler leaves to the server is there.
func TestLength(t *testing.T) {
	for _, size := range []int{1, counted - 1, counted, counted + 1, 3 * counted} {
		srv := httptest.NewServer(newHandler(t, &remembered{bytes.Repeat([]byte{'x'}, size), hello.Info(t, key)}))
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			req, _ := http.NewRequestWithContext(t.Context(), method, srv.URL+"/"+hello.Hash().String()+".narinfo", nil)
			res, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			_, err = http.ParseTime(res.Header.Get("Date"))
			if res.ContentLength != int64(size) || len(res.TransferEncoding) > 0 || err != nil || len(res.Header["Date"]) != 1 {
				t.Errorf("%s of %d bytes: length %d, %v, Date %v", method, size, res.ContentLength, res.TransferEncoding, res.Header["Date"])
			}
		}
		srv.Close()
		http.DefaultClient.CloseIdleConnections()
	}
}

// BenchmarkServed is a narinfo with all that the server of the standard library does for it.
func BenchmarkServed(b *testing.B) {
	srv := httptest.NewServer(newHandler(b, &remembered{hello.Info(b, key).Offer(nix.Raw), hello.Info(b, key)}))
	defer srv.Close()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	request := []byte("GET /" + hello.Hash().String() + ".narinfo HTTP/1.1\r\nHost: localhost\r\nUser-Agent: x\r\nAccept: */*\r\n\r\n")
	answer := make([]byte, 4096)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := conn.Write(request); err != nil {
			b.Fatal(err)
		}
		if n, err := conn.Read(answer); err != nil || !bytes.HasPrefix(answer[:n], []byte("HTTP/1.1 200 OK\r\n")) {
			b.Fatal(err, string(answer[:n]))
		}
	}
}
