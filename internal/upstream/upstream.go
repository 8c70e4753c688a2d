// Package upstream fetches narinfos and NARs from HTTP caches and mirrors. It knows which of
// them can be reached, asks the best one first, continues with another one where one stops, and
// decodes what a cache has only compressed. A narinfo leaves it verified; the bytes of a NAR
// leave it unverified, because whoever reads them hashes them. It keeps nothing on disk.
//
// All goes through one kind of request ([Upstreams.send]): it follows redirects and has a timeout
// for each step. A narinfo is asked for at most infoTries times of a cache ([Upstreams.ask]), a
// NAR is resumed where it stopped ([resumableBody]). A breaker leaves alone what cannot be
// reached, and a limiter bounds how many narinfos are asked for at a time.
//
// Whatever a cache does, it gets at most MaxInfoRequests HTTP requests for one narinfo and
// MaxNARRequests for one NAR, with redirects and repetitions. A narinfo that is there costs one.
package upstream

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/nixp2p/nixp2p/internal/backoff"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/runclock"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/update"
	"github.com/nixp2p/nixp2p/verify"
)

// The most HTTP requests that one cache gets.
const (
	// MaxInfoRequests is for one call of Info.
	MaxInfoRequests = infoTries + maxRedirects
	// MaxNARRequests is for one call of NAR and all reads of its body, narinfos included.
	MaxNARRequests = 96
)

// Config is what New needs. Only Keys is necessary.
type Config struct {
	// URLs of the caches: http, https or file, the order being that of preference among
	// caches of equal priority. User and password may stand in them; a query
	// "priority=N" counts instead of the cache's own, any other is ignored.
	URLs []string
	// Bucket is asked before them. If nil, there is none.
	Bucket *Signed
	Keys   *verify.Keys
	// Bases are proposed to mirrors that send deltas. If nil, none are asked for.
	Bases *update.Bases
	// ID goes into the Via header, by which a request that comes back is recognised.
	ID string
	// Version goes into the User-Agent header.
	Version string
	// Netrc is a file with credentials by host (nix.conf: netrc-file), "" for none.
	Netrc string
	// CAFile has the certificate authorities (nix.conf: ssl-cert-file). $NIX_SSL_CERT_FILE
	// counts before it. If both are empty or cannot be read, those of the system count, which
	// $SSL_CERT_FILE may name.
	CAFile string
	// Events gets caches that go down and come back, and invalid narinfos.
	Events source.Events
	// Clock is that of the process, for how long a bucket is waited for: on a busy machine its answers are
	// read late. Nil is the ordinary one.
	Clock *runclock.Clock
	// Conditions gets caches that refuse our credentials, or whose paths are refused here. Nil
	// drops them.
	Conditions *source.Conditions
	Log        *slog.Logger
	Metrics    *metrics.Metrics

	// Tests set these.
	timeouts timeouts
	roots    *x509.CertPool // whatever CAFile says
	getenv   func(string) string
	dialer   func(ctx context.Context, network, addr string) (net.Conn, error)
	resolve  lookupFunc
}

// timeouts has one for each step. Tests shorten them.
type timeouts struct {
	lookup   time.Duration // for the addresses of a name
	connect  time.Duration // for TCP; connectsLost times
	tls      time.Duration // for the TLS handshake
	headers  time.Duration // of a narinfo, once there is a connection
	late     time.Duration // without an answer until a narinfo is asked for again over a new connection
	first    time.Duration // until the headers of a NAR, once there is a connection
	stall    time.Duration // between two bytes
	crawl    time.Duration // that a cache may crawl while another one has the same
	probe    time.Duration // between two probes of a cache that is down
	probing  time.Duration // until the headers of a probe
	refresh  time.Duration // between two looks at nix-cache-info
	hedge    time.Duration // before the next cache is asked too, until latencies are known
	retry    time.Duration // before a cache is asked again after a failure
	busyMost time.Duration // the most that Retry-After is honoured
	busy     time.Duration // for 429 without Retry-After
	wrong    time.Duration // before a cache is asked again for what it sent wrong
}

var defaults = timeouts{
	lookup: 8 * time.Second, connect: 2 * time.Second, tls: 8 * time.Second,
	headers: 5 * time.Second, late: time.Second, first: 10 * time.Second, stall: 5 * time.Second, crawl: 10 * time.Second,
	probe: 5 * time.Second, probing: 2 * time.Second, refresh: time.Hour,
	hedge: 75 * time.Millisecond, retry: 100 * time.Millisecond,
	busyMost: time.Minute, busy: 5 * time.Second, wrong: time.Second,
}

const (
	// avoidedFor is how long a cache is asked again for what it sent wrong only if no other one
	// has it: what was wrong, such as a proxy, may be right again.
	avoidedFor = 10 * time.Minute
)

// Upstreams is one or many caches, asked as one source. It is safe for concurrent use.
type Upstreams struct {
	*shared
	mirrors []*mirror
	// anonymous sends no credentials.
	anonymous bool
	running   atomic.Bool
}

// shared is what Upstreams and its Anonymous have in common.
type shared struct {
	keys  *verify.Keys
	all   []*mirror // as configured
	found *lru.Cache[place, location]
	seen
	network *network
	netrc   *netrc
	pace    pace
	deltas  deltas
	logged  *backoff.Set[logKey]
	waiting
	greeting
	events     source.Events
	conditions *source.Conditions
	log        *slog.Logger
	metrics    *metrics.Metrics
}

// waiting is how long answers are waited for.
type waiting struct {
	timeouts timeouts
	clock    *runclock.Clock // for a bucket
}

// seen is what came of NARs lately.
type seen struct {
	senders *backoff.Set[sent] // who sent one
	wrong   *backoff.Set[sent] // who sent it wrong
	gone    *backoff.Set[sent] // who has the narinfo and not the NAR
}

// greeting is how this node names itself in requests.
type greeting struct{ via, agent string }

// logKey is a message that may repeat with every request.
type logKey struct {
	mirror int
	what   string
}

// logOnce reports whether a message that may repeat is due: once a minute.
func (s *shared) logOnce(m *mirror, what string) bool {
	k := logKey{m.index, what}
	if s.logged.Has(k) {
		return false
	}
	s.logged.Add(k, time.Minute)
	return true
}

// New returns the source. It opens no connection.
func New(cfg Config) (*Upstreams, error) {
	s := &shared{
		keys: cfg.Keys, logged: backoff.NewSet[logKey](1 << 10),
		seen:     seen{backoff.NewSet[sent](maxSenders), backoff.NewSet[sent](maxSenders), backoff.NewSet[sent](maxSenders)},
		greeting: greeting{"nixp2p/" + cfg.ID, "nixp2p/" + cfg.Version}, waiting: waiting{cfg.timeouts, cfg.Clock},
		deltas: newDeltas(cfg.Bases),
		events: cfg.Events, conditions: cfg.Conditions, log: cfg.Log, metrics: cfg.Metrics,
	}
	if s.timeouts == (timeouts{}) {
		s.timeouts = defaults
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.metrics == nil {
		s.metrics = metrics.New()
	}
	if cfg.getenv == nil {
		cfg.getenv = os.Getenv
	}
	s.found, _ = lru.New[place, location](maxLocations) // fails for sizes below 1 only
	var err error
	if s.netrc, err = readNetrc(cfg.Netrc); err != nil {
		s.log.Warn("not all of the netrc file is used", "err", err)
	}
	s.network = newNetwork(&cfg, &s.timeouts, s.log)
	if cfg.Bucket != nil {
		m, err := newSigned(s, cfg.Bucket)
		if err != nil {
			return nil, fmt.Errorf("upstream: bucket: %w", err)
		}
		s.all = append(s.all, m)
	}
	for i, text := range cfg.URLs {
		m, err := s.newMirror(text)
		if err != nil {
			return nil, fmt.Errorf("upstream %d: %w", i+1, err)
		}
		if !slices.ContainsFunc(s.all, func(o *mirror) bool { return o.name == m.name }) {
			m.index = len(s.all)
			s.all = append(s.all, m)
		}
	}
	return &Upstreams{shared: s, mirrors: s.all}, nil
}

// Run watches the caches until ctx ends: it probes those that are down and keeps what their
// nix-cache-info says. Without it, what is down stays down. It may be called once.
func (u *Upstreams) Run(ctx context.Context) error {
	if !u.running.CompareAndSwap(false, true) {
		return errors.New("upstream: Run was called before")
	}
	defer u.network.close()
	var watchers sync.WaitGroup
	for _, m := range u.all {
		watchers.Go(func() { u.watch(ctx, m) })
	}
	watchers.Go(func() { u.deltas.checkBases(ctx, u.log) })
	watchers.Wait()
	return nil
}

// Anonymous returns the caches that have no credentials, for questions from other machines. No
// host gets credentials for what is asked of it, and a bucket nothing.
func (u *Upstreams) Anonymous() source.Upstreams {
	public := slices.DeleteFunc(slices.Clone(u.mirrors), func(m *mirror) bool { return m.bucket != nil || u.credential(m, m.base) != nil })
	return &Upstreams{shared: u.shared, mirrors: public, anonymous: true}
}

// Client returns a client that goes the way of the caches, with their proxies and certificate
// authorities, and without credentials.
func (u *Upstreams) Client() *http.Client { return &http.Client{Transport: u.network.pooled} }

// Down reports whether no cache can be asked: all are down, or there is none.
func (u *Upstreams) Down() bool {
	return !slices.ContainsFunc(u.mirrors, func(m *mirror) bool { return !m.isDown() })
}

// Saturated reports whether a cache that can be asked has sent something lately: a narinfo that
// does not come then is queued on the line.
func (u *Upstreams) Saturated() bool {
	return slices.ContainsFunc(u.mirrors, func(m *mirror) bool { return !m.optional(u) && !m.isDown() && m.saturated() })
}

// Pace returns how fast the caches sent NARs lately. Rate counts the bytes of files as they
// come, of one transfer: it falls when several share the line, and while none comes.
func (u *Upstreams) Pace() source.Pace {
	p := u.pace.now()
	for _, m := range u.mirrors {
		if l := m.latency.get(); p.Latency == 0 && l > 0 {
			p.Latency = l // of a narinfo: no NAR has come yet
		}
	}
	return p
}

// Health is the state of one cache, for people.
type Health struct {
	URL       string // without password; that of the bucket if it is one
	Bucket    bool
	Up        bool
	Why       string // why it is down or not asked, "" if it is asked
	Since     time.Time
	LastError string
	Latency   time.Duration // of narinfo answers, 0 if unknown
	Priority  int           // 0 also if unknown
	Requests  int64
}

// Health returns the state of every cache in the configured order.
func (u *Upstreams) Health() []Health {
	all := make([]Health, 0, len(u.mirrors))
	for _, m := range u.mirrors {
		seen := m.seen()
		h := Health{URL: m.name, Bucket: m.bucket != nil, Up: true, Since: seen.since, Requests: m.requests.Load(), Latency: m.latency.get()}
		h.Priority, _ = m.prio()
		if seen.last != nil {
			h.LastError = seen.last.Error()
		}
		if seen.errors >= serverErrors {
			h.Why = "fails again and again"
		}
		if seen.page {
			h.Up, h.Why = false, source.ErrWebPage.Error()
		}
		if !m.busy.Ready() {
			h.Why = errBusy.Error()
		}
		for _, err := range []error{seen.down, m.unfit()} {
			if err != nil {
				h.Up, h.Why = false, err.Error()
			}
		}
		all = append(all, h)
	}
	return all
}
