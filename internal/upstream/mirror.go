package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

const (
	schemeHTTP  = "http"
	schemeHTTPS = "https"
	schemeFile  = "file"
)

// mirror is one cache.
type mirror struct {
	index    int      // in Upstreams.mirrors
	base     *url.URL // ends in a slash; no user, query or fragment
	name     string   // base as text: it has no secret
	own      *credential
	addr     string // host and port
	proxied  bool   // the proxy is dialled instead
	priority *int   // from the configuration
	get      http.RoundTripper

	health
	latency latency
	window  window // of narinfos
	said    atomic.Pointer[said]
	asked   atomic.Int64
	// mentioned keeps a message that would repeat with every request to one a time.
	mentioned [mentions]atomic.Int64
}

// said is what a cache says about itself.
type said struct {
	priority    int
	hasPriority bool
	wrong       error // its store directory is another one: not to be used
}

type mention int

const (
	mentionLie mention = iota
	mentionCredentials
	mentions
)

// mayMention tells whether a message that may repeat is due again.
func (m *mirror) mayMention(what mention) bool {
	const every = int64(time.Minute)
	now := time.Now().UnixNano()
	last := m.mentioned[what].Load()
	return (last == 0 || now-last > every) && m.mentioned[what].CompareAndSwap(last, now)
}

var errURL = errors.New("not the URL of a cache")

// newMirror reads a configured URL. Its errors do not repeat the URL: it may have a password.
func (u *Upstreams) newMirror(text string) (*mirror, error) {
	base, err := url.Parse(text)
	if err != nil {
		var parse *url.Error
		if errors.As(err, &parse) {
			err = parse.Err
		}
		return nil, fmt.Errorf("%w: %w", errURL, err)
	}
	if base.Opaque != "" {
		return nil, fmt.Errorf("%w: no host", errURL)
	}
	m := &mirror{}
	if user := base.User; user != nil {
		password, _ := user.Password()
		m.own = &credential{user.Username(), password}
	}
	if text := base.Query().Get("priority"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, fmt.Errorf("%w: priority %q is no number", errURL, text)
		}
		m.priority = &n
	}
	base = &url.URL{Scheme: base.Scheme, Host: base.Host, Path: base.Path, RawPath: base.RawPath}
	if !strings.HasSuffix(base.Path, "/") {
		base = base.JoinPath("/")
	}
	switch base.Scheme {
	case schemeHTTP, schemeHTTPS:
		if base.Hostname() == "" {
			return nil, fmt.Errorf("%w: no host", errURL)
		}
		m.get, m.addr = u.transport, hostPort(base)
	case schemeFile:
		if base.Host != "" || !strings.HasPrefix(base.Path, "/") {
			return nil, fmt.Errorf("%w: file URLs are file:///directory", errURL)
		}
		m.get = directory(base.Path)
	default:
		return nil, fmt.Errorf("%w: scheme %q is not http, https or file", errURL, base.Scheme)
	}
	m.base, m.name = base, base.String()
	m.health.init(m.name, u)
	return m, nil
}

func hostPort(at *url.URL) string {
	port := at.Port()
	switch {
	case port != "":
	case at.Scheme == schemeHTTPS:
		port = "443"
	default:
		port = "80"
	}
	return net.JoinHostPort(at.Hostname(), port)
}

// at returns the URL of a file of the cache's own layout.
func (m *mirror) at(name string) *url.URL {
	to := *m.base
	to.Path += name
	if to.RawPath != "" {
		to.RawPath += name
	}
	return &to
}

// locate resolves the URL line of a narinfo: relative to the cache (RFC 3986), or absolute
// where permitted says so.
func (m *mirror) locate(text string) (*url.URL, error) {
	to, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("URL of the NAR: %w", err)
	}
	if m.base.Scheme == schemeFile {
		if to.Scheme != "" || to.Host != "" {
			return nil, fmt.Errorf("URL of the NAR: %w", errScheme)
		}
		return m.at(strings.TrimLeft(to.Path, "/")), nil
	}
	to = m.base.ResolveReference(to)
	if err := permitted(m.base, to); err != nil {
		return nil, fmt.Errorf("URL of the NAR: %w", err)
	}
	to.Fragment = ""
	return to, nil
}

var errScheme = errors.New("leads to another scheme")

// permitted tells whether a cache at from may send us to to: never from https to what
// anybody on the way can read, and never to files.
func permitted(from, to *url.URL) error {
	switch {
	case to.Scheme != schemeHTTPS && (to.Scheme != schemeHTTP || from.Scheme != schemeHTTP):
		return fmt.Errorf("%w: %s to %q", errScheme, from.Scheme, to.Scheme)
	case to.Host == "":
		return errURL
	}
	return nil
}

type mirrorKey struct{}

// newTransport returns the one transport of all caches. What is dialled is noted with the
// cache that the request was for: a request may leave before its connection is refused.
func (u *Upstreams) newTransport(cfg *Config, proxy func(*url.URL) (*url.URL, error)) *http.Transport {
	dial := cfg.dialer
	if dial == nil {
		dial = (&net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3,
		}}).DialContext
	}
	return &http.Transport{
		Proxy: func(r *http.Request) (*url.URL, error) { return proxy(r.URL) },
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, u.times.connect)
			defer cancel()
			conn, err := dial(ctx, network, addr)
			if m, ok := ctx.Value(mirrorKey{}).(*mirror); ok {
				host, _, _ := net.SplitHostPort(addr)
				if m.proxied || host == m.base.Hostname() {
					m.connected(err)
				}
			}
			return conn, err
		},
		TLSClientConfig:     &tls.Config{RootCAs: cfg.RootCAs, ClientSessionCache: tls.NewLRUClientSessionCache(64)},
		TLSHandshakeTimeout: 5 * time.Second,
		ForceAttemptHTTP2:   true,
		// A dead HTTP/2 connection would otherwise take all requests with it.
		HTTP2:               &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 5 * time.Second},
		DisableCompression:  true, // a file must come as it is
		MaxIdleConns:        256,
		MaxIdleConnsPerHost: 64, // Nix has 25 requests on the way, and there may be several
		IdleConnTimeout:     90 * time.Second,
		ReadBufferSize:      64 << 10,
	}
}

// order returns the caches that may be asked now, the best first, and an error that says
// why others are not. It brings them into order by priority and, where that is equal, by
// latency; a difference below a factor of two counts nothing.
func (u *Upstreams) order() (may []*mirror, left error) {
	now := time.Now()
	for _, m := range u.mirrors {
		ok, why := m.usable(now, !u.running.Load())
		switch {
		case ok:
			may = append(may, m)
		case why != nil:
			left = fmt.Errorf("%s: %w", m.name, why)
		}
	}
	if len(may) > 1 {
		u.rank(may)
	}
	if len(may) == 0 && left == nil {
		left = errNone
	}
	return may, left
}

var errNone = errors.New("no cache is configured")

// usualName is the URL line that Nix itself writes for a file; it is not kept in memory.
func usualName(c nix.Compression, file nix.FileHash) string {
	suffix := map[nix.Compression]string{nix.XZ: ".xz", nix.Bzip2: ".bz2", nix.Zstd: ".zst", nix.Brotli: ".br"}[c]
	return "nar/" + file.Nix32() + ".nar" + suffix
}
