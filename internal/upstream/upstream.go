// Package upstream fetches narinfos and NARs from HTTP caches and mirrors: it knows which
// of them are up, asks the best one first, goes on with another where one stops, and
// decodes what a cache has only compressed. A narinfo leaves it proven; the bytes of a NAR
// leave it unproven, for whoever reads them hashes them. It remembers nothing on disk.
package upstream

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// Config is what New needs. Only Keys is necessary.
type Config struct {
	// URLs of the caches: http, https or file, the order being that of preference among
	// caches of equal priority. User and password may stand in them; a query
	// "priority=N" counts instead of the cache's own, any other is ignored.
	URLs []string
	Keys *verify.Keys
	// ID goes into the Via header, by which a request that comes back is known.
	ID string
	// Version goes into the User-Agent header.
	Version string
	// Netrc is a file with credentials by host, "" for none.
	Netrc string
	// RootCAs are the certificate authorities, nil for those of the system.
	RootCAs *x509.CertPool
	// Trouble is told of what people may want to know of: caches that go down and come back,
	// and lies. nil: nobody is told.
	Trouble func(source, what, storePath string, err error)
	Log     *slog.Logger
	Metrics *metrics.Metrics

	times  timings
	dialer func(ctx context.Context, network, addr string) (net.Conn, error)
}

// timings are the patience of this package. Tests shorten them.
type timings struct {
	connect  time.Duration // for TCP, names included
	headers  time.Duration // of a narinfo, from the request on
	late     time.Duration // of a narinfo, before it is asked for a second time; 0: it is not
	first    time.Duration // until the headers of a NAR
	stall    time.Duration // between two bytes
	doubt    time.Duration // without an answer until it is tried whether the cache can be reached
	crawl    time.Duration // that a cache may crawl while another has the same
	probe    time.Duration // between two probes of a cache that is down
	probing  time.Duration // for one probe
	refresh  time.Duration // between two looks at nix-cache-info
	hedge    time.Duration // before the next cache is asked too, until latencies are known
	backOff  time.Duration // before a cache is asked again after a failure
	busyMost time.Duration // the most that Retry-After is honoured
	busy     time.Duration // for 429 without Retry-After
	convict  time.Duration // how long a wrong NAR is not asked for again
}

var defaults = timings{
	connect: 2 * time.Second, headers: 5 * time.Second, late: 1500 * time.Millisecond, first: 10 * time.Second, stall: 5 * time.Second, doubt: 500 * time.Millisecond, crawl: 10 * time.Second,
	probe: 5 * time.Second, probing: 2 * time.Second, refresh: time.Hour,
	hedge: 75 * time.Millisecond, backOff: 100 * time.Millisecond,
	busyMost: time.Minute, busy: 5 * time.Second, convict: time.Hour,
}

// Upstreams is one or many caches, asked as one source. It is safe for concurrent use.
type Upstreams struct {
	keys      *verify.Keys
	mirrors   []*mirror
	memory    *memory
	transport *http.Transport
	netrc     *netrc
	via       string
	agent     string
	times     timings
	trouble   func(source, what, storePath string, err error)
	log       *slog.Logger
	metrics   *metrics.Metrics
	running   atomic.Bool
}

// New returns the source. It opens no connection.
func New(cfg Config) (*Upstreams, error) {
	u := &Upstreams{
		keys: cfg.Keys, memory: newMemory(len(cfg.URLs)), via: "nixp2p/" + cfg.ID, agent: "nixp2p/" + cfg.Version,
		times: cfg.times, trouble: cfg.Trouble, log: cfg.Log, metrics: cfg.Metrics,
	}
	if u.trouble == nil {
		u.trouble = func(_, _, _ string, _ error) {}
	}
	if u.times == (timings{}) {
		u.times = defaults
	}
	if u.log == nil {
		u.log = slog.New(slog.DiscardHandler)
	}
	if u.metrics == nil {
		u.metrics = metrics.New()
	}
	var err error
	if u.netrc, err = readNetrc(cfg.Netrc); err != nil {
		return nil, fmt.Errorf("upstream: %w", err)
	}
	proxy := httpproxy.FromEnvironment().ProxyFunc()
	u.transport = u.newTransport(&cfg, proxy)
	seen := map[string]bool{}
	for i, text := range cfg.URLs {
		m, err := u.newMirror(text)
		if err != nil {
			return nil, fmt.Errorf("upstream %d: %w", i+1, err)
		}
		if seen[m.base.String()] {
			continue
		}
		seen[m.base.String()] = true
		if via, err := proxy(m.base); m.base.Scheme != schemeFile && (via != nil || err != nil) {
			m.proxied = true
		}
		m.index = len(u.mirrors)
		u.mirrors = append(u.mirrors, m)
	}
	return u, nil
}

// Name is the source's name in metrics.
func (u *Upstreams) Name() string { return sourceName }

const sourceName = "upstream"

// Run tends the caches until ctx ends: it probes those that are down and keeps what their
// nix-cache-info says. Without it everything works too: then a request now and then is
// the probe, and the configured order counts.
func (u *Upstreams) Run(ctx context.Context) error {
	if !u.running.CompareAndSwap(false, true) {
		return errors.New("upstream: runs already")
	}
	defer u.running.Store(false)
	defer u.transport.CloseIdleConnections()
	var tenders sync.WaitGroup
	for _, m := range u.mirrors {
		tenders.Go(func() { u.tend(ctx, m) })
	}
	tenders.Wait()
	return nil
}

// Down tells that no cache can be asked: all are down, or there is none.
func (u *Upstreams) Down() bool {
	for _, m := range u.mirrors {
		if !m.isDown() {
			return false
		}
	}
	return true
}

// Crowded tells whether a cache that could be asked has sent something lately: a narinfo that does
// not come then is waiting its turn.
func (u *Upstreams) Crowded() bool {
	for _, m := range u.mirrors {
		if !m.isDown() && m.crowded() {
			return true
		}
	}
	return false
}

// Health is the state of one cache, for people.
type Health struct {
	URL         string // without password
	Up          bool
	Why         string // why it is down or not asked, "" when it is asked
	Since       time.Time
	LastError   string
	LatencyP50  time.Duration // of narinfo answers, 0 when unknown
	Priority    int           // of nix-cache-info; 0 also when unknown
	HasPriority bool
	Requests    int64
}

// Health returns the state of every cache in the configured order.
func (u *Upstreams) Health() []Health {
	all := make([]Health, 0, len(u.mirrors))
	for _, m := range u.mirrors {
		all = append(all, m.report())
	}
	return all
}

// Convict says that all bytes of this form of info's NAR came from here and were wrong: the
// caches that sent them are not asked for it again for an hour. After a wrong file they
// are still asked for raw: FileHash is not signed, and the NAR in the file may be right.
func (u *Upstreams) Convict(info *verify.Info, form nix.Form, _ error) {
	u.memory.convict(info, form, time.Now().Add(u.times.convict))
}
