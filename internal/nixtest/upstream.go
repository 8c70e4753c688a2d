package nixtest

import (
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// UpstreamConfig says what a cache holds and how it looks. The zero value is an empty cache
// over HTTP/1.1 with priority 40.
type UpstreamConfig struct {
	Paths       []Path
	Keys        []Key           // sign every narinfo
	Compression nix.Compression // of the NAR files; "" is none
	Priority    int             // in nix-cache-info; 0 is 40
	StoreDir    string          // in nix-cache-info; "" is /nix/store
	BasePath    string          // such as "/cache": the cache lies under it
	TLS         bool            // HTTP/2 too, with a certificate of CertPool
	HTTP1       bool            // with TLS: no HTTP/2
	NoRange     bool            // Range is ignored
	// NoFile leaves FileHash and FileSize out of narinfos.
	NoFile bool
	// URL returns the URL line of p's narinfo; file is the usual one, base the cache's own
	// address with a slash at its end. Whatever path and query the result has is served.
	URL func(base, file string, p Path) string
	// Edit changes a narinfo after it was signed.
	Edit func(n *nix.NarInfo)
}

// Kind is a kind of URL.
type Kind int

// The kinds of URLs that faults and counters tell apart.
const (
	CacheInfo Kind = iota
	NarInfo
	NarFile
	kinds
)

// Seen is a request that came in. At most the first few thousand are kept.
type Seen struct {
	Kind   Kind
	Method string
	URI    string // path and query
	Proto  string // "HTTP/1.1" or "HTTP/2.0"
	Header http.Header
}

// Upstream is a binary cache over HTTP on loopback that can be made faulty while it runs. It
// is safe for concurrent use. It is closed at the end of the test.
type Upstream struct {
	t   testing.TB
	cfg UpstreamConfig

	mu       sync.Mutex
	srv      *httptest.Server
	addr     string
	gone     chan struct{} // closed when srv is: hanging handlers end
	infos    map[nix.StoreHash][]byte
	files    map[string][]byte // by path and query
	uris     map[nix.StoreHash]string
	faults   [kinds][]*Fault
	seen     []Seen
	requests [kinds]atomic.Int64
	bytes    [kinds]atomic.Int64
}

// NewUpstream starts a cache.
func NewUpstream(t testing.TB, cfg UpstreamConfig) *Upstream {
	t.Helper()
	u := &Upstream{t: t, cfg: cfg, infos: map[nix.StoreHash][]byte{}, files: map[string][]byte{}, uris: map[nix.StoreHash]string{}, addr: "127.0.0.1:0"}
	u.Start()
	u.Add(cfg.Paths...)
	t.Cleanup(u.Stop)
	return u
}

// Start listens again after Stop, at the same address.
func (u *Upstream) Start() {
	u.t.Helper()
	l, err := net.Listen("tcp", u.addr)
	if err != nil {
		u.t.Fatal(err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.addr = l.Addr().String()
	u.gone = make(chan struct{})
	u.srv = &httptest.Server{Listener: l, Config: &http.Server{Handler: u, ErrorLog: log.New(io.Discard, "", 0)}, EnableHTTP2: !u.cfg.HTTP1}
	if u.cfg.TLS {
		u.srv.StartTLS()
	} else {
		u.srv.Start()
	}
}

// Stop closes the port and all connections: who asks is refused. It may be called twice.
func (u *Upstream) Stop() {
	u.mu.Lock()
	srv := u.srv
	u.srv = nil
	if srv != nil {
		close(u.gone)
	}
	u.mu.Unlock()
	if srv != nil {
		srv.CloseClientConnections()
		srv.Close()
	}
}

// URL returns the address of the cache, without a slash at its end.
func (u *Upstream) URL() string {
	scheme := "http://"
	if u.cfg.TLS {
		scheme = "https://"
	}
	return scheme + u.addr + u.cfg.BasePath
}

// CertPool returns what a client must trust to speak TLS with any Upstream.
func (u *Upstream) CertPool() *x509.CertPool {
	u.mu.Lock()
	defer u.mu.Unlock()
	pool := x509.NewCertPool()
	pool.AddCert(u.srv.Certificate())
	return pool
}

// Add puts paths into the cache.
func (u *Upstream) Add(paths ...Path) {
	u.t.Helper()
	for _, p := range paths {
		n, file := u.cfg.entry(u.t, p)
		if u.cfg.URL != nil {
			n.URL = u.cfg.URL(u.URL()+"/", n.URL, p)
		}
		at, err := url.Parse(n.URL)
		if err != nil {
			u.t.Fatal(err)
		}
		base, _ := url.Parse(u.URL() + "/")
		u.mu.Lock()
		u.infos[p.Hash()] = n.AppendText(nil)
		u.uris[p.Hash()] = base.ResolveReference(at).RequestURI()
		u.files[u.uris[p.Hash()]] = file
		u.mu.Unlock()
	}
}

// Serve puts a file at a URL path (with query), such as "/cache/nar/x.nar".
func (u *Upstream) Serve(uri string, file []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.files[uri] = file
}

// File returns the file of p as it is served.
func (u *Upstream) File(p Path) []byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.files[u.uris[p.Hash()]]
}

// NarInfo returns the narinfo text of p as it is served.
func (u *Upstream) NarInfo(p Path) []byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.infos[p.Hash()]
}

// Requests returns how many requests of a kind came in.
func (u *Upstream) Requests(k Kind) int { return int(u.requests[k].Load()) }

// Bytes returns how many body bytes were sent for a kind.
func (u *Upstream) Bytes(k Kind) int64 { return u.bytes[k].Load() }

// Seen returns the requests of a kind in their order.
func (u *Upstream) Seen(k Kind) []Seen {
	u.mu.Lock()
	defer u.mu.Unlock()
	var of []Seen
	for _, s := range u.seen {
		if s.Kind == k {
			of = append(of, s)
		}
	}
	return of
}

// entry makes the narinfo and the file of p.
func (cfg *UpstreamConfig) entry(t testing.TB, p Path) (*nix.NarInfo, []byte) {
	t.Helper()
	n, file := p.Signed(cfg.Keys...), p.NAR
	if cfg.Compression != "" && cfg.Compression != nix.None {
		c := Compress(t, cfg.Compression, p.NAR)
		n, file = c.NarInfo(p, cfg.Keys...), c.Bytes
	}
	if cfg.NoFile {
		n.FileHash, n.FileSize = nix.FileHash{}, 0
	}
	if cfg.Edit != nil {
		cfg.Edit(n)
	}
	return n, file
}

func (cfg *UpstreamConfig) cacheInfo() []byte {
	c := nix.CacheInfo{StoreDir: cfg.StoreDir, WantMassQuery: true, Priority: cfg.Priority}
	if c.StoreDir == "" {
		c.StoreDir = nix.StoreDir
	}
	if c.Priority == 0 {
		c.Priority = 40
	}
	return c.Text()
}

// find returns what lies at a request's URL; nil when there is nothing.
func (u *Upstream) find(r *http.Request) (Kind, []byte) {
	at, under := strings.CutPrefix(r.URL.Path, u.cfg.BasePath+"/")
	u.mu.Lock()
	defer u.mu.Unlock()
	switch hash, isInfo := strings.CutSuffix(at, ".narinfo"); {
	case under && at == "nix-cache-info":
		return CacheInfo, u.cfg.cacheInfo()
	case under && isInfo:
		h, err := nix.ParseStoreHash(hash)
		if err != nil {
			return NarInfo, nil
		}
		return NarInfo, u.infos[h]
	default:
		return NarFile, u.files[r.URL.RequestURI()]
	}
}

// ServeHTTP answers one request, with the fault that is due.
func (u *Upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind, file := u.find(r)
	u.requests[kind].Add(1)
	fault, gone := u.note(kind, r)
	a := &answer{u: u, kind: kind, fault: fault, gone: gone, w: w, r: r, file: file, found: file != nil}
	a.send()
}

// note keeps a record of the request and returns the fault that it meets.
func (u *Upstream) note(kind Kind, r *http.Request) (Fault, <-chan struct{}) {
	const most = 4096
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.seen) < most {
		u.seen = append(u.seen, Seen{kind, r.Method, r.URL.RequestURI(), r.Proto, r.Header.Clone()})
	}
	for _, f := range u.faults[kind] {
		if f.Only != nil && !f.Only(r) {
			continue
		}
		switch {
		case f.left < 0:
			continue
		case f.left > 0:
			if f.left--; f.left == 0 {
				f.left = -1
			}
		}
		return *f, u.gone
	}
	return Fault{}, u.gone
}
