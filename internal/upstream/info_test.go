package upstream

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
)

func TestInfo(t *testing.T) {
	hello, other := nixtest.NewPath("hello", 1000), nixtest.NewPath("other", 1000)
	unsigned := hello.NarInfo().AppendText(nil)
	forged := hello.Signed(key)
	forged.NarSize++
	lzop, lz4 := hello.Signed(key), hello.Signed(key)
	lzop.Compression, lz4.Compression = "lzop", nix.LZ4
	for name, c := range map[string]struct {
		fault    nixtest.Fault
		want     string
		requests int
		status   string // label that is counted
	}{
		"found":        {nixtest.Fault{}, "ok", 1, "200"},
		"404":          {nixtest.Fault{Status: 404}, "absent", 1, "404"},
		"410":          {nixtest.Fault{Status: 410}, "absent", 1, "410"},
		"403":          {nixtest.Fault{Status: 403}, "absent", 1, "403"},
		"401":          {nixtest.Fault{Status: 401}, "unavailable", 1, "401"},
		"407":          {nixtest.Fault{Status: 407}, "unavailable", 1, "407"},
		"400":          {nixtest.Fault{Status: 400}, "unavailable", 1, "400"},
		"204":          {nixtest.Fault{Status: 204}, "unavailable", 1, "204"},
		"500":          {nixtest.Fault{Status: 500}, "unavailable", 2, "500"},
		"502 once":     {nixtest.Fault{Status: 502, Times: 1}, "ok", 2, "502"},
		"429":          {nixtest.Fault{Status: 429}, "unavailable", 1, "429"},
		"503 for long": {nixtest.Fault{Status: 503, RetryAfter: "7"}, "unavailable", 1, "503"},
		"reset":        {nixtest.Fault{Do: nixtest.Reset, At: nixtest.BeforeHeaders}, "unavailable", infoTries, "error"},
		"reset once":   {nixtest.Fault{Do: nixtest.Reset, At: nixtest.BeforeHeaders, Times: 1}, "ok", 2, "error"},
		"reset often":  {nixtest.Fault{Do: nixtest.Reset, At: nixtest.BeforeHeaders, Times: infoTries - 1}, "ok", infoTries, "error"},
		"cut once":     {nixtest.Fault{Do: nixtest.Cut, At: 100, Times: 1}, "ok", 2, "200"},
		"quiet end":    {nixtest.Fault{Do: nixtest.QuietEnd, At: 100}, "invalid corrupt", 1, "200"},
		"hang":         {nixtest.Fault{Do: nixtest.Hang, At: nixtest.BeforeHeaders}, "unavailable", 2, "error"},
		"hang in body": {nixtest.Fault{Do: nixtest.Hang, At: 10}, "unavailable", 2, "200"},
		"hang once":    {nixtest.Fault{Do: nixtest.Hang, At: nixtest.BeforeHeaders, Times: 1}, "ok", 2, "error"},
		"wrong length": {nixtest.Fault{Length: 4000}, "unavailable", 2, "200"},
		"portal":       {nixtest.Fault{Body: []byte("<html>Please log in</html>")}, "unavailable", 1, "200"},
		"wrong path":   {nixtest.Fault{Body: other.Signed(key).AppendText(nil)}, "invalid wrong_path", 1, "200"},
		"unsigned":     {nixtest.Fault{Body: unsigned}, "refused", 1, "200"},
		"forged":       {nixtest.Fault{Body: forged.AppendText(nil)}, "invalid bad_signature", 1, "200"},
		"lzop":         {nixtest.Fault{Body: lzop.AppendText(nil)}, "refused", 1, "200"},
		"lz4":          {nixtest.Fault{Body: lz4.AppendText(nil)}, "ok", 1, "200"},
		"too large":    {nixtest.Fault{Body: []byte(strings.Repeat("A: b\n", 1<<20))}, "invalid corrupt", 1, "200"},
		"nowhere":      {nixtest.Fault{Redirect: "/else"}, "absent", 1, "302"},
		"to files":     {nixtest.Fault{Redirect: "file:///etc/passwd"}, "unavailable", 1, "302"},
		"round":        {nixtest.Fault{Redirect: "/" + hello.Hash().String() + ".narinfo"}, "unavailable", 11, "302"},
		"odd encoding": {nixtest.Fault{Header: map[string]string{"Content-Encoding": "rot13"}}, "unavailable", 2, "200"},
		"gzip": {nixtest.Fault{Header: map[string]string{"Content-Encoding": "gzip"},
			Body: nixtest.Compress(t, nix.Gzip, hello.Signed(key).AppendText(nil)).Bytes}, "ok", 1, "200"},
		"zstd": {nixtest.Fault{Header: map[string]string{"Content-Encoding": "zstd"},
			Body: nixtest.Compress(t, nix.Zstd, hello.Signed(key).AppendText(nil)).Bytes}, "ok", 1, "200"},
		"br": {nixtest.Fault{Header: map[string]string{"Content-Encoding": "br"},
			Body: nixtest.Compress(t, nix.Brotli, hello.Signed(key).AppendText(nil)).Bytes}, "ok", 1, "200"},
		"zstd, window of 16 MiB": {nixtest.Fault{Header: map[string]string{"Content-Encoding": "zstd"},
			Body: append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 14 << 3, 3<<3 | 1, 0, 0}, "abc"...)}, "unavailable", 2, "200"},
		"xz, not asked for": {nixtest.Fault{Header: map[string]string{"Content-Encoding": "xz"},
			Body: nixtest.Compress(t, nix.XZ, hello.Signed(key).AppendText(nil)).Bytes}, "unavailable", 2, "200"},
		"no URL": {nixtest.Fault{Body: bytes.Replace(hello.Signed(key).AppendText(nil), []byte("\nURL: "), []byte("\nUrl: "), 1)}, "invalid corrupt", 1, "200"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := nixtest.NewUpstream(t, cache(nix.None, hello))
			u.Set(nixtest.NarInfo, c.fault)
			b := open(t, hastyFor(c.fault), u.URL())
			info, err := b.Info(t.Context(), hello.Hash())
			if got := kindOf(err); got != c.want {
				t.Errorf("%s (%v), want %s", got, err, c.want)
			}
			if err == nil && info.NarHash() != hello.NarHash() {
				t.Error("another path")
			}
			if got := u.Requests(nixtest.NarInfo); got != c.requests {
				t.Errorf("%d requests, want %d", got, c.requests)
			}
			if b.count("upstream_requests_total", "narinfo", c.status) == 0 {
				t.Error("not counted")
			}
			lies := b.count("verify_failures_total", "upstream", strings.TrimPrefix(c.want, "invalid "))
			if strings.HasPrefix(c.want, "invalid") != (lies == 1) {
				t.Errorf("%v lies counted", lies)
			}
		})
	}
}

// TestInfoOfMany checks what several caches say together.
func TestInfoOfMany(t *testing.T) {
	p := nixtest.NewPath("hello", 1000)
	lie := nixtest.Fault{Body: nixtest.NewPath("other", 10).Signed(key).AppendText(nil)}
	n := p.Signed(key)
	n.Compression = "lzop"
	lzop := nixtest.Fault{Body: n.AppendText(nil)}
	no, ill, hang := nixtest.Fault{Status: 404}, nixtest.Fault{Status: 500}, nixtest.Fault{Do: nixtest.Hang, At: nixtest.BeforeHeaders}
	for name, c := range map[string]struct {
		faults []nixtest.Fault
		want   string
	}{
		"all":                      {[]nixtest.Fault{{}, {}, {}}, "ok"},
		"the last":                 {[]nixtest.Fault{no, no, {}}, "ok"},
		"a lie before":             {[]nixtest.Fault{lie, {}}, "ok"},
		"the first hangs":          {[]nixtest.Fault{hang, {}}, "ok"},
		"the first is ill":         {[]nixtest.Fault{ill, {}}, "ok"},
		"one as lzop":              {[]nixtest.Fault{lzop, {}}, "ok"},
		"all as lzop":              {[]nixtest.Fault{lzop, no, lzop}, "refused"},
		"nobody":                   {[]nixtest.Fault{no, no, no}, "absent"},
		"one could not say":        {[]nixtest.Fault{no, ill, no}, "unavailable"},
		"one hangs, the other no":  {[]nixtest.Fault{hang, no}, "unavailable"},
		"a lie and no":             {[]nixtest.Fault{no, lie}, "invalid wrong_path"},
		"a lie and one is ill":     {[]nixtest.Fault{ill, lie}, "unavailable"},
		"asked to be left, others": {[]nixtest.Fault{{Status: 429}, {}}, "ok"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var urls []string
			for _, f := range c.faults {
				u := nixtest.NewUpstream(t, cache(nix.None, p))
				u.Set(nixtest.NarInfo, f)
				urls = append(urls, u.URL())
			}
			b := open(t, hastyFor(c.faults...), urls...)
			if _, err := b.Info(t.Context(), p.Hash()); kindOf(err) != c.want {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
}

func TestNoUpstreams(t *testing.T) {
	b := open(t, nil)
	p := nixtest.NewPath("hello", 10)
	if _, err := b.Info(t.Context(), p.Hash()); kindOf(err) != "unavailable" {
		t.Error(err)
	}
	if _, err := b.NAR(t.Context(), p.Info(t, key), nix.Raw, 0); kindOf(err) != "unavailable" {
		t.Error(err)
	}
	if !b.Down() {
		t.Error("not down")
	}
	if len(b.Health()) != 0 {
		t.Error("health of what?")
	}
}

// TestHedge: a slow cache does not keep the answer of the next, and a quick one is not
// helped.
func TestHedge(t *testing.T) {
	p := nixtest.NewPath("hello", 1000)
	slow, quickOne := nixtest.NewUpstream(t, cache(nix.None, p)), nixtest.NewUpstream(t, cache(nix.None, p))
	patient := open(t, func(c *Config) { c.timeouts.hedge = time.Minute }, slow.URL(), quickOne.URL())
	patient.mustInfo(p)
	if quickOne.Requests(nixtest.NarInfo) != 0 {
		t.Error("asked a second cache although the first answered in time")
	}
	slow.Set(nixtest.NarInfo, nixtest.Fault{Delay: time.Minute})
	b := open(t, func(c *Config) { c.timeouts.hedge = soonHedge }, slow.URL(), quickOne.URL())
	began := time.Now()
	b.mustInfo(p)
	if d := time.Since(began); d < soonHedge {
		t.Errorf("took %v", d)
	}
	if quickOne.Requests(nixtest.NarInfo) != 1 {
		t.Error("second cache not asked")
	}
}

// TestDeadline: Info ends with its context, and a wait that was long enough is noted.
func TestDeadline(t *testing.T) {
	p := nixtest.NewPath("hello", 1000)
	u := nixtest.NewUpstream(t, cache(nix.None, p))
	u.Set(nixtest.NarInfo, nixtest.Fault{Do: nixtest.Hang, At: nixtest.BeforeHeaders})
	b := open(t, func(c *Config) { c.timeouts.stall = 300 * time.Millisecond }, u.URL())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := b.Info(ctx, p.Hash()); !errors.Is(err, context.DeadlineExceeded) || kindOf(err) != "unavailable" {
		t.Error(err)
	}
	if b.mirrors[0].silent != 0 {
		t.Error("a short wait counts")
	}
	ctx, cancel = context.WithTimeout(t.Context(), 320*time.Millisecond)
	defer cancel()
	if _, err := b.Info(ctx, p.Hash()); kindOf(err) != "unavailable" || b.mirrors[0].silent != 1 {
		t.Errorf("%v, silent %d", err, b.mirrors[0].silent)
	}
}

func TestHTTP2(t *testing.T) {
	p := nixtest.NewPath("hello", 200_000)
	cfg := cache(nix.None, p)
	cfg.TLS = true
	for _, http1 := range []bool{false, true} {
		cfg.HTTP1 = http1
		u := nixtest.NewUpstream(t, cfg)
		b := open(t, func(c *Config) { c.roots = u.CertPool() }, u.URL())
		info := b.mustInfo(p)
		got, err := b.read(info, nix.Raw, 7)
		if err != nil || string(got) != string(p.NAR[7:]) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		want := map[bool]string{false: "HTTP/2.0", true: "HTTP/1.1"}[http1]
		for _, s := range append(u.Seen(nixtest.NarInfo), u.Seen(nixtest.NarFile)...) {
			if s.Proto != want {
				t.Errorf("%s, want %s", s.Proto, want)
			}
		}
	}
}

func TestRequestHeaders(t *testing.T) {
	p := nixtest.NewPath("hello", 1000)
	u := nixtest.NewUpstream(t, cache(nix.None, p))
	b := open(t, nil, u.URL())
	if _, err := b.read(b.mustInfo(p), nix.Raw, 0); err != nil {
		t.Fatal(err)
	}
	for _, s := range append(u.Seen(nixtest.NarInfo), u.Seen(nixtest.NarFile)...) {
		h := s.Header
		if s.Method != http.MethodGet || h.Get("Via") != "nixp2p/self" || h.Get("User-Agent") != "nixp2p/1" || h.Get("Accept-Encoding") == "" {
			t.Errorf("%s %v", s.Method, h)
		}
	}
}

// TestCredentials: each host is told its own, also behind a redirect, and nobody another's.
func TestCredentials(t *testing.T) {
	p := nixtest.NewPath("hello", 1000)
	cfg := cache(nix.None, p)
	files := nixtest.NewUpstream(t, nixtest.UpstreamConfig{})
	filesURL := byName(t, files.URL())
	files.Serve("/there", p.NAR)
	cfg.URL = func(_, _ string, _ nixtest.Path) string { return filesURL + "/there" }
	u := nixtest.NewUpstream(t, cfg)
	netrc := filepath.Join(t.TempDir(), "netrc")
	if err := os.WriteFile(netrc, []byte("machine 127.0.0.1 login me password secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	authorized := func(seen []nixtest.Seen) (login, password string) {
		t.Helper()
		if len(seen) != 1 {
			t.Fatalf("%d requests", len(seen))
		}
		r := &http.Request{Header: seen[0].Header}
		login, password, _ = r.BasicAuth()
		return login, password
	}
	b := open(t, func(c *Config) { c.Netrc = netrc }, u.URL())
	if _, err := b.read(b.mustInfo(p), nix.Raw, 0); err != nil {
		t.Fatal(err)
	}
	if l, s := authorized(u.Seen(nixtest.NarInfo)); l != "me" || s != "secret" {
		t.Errorf("told %q %q", l, s)
	}
	if l, s := authorized(files.Seen(nixtest.NarFile)); l+s != "" {
		t.Errorf("told another host %q %q", l, s)
	}

	u = nixtest.NewUpstream(t, cache(nix.None, p))
	u.Set(nixtest.NarFile, nixtest.Fault{Redirect: filesURL + "/there"})
	files.Stop()
	files.Start()
	b = open(t, func(c *Config) { c.Netrc = netrc }, strings.Replace(u.URL(), "://", "://you:hidden@", 1)+"?priority=3")
	if _, err := b.read(b.mustInfo(p), nix.Raw, 0); err != nil {
		t.Fatal(err)
	}
	if l, s := authorized(u.Seen(nixtest.NarInfo)); l != "you" || s != "hidden" {
		t.Errorf("told %q %q", l, s)
	}
	for _, s := range files.Seen(nixtest.NarFile) {
		if s.Header.Get("Authorization") != "" {
			t.Error("told another host after a redirect")
		}
	}
	u.Stop()
	_, err := b.Info(t.Context(), p.Hash())
	h := b.Health()[0]
	if all := b.log.String() + err.Error() + h.URL + h.Why + h.LastError; strings.Contains(all, "hidden") {
		t.Errorf("a password is told: %s", all)
	}
	if h.Priority != 3 {
		t.Errorf("priority %d", h.Priority)
	}
}

func TestSchemes(t *testing.T) {
	p := nixtest.NewPath("hello", 1000)
	plain := nixtest.NewUpstream(t, cache(nix.None, p))
	for name, c := range map[string]struct {
		tls  bool
		url  string
		want string
	}{
		"relative":                {false, "nar/x?y=z", "ok"},
		"from the root":           {false, "/nar/x", "ok"},
		"up":                      {false, "a/../nar/x", "ok"},
		"opaque":                  {false, "serve/8b7c1d2e-aaaa/nar?hash=abc&x=%2F", "ok"},
		"http to http":            {false, plain.URL() + "/" + p.NarInfo().URL, "ok"},
		"https to http":           {true, plain.URL() + "/" + p.NarInfo().URL, "unavailable"},
		"file":                    {false, "file:///etc/passwd", "unavailable"},
		"https to file":           {true, "file:///etc/passwd", "unavailable"},
		"https, relative":         {true, "nar/x", "ok"},
		"https, without a scheme": {true, "//" + plain.URL()[len("http://"):] + "/x", "unavailable"},
		"other":                   {false, "ftp://127.0.0.1/x", "unavailable"},
		"no URL":                  {false, "%zz", "unavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := cache(nix.None, p)
			cfg.TLS, cfg.BasePath = c.tls, "/base"
			u := nixtest.NewUpstream(t, cfg)
			n := p.Signed(key)
			n.URL = c.url
			u.Set(nixtest.NarInfo, nixtest.Fault{Body: n.AppendText(nil)})
			for _, uri := range []string{"/base/nar/x", "/nar/x", "/base/nar/x?y=z", "/base/serve/8b7c1d2e-aaaa/nar?hash=abc&x=%2F"} {
				u.Serve(uri, p.NAR)
			}
			b := open(t, func(cfg *Config) { cfg.roots = certs(u, c.tls) }, u.URL())
			info := b.mustInfo(p)
			got, err := b.read(info, nix.Raw, 0)
			if kindOf(err) != c.want || err == nil && string(got) != string(p.NAR) {
				t.Errorf("%d bytes, %v, want %s", len(got), err, c.want)
			}
		})
	}
	cfg := cache(nix.None, p)
	cfg.TLS = true
	u := nixtest.NewUpstream(t, cfg)
	u.Set(nixtest.NarInfo, nixtest.Fault{Redirect: plain.URL() + "/" + p.Hash().String() + ".narinfo"})
	b := open(t, func(cfg *Config) { cfg.roots = u.CertPool() }, u.URL())
	if _, err := b.Info(t.Context(), p.Hash()); !errors.Is(err, errScheme) {
		t.Errorf("redirect to http: %v", err)
	}
}

func TestDirectory(t *testing.T) {
	p, gone := nixtest.NewPath("hello", 100_000), nixtest.NewPath("gone", 10)
	dir := filepath.Join(t.TempDir(), "my cache%20")
	for _, c := range []nix.Compression{nix.None, nix.Zstd} {
		nixtest.WriteCache(t, dir, cache(c, p))
		b := open(t, nil, "file://"+strings.NewReplacer("%", "%25", " ", "%20").Replace(dir))
		info := b.mustInfo(p)
		for _, off := range []int64{0, 1000, int64(len(p.NAR))} {
			got, err := b.read(info, nix.Raw, off)
			if err != nil || string(got) != string(p.NAR[off:]) {
				t.Errorf("%s from %d: %d bytes, %v", c, off, len(got), err)
			}
		}
		if _, err := b.Info(t.Context(), gone.Hash()); kindOf(err) != "absent" {
			t.Error(err)
		}
		b.run()
		until(t, "nix-cache-info", func() bool { return b.mirrors[0].info.Load() != nil })
	}
	b := open(t, nil, "file:///nowhere/at/all")
	if _, err := b.Info(t.Context(), p.Hash()); kindOf(err) != "unavailable" || !b.Down() {
		t.Errorf("no directory: %v", err)
	}
	n := p.Signed(key)
	for _, to := range []string{"../outside", "/../outside", "a/../../outside", "http://127.0.0.1:1/x"} {
		n.URL = to
		for name, text := range map[string]string{
			filepath.Join(dir, p.Hash().String()+".narinfo"): string(n.AppendText(nil)),
			filepath.Join(filepath.Dir(dir), "outside"):      string(p.NAR),
		} {
			if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		b := open(t, nil, "file://"+strings.NewReplacer("%", "%25", " ", "%20").Replace(dir))
		if got, err := b.read(b.mustInfo(p), nix.Raw, 0); err == nil {
			t.Errorf("%s: %d bytes from outside", to, len(got))
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, text := range []string{
		"", "cache.nixos.org", "ftp://x/", "s3://bucket", "http://", "file://host/x", "file:x", "http://u:hidden@%zz/",
		"http://x/?priority=high", "http://u:hidden@x:port/",
	} {
		_, err := New(Config{URLs: []string{text}, Keys: nixtest.Keys(t, key)})
		if !errors.Is(err, errURL) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := New(Config{Netrc: "/nowhere/netrc"}); err != nil {
		t.Error("netrc that is not there")
	}
}
