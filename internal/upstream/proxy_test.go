package upstream

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
)

// TestProxyVariables: which proxy each spelling means, as curl has it.
func TestProxyVariables(t *testing.T) {
	const http, https = "http://cache.corp.test", "https://cache.corp.test"
	for name, c := range map[string]struct {
		env  string // NAME=value, separated by |
		to   string
		want string // "" for none
	}{
		"nothing":                  {"", http, ""},
		"http_proxy":               {"http_proxy=http://p:3128", http, "http://p:3128"},
		"http_proxy, for https":    {"http_proxy=http://p:3128", https, ""},
		"https_proxy":              {"https_proxy=http://p:3128", https, "http://p:3128"},
		"HTTPS_PROXY":              {"HTTPS_PROXY=http://p:3128", https, "http://p:3128"},
		"HTTP_PROXY":               {"HTTP_PROXY=http://p:3128", http, "http://p:3128"},
		"small letters first":      {"HTTPS_PROXY=http://big:1|https_proxy=http://small:1", https, "http://small:1"},
		"all_proxy":                {"all_proxy=http://p:3128", http, "http://p:3128"},
		"all_proxy, https":         {"all_proxy=http://p:3128", https, "http://p:3128"},
		"ALL_PROXY":                {"ALL_PROXY=http://p:3128", https, "http://p:3128"},
		"its own before all_proxy": {"all_proxy=http://all:1|http_proxy=http://own:1", http, "http://own:1"},
		"an empty one is none":     {"http_proxy=|all_proxy=http://all:1", http, "http://all:1"},
		"without a scheme":         {"all_proxy=p:3128", https, "http://p:3128"},
		"without a port":           {"all_proxy=http://p", https, "http://p:1080"},
		"host alone":               {"all_proxy=p", https, "http://p:1080"},
		"https proxy":              {"all_proxy=https://p", https, "https://p:443"},
		"path":                     {"all_proxy=http://p:3128/", https, "http://p:3128"},
		"capitals":                 {"all_proxy=HTTP://p:3128", https, "http://p:3128"},
		"IPv6":                     {"all_proxy=http://[fd00::1]:3128", https, "http://[fd00::1]:3128"},
		"user":                     {"all_proxy=http://me:p%40ss@p:3128", https, "http://me:p%40ss@p:3128"},
		"socks5h":                  {"all_proxy=socks5h://p:1080", https, "socks5h://p:1080"},
		"socks5":                   {"all_proxy=socks5://p", https, "socks5://p:1080"},
		"socks4a":                  {"all_proxy=socks4a://p:1081", https, "socks4a://p:1081"},
		"socks":                    {"ALL_PROXY=socks://p", https, "socks4://p:1080"},
		"no_proxy":                 {"all_proxy=http://p:1|no_proxy=cache.corp.test", http, ""},
		"NO_PROXY":                 {"all_proxy=http://p:1|NO_PROXY=cache.corp.test", http, ""},
		"domain":                   {"all_proxy=http://p:1|no_proxy=corp.test", http, ""},
		"domain with a dot":        {"all_proxy=http://p:1|no_proxy=.corp.test", http, ""},
		"the domain itself":        {"all_proxy=http://p:1|no_proxy=.cache.corp.test", http, ""},
		"dot at the end":           {"all_proxy=http://p:1|no_proxy=corp.test.", http, ""},
		"capitals in a name":       {"all_proxy=http://p:1|no_proxy=Corp.Test", http, ""},
		"part of a name":           {"all_proxy=http://p:1|no_proxy=orp.test", http, "http://p:1"},
		"list":                     {"all_proxy=http://p:1|no_proxy=a.test,corp.test", http, ""},
		"list with spaces":         {"all_proxy=http://p:1|no_proxy=a.test corp.test", http, ""},
		"list with both":           {"all_proxy=http://p:1|no_proxy=a.test , corp.test", http, ""},
		"everything":               {"all_proxy=http://p:1|no_proxy=*", http, ""},
		"a star in a list":         {"all_proxy=http://p:1|no_proxy=a.test,*", http, "http://p:1"},
		"address":                  {"all_proxy=http://p:1|no_proxy=10.1.2.3", "http://10.1.2.3", ""},
		"network":                  {"all_proxy=http://p:1|no_proxy=10.0.0.0/8", "http://10.1.2.3", ""},
		"another network":          {"all_proxy=http://p:1|no_proxy=10.0.0.0/8", "http://192.168.0.1", "http://p:1"},
		"IPv6 address":             {"all_proxy=http://p:1|no_proxy=fd00::1", "http://[fd00::1]", ""},
		"this machine, as before":  {"all_proxy=http://p:1", "http://127.0.0.1:5000", ""},
	} {
		env := map[string]string{}
		for _, pair := range strings.Split(c.env, "|") {
			k, v, _ := strings.Cut(pair, "=")
			env[k] = v
		}
		to, _ := url.Parse(c.to)
		via, err := proxies(func(k string) string { return env[k] })(to)
		got := ""
		if via != nil {
			got = via.String()
		}
		if err != nil || got != c.want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, c.want)
		}
	}
}

// socks is a SOCKS proxy that connects everything to one address, and the hosts it was asked
// for.
func socks(t *testing.T, to string, version byte) (addr string, asked chan string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked = make(chan string, 16)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go relaySOCKS(c, to, version, asked)
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String(), asked
}

func relaySOCKS(c net.Conn, to string, version byte, asked chan<- string) {
	defer c.Close()
	read := func(n int) []byte {
		b := make([]byte, n)
		_, _ = io.ReadFull(c, b)
		return b
	}
	text := func() (s []byte) {
		for b := read(1); b[0] != 0; b = read(1) {
			s = append(s, b[0])
		}
		return s
	}
	if version == 4 {
		head := read(8)
		user := text()
		host := net.IP(head[4:8]).String()
		if strings.HasPrefix(host, "0.0.0.") {
			host = string(text())
		}
		asked <- string(user) + "@" + host
		_, _ = c.Write([]byte{0, 90, 0, 0, 0, 0, 0, 0})
	} else {
		read(int(read(2)[1]))
		_, _ = c.Write([]byte{5, 0})
		head := read(5)
		asked <- "@" + string(read(int(head[4])))
		read(2)
		_, _ = c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	}
	up, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer up.Close()
	go func() { _, _ = io.Copy(up, c); _ = up.Close() }()
	_, _ = io.Copy(c, up)
}

// TestProxies: a cache whose name only the proxy knows is reached through every kind of proxy,
// over http and https.
func TestProxies(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	for _, secure := range []bool{false, true} {
		cfg := cache(nix.None, p)
		cfg.TLS = secure
		u := nixtest.NewUpstream(t, cfg)
		at := strings.TrimPrefix(strings.TrimPrefix(u.URL(), "https://"), "http://")
		var connects atomic.Int32
		forward := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodConnect {
				u.ServeHTTP(w, r)
				return
			}
			connects.Add(1)
			up, err := net.Dial("tcp", at)
			if err != nil {
				return
			}
			c, _, _ := w.(http.Hijacker).Hijack()
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
			go func() { _, _ = io.Copy(up, c); _ = up.Close() }()
			_, _ = io.Copy(c, up)
			_ = c.Close()
		}))
		t.Cleanup(forward.Close)
		four, asked4 := socks(t, at, 4)
		five, asked5 := socks(t, at, 5)
		name := "example.com" // of the certificate of httptest
		target := "http://" + name
		if secure {
			target = "https://" + name
		}
		for proxy, asked := range map[string]chan string{
			forward.URL: nil, strings.TrimPrefix(forward.URL, "http://"): nil,
			"socks5h://" + five: asked5, "socks5://" + five: asked5, "socks4a://me@" + four: asked4,
		} {
			b := open(t, func(c *Config) {
				c.roots = certs(u, secure)
				c.getenv = func(k string) string { return map[string]string{"all_proxy": proxy}[k] }
			}, target)
			b.mustInfo(p)
			if asked != nil {
				if got := <-asked; strings.TrimPrefix(got, "me") != "@"+name {
					t.Errorf("%s was asked for %q", proxy, got)
				}
			}
		}
		if (connects.Load() > 0) != secure {
			t.Errorf("tls %v: %d CONNECTs", secure, connects.Load())
		}
	}
}

// TestSOCKS4: the plain version is given an address; a refusal is an outage.
func TestSOCKS4(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	u := nixtest.NewUpstream(t, cache(nix.None, p))
	addr, asked := socks(t, strings.TrimPrefix(u.URL(), "http://"), 4)
	b := open(t, func(c *Config) {
		c.resolve = fixed("10.1.2.3")
		c.getenv = func(k string) string { return map[string]string{"http_proxy": "socks4://" + addr}[k] }
	}, "http://cache.corp.test")
	b.mustInfo(p)
	if got := <-asked; got != "@10.1.2.3" {
		t.Errorf("asked for %q", got)
	}
}

// TestAuthorities: which file of certificate authorities counts.
func TestAuthorities(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	u := httptest.NewTLSServer(nixtest.NewUpstream(t, cache(nix.None, p)))
	defer u.Close()
	u.Config.ErrorLog = log.New(io.Discard, "", 0)
	dir := t.TempDir()
	good, empty, old, odd := filepath.Join(dir, "good.pem"), filepath.Join(dir, "empty.pem"), filepath.Join(dir, "old.pem"), filepath.Join(dir, "odd.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: u.Certificate().Raw})
	for name, content := range map[string][]byte{good: text, empty: nil, old: bytes.ReplaceAll(text, []byte(" CERT"), []byte(" X509 CERT")),
		odd: append([]byte("\ufeff  "), bytes.ReplaceAll(text, []byte("\n"), []byte("\r  "))...)} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		env, file string
		ok, warns bool
	}{
		"the system's":                {"", "", false, false},
		"NIX_SSL_CERT_FILE":           {good, "", true, false},
		"ssl-cert-file":               {"", good, true, false},
		"X509 CERTIFICATE":            {old, "", true, false},
		"CR, spaces, a mark":          {odd, "", true, false},
		"the environment counts":      {good, empty, true, false},
		"unreadable":                  {filepath.Join(dir, "none"), "", false, true},
		"unreadable, then the file":   {filepath.Join(dir, "none"), good, true, true},
		"without a certificate in it": {empty, "", false, true},
	} {
		b := open(t, func(cfg *Config) {
			cfg.CAFile = c.file
			cfg.getenv = func(k string) string { return map[string]string{"NIX_SSL_CERT_FILE": c.env}[k] }
		}, u.URL)
		if _, err := b.Info(t.Context(), p.Hash()); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		if got := strings.Contains(b.log.String(), "authorities cannot be read"); got != c.warns {
			t.Errorf("%s: warned %v", name, got)
		}
	}
}

// TestCipherSuites: what an inspecting proxy may have and Nix accepts is accepted.
func TestCipherSuites(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	for name, edit := range map[string]func(*tls.Config){
		"TLS 1.3": func(*tls.Config) {},
		"TLS 1.2": func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 },
		"RSA, GCM": func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}
		},
		"RSA, CBC": func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_256_CBC_SHA}
		},
	} {
		u := httptest.NewUnstartedServer(nixtest.NewUpstream(t, cache(nix.None, p)))
		u.TLS = &tls.Config{}
		edit(u.TLS)
		u.StartTLS()
		defer u.Close()
		pool := x509.NewCertPool()
		pool.AddCert(u.Certificate())
		b := open(t, func(cfg *Config) { cfg.roots = pool }, u.URL)
		if _, err := b.Info(t.Context(), p.Hash()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzProxies: whatever the environment holds, a proxy has a host and a port, or there is an error.
func FuzzProxies(f *testing.F) {
	for _, s := range []string{"http://p:1", "p", "socks5h://me:pw@[::1]", "://", "http://%zz", "socks4a://p/x?y#z", " ", "#", "http://:80"} {
		f.Add(s, "a,.b *")
	}
	f.Fuzz(func(t *testing.T, proxy, except string) {
		to, _ := url.Parse("http://cache.example.org")
		via, err := proxies(func(k string) string { return map[string]string{"all_proxy": proxy, "no_proxy": except}[k] })(to)
		if err == nil && via != nil && (via.Hostname() == "" || via.Scheme == "") {
			t.Errorf("%q: %v", proxy, via)
		}
	})
}
