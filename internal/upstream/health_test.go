package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
)

// refuse is a dialer that fails in one way.
func refuse(err error) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
	}
}

// TestDown checks which failures make a cache down, and after how many.
func TestDown(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	hang := func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}
	}
	for name, c := range map[string]struct {
		dial  func(context.Context, string, string) (net.Conn, error)
		after int // requests until it is down, 0 never
	}{
		"refused":            {refuse(os.NewSyscallError("connect", syscall.ECONNREFUSED)), 1},
		"no route to host":   {refuse(os.NewSyscallError("connect", syscall.EHOSTUNREACH)), 1},
		"no network":         {refuse(os.NewSyscallError("connect", syscall.ENETUNREACH)), 1},
		"no such name":       {refuse(&net.DNSError{IsNotFound: true}), 1},
		"no name server":     {refuse(&net.DNSError{IsTemporary: true, Err: "server misbehaving"}), 1},
		"slow name server":   {refuse(&net.DNSError{IsTimeout: true}), 2},
		"time-out":           {hang, 1}, // each connects twice
		"no file descriptor": {refuse(os.NewSyscallError("socket", syscall.EMFILE)), 0},
	} {
		t.Run(name, func(t *testing.T) {
			b := open(t, func(cfg *Config) {
				cfg.dialer, cfg.timeouts.connect, cfg.timeouts.probe = c.dial, 20*time.Millisecond, time.Hour
			}, "http://cache.example.org")
			for i := 1; i <= 4; i++ {
				if _, err := b.Info(t.Context(), p.Hash()); kindOf(err) != "unavailable" {
					t.Fatal(err)
				}
				if want := c.after > 0 && i >= c.after; b.Down() != want {
					t.Errorf("after %d requests: down %v", i, b.Down())
				}
			}
			if up := b.count("upstream_up"); (up == 0) != (c.after > 0) {
				t.Errorf("upstream_up is %v", up)
			}
			if h := b.Health()[0]; h.Up != (c.after == 0) || h.LastError == "" || h.Up != (h.Why == "") {
				t.Errorf("%+v", h)
			}
			want := 0
			if c.after > 0 {
				want = 1
			}
			if n := strings.Count(b.log.String(), "upstream is down"); n != want {
				t.Errorf("logged %d times", n)
			}
		})
	}
}

// TestSecondConnection: the first packets of connections are lost for longer than one is waited
// for. All that ask at the same time are one timeout in a row.
func TestSecondConnection(t *testing.T) {
	paths := []nixtest.Path{nixtest.NewPath("a", 100), nixtest.NewPath("b", 100), nixtest.NewPath("c", 100)}
	u := nixtest.NewUpstream(t, cache(nix.None, paths...))
	var dials atomic.Int32
	var all sync.WaitGroup
	lossy := func(ctx context.Context, network, _ string) (net.Conn, error) {
		if dials.Add(1) <= int32(len(paths)) {
			<-ctx.Done()
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}
		}
		return new(net.Dialer).DialContext(ctx, network, strings.TrimPrefix(u.URL(), "http://"))
	}
	b := open(t, func(c *Config) { c.dialer, c.timeouts.connect = lossy, time.Second }, u.URL())
	for _, p := range paths {
		all.Go(func() {
			if _, err := b.Info(t.Context(), p.Hash()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if b.Down() || strings.Contains(b.log.String(), "down") {
		t.Error(b.log.String())
	}
}

// TestCutTogether: connections that are cut at the same time are one failure, not five: each
// narinfo is asked for again.
func TestCutTogether(t *testing.T) {
	var paths []nixtest.Path
	for i := range 2 * serverErrors {
		paths = append(paths, nixtest.NewPath(fmt.Sprint("cut", i), 100))
	}
	u := nixtest.NewUpstream(t, cache(nix.None, paths...))
	var asked atomic.Int32
	together := make(chan struct{})
	door := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := int(asked.Add(1))
		if n == len(paths) {
			close(together)
		}
		if <-together; n <= len(paths) {
			panic(http.ErrAbortHandler)
		}
		u.ServeHTTP(w, r)
	}))
	defer door.Close()
	b := open(t, func(c *Config) { c.timeouts.retry = time.Second }, door.URL)
	var all sync.WaitGroup
	for _, p := range paths {
		all.Go(func() {
			if _, err := b.Info(t.Context(), p.Hash()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// TestDownThoughNobodyWaits: a caller whose deadline is shorter than the connect time-out
// still learns, or his successors do.
func TestDownThoughNobodyWaits(t *testing.T) {
	block := func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}
	}
	b := open(t, func(c *Config) {
		c.dialer, c.timeouts.connect, c.timeouts.probe = block, 50*time.Millisecond, time.Hour
	}, "http://cache.example.org")
	until(t, "down", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := b.Info(ctx, nixtest.NewPath("hello", 1).Hash()); kindOf(err) != "unavailable" {
			t.Error(err)
		}
		return b.Down()
	})
}

// TestRedirected: a cache that only redirects to its other port is known to be up and down.
func TestRedirected(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	u := nixtest.NewUpstream(t, cache(nix.None, p))
	var door *httptest.Server
	start := func(l net.Listener) {
		door = &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, u.URL()+r.URL.Path, http.StatusMovedPermanently)
		})}}
		door.Start()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	start(l)
	b := open(t, nil, door.URL)
	b.run()
	if got, err := b.read(b.mustInfo(p), nix.Raw, 0); err != nil || len(got) != len(p.NAR) {
		t.Fatal(err)
	}
	door.CloseClientConnections()
	door.Close()
	until(t, "down", func() bool { _, _ = b.Info(t.Context(), p.Hash()); return b.Down() })
	if l, err = net.Listen("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	start(l)
	defer func() { door.CloseClientConnections(); door.Close() }()
	until(t, "up", func() bool { return !b.Down() })
}

// TestDownAnswersAtOnce: a cache that is down costs nothing, and others are asked.
func TestDownAnswersAtOnce(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	dead, alive := nixtest.NewUpstream(t, cache(nix.None, p)), nixtest.NewUpstream(t, cache(nix.None, p))
	dead.Stop()
	b := open(t, func(c *Config) { c.timeouts.probe = time.Hour }, dead.URL(), alive.URL())
	for range 3 {
		b.mustInfo(p)
	}
	if b.Down() || b.mirrors[0].isDown() != true {
		t.Error("which is down?")
	}
	if _, err := b.Info(t.Context(), nixtest.NewPath("none", 1).Hash()); kindOf(err) != "unavailable" {
		t.Errorf("absent although one could not say: %v", err)
	}
	if n := dead.Requests(nixtest.NarInfo); n != 0 {
		t.Error(n)
	}
}

// TestComesBack: a probe finds that a cache is up again.
func TestComesBack(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	u := nixtest.NewUpstream(t, cache(nix.None, p))
	b := open(t, nil, u.URL())
	b.run()
	u.Stop()
	if _, err := b.Info(t.Context(), p.Hash()); kindOf(err) != "unavailable" || !b.Down() {
		t.Fatalf("%v, down %v", err, b.Down())
	}
	u.Start()
	until(t, "up again", func() bool { return !b.Down() })
	b.mustInfo(p)
}

func TestSilence(t *testing.T) {
	t.Parallel()
	p := nixtest.NewPath("hello", 100)
	for _, at := range []int64{nixtest.BeforeHeaders, 10} {
		u := nixtest.NewUpstream(t, cache(nix.None, p))
		u.SetAll(nixtest.Fault{Do: nixtest.Hang, At: at})
		b := open(t, hasty, u.URL())
		if _, err := b.Info(t.Context(), p.Hash()); kindOf(err) != "unavailable" || !b.Down() {
			t.Fatalf("from byte %d: %v, down %v", at, err, b.Down())
		}
		b.run()
		asked := u.Requests(nixtest.NarInfo)
		until(t, "probes", func() bool { return u.Requests(nixtest.NarInfo) > asked+2 })
		if !b.Down() {
			t.Errorf("from byte %d: up although it says nothing", at)
		}
		u.SetAll()
		until(t, "up again", func() bool { return !b.Down() })
	}
}

// TestIll: a cache that answers with errors is asked last and only once, but it is asked.
func TestIll(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	ill, well := nixtest.NewUpstream(t, cache(nix.None, p)), nixtest.NewUpstream(t, cache(nix.None, p))
	ill.Set(nixtest.NarInfo, nixtest.Fault{Status: 502})
	b := open(t, func(c *Config) { c.timeouts.hedge = time.Minute }, ill.URL(), well.URL())
	for range serverErrors {
		b.mustInfo(p)
	}
	before := ill.Requests(nixtest.NarInfo)
	const times = 20
	for range times {
		b.mustInfo(p)
	}
	// On a busy machine the other one is slow now and then, and this one is asked beside it.
	if n := ill.Requests(nixtest.NarInfo) - before; n > times/2 {
		t.Errorf("asked %d times of %d", n, times)
	}
	alone := open(t, nil, ill.URL())
	for range serverErrors {
		_, _ = alone.Info(t.Context(), p.Hash())
	}
	before = ill.Requests(nixtest.NarInfo)
	if _, err := alone.Info(t.Context(), p.Hash()); kindOf(err) != "unavailable" || ill.Requests(nixtest.NarInfo) != before+1 {
		t.Errorf("%v, asked %d times", err, ill.Requests(nixtest.NarInfo)-before)
	}
	if alone.Down() || alone.Health()[0].Why == "" {
		t.Errorf("%+v", alone.Health()[0])
	}
	ill.Set(nixtest.NarInfo)
	alone.mustInfo(p)
	if alone.Health()[0].Why != "" {
		t.Errorf("%+v", alone.Health()[0])
	}
}

// TestBusy: who asks to be left alone is, and is not down.
func TestBusy(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	u := nixtest.NewUpstream(t, cache(nix.None, p))
	u.Set(nixtest.NarInfo, nixtest.Fault{Status: 429, RetryAfter: "3600", Times: 1})
	b := open(t, func(c *Config) { c.timeouts.busyMost = 50 * time.Millisecond }, u.URL())
	for range 3 {
		if _, err := b.Info(t.Context(), p.Hash()); !errors.Is(err, errBusy) || kindOf(err) != "unavailable" {
			t.Error(err)
		}
	}
	if n := u.Requests(nixtest.NarInfo); n != 1 || b.Down() || b.Health()[0].Why == "" {
		t.Errorf("%d requests, %+v", n, b.Health()[0])
	}
	until(t, "asked again", func() bool { _, err := b.Info(t.Context(), p.Hash()); return err == nil })
}

func TestRetryAfter(t *testing.T) {
	u := &shared{waiting: waiting{timeouts: defaults}}
	for text, want := range map[string]time.Duration{
		"": defaults.busy, "junk": defaults.busy, "-1": defaults.busy, "0": 0, "7": 7 * time.Second, "600": time.Minute,
		"99999999999999999999": defaults.busy, "Mon, 01 Jan 2001 00:00:00 GMT": 0,
		time.Now().Add(time.Hour).UTC().Format(http.TimeFormat): time.Minute,
	} {
		if got := retryAfter(&u.timeouts, text); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

// TestCertificate: a certificate that cannot be trusted makes a cache down, with words.
func TestCertificate(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	cfg := cache(nix.None, p)
	cfg.TLS = true
	u := nixtest.NewUpstream(t, cfg)
	b := open(t, nil, u.URL())
	if _, err := b.Info(t.Context(), p.Hash()); kindOf(err) != "unavailable" || !b.Down() {
		t.Errorf("%v, down %v", err, b.Down())
	}
	if log := b.log.String(); !strings.Contains(log, "certificate") {
		t.Error(log)
	}
	plain := nixtest.NewUpstream(t, cache(nix.None, p))
	b = open(t, nil, strings.Replace(plain.URL(), "http:", "https:", 1))
	if _, err := b.Info(t.Context(), p.Hash()); kindOf(err) != "unavailable" || !b.Down() {
		t.Errorf("TLS with a server without: %v, down %v", err, b.Down())
	}
}

// TestHandshakeRefused: a cache that breaks TLS off is asked twice and is down then, until it takes a
// connection again.
func TestHandshakeRefused(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	for name, change := range map[string]func(*tls.Config){
		"a certificate of the client, 1.2": func(c *tls.Config) { c.ClientAuth, c.MaxVersion = tls.RequireAnyClientCert, tls.VersionTLS12 },
		"a certificate of the client, 1.3": func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert },
		"TLS 1.0":                          func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS10 },
		"no certificate for this name": func(c *tls.Config) {
			c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, errors.New("no such name") }
		},
		"no common cipher": func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}
		},
		"silence": func(c *tls.Config) {
			c.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
				_, _ = io.Copy(io.Discard, h.Conn) // until the client leaves
				return nil, io.EOF
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewUnstartedServer(nixtest.NewUpstream(t, cache(nix.None, p)))
			srv.Config.ErrorLog = log.New(io.Discard, "", 0)
			var well atomic.Bool
			var asked atomic.Int32
			ill := &tls.Config{}
			srv.TLS = &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
				asked.Add(1)
				if well.Load() {
					return nil, nil
				}
				if ill.GetConfigForClient != nil {
					return ill.GetConfigForClient(h)
				}
				return ill, nil
			}}
			srv.StartTLS()
			t.Cleanup(srv.Close)
			ill.Certificates = srv.TLS.Certificates
			change(ill)
			roots := x509.NewCertPool()
			roots.AddCert(srv.Certificate())
			b := open(t, func(c *Config) {
				c.roots, c.timeouts.probe = roots, time.Hour
				if name == "silence" {
					c.timeouts.tls = 100 * time.Millisecond
				}
			}, srv.URL)
			for range 3 {
				if _, err := b.Info(t.Context(), p.Hash()); kindOf(err) != "unavailable" {
					t.Error(err)
				}
			}
			if n := asked.Load(); !b.Down() || n != badSteps {
				t.Errorf("down %v after %d handshakes", b.Down(), n)
			}
			well.Store(true)
			b.run()
			until(t, "up again", func() bool { return !b.Down() })
			b.mustInfo(p)
		})
	}
}

// TestForeignTrouble: a host that only has the files says nothing about the cache.
func TestForeignTrouble(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	files := nixtest.NewUpstream(t, nixtest.UpstreamConfig{})
	files.Stop()
	cfg := cache(nix.None, p)
	filesURL := byName(t, files.URL())
	cfg.URL = func(_, _ string, _ nixtest.Path) string { return filesURL + "/there" }
	u := nixtest.NewUpstream(t, cfg)
	b := open(t, nil, u.URL())
	for range 3 {
		if _, err := b.read(b.mustInfo(p), nix.Raw, 0); kindOf(err) != "unavailable" {
			t.Error(err)
		}
	}
	if b.Down() {
		t.Error("down")
	}
}

// TestPriority: what the caches say about themselves orders them; who says nothing stays
// where it is configured.
func TestPriority(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	up := func(priority int) *nixtest.Upstream {
		cfg := cache(nix.None, p)
		cfg.Priority = priority
		return nixtest.NewUpstream(t, cfg)
	}
	order := func(b *bench) string {
		may, _ := b.order()
		var s strings.Builder
		for _, m := range may {
			s.WriteByte(byte('a' + m.index))
		}
		return s.String()
	}
	a, c := up(50), up(30)
	silent := up(10)
	silent.Set(nixtest.CacheInfo, nixtest.Fault{Status: 500})
	b := open(t, nil, a.URL(), silent.URL(), c.URL(), a.URL()+"/")
	if got := order(b); got != "abc" {
		t.Errorf("before anything is known: %s", got)
	}
	b.run()
	until(t, "priorities", func() bool { return b.mirrors[0].info.Load() != nil && b.mirrors[2].info.Load() != nil })
	// Loopback latencies are all of one class, unless this machine is very busy.
	if got := order(b); got != "cab" && got != "cba" {
		t.Errorf("by priority: %s", got)
	}
	for range 70 {
		b.mirrors[0].latency.add(80 * time.Millisecond)
		b.mirrors[1].latency.add(3 * time.Millisecond)
	}
	if got := order(b); got != "cba" {
		t.Errorf("by latency: %s", got)
	}
}

// TestStoreDir: a cache for another store is as good as none.
func TestStoreDir(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	cfg := cache(nix.None, p)
	cfg.StoreDir = "/gnu/store"
	wrong, right := nixtest.NewUpstream(t, cfg), nixtest.NewUpstream(t, cache(nix.None))
	b := open(t, nil, wrong.URL(), right.URL())
	b.run()
	until(t, "nix-cache-info", func() bool { return !b.Health()[0].Up && b.mirrors[1].info.Load() != nil })
	if _, err := b.Info(t.Context(), p.Hash()); kindOf(err) != "absent" {
		t.Error(err)
	}
	if !strings.Contains(b.log.String(), "level=ERROR") || b.Down() {
		t.Error("not told, or down")
	}
}

// TestCacheInfoIsNotWaitedFor: whatever nix-cache-info does, requests go on.
func TestCacheInfoIsNotWaitedFor(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	for name, fault := range map[string]nixtest.Fault{
		"hang":     {Do: nixtest.Hang, At: nixtest.BeforeHeaders},
		"in body":  {Do: nixtest.Hang, At: 5},
		"404":      {Status: 404},
		"portal":   {Body: []byte("<html>Log in</html>")},
		"too much": {Body: make([]byte, 1<<20)},
		"junk":     {Body: []byte("Priority: high\n")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := nixtest.NewUpstream(t, cache(nix.None, p))
			u.Set(nixtest.CacheInfo, fault)
			b := open(t, func(c *Config) { c.timeouts.probing = 50 * time.Millisecond }, u.URL())
			b.run()
			b.mustInfo(p)
			until(t, "asked", func() bool { return u.Requests(nixtest.CacheInfo) > 0 })
			b.mustInfo(p)
			if h := b.Health()[0]; b.mirrors[0].info.Load() != nil || b.Down() {
				t.Errorf("%+v", h)
			}
		})
	}
}

// TestProxy: the environment's proxy is used, and its absence is the cache's.
func TestProxy(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	u := nixtest.NewUpstream(t, cache(nix.None, p))
	asked := ""
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.String()
		u.ServeHTTP(w, r)
	}))
	t.Setenv("http_proxy", proxy.URL)
	b := open(t, func(c *Config) { c.timeouts.probe = time.Hour }, "http://cache.example.org")
	b.mustInfo(p)
	if want := "http://cache.example.org/" + p.Hash().String() + ".narinfo"; asked != want {
		t.Errorf("proxy was asked for %q", asked)
	}
	proxy.CloseClientConnections()
	proxy.Close()
	if _, err := b.Info(t.Context(), p.Hash()); kindOf(err) != "unavailable" || !b.Down() {
		t.Errorf("%v, down %v", err, b.Down())
	}
}

func TestRunTwice(t *testing.T) {
	b := open(t, nil, "http://127.0.0.1:1")
	b.run()
	until(t, "running", b.running.Load)
	if err := b.Run(t.Context()); err == nil {
		t.Error("runs twice")
	}
}

// TestWebPage: a cache for which a network answers with its login page is shown as down. It is asked
// all the same, so that the first request after the login is answered, and probed, also where the
// cache itself has a page in place of nix-cache-info.
func TestWebPage(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	page := nixtest.Fault{Body: []byte("\n<!DOCTYPE html><html>Log in</html>")}
	for name, portal := range map[string]nixtest.Fault{"page": page, "redirect": {Redirect: "/login"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := nixtest.NewUpstream(t, cache(nix.None, p))
			u.Serve("/login", page.Body)
			u.Set(nixtest.CacheInfo, page)
			u.Set(nixtest.NarInfo, portal)
			b := open(t, nil, u.URL())
			if _, err := b.Info(t.Context(), p.Hash()); kindOf(err) != "unavailable" || !errors.Is(err, source.ErrWebPage) {
				t.Error(err)
			}
			if h := b.Health()[0]; h.Up || h.Why != source.ErrWebPage.Error() || b.Down() {
				t.Errorf("%+v", h)
			}
			b.run()
			asked := u.Requests(nixtest.NarInfo)
			until(t, "probed", func() bool { return u.Requests(nixtest.NarInfo) > asked+2 })
			if n := strings.Count(b.log.String(), "upstream is down"); n != 1 {
				t.Errorf("told %d times", n)
			}
			u.Set(nixtest.NarInfo, nixtest.Fault{})
			b.mustInfo(p)
			if h := b.Health()[0]; !h.Up || h.Why != "" {
				t.Errorf("%+v", h)
			}
		})
	}
}
