package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"time"

	"github.com/nixp2p/nixp2p/internal/runclock"
)

// network is the way to all caches: proxies, names, connections, certificates.
type network struct {
	pooled *http.Transport
	// fresh opens a connection for each request: what is open may be dead, or wait for what
	// was lost.
	fresh    *http.Transport
	names    *names // nil: dial resolves names
	dial     func(ctx context.Context, network, addr string) (net.Conn, error)
	proxy    func(*url.URL) (*url.URL, error)
	timeouts *timeouts
	decoding chan struct{} // bounds how many short bodies are decoded at a time
}

func newNetwork(cfg *Config, t *timeouts, log *slog.Logger) *network {
	n := &network{dial: cfg.dialer, timeouts: t, proxy: proxies(cfg.getenv), decoding: make(chan struct{}, 4)}
	if n.dial == nil || cfg.resolve != nil {
		n.names = newNames(t.lookup, cfg.resolve)
	}
	if n.dial == nil {
		n.dial = (&net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3,
		}}).DialContext
	}
	roots := cfg.roots
	if roots == nil {
		roots = authorities(cfg, log)
	}
	n.pooled = &http.Transport{
		Proxy: func(r *http.Request) (*url.URL, error) {
			via, err := n.proxy(r.URL)
			if isSOCKS4(via) {
				return nil, err // connect speaks with it
			}
			return via, err
		},
		DialContext:         n.connect,
		TLSClientConfig:     &tls.Config{RootCAs: roots, ClientSessionCache: tls.NewLRUClientSessionCache(64), CipherSuites: cipherSuites()},
		TLSHandshakeTimeout: t.tls,
		ForceAttemptHTTP2:   true,
		// A dead HTTP/2 connection would otherwise take all requests with it.
		HTTP2:               &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 5 * time.Second},
		DisableCompression:  true, // a file must come as it is
		MaxIdleConns:        256,
		MaxIdleConnsPerHost: 64, // Nix has 25 requests on the way, and there may be several
		IdleConnTimeout:     90 * time.Second,
		ReadBufferSize:      64 << 10,
	}
	n.fresh = n.pooled.Clone()
	n.fresh.DisableKeepAlives = true
	n.fresh.MaxConnsPerHost = 8
	return n
}

// cipherSuites are those of the Go library and, for inspecting proxies that have nothing better,
// those without forward secrecy that Nix accepts too.
func cipherSuites() []uint16 {
	ids := []uint16{
		tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_256_CBC_SHA,
	}
	for _, s := range tls.CipherSuites() {
		ids = append(ids, s.ID)
	}
	return ids
}

// close ends the lookups that run and closes what is idle.
func (n *network) close() {
	n.pooled.CloseIdleConnections()
	if n.names != nil {
		n.names.close()
	}
}

// authorities reads the certificate authorities that Nix is told to use. nil: those of the
// system.
func authorities(cfg *Config, log *slog.Logger) *x509.CertPool {
	for _, name := range []string{cfg.getenv("NIX_SSL_CERT_FILE"), cfg.CAFile} {
		if name == "" {
			continue
		}
		text, err := os.ReadFile(name)
		pool := x509.NewCertPool()
		if err == nil && !pool.AppendCertsFromPEM(plainPEM(text)) {
			err = fmt.Errorf("%s: no certificate in it", name)
		}
		if err == nil {
			return pool
		}
		log.Warn("certificate authorities cannot be read", "err", err)
	}
	return nil
}

// plainPEM rewrites what curl's libraries take in a bundle and encoding/pem does not: a byte order mark, lines that end in
// CR or begin with spaces, and the old name of the blocks.
func plainPEM(text []byte) []byte {
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	lines := bytes.FieldsFunc(text, func(c rune) bool { return c == '\r' || c == '\n' })
	for i, l := range lines {
		lines[i] = bytes.ReplaceAll(bytes.TrimSpace(l), []byte(" X509 CERTIFICATE-----"), []byte(" CERTIFICATE-----"))
	}
	return append(bytes.Join(lines, []byte("\n")), '\n')
}

// hop is one HTTP request: what is dialled for it is noted with its cache.
type hop struct {
	s     *shared
	m     *mirror
	fresh bool
	at    *url.URL
}

type hopKey struct{}

// connect opens a TCP connection: to the cache, or to its proxy. A request may have left
// before its connection is refused, so the outcome is noted here.
func (n *network) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	h, _ := ctx.Value(hopKey{}).(*hop)
	if h == nil {
		return n.tcp(ctx, network, addr, connectsLost)
	}
	began, tries := time.Now(), connectsLost
	if h.fresh {
		tries = 1
	}
	var conn net.Conn
	proxy, err := n.proxy(h.at)
	if err == nil && isSOCKS4(proxy) {
		conn, err = n.socks4(ctx, proxy, addr, tries)
	} else {
		conn, err = n.tcp(ctx, network, addr, tries)
	}
	if h.m.foreign(h.at) {
		return conn, err
	}
	switch {
	case err == nil:
		if a, e := netip.ParseAddrPort(conn.RemoteAddr().String()); e == nil && addr == hostPort(h.at) && !public(a.Addr()) {
			h.m.near.Store(true)
		}
	case errors.Is(err, context.Canceled):
	case isTimeout(err) && isLookup(err):
		h.s.failed(h.m, failedSlow, began, err)
	case isTimeout(err) && h.fresh:
		h.s.failed(h.m, failedReconnect, began, err)
	case isTimeout(err):
		h.s.failed(h.m, failedConnect, began, err)
	case isUnreachable(err):
		h.s.failed(h.m, failedUnreachable, began, err)
	}
	return conn, err
}

// tcp looks the host up and connects to the first of its addresses that answers. Each step has
// its own timeout: a name server that is dead costs seconds, and is no reason to have none left
// for the connection. A try that times out is followed by another one, up to tries: the first
// packet was lost, and the system repeats it ever more seldom.
func (n *network) tcp(ctx context.Context, network, addr string, tries int) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	targets := []string{addr}
	if n.names != nil {
		addrs, err := n.names.lookup(ctx, host)
		if err != nil {
			return nil, &net.OpError{Op: "dial", Net: network, Err: err}
		}
		targets = targets[:0]
		for _, a := range addrs {
			targets = append(targets, net.JoinHostPort(a.String(), port))
		}
	}
	for range tries {
		var conn net.Conn
		if conn, err = n.dialAny(ctx, network, targets); err == nil {
			return conn, nil
		}
		if ctx.Err() != nil || !isTimeout(err) {
			break
		}
	}
	if n.names != nil {
		n.names.forget(host) // it may have moved
	}
	var op *net.OpError
	if !errors.As(err, &op) {
		err = &net.OpError{Op: "dial", Net: network, Err: err}
	}
	return nil, err
}

// dialAny connects to the first of several addresses that answers.
func (n *network) dialAny(ctx context.Context, network string, targets []string) (net.Conn, error) {
	dialing, cancel := runclock.WithTimeout(ctx, n.timeouts.connect)
	defer cancel()
	const stagger = 250 * time.Millisecond // RFC 8305, 5
	conn, err := first(dialing, len(targets), stagger,
		func(ctx context.Context, i int) (net.Conn, error) { return n.dial(ctx, network, targets[i]) },
		nil, func(c net.Conn) { _ = c.Close() })
	if err != nil && ctx.Err() == nil && dialing.Err() != nil {
		err = context.Cause(dialing)
	}
	return conn, err
}

// isLookup reports whether a connection failed because of its name.
func isLookup(err error) bool {
	var dns *net.DNSError
	return errors.As(err, &dns)
}
