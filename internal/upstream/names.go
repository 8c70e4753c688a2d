package upstream

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/hedge"
)

// lookupFunc returns the addresses of one family, "ip4" or "ip6".
type lookupFunc func(ctx context.Context, network, host string) ([]netip.Addr, error)

// names looks up the addresses of hosts, once for all who want the same one, and keeps them. A
// lookup goes on when those who want it have left: its late result is for the next attempt.
// It is safe for concurrent use.
type names struct {
	timeout time.Duration // that is waited for a lookup
	find    lookupFunc

	mu    sync.Mutex
	hosts map[string]*host
	ended bool
	all   sync.WaitGroup // lookups
}

// host is what is known of one.
type host struct {
	addrs   []netip.Addr
	at      time.Time
	running *lookup // nil if none
}

// lookup is one that runs. Its result is set before done is closed.
type lookup struct {
	began  time.Time
	done   chan struct{}
	cancel context.CancelFunc
	addrs  []netip.Addr
	err    error
}

const (
	namesFresh   = time.Minute
	namesStale   = time.Hour // until then they are used while they are looked up again
	namesMost    = 256
	lookupLong   = 40 * time.Second // three servers, twice each
	otherFamily  = 50 * time.Millisecond
	lookupRepeat = time.Second
	quickServer  = 1500 * time.Millisecond
)

func newNames(timeout time.Duration, find lookupFunc) *names {
	if find == nil {
		find = persistent(net.DefaultResolver.LookupNetIP, quickResolver().LookupNetIP)
	}
	return &names{timeout: timeout, find: find, hosts: map[string]*host{}}
}

// persistent asks again, with the quick lookup, when there is no answer after a second: the
// resolver waits 5 s for each server before it asks the next or repeats a question that was
// lost. The patient one goes on meanwhile, for servers that are slow.
func persistent(patient, quick lookupFunc) lookupFunc {
	return func(ctx context.Context, network, host string) ([]netip.Addr, error) {
		final := func(err error) bool {
			var dns *net.DNSError
			var addr *net.AddrError
			return errors.As(err, &dns) && dns.IsNotFound || errors.As(err, &addr)
		}
		r, release, wait := hedge.Do(ctx, 2, 2, func() time.Duration { return lookupRepeat },
			func(ctx context.Context, i int) ([]netip.Addr, error) {
				if i == 0 {
					return patient(ctx, network, host)
				}
				return quick(ctx, network, host)
			}, final, func([]netip.Addr) {})
		release()
		wait()
		return r.Value, r.Err
	}
}

// quickResolver waits less for each server.
func quickResolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, network, addr)
		if udp, ok := c.(*net.UDPConn); ok {
			return quickConn{udp}, err // still a net.PacketConn, by which the resolver tells UDP
		}
		return c, err
	}}
}

type quickConn struct{ *net.UDPConn }

func (c quickConn) SetDeadline(t time.Time) error {
	if soon := time.Now().Add(quickServer); soon.Before(t) {
		t = soon
	}
	return c.UDPConn.SetDeadline(t)
}

// lookup returns the addresses of a host, those to be tried first in front.
func (n *names) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{ip}, nil
	}
	l, known := n.get(ctx, name)
	if known != nil {
		return known, nil
	}
	// All who wait for it give up together, so that they agree that the cache is down.
	timer := time.NewTimer(max(n.timeout-time.Since(l.began), otherFamily))
	defer timer.Stop()
	select {
	case <-l.done:
		return l.addrs, l.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
		return nil, &net.DNSError{Err: "no name server has answered yet", Name: name, IsTimeout: true}
	}
}

// get returns what is known of a host, else the lookup that runs.
func (n *names) get(ctx context.Context, name string) (*lookup, []netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.hosts[name]
	if h == nil {
		if len(n.hosts) >= namesMost {
			n.evict()
		}
		h = &host{}
		n.hosts[name] = h
	}
	age := time.Since(h.at)
	if len(h.addrs) > 0 && age > namesStale {
		h.addrs = nil
	}
	if h.running == nil && (len(h.addrs) == 0 || age > namesFresh) {
		l := &lookup{began: time.Now(), done: make(chan struct{})}
		var own context.Context
		own, l.cancel = context.WithTimeout(context.WithoutCancel(ctx), lookupLong)
		if n.ended {
			l.cancel()
		}
		h.running = l
		n.all.Go(func() {
			defer l.cancel()
			n.run(own, name, h, l)
		})
	}
	return h.running, h.addrs
}

// evict makes room: redirects may name any number of hosts. The caller holds mu.
func (n *names) evict() {
	for name, h := range n.hosts {
		if h.running == nil {
			delete(n.hosts, name)
			return
		}
	}
}

// run looks both families up. What one of them has is used if the other has none shortly
// after: many name servers answer for A and are silent for AAAA.
func (n *names) run(ctx context.Context, name string, h *host, l *lookup) {
	type result struct {
		addrs []netip.Addr
		err   error
	}
	results := make(chan result, 2)
	for _, network := range []string{"ip6", "ip4"} {
		go func() {
			addrs, err := n.find(ctx, network, name)
			results <- result{addrs, err}
		}()
	}
	var have []netip.Addr
	var failed error
	published := false
	publish := func() {
		if !published {
			published = true
			l.addrs, l.err = slices.Clone(have), failed
			if len(have) > 0 {
				l.err = nil
			}
			close(l.done)
		}
	}
	grace := time.NewTimer(lookupLong)
	defer grace.Stop()
	for left := 2; left > 0; {
		select {
		case r := <-results:
			left--
			if r.err != nil && (failed == nil || !isTimeout(failed)) {
				failed = r.err // that one of them cannot be known outweighs that the other has none
			}
			if len(r.addrs) > 0 {
				have = interleave(have, r.addrs)
				n.keep(h, have)
				grace.Reset(otherFamily)
			}
		case <-grace.C:
			publish()
		}
	}
	if len(have) == 0 && failed == nil {
		failed = &net.DNSError{Err: "no addresses", Name: name, IsNotFound: true}
	}
	n.mu.Lock()
	h.running = nil
	n.mu.Unlock()
	publish()
}

func (n *names) keep(h *host, addrs []netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h.addrs, h.at = slices.Clone(addrs), time.Now()
}

// forget drops the addresses of a host that cannot be connected to, unless they are new.
func (n *names) forget(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if h := n.hosts[name]; h != nil && time.Since(h.at) > 2*time.Second {
		h.addrs = nil
	}
}

// close ends the lookups that run; later ones fail.
func (n *names) close() {
	n.mu.Lock()
	n.ended = true
	for _, h := range n.hosts {
		if h.running != nil {
			h.running.cancel()
		}
	}
	n.mu.Unlock()
	n.all.Wait()
}

// interleave puts IPv6 first and then takes turns, so that a family that does not work costs
// one attempt (RFC 8305, 4).
func interleave(a, b []netip.Addr) []netip.Addr {
	var six, four, all []netip.Addr
	for _, ip := range slices.Concat(a, b) {
		if ip = ip.Unmap(); ip.Is4() {
			four = append(four, ip)
		} else {
			six = append(six, ip)
		}
	}
	for i := range max(len(six), len(four)) {
		if i < len(six) {
			all = append(all, six[i])
		}
		if i < len(four) {
			all = append(all, four[i])
		}
	}
	return all
}
