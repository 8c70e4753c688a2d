package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const hash = "6lwdzpbig6zz8678blcqr5f5q1caxjw2"

// fake is a Node that says what it is told to.
type fake struct {
	ready error
	state State
	peers []Peer
	why   func(context.Context, nix.StoreHash) []Answer

	history History

	prefetch func(nix.StoreHash, bool) (Prefetched, error)
	trimmed  []int64
}

func (f *fake) Prefetch(_ context.Context, h nix.StoreHash, dry bool) (Prefetched, error) {
	return f.prefetch(h, dry)
}

func (f *fake) TrimPlan(max int64) (any, error) { return f.Trim(max) }

func (f *fake) Follow(context.Context, bool) ([]FollowPlan, error) {
	return nil, errors.New("nothing is followed")
}

func (f *fake) Trim(max int64) (any, error) {
	f.trimmed = append(f.trimmed, max)
	return map[string]int{"kept": 3}, nil
}

func (f *fake) Ready() error  { return f.ready }
func (f *fake) State() State  { return f.state }
func (f *fake) Peers() []Peer { return f.peers }

func (f *fake) History() History { return f.history }

func (f *fake) Why(ctx context.Context, h nix.StoreHash) []Answer {
	if f.why == nil {
		return nil
	}
	return f.why(ctx, h)
}

func start(t *testing.T, f *fake) (*httptest.Server, *metrics.Metrics) {
	t.Helper()
	m := metrics.New()
	h, err := New(Config{Node: f, Metrics: m, Addr: "127.0.0.1:7655", Version: "v1", Started: time.Now().Add(-time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, h), m
}

func serve(t *testing.T, h *Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(func() { s.Close(); s.Client().CloseIdleConnections() })
	return s
}

func do(t *testing.T, s *httptest.Server, method, path string, change ...func(*http.Request)) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range change {
		c(r)
	}
	resp, err := s.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func TestHealth(t *testing.T) {
	f := &fake{}
	s, _ := start(t, f)
	for _, path := range []string{"/healthz", "/readyz", "/", "/metrics", "/status.css", "/status.js", "/icon.svg", "/api/v1/status", "/api/v1/peers", "/debug/pprof/", "/debug/pprof/goroutine?debug=1"} {
		if resp, _ := do(t, s, "GET", path); resp.StatusCode != 200 {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	f.ready = errors.New("config.toml:3: no such key")
	if resp, body := do(t, s, "GET", "/readyz"); resp.StatusCode != 503 || body != "config.toml:3: no such key\n" {
		t.Errorf("readyz: %s %q", resp.Status, body)
	}
	if resp, _ := do(t, s, "GET", "/healthz"); resp.StatusCode != 200 {
		t.Errorf("healthz while not ready: %s", resp.Status)
	}
	if resp, _ := do(t, s, "GET", "/nothing"); resp.StatusCode != 404 {
		t.Errorf("nothing: %s", resp.Status)
	}
}

func TestStatus(t *testing.T) {
	f := &fake{state: State{
		Conditions: []Condition{{Text: "the disk is full"}, {Text: "only said", Note: true}},
		Upstreams:  []Upstream{{URL: "https://<b>.example", Up: false, Why: "refused", LatencyMS: 12}},
		Cache:      Cache{Bytes: 5 << 20, Limit: 10 << 30, Entries: 3},
	}}
	s, m := start(t, f)
	m.NarBytes.WithLabelValues("store").Add(10)
	m.NarBytes.WithLabelValues("upstream").Add(1536)
	m.NarUnpacked.WithLabelValues("upstream").Add(1536)
	m.SavedBytes.Add(7)
	m.StorePathsShared.Set(100)

	_, body := do(t, s, "GET", "/api/v1/status")
	var raw map[string]any
	if err := json.Unmarshal([]byte(body), &raw); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{
		"version": "v1", "ready": true, "store_paths_shared": 100.0, "peers": 0.0, "saved_bytes": 7.0,
		"bytes":    map[string]any{"store": 10.0, "cache": 0.0, "peer": 0.0, "upstream": 1536.0},
		"degraded": []any{"the disk is full"},
		"cache":    map[string]any{"bytes": 5242880.0, "limit_bytes": 10737418240.0, "entries": 3.0},
	} {
		if !reflect.DeepEqual(raw[key], want) {
			t.Errorf("%s is %v, want %v", key, raw[key], want)
		}
	}
	if up := raw["uptime_seconds"].(float64); up < 60 || up > 120 {
		t.Errorf("up for %v s", up)
	}

	_, page := do(t, s, "GET", "/")
	for _, want := range []string{"v1, up", "1 min</time>", "1.5 KiB", "5.0 MiB</data>", "of 10 GiB, 3 entries", "the disk is full", "https://&lt;b&gt;.example", "refused", "12 ms"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	f.ready = errors.New("broken")
	if _, page = do(t, s, "GET", "/"); !strings.Contains(page, "Not ready</span>") || !strings.Contains(page, "broken") {
		t.Errorf("not ready: %s", page)
	}
	if _, body := do(t, s, "GET", "/metrics"); !strings.Contains(body, `nixp2p_nar_bytes_total{source="store"} 10`) {
		t.Errorf("metrics: %s", body)
	}
}

func TestWhy(t *testing.T) {
	want := []Answer{{Source: "store", Result: Has, TookMS: .5, Signers: []string{"k-1"}}, {Source: "upstream", Result: Unavailable, Err: "refused"}}
	f := &fake{why: func(ctx context.Context, h nix.StoreHash) []Answer {
		if _, ok := ctx.Deadline(); !ok || h.String() != hash {
			return nil
		}
		return want
	}}
	s, _ := start(t, f)
	c := Client{Addr: strings.TrimPrefix(s.URL, "http://"), HTTP: s.Client()}
	var got Why
	if err := c.Get(t.Context(), "/api/v1/why/"+hash, &got); err != nil || got.StoreHash != hash || !reflect.DeepEqual(got.Answers, want) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"x", hash + "-hello", strings.ToUpper(hash)} {
		if resp, body := do(t, s, "GET", "/api/v1/why/"+bad); resp.StatusCode != 400 || !strings.Contains(body, "not a store hash") {
			t.Errorf("%s: %s %s", bad, resp.Status, body)
		}
	}
}

func TestClient(t *testing.T) {
	f := &fake{state: State{Upstreams: []Upstream{{URL: "u", Since: time.Unix(5, 0).UTC()}}}}
	s, _ := start(t, f)
	c := Client{Addr: strings.TrimPrefix(s.URL, "http://")}
	st, err := c.Status(t.Context())
	if err != nil || st.Version != "v1" || !reflect.DeepEqual(st.Upstreams, f.state.Upstreams) {
		t.Errorf("%+v, %v", st, err)
	}
	if peers, err := c.Peers(t.Context()); err != nil || peers == nil || len(peers) != 0 {
		t.Errorf("peers: %v, %v", peers, err)
	}
	f.peers = []Peer{{ID: "p"}}
	if peers, err := c.Peers(t.Context()); err != nil || len(peers) != 1 {
		t.Errorf("peers: %v, %v", peers, err)
	}

	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }))
	c.Addr = strings.TrimPrefix(other.URL, "http://")
	if _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "is not nixp2p") {
		t.Errorf("another program: %v", err)
	}
	other.Close()
	if _, err := c.Status(t.Context()); err == nil {
		t.Error("nobody there: no error")
	}
}

// TestBrowser goes through what a web page in a local browser can try.
func TestBrowser(t *testing.T) {
	s, _ := start(t, &fake{})
	head := func(k, v string) func(*http.Request) { return func(r *http.Request) { r.Header.Set(k, v) } }
	host := func(v string) func(*http.Request) { return func(r *http.Request) { r.Host = v } }
	for _, c := range []struct {
		name, method, path string
		change             []func(*http.Request)
		want               int
	}{
		{"localhost", "GET", "/metrics", []func(*http.Request){host("localhost:7655")}, 200},
		{"LOCALHOST without a port", "GET", "/metrics", []func(*http.Request){host("LOCALHOST")}, 200},
		{"another loopback address", "GET", "/metrics", []func(*http.Request){host("127.0.0.2:9")}, 200},
		{"loopback of IPv6", "GET", "/metrics", []func(*http.Request){host("[::1]:7655")}, 200},
		{"loopback of IPv6 without a port", "GET", "/metrics", []func(*http.Request){host("[::1]")}, 200},
		{"rebound name", "GET", "/metrics", []func(*http.Request){host("evil.example:7655")}, 404},
		{"name that begins like ours", "GET", "/metrics", []func(*http.Request){host("localhost.evil.example")}, 404},
		{"name that begins like an address", "GET", "/metrics", []func(*http.Request){host("127.0.0.1.evil.example")}, 404},
		{"another machine's address", "GET", "/metrics", []func(*http.Request){host("192.0.2.1")}, 404},
		{"rebound, page", "GET", "/", []func(*http.Request){host("evil.example")}, 404},
		{"rebound, health", "GET", "/healthz", []func(*http.Request){host("evil.example")}, 404},

		{"image on another site", "GET", "/api/v1/why/" + hash, []func(*http.Request){head("Sec-Fetch-Site", "cross-site"), head("Sec-Fetch-Mode", "no-cors")}, 404},
		{"another port of this machine", "GET", "/debug/pprof/heap", []func(*http.Request){head("Sec-Fetch-Site", "same-site")}, 404},
		{"link on another site", "GET", "/", []func(*http.Request){head("Sec-Fetch-Site", "cross-site"), head("Sec-Fetch-Mode", "navigate")}, 200},
		{"link on another site, with a question", "GET", "/?path=" + hash, []func(*http.Request){head("Sec-Fetch-Site", "cross-site"), head("Sec-Fetch-Mode", "navigate")}, 404},
		{"link on another site, deeper", "GET", "/debug/pprof/profile", []func(*http.Request){head("Sec-Fetch-Site", "cross-site"), head("Sec-Fetch-Mode", "navigate")}, 404},
		{"our own page", "GET", "/status.css", []func(*http.Request){head("Sec-Fetch-Site", "same-origin")}, 200},
		{"typed by hand", "GET", "/", []func(*http.Request){head("Sec-Fetch-Site", "none")}, 200},

		{"form", "POST", "/api/v1/status", []func(*http.Request){head("Content-Type", "application/x-www-form-urlencoded")}, 415},
		{"script without asking first", "POST", "/api/v1/status", []func(*http.Request){head("Content-Type", "text/plain")}, 415},
		{"no type", "POST", "/api/v1/status", nil, 415},
		{"JSON, but there is nothing to change", "POST", "/api/v1/status", []func(*http.Request){head("Content-Type", "application/json; charset=utf-8")}, 405},
		{"delete", "DELETE", "/api/v1/status", nil, 405},
		{"head", "HEAD", "/api/v1/status", nil, 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp, body := do(t, s, c.method, c.path, c.change...)
			if resp.StatusCode != c.want {
				t.Errorf("%s %q, want %d", resp.Status, body, c.want)
			}
			if csp := resp.Header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'") || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("headers %v", resp.Header)
			}
		})
	}
}

func TestFormat(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1 << 10: "1.0 KiB", 3 << 29: "1.5 GiB", 1 << 60: "1.0 EiB", 10199: "10 KiB", 312 << 30: "312 GiB", 1000 << 20: "1.0 GiB", 1<<63 - 1: "8.0 EiB",
	} {
		if got := FormatBytes(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
	for s, want := range map[float64]string{0: "0 s", 59: "59 s", 61: "1 min", 3*3600 + 125: "3 h 2 min", 3 * 86400: "3 days"} {
		if got := FormatDuration(s); got != want {
			t.Errorf("%v: %s, want %s", s, got, want)
		}
	}
}

func TestNew(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("nothing to tell about, and no error")
	}
}
