package upstream

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
)

// TestRefused: what an upstream has and no trusted key signed, or what cannot be decoded, is no lie. It
// is said once which upstream that is.
func TestRefused(t *testing.T) {
	p, q := nixtest.NewPath("unsigned", 100), nixtest.NewPath("signed", 100)
	n := p.Signed(key)
	n.Compression = "lzop"
	for name, c := range map[string]struct {
		text []byte
		also bool   // a path that is signed
		want string // part of the condition
		note bool
	}{
		"unsigned":              {p.NarInfo().AppendText(nil), false, "has sent no path that a trusted key signed: 1 narinfos", false},
		"of another key":        {p.Signed(nixtest.NewKey("corp-1")).AppendText(nil), false, "no path that a trusted key signed", false},
		"unsigned among others": {p.NarInfo().AppendText(nil), true, "1 of 2 narinfos were refused", true},
		"lzop":                  {n.AppendText(nil), false, `compression "lzop"`, false},
	} {
		t.Run(name, func(t *testing.T) {
			u := nixtest.NewUpstream(t, cache(nix.XZ, p, q))
			u.Set(nixtest.NarInfo, nixtest.Fault{Body: c.text, Only: func(r *http.Request) bool {
				return strings.Contains(r.URL.Path, p.Hash().String())
			}})
			var said source.Conditions
			events := 0
			b := open(t, func(cfg *Config) {
				cfg.Conditions = &said
				cfg.Events = func(source.Event) { events++ }
			}, u.URL())
			if c.also {
				b.mustInfo(q)
			}
			if _, err := b.Info(t.Context(), p.Hash()); kindOf(err) != "refused" || !source.Absent(err) {
				t.Errorf("%v", err)
			}
			list := said.List()
			if len(list) != 1 || !strings.Contains(list[0].Text, c.want) || list[0].Note != c.note || events != 0 {
				t.Errorf("%+v, %d events", list, events)
			}
		})
	}
}

// TestCredentialsAccepted: that a cache wants credentials is said until it answers what it refused,
// and not taken back because it shows other files to everybody.
func TestCredentialsAccepted(t *testing.T) {
	p := nixtest.NewPath("private", 100)
	for name, c := range map[string]struct {
		status int // before
		then   nixtest.Fault
		want   bool // it is still said
	}{
		"a narinfo":        {401, nixtest.Fault{}, false},
		"of the proxy":     {407, nixtest.Fault{}, false},
		"no such path":     {401, nixtest.Fault{Status: 404}, false},
		"refused again":    {401, nixtest.Fault{Status: 401}, true},
		"403 says nothing": {401, nixtest.Fault{Status: 403}, true},
		"nor does 500":     {401, nixtest.Fault{Status: 500}, true},
	} {
		t.Run(name, func(t *testing.T) {
			u := nixtest.NewUpstream(t, cache(nix.XZ, p))
			var said source.Conditions
			b := open(t, func(cfg *Config) { cfg.Conditions = &said }, u.URL())
			u.Set(nixtest.NarInfo, nixtest.Fault{Status: c.status})
			_, _ = b.Info(t.Context(), p.Hash())
			if err := b.look(t.Context(), b.mirrors[0]); err != nil || len(said.List()) != 1 {
				t.Fatalf("%v, then %+v", err, said.List())
			}
			u.Set(nixtest.NarInfo, c.then)
			_, _ = b.Info(t.Context(), p.Hash())
			if list := said.List(); (len(list) == 1) != c.want {
				t.Errorf("%+v", list)
			}
		})
	}
}

// TestGone: a cache that lost a NAR hides nobody else's build of the path.
func TestGone(t *testing.T) {
	old := nixtest.NewPath("twice", 3000)
	rebuilt := nixtest.NewPath("twice-again", 3000)
	rebuilt.StorePath = old.StorePath
	for name, c := range map[string]struct {
		second *nixtest.Path
		want   string
	}{
		"alone":              {nil, "absent"},
		"another build":      {&rebuilt, "ok"},
		"the same elsewhere": {&old, "ok"},
	} {
		t.Run(name, func(t *testing.T) {
			first := nixtest.NewUpstream(t, cache(nix.XZ, old))
			urls := []string{first.URL() + "?priority=1"}
			if c.second != nil {
				urls = append(urls, nixtest.NewUpstream(t, cache(nix.XZ, *c.second)).URL()+"?priority=2")
			}
			b := open(t, nil, urls...)
			info := b.mustInfo(old)
			first.Set(nixtest.NarFile, nixtest.Fault{Status: 404})
			got, err := b.read(info, nix.Raw, 0)
			if c.second == &old {
				if err != nil || !bytes.Equal(got, old.NAR) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			} else if kindOf(err) != "absent" {
				t.Errorf("NAR: %v", err)
			}
			again, err := b.Info(t.Context(), old.Hash())
			if kindOf(err) != c.want {
				t.Fatalf("then: %v, want %s", err, c.want)
			}
			if err == nil && again.NarHash() != c.second.NarHash() {
				t.Error("the narinfo of the cache without the NAR")
			}
		})
	}
}

// TestDirectoryLayouts: what Nix reads from a directory is read here.
func TestDirectoryLayouts(t *testing.T) {
	p := nixtest.NewPath("hello", 3000)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		url  string // in the narinfo
		lies string // where the file is
		also func(dir string)
	}{
		"as Nix writes it":  {"nar/x.nar.xz", "nar/x.nar.xz", nil},
		"flat":              {"x.nar.xz", "x.nar.xz", nil},
		"nested":            {"nar/a/b/c/x", "nar/a/b/c/x", nil},
		"slash in front":    {"/nar/x", "nar/x", nil},
		"dots":              {"a/../nar/./x", "nar/x", nil},
		"a query in a name": {"nar/x?hash=y", "nar/x?hash=y", nil},
		"a query":           {"nar/x?hash=y", "nar/x", nil},
		"percent in a name": {"nar/x%20y", "nar/x%20y", nil},
		"percent":           {"nar/x%20y", "nar/x y", nil},
		"colon":             {"nar/sha256:x", "nar/sha256:x", nil},
		"space, plus, hash": {"nar/a b+c#d", "nar/a b+c#d", nil},
		"index.html":        {"nar/index.html", "nar/index.html", nil},
		"directory elsewhere": {"nar/x", "nar/x", func(dir string) {
			must(os.Rename(dir+"/nar", dir+"-nar"))
			must(os.Symlink(dir+"-nar", dir+"/nar"))
		}},
		"files elsewhere": {"nar/x", "nar/x", func(dir string) {
			must(os.Rename(dir+"/nar/x", dir+"-x"))
			must(os.Symlink("../../cache-x", dir+"/nar/x"))
			must(os.Rename(dir+"/"+p.Hash().String()+".narinfo", dir+"-info"))
			must(os.Symlink(dir+"-info", dir+"/"+p.Hash().String()+".narinfo"))
		}},
		"all elsewhere": {"nar/x", "nar/x", func(dir string) {
			must(os.Rename(dir, dir+"-real"))
			must(os.Symlink("cache-real", dir))
		}},
		"no nix-cache-info": {"nar/x", "nar/x", func(dir string) { must(os.Remove(dir + "/nix-cache-info")) }},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "cache")
			must(os.MkdirAll(filepath.Dir(filepath.Join(dir, c.lies)), 0o755))
			must(os.WriteFile(dir+"/nix-cache-info", []byte("StoreDir: /nix/store\n"), 0o600))
			n := p.Signed(key)
			n.URL, n.Compression, n.FileHash, n.FileSize = c.url, nix.XZ, nix.FileHash{}, 0
			must(os.WriteFile(dir+"/"+p.Hash().String()+".narinfo", n.AppendText(nil), 0o600))
			must(os.WriteFile(filepath.Join(dir, c.lies), nixtest.Compress(t, nix.XZ, p.NAR).Bytes, 0o600))
			if c.also != nil {
				c.also(dir)
			}
			b := open(t, nil, "file://"+dir)
			got, err := b.read(b.mustInfo(p), nix.Raw, 0)
			if err != nil || !bytes.Equal(got, p.NAR) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}

// TestDirectoryNames: a directory is found by its name in a URL, as new versions of Nix decode it and as old ones
// do not.
func TestDirectoryNames(t *testing.T) {
	p := nixtest.NewPath("hello", 3000)
	for written, lies := range map[string]string{
		"a%41b": "aAb", "a%41c": "a%41c", "with%20space": "with space", "with%20spaces": "with%20spaces", "a+b": "a+b", "100%25": "100%",
	} {
		dir := t.TempDir()
		nixtest.WriteCache(t, filepath.Join(dir, lies), cache(nix.XZ, p))
		b := open(t, nil, "file://"+dir+"/"+written)
		if got, err := b.read(b.mustInfo(p), nix.Raw, 0); err != nil || !bytes.Equal(got, p.NAR) {
			t.Errorf("%s: %d bytes, %v", written, len(got), err)
		}
	}
}

// TestSaid: the log says of what is refused, though Nix takes it, what docs/faults.md quotes.
func TestSaid(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	page, err := os.ReadFile("../../docs/faults.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	nixtest.WriteCache(t, filepath.Join(dir, "cache"), cache(nix.XZ, p))
	n := p.Signed(key)
	n.URL, n.Compression = "../x.nar.xz", nix.XZ
	if err := os.WriteFile(filepath.Join(dir, "cache", p.Hash().String()+".narinfo"), n.AppendText(nil), 0o600); err != nil {
		t.Fatal(err)
	}
	old, roots := tlsServer(t, nil, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS10 })
	bare, bareRoots := tlsServer(t, &x509.Certificate{Subject: pkix.Name{CommonName: "127.0.0.1"}}, func(*tls.Config) {})
	unsigned := cache(nix.XZ, p)
	unsigned.Keys = nil
	for says, c := range map[string]struct {
		url   string
		roots *x509.CertPool
	}{
		"remote error: tls: protocol version not supported":                                                         {old, roots},
		"tls: failed to verify certificate: x509: certificate relies on legacy Common Name field, use SANs instead": {bare, bareRoots},
		"the URL in the narinfo leads out of the directory; a link in it may":                                       {"file://" + dir + "/cache", nil},
		"has sent no path that a trusted key signed":                                                                {nixtest.NewUpstream(t, unsigned).URL(), nil},
	} {
		var board source.Conditions
		b := open(t, func(cfg *Config) { cfg.roots, cfg.Conditions = c.roots, &board }, c.url)
		if info, err := b.Info(t.Context(), p.Hash()); err == nil {
			_, _ = b.read(info, nix.Raw, 0)
		}
		text := b.log.String()
		for _, c := range board.List() {
			text += c.Text
		}
		if !strings.Contains(text, says) {
			t.Errorf("not said: %s\n%s", says, text)
		}
		if !strings.Contains(string(page), says) {
			t.Errorf("not in docs/faults.md: %s", says)
		}
	}
}

// tlsServer is an HTTPS server, with a certificate of its own if of is not nil, that signs itself.
func tlsServer(t *testing.T, of *x509.Certificate, edit func(*tls.Config)) (url string, roots *x509.CertPool) {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLS = &tls.Config{}
	edit(srv.TLS)
	if of != nil {
		secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		of.SerialNumber, of.NotBefore, of.NotAfter = big.NewInt(1), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, of, of, &secret.PublicKey, secret)
		if err != nil {
			t.Fatal(err)
		}
		srv.TLS.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: secret}}
	}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	roots = x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	return srv.URL, roots
}
