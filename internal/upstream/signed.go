package upstream

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nixp2p/nixp2p/internal/backoff"
	"github.com/nixp2p/nixp2p/internal/hedge"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// Signed is a cache that wants each request signed: a bucket of an object store. It is asked
// before all others for what this machine's own clients want, and never for other machines. It is
// optional wherever there is another cache: whatever it does or fails to do, those are asked soon,
// and what they say counts.
type Signed struct {
	Name string // as people know it, without secrets
	URL  string // of the directory that has the narinfos: http or https
	// Sign adds a signature to a request. It may take a while: credentials may have to be asked for.
	Sign func(*http.Request) error
}

// signed is what a mirror that is a bucket has besides.
type signed struct {
	*Signed
	denied, slow atomic.Int32 // in a row: answers that access is denied, slow ones
	// lacks has paths of which it said lately that it has no narinfo. It is asked for any other one
	// before a NAR is fetched from another cache.
	lacks *backoff.Set[nix.StoreHash]
}

// patience is how long a cache is waited for while others may have the same.
type patience struct {
	first time.Duration // until the headers of a NAR, once there is a connection
	stall time.Duration // between two bytes
	crawl time.Duration // below the least rate
	least float64       // bytes a second
}

// Of a bucket less is tolerated: it is there to be faster.
const (
	signedHedge   = 50 * time.Millisecond // at most, until the next cache is asked for a narinfo too
	signedHeaders = time.Second
	signedFirst   = time.Second
	signedStall   = 2 * time.Second
	signedCrawl   = 3 * time.Second
	signedLeast   = 256 << 10

	// deniedMost is how many answers in a row that access is denied make it useless for deniedFor.
	// One alone may mean that there is no such object, for whoever may not list them.
	deniedMost = 16
	deniedFor  = time.Minute
	// slowMost is after how many answers in a row that took longer than slowAfter it is left alone
	// for slowFor.
	slowAfter = 500 * time.Millisecond
	slowMost  = 8
	slowFor   = 30 * time.Second

	lacksFor = time.Minute
	maxLacks = 32 << 10
)

// errNotInBucket stands for all that a bucket says instead of a narinfo. It is counted and
// shown in its health.
var errNotInBucket = fmt.Errorf("not in the bucket: %w", fs.ErrNotExist)

var errSlow = errors.New("too slow")

func newSigned(s *shared, c *Signed) (*mirror, error) {
	m, err := s.newMirror(c.URL)
	if err != nil {
		return nil, err
	}
	s.metrics.UpstreamUp.DeleteLabelValues(m.name)
	m.name, m.bucket = c.Name, &signed{Signed: c, lacks: backoff.NewSet[nix.StoreHash](maxLacks)}
	m.bytes = s.metrics.BucketBytes.WithLabelValues("read")
	m.up = s.metrics.UpstreamUp.WithLabelValues(m.name)
	m.up.Set(1)
	t := &s.timeouts
	m.headers = min(t.headers, signedHeaders)
	m.patience = patience{min(t.first, signedFirst), min(t.stall, signedStall), min(t.crawl, signedCrawl), signedLeast}
	m.slow = hedge.Timer{Start: min(t.hedge, signedHedge), Least: hedgeLeast, Most: signedHedge}
	return m, nil
}

// measured has the clock on which m is waited for measured until end is called.
func (s *shared) measured(m *mirror) (end func()) {
	if m.bucket == nil {
		return func() {}
	}
	return s.clock.Watch()
}

// now returns the time by which m is waited for: of a bucket on the clock of this process.
func (s *shared) now(m *mirror) time.Time {
	if m.bucket == nil {
		return time.Now()
	}
	return s.clock.Now()
}

// optional reports whether m is a bucket beside other caches.
func (m *mirror) optional(u *Upstreams) bool { return m.bucket != nil && len(u.mirrors) > 1 }

// noteAnswer notes what a bucket said instead of the narinfo of h. It is left alone for a while
// if it denies access to everything.
func (m *mirror) noteAnswer(h nix.StoreHash, status int) {
	if m.bucket == nil {
		return
	}
	if status != http.StatusOK {
		m.bucket.lacks.Add(h, lacksFor)
	}
	switch {
	case status != http.StatusForbidden && status != http.StatusUnauthorized:
		m.bucket.denied.Store(0)
	case m.bucket.denied.Add(1) >= deniedMost:
		m.note(func(h *health) { h.last = statusError(status) })
		m.busy.Pause(deniedFor)
	}
}

// noteSpeed notes how long a bucket took for a narinfo, or was waited for in vain.
func (m *mirror) noteSpeed(took time.Duration) {
	switch {
	case took < slowAfter:
		m.bucket.slow.Store(0)
	case m.bucket.slow.Add(1) >= slowMost:
		m.note(func(h *health) { h.last = errSlow })
		m.busy.Pause(slowFor)
	}
}

// mayHave reports whether m is a bucket that may have h: it was not asked, or did not answer.
func (m *mirror) mayHave(h nix.StoreHash) bool { return m.bucket != nil && !m.bucket.lacks.Has(h) }

// FromBucket reports whether the bucket sent bytes of this form of info's NAR lately.
func (u *Upstreams) FromBucket(info *verify.Info, form nix.Form) bool {
	return slices.ContainsFunc(u.all, func(m *mirror) bool { return m.bucket != nil && u.senders.Has(sentBy(m, info, form)) })
}
