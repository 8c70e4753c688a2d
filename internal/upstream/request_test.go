package upstream

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
)

// TestWorstCase: a cache that does whatever costs requests gets no more than what is promised.
func TestWorstCase(t *testing.T) {
	p := nixtest.NewPath("hello", 4<<20)
	good := p.Signed(key)
	var mode atomic.Value
	var infos, nars atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		nar := strings.HasPrefix(r.URL.Path, "/nar/")
		count := infos.Add
		if nar {
			count = nars.Add
		}
		n := count(1)
		switch m := mode.Load().(string); {
		case m == "redirects", nar && m == "NAR redirects":
			if n%10 == 9 {
				panic(http.ErrAbortHandler)
			}
			http.Redirect(w, r, fmt.Sprintf("%s?%d", r.URL.Path, n), http.StatusFound)
		case m == "aborts", nar && m == "NAR aborts":
			panic(http.ErrAbortHandler)
		case m == "errors":
			w.WriteHeader(http.StatusBadGateway)
		case m == "moves" && nar:
			w.WriteHeader(http.StatusNotFound)
		case nar: // enough to count as healthy, and no more
			from := 0
			if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(p.NAR)-1, len(p.NAR)))
				w.Header().Set("Content-Length", fmt.Sprint(len(p.NAR)-from))
				w.WriteHeader(http.StatusPartialContent)
			} else {
				w.Header().Set("Content-Length", fmt.Sprint(len(p.NAR)))
			}
			size := 1000
			if m == "drips" {
				size = 20_000 // heals on a saturated line
			}
			_, _ = w.Write(p.NAR[from:min(from+size, len(p.NAR))])
			panic(http.ErrAbortHandler)
		default:
			_, _ = w.Write(good.AppendText(nil))
		}
	}))
	defer srv.Close()
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	for _, m := range []string{"redirects", "aborts", "errors", "NAR redirects", "NAR aborts", "moves", "breaks", "drips"} {
		t.Run(m, func(t *testing.T) {
			b := open(t, func(c *Config) { c.timeouts.retry = 100 * time.Microsecond; c.timeouts.late = 20 * time.Millisecond }, srv.URL)
			mode.Store(m)
			infos.Store(0)
			nars.Store(0)
			_, _ = b.Info(t.Context(), p.Hash())
			if n := infos.Load(); n > MaxInfoRequests || n < 1 {
				t.Errorf("a narinfo took %d requests, at most %d are promised", n, MaxInfoRequests)
			}
			infos.Store(0)
			_, err := b.read(p.Info(t, key), nix.Raw, 0)
			if n := infos.Load() + nars.Load(); n > MaxNARRequests || n < 1 {
				t.Errorf("a NAR took %d requests, at most %d are promised", n, MaxNARRequests)
			}
			if err == nil {
				t.Error("it came")
			}
		})
	}
}

// TestVia: a request is marked only where it may come back.
func TestVia(t *testing.T) {
	m := func(text string) *mirror {
		u, err := New(Config{URLs: []string{text}})
		if err != nil {
			t.Fatal(err)
		}
		return u.all[0]
	}
	for text, want := range map[string]bool{
		"https://cache.nixos.org": false, "https://93.184.216.34": false, "https://[2606:4700::1]": false, "https://cache.example.lan": false,
		"http://cache.example.org": true, "https://127.0.0.1:7654": true, "https://10.1.2.3": true, "https://[fd00::1]": true,
		"https://100.64.3.4": true, "https://localhost": true, "https://cachehost:443": true, "https://[::ffff:10.0.0.1]": true,
	} {
		if c := m(text); c.mayBeNode(c.base) != want {
			t.Errorf("%s: %v", text, !want)
		}
	}
	c := m("https://cache.example.org")
	c.near.Store(true) // connected to at a private address
	other, _ := url.Parse("https://cdn.example.net/x")
	if !c.mayBeNode(c.base) || c.mayBeNode(other) {
		t.Error("a name with a private address")
	}
}

// TestViaChain: a question on behalf of another daemon names both.
func TestViaChain(t *testing.T) {
	p := nixtest.NewPath("hello", 1000)
	cfg := cache(nix.None, p)
	for _, tls := range []bool{false, true} {
		cfg.TLS = tls
		served := nixtest.NewUpstream(t, cfg)
		u := open(t, func(c *Config) { c.roots = certs(served, tls) }, served.URL())
		if _, err := u.Info(nix.ContextWithVia(t.Context(), "1.1 squid, nixp2p/other"), p.Hash()); err != nil {
			t.Fatal(err)
		}
		if got := served.Seen(nixtest.NarInfo)[0].Header.Get("Via"); got != "1.1 squid, nixp2p/other, nixp2p/self" {
			t.Errorf("Via: %s", got)
		}
	}
}

// TestNetrcDefault: what is for any host is not for a host that a cache names.
func TestNetrcDefault(t *testing.T) {
	p := nixtest.NewPath("hello", 1000)
	files := nixtest.NewUpstream(t, nixtest.UpstreamConfig{})
	filesURL := byName(t, files.URL())
	files.Serve("/there", p.NAR)
	for _, how := range []string{"redirect", "URL line"} {
		cfg := cache(nix.None, p)
		if how == "URL line" {
			cfg.URL = func(_, _ string, _ nixtest.Path) string { return filesURL + "/there" }
		}
		u := nixtest.NewUpstream(t, cfg)
		if how == "redirect" {
			u.Set(nixtest.NarFile, nixtest.Fault{Redirect: filesURL + "/there"})
		}
		netrc := filepath.Join(t.TempDir(), "netrc")
		if err := os.WriteFile(netrc, []byte("default login me password secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		b := open(t, func(c *Config) { c.Netrc = netrc }, u.URL())
		if _, err := b.read(b.mustInfo(p), nix.Raw, 0); err != nil {
			t.Fatal(err)
		}
		if u.Seen(nixtest.NarInfo)[0].Header.Get("Authorization") == "" {
			t.Errorf("%s: the configured host got none", how)
		}
		for _, s := range files.Seen(nixtest.NarFile) {
			if s.Header.Get("Authorization") != "" {
				t.Errorf("%s: another host got them", how)
			}
		}
	}
}

// TestAnonymous: questions from other machines reach only caches without credentials, and no
// host gets any.
func TestAnonymous(t *testing.T) {
	p := nixtest.NewPath("hello", 1000)
	open1, withUser, inNetrc := nixtest.NewUpstream(t, cache(nix.None, p)), nixtest.NewUpstream(t, cache(nix.None, p)), nixtest.NewUpstream(t, cache(nix.None, p))
	netrc := filepath.Join(t.TempDir(), "netrc")
	if err := os.WriteFile(netrc, []byte("machine localhost login me password secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := open(t, func(c *Config) { c.Netrc = netrc },
		strings.Replace(withUser.URL(), "://", "://you:hidden@", 1), byName(t, inNetrc.URL()), open1.URL())
	open1.Set(nixtest.NarFile, nixtest.Fault{Redirect: byName(t, inNetrc.URL()) + "/" + p.NarInfo().URL})
	a := b.Anonymous()
	info, err := a.Info(t.Context(), p.Hash())
	if err != nil {
		t.Fatal(err)
	}
	nar, err := a.NAR(t.Context(), info, nix.Raw, 0)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(nar.Body)
	_ = nar.Body.Close()
	if err != nil || !bytes.Equal(got, p.NAR) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if withUser.Requests(nixtest.NarInfo)+inNetrc.Requests(nixtest.NarInfo) != 0 {
		t.Error("a cache with credentials was asked")
	}
	for _, s := range inNetrc.Seen(nixtest.NarFile) {
		if s.Header.Get("Authorization") != "" {
			t.Error("credentials on behalf of another machine")
		}
	}
	if _, err := b.Info(t.Context(), p.Hash()); err != nil || withUser.Requests(nixtest.NarInfo) != 1 {
		t.Errorf("this machine's own question: %v, %d", err, withUser.Requests(nixtest.NarInfo))
	}
}

// TestPace: what several transfers share makes each slower, and a stall is seen while it lasts.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pace
		if got := p.now(); got != (source.Pace{}) {
			t.Errorf("unknown: %+v", got)
		}
		p.began(100 * time.Millisecond)
		transfer := func(every time.Duration, n int) {
			for range n {
				p.begin(0)
				time.Sleep(every)
				p.end(1 << 20)
			}
		}
		near := func(what string, want float64) {
			t.Helper()
			if got := p.now().Rate / (1 << 20); got < 0.8*want || got > 1.2*want {
				t.Errorf("%s: %.2f MiB/s, want about %.2f", what, got, want)
			}
		}
		transfer(100*time.Millisecond, 200)
		near("one transfer", 10)
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() { transfer(400*time.Millisecond, 60) })
		}
		all.Wait()
		near("four share the line", 2.5)
		time.Sleep(time.Minute)
		near("idle", 2.5)
		for range 300 { // its reader pauses
			p.begin(time.Minute)
			time.Sleep(80 * time.Millisecond)
			p.end(1 << 20)
			time.Sleep(time.Minute)
		}
		near("a slow reader", 10)
		p.begin(0)
		time.Sleep(20 * time.Second)
		if got := p.now(); got.Rate > 1<<20 || got.Rate <= 0 || got.Latency != 100*time.Millisecond {
			t.Errorf("stalled: %+v", got)
		}
		p.end(0)
		time.Sleep(time.Hour)
		if got := p.now(); got != (source.Pace{}) {
			t.Errorf("an hour later: %+v", got)
		}
	})
}

// TestPaceOfNARs: transfers are measured.
func TestPaceOfNARs(t *testing.T) {
	p := nixtest.NewPath("hello", 1<<20)
	u := nixtest.NewUpstream(t, cache(nix.None, p))
	b := open(t, nil, u.URL())
	info := b.mustInfo(p)
	u.Set(nixtest.NarFile, nixtest.Fault{Rate: 2 << 20, Delay: 50 * time.Millisecond})
	if _, err := b.read(info, nix.Raw, 0); err != nil {
		t.Fatal(err)
	}
	if got := b.Pace(); got.Rate < 1<<18 || got.Rate > 4<<20 || got.Latency < 50*time.Millisecond {
		t.Errorf("%+v", got)
	}
}

// TestEvents: people are told of outages, their ends and invalid answers, once, and may ask for
// the state of the caches meanwhile.
func TestEvents(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	u := nixtest.NewUpstream(t, cache(nix.None, p))
	var b *bench
	events := make(chan source.Event, 16)
	b = open(t, func(c *Config) {
		c.Events = func(e source.Event) {
			_ = b.Health() // takes no lock that is held
			events <- e
		}
	}, u.URL())
	want := func(kind source.EventKind) {
		t.Helper()
		e := <-events
		if e.Kind != kind || e.Source != source.Upstream || !strings.Contains(fmt.Sprint(e.Err), u.URL()) {
			t.Errorf("%+v, want kind %d", e, kind)
		}
	}
	u.Set(nixtest.NarInfo, nixtest.Fault{Body: []byte("no narinfo")})
	for range 3 {
		_, _ = b.Info(t.Context(), p.Hash())
	}
	want(source.WrongInfo)
	b.run()
	u.Stop()
	until(t, "down", func() bool { _, _ = b.Info(t.Context(), p.Hash()); return b.Down() })
	want(source.CacheDown)
	u.Start()
	want(source.CacheRecovered)
	if len(events) != 0 {
		t.Errorf("%d more events", len(events))
	}
}

// TestDeadAddress: a host of which the first address is silent is connected to at the second.
func TestDeadAddress(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	u := nixtest.NewUpstream(t, cache(nix.None, p))
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(u.URL(), "http://"))
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		if strings.HasPrefix(addr, "[2001:") || strings.HasPrefix(addr, "192.0.2.") {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}
	b := open(t, func(c *Config) {
		c.dialer, c.resolve = dial, fixed("2001:db8::1", "192.0.2.1", "192.0.2.2", "127.0.0.1")
		c.timeouts.connect = 5 * time.Second
	}, "http://cache.example.org:"+port)
	b.mustInfo(p)
	if b.Down() || b.Health()[0].LastError != "" {
		t.Errorf("%+v", b.Health()[0])
	}
}

// pipeListener hands out the ends of pipes that a dialer made.
type pipeListener chan net.Conn

func (l pipeListener) Accept() (net.Conn, error) {
	if c, ok := <-l; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (l pipeListener) Close() error   { close(l); return nil }
func (l pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

// TestStepTimeouts: each step has a timeout of its own; that all together take longer than any of
// them is no failure.
func TestStepTimeouts(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	for name, c := range map[string]struct {
		lookup, connect, headers time.Duration
		want                     string
	}{
		"all slow":     {7 * time.Second, 1900 * time.Millisecond, 4900 * time.Millisecond, "ok"},
		"slow lookup":  {9 * time.Second, 0, 0, "unavailable"},
		"slow connect": {0, 2100 * time.Millisecond, 0, "unavailable"},
		"slow headers": {0, 0, 5100 * time.Millisecond, "unavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := make(pipeListener)
				srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					time.Sleep(c.headers)
					_, _ = w.Write(p.Signed(key).AppendText(nil))
				})}
				served := make(chan error, 1)
				go func() { served <- srv.Serve(l) }()
				b := open(t, func(cfg *Config) {
					cfg.timeouts, cfg.resolve = defaults, after(c.lookup, fixed("10.0.0.1"))
					cfg.dialer = func(ctx context.Context, _, _ string) (net.Conn, error) {
						select {
						case <-time.After(c.connect):
						case <-ctx.Done():
							return nil, ctx.Err()
						}
						here, there := net.Pipe()
						l <- there
						return here, nil
					}
				}, "http://cache.example.org")
				if _, err := b.Info(t.Context(), p.Hash()); kindOf(err) != c.want {
					t.Errorf("%v, want %s", err, c.want)
				}
				b.network.close()
				_ = srv.Close()
				<-served
				time.Sleep(time.Minute) // what was late ends
			})
		})
	}
}
