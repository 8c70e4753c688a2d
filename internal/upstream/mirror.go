package upstream

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nixp2p/nixp2p/internal/hedge"
	"github.com/nixp2p/nixp2p/internal/nix"
)

const (
	schemeHTTP  = "http"
	schemeHTTPS = "https"
	schemeFile  = "file"
)

// mirror is one cache.
type mirror struct {
	index    int      // in shared.all
	base     *url.URL // ends in a slash; no user, query or fragment
	name     string   // base as text: it has no secret
	own      *credential
	priority *int // from the configuration
	access
	breaker
	limiter limiter // of narinfos
	latency latency
	pace    pace        // of its NARs
	slow    hedge.Timer // until the next cache is asked too
	late    hedge.Timer // until this one is asked again
	info    atomic.Pointer[cacheInfo]
	counts
	// near is set once it was connected to at an address that is not public.
	near atomic.Bool
}

// counts are those of one cache.
type counts struct {
	requests atomic.Int64
	signed   atomic.Int64 // narinfos that a trusted key signed
	unsigned atomic.Int64 // narinfos that were refused because none did
	denied   atomic.Value // string: the kind of file that was refused for want of credentials, "" if none
}

// access is how a cache is reached and counted.
type access struct {
	files  http.RoundTripper // of a directory, nil for HTTP
	bucket *signed           // nil unless it is a bucket
	up     prometheus.Gauge
	bytes  prometheus.Counter // of all response bodies
	patience
}

// cacheInfo is what a cache says about itself.
type cacheInfo struct {
	priority int
	deltas   bool  // it sends deltas
	wrong    error // its store directory is another one: not to be used
}

// Bounds of the wait before the next cache is asked too.
const (
	hedgeLeast = 10 * time.Millisecond
	hedgeMost  = time.Second
)

var errURL = errors.New("not the URL of a cache")

// newMirror reads a configured URL. Its errors do not repeat the URL: it may have a password.
func (s *shared) newMirror(text string) (*mirror, error) {
	base, err := url.Parse(text)
	if err != nil {
		var parse *url.Error
		errors.As(err, &parse)
		return nil, fmt.Errorf("%w: %w", errURL, parse.Err)
	}
	t := &s.timeouts
	m := &mirror{
		access:  access{bytes: s.metrics.UpstreamBytes, patience: patience{t.first, t.stall, t.crawl, crawl}},
		slow:    hedge.Timer{Start: t.hedge, Least: hedgeLeast, Most: hedgeMost},
		late:    hedge.Timer{Start: t.late, Least: t.late, Most: 3 * t.late},
		breaker: breaker{connect: t.connect, headers: t.headers, health: health{since: time.Now()}},
	}
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
	opaque := base.Opaque
	base = &url.URL{Scheme: base.Scheme, Host: base.Host, Path: base.Path, RawPath: base.RawPath}
	if !strings.HasSuffix(base.Path, "/") {
		base = base.JoinPath("/")
	}
	web := base.Scheme == schemeHTTP || base.Scheme == schemeHTTPS
	switch {
	case !web && base.Scheme != schemeFile:
		return nil, fmt.Errorf("%w: scheme %q is not http, https or file", errURL, base.Scheme)
	case web && base.Hostname() == "" || opaque != "":
		return nil, fmt.Errorf("%w: no host", errURL)
	case !web && (base.Host != "" || base.Path[0] != '/'):
		return nil, fmt.Errorf("%w: file URLs are file:///directory", errURL)
	case !web:
		m.files = directory{base.Path, base.EscapedPath()}
	}
	m.base, m.name = base, base.String()
	m.up = s.metrics.UpstreamUp.WithLabelValues(m.name)
	m.up.Set(1)
	return m, nil
}

func hostPort(at *url.URL) string {
	port := map[string]string{schemeHTTP: "80", schemeHTTPS: "443"}[at.Scheme]
	return net.JoinHostPort(at.Hostname(), cmp.Or(at.Port(), port))
}

// at returns the URL of a file of the cache's own layout.
func (m *mirror) at(name string) *url.URL {
	to := *m.base
	to.Path, to.RawPath = to.Path+name, ""
	if m.base.RawPath != "" {
		to.RawPath = m.base.RawPath + name
	}
	return &to
}

func (m *mirror) narInfoAt(h nix.StoreHash) *url.URL { return m.at(h.String() + ".narinfo") }

// locate resolves the URL line of a narinfo: relative to the cache (RFC 3986), or absolute
// if permitted says so.
func (m *mirror) locate(text string) (*url.URL, error) {
	if m.files != nil {
		return m.at(strings.TrimLeft(text, "/")), nil // whatever it looks like, it is a name
	}
	to, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("URL of the NAR: %w", err)
	}
	to = m.base.ResolveReference(to)
	if err := permitted(m.base, to); err != nil {
		return nil, fmt.Errorf("URL of the NAR: %w", err)
	}
	to.Fragment = ""
	return to, nil
}

var errScheme = errors.New("leads to another scheme")

// permitted returns nil if a cache at from may send us to to: never from https to what
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

// foreign reports whether a URL leads to another host, whose failures say nothing about the
// cache's own.
func (m *mirror) foreign(at *url.URL) bool { return at.Hostname() != m.base.Hostname() }

// mayBeNode reports whether the host of at may be another nixp2p, which has to recognise a
// request that goes in circles by its Via header. The header marks all requests of this
// process, so that a public cache could follow this machine from network to network. A nixp2p
// speaks plain HTTP, or stands behind a TLS proxy at an address that is not public.
func (m *mirror) mayBeNode(at *url.URL) bool {
	if at.Scheme != schemeHTTPS || !m.foreign(at) && m.near.Load() {
		return true
	}
	host := at.Hostname()
	if ip, err := netip.ParseAddr(host); err == nil {
		return !public(ip)
	}
	return !strings.Contains(host, ".")
}

var sharedSpace = netip.MustParsePrefix("100.64.0.0/10")

func public(ip netip.Addr) bool {
	ip = ip.Unmap()
	return ip.IsGlobalUnicast() && !ip.IsPrivate() && !sharedSpace.Contains(ip)
}

// credential returns what the host of at is told, nil for nothing. The netrc's default is for
// the configured host alone, not for whatever host a redirect or a narinfo names.
func (u *Upstreams) credential(m *mirror, at *url.URL) *credential {
	switch {
	case u.anonymous || m.files != nil || m.bucket != nil:
		return nil
	case m.own != nil && at.Scheme == m.base.Scheme && hostPort(at) == hostPort(m.base):
		return m.own
	}
	return u.netrc.find(at.Hostname(), !m.foreign(at))
}

// unfit returns why the cache is not used at all, nil if it is.
func (m *mirror) unfit() error {
	if c := m.info.Load(); c != nil {
		return c.wrong
	}
	return nil
}

// isDown reports whether the cache is not asked before it was probed.
func (m *mirror) isDown() bool { return m.unfit() != nil || m.isOpen() }

func (m *mirror) prio() (n int, ok bool) {
	if m.priority != nil {
		return *m.priority, true
	}
	if c := m.info.Load(); c != nil {
		return c.priority, true
	}
	return 0, false
}

var errNone = errors.New("no cache is configured")

// order returns the caches that may be asked now, the best first, and an error that says
// why others are not. They are in order of priority and, where that is equal, of latency; a
// difference below a factor of two counts nothing. Those that answer with errors are last.
func (u *Upstreams) order() (may []*mirror, left error) {
	ranks := make([][4]int, len(u.all))
	prio, class := -1<<31, 0
	for _, m := range u.mirrors {
		// What is not known of one is taken from the one configured before it.
		if n, ok := m.prio(); ok && m.bucket == nil {
			prio = n
		}
		if l := m.latency.get(); l > 0 && m.bucket == nil {
			class = bits.Len64(uint64(l / time.Millisecond))
		}
		ranks[m.index] = [4]int{0, prio, class, m.index}
		switch {
		case m.fails():
			ranks[m.index][0] = 1
		case m.bucket != nil:
			ranks[m.index][0] = -1
		}
		switch err := m.usable(); {
		case m.unfit() != nil, err != nil && m.optional(u): // as if it were not configured
		case err != nil:
			left = fmt.Errorf("%s: %w", m.name, err)
		default:
			may = append(may, m)
		}
	}
	if len(may) == 0 && left == nil {
		left = errNone
	}
	slices.SortFunc(may, func(a, b *mirror) int { return slices.Compare(ranks[a.index][:], ranks[b.index][:]) })
	return may, left
}
