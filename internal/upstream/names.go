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
	"github.com/nixp2p/nixp2p/internal/runclock"
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

// lookup is one that runs. done is closed when there is a result.
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
	final := func(err error) bool {
		var dns *net.DNSError
		var addr *net.AddrError
		return errors.As(err, &dns) && dns.IsNotFound || errors.As(err, &addr)
	}
	return func(ctx context.Context, network, host string) ([]netip.Addr, error) {
		return first(ctx, 2, lookupRepeat, func(ctx context.Context, i int) ([]netip.Addr, error) {
			return []lookupFunc{patient, quick}[i](ctx, network, host)
		}, final, func([]netip.Addr) {})
	}
}

// first is hedge.Do with a fixed delay, for values that outlive their context.
func first[T any](ctx context.Context, n int, after time.Duration, attempt func(context.Context, int) (T, error), stop func(error) bool, discard func(T)) (T, error) {
	r, release, wait := hedge.Do(ctx, n, n, func() time.Duration { return after }, attempt, stop, discard)
	release()
	wait()
	return r.Value, r.Err
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
	wait, cancel := runclock.WithTimeout(ctx, max(n.timeout-time.Since(l.began), otherFamily))
	defer cancel()
	select {
	case <-l.done:
		n.mu.Lock()
		defer n.mu.Unlock()
		if len(l.addrs) > 0 {
			return l.addrs, nil
		}
		return nil, l.err
	case <-wait.Done():
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &net.DNSError{Err: "no name server has answered yet", Name: name, IsTimeout: true}
	}
}

// get returns what is known of a host, else the lookup that runs.
func (n *names) get(ctx context.Context, name string) (*lookup, []netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.hosts[name]
	if h == nil {
		for other, old := range n.hosts { // redirects may name any number of hosts
			if len(n.hosts) >= namesMost && old.running == nil {
				delete(n.hosts, other)
			}
		}
		h = &host{}
		n.hosts[name] = h
	}
	age := time.Since(h.at)
	if age > namesStale {
		h.addrs = nil
	}
	if h.running == nil && (len(h.addrs) == 0 || age > namesFresh) {
		n.start(ctx, name, h)
	}
	return h.running, h.addrs
}

// start looks both families up. What one of them has is used if the other has none shortly
// after: many name servers answer for A and are silent for AAAA. The caller holds mu.
func (n *names) start(ctx context.Context, name string, h *host) {
	l := &lookup{began: time.Now(), done: make(chan struct{})}
	ctx, l.cancel = runclock.WithTimeout(context.WithoutCancel(ctx), lookupLong)
	if n.ended {
		l.cancel()
	}
	h.running = l
	publish := sync.OnceFunc(func() { close(l.done) })
	left := 2
	for _, network := range []string{"ip6", "ip4"} {
		n.all.Go(func() {
			addrs, err := n.find(ctx, network, name)
			n.mu.Lock()
			defer n.mu.Unlock()
			if err == nil && len(addrs) == 0 {
				err = &net.DNSError{Err: "no addresses", Name: name, IsNotFound: true}
			}
			if err != nil && (l.err == nil || !isTimeout(l.err)) {
				l.err = err // that one of them cannot be known outweighs that the other has none
			}
			if len(addrs) > 0 {
				l.addrs = interleave(l.addrs, addrs)
				h.addrs, h.at = l.addrs, time.Now()
				time.AfterFunc(otherFamily, publish)
			}
			if left--; left == 0 {
				h.running = nil
				l.cancel()
				publish()
			}
		})
	}
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
func interleave(a, b []netip.Addr) (all []netip.Addr) {
	var of [2][]netip.Addr
	for _, ip := range slices.Concat(a, b) {
		if ip = ip.Unmap(); ip.Is4() {
			of[1] = append(of[1], ip)
		} else {
			of[0] = append(of[0], ip)
		}
	}
	for i := range len(a) + len(b) {
		for _, family := range of {
			if i < len(family) {
				all = append(all, family[i])
			}
		}
	}
	return all
}
