package upstream

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
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
	failed  time.Time // the end of the last lookup that found nothing
	running *lookup   // nil if none
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
	quickServer  = 1300 * time.Millisecond
	quickTries   = 6
	slowServer   = 12 * time.Second
	failedFresh  = 10 * time.Second
)

// lookupAgain are the pauses after failures, at least as long together as Nix's between its five tries.
var lookupAgain = []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second}

func newNames(timeout time.Duration, find lookupFunc) *names {
	if find == nil {
		find = persistent(resolver(slowServer, false).LookupNetIP, resolver(quickServer, true).LookupNetIP)
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
	repeated := func(ctx context.Context, network, host string) (addrs []netip.Addr, err error) {
		for range quickTries {
			if addrs, err = quick(ctx, network, host); err == nil || !isTimeout(err) {
				break
			}
		}
		return addrs, err
	}
	return func(ctx context.Context, network, host string) ([]netip.Addr, error) {
		return first(ctx, 2, lookupRepeat, func(ctx context.Context, i int) ([]netip.Addr, error) {
			return []lookupFunc{patient, repeated}[i](ctx, network, host)
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

// resolver is that of the system, but waits for d for an answer over UDP. The Go library's waits
// for 5 s and then forgets that it asked, so that a server that takes longer is never heard.
// plain leaves EDNS out, to which some servers answer with an error or not at all.
func resolver(d time.Duration, plain bool) *net.Resolver {
	return &net.Resolver{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		var dialer net.Dialer
		c, err := dialer.DialContext(ctx, network, addr)
		if udp, ok := c.(*net.UDPConn); ok {
			// ctx ends after the time of the library too; only who has left needs no answer.
			context.AfterFunc(ctx, func() {
				if errors.Is(ctx.Err(), context.Canceled) {
					_ = udp.Close()
				}
			})
			return waitingConn{udp, d, plain}, err // still a net.PacketConn, by which the resolver tells UDP
		}
		return c, err
	}}
}

type waitingConn struct {
	*net.UDPConn
	wait  time.Duration
	plain bool
}

// Write sends a question.
func (c waitingConn) Write(b []byte) (int, error) {
	if c.plain {
		_, err := c.UDPConn.Write(withoutEDNS(b))
		return len(b), err
	}
	return c.UDPConn.Write(b)
}

// withoutEDNS returns a DNS message without the OPT record (RFC 6891, 6.1.2) that is its last and
// only additional record, as the Go library writes it.
func withoutEDNS(b []byte) []byte {
	const header, opt = 12, 11
	if end := len(b) - opt; end > header && b[10] == 0 && b[11] == 1 && b[end] == 0 && b[end+1] == 0 && b[end+2] == 41 {
		b = slices.Clone(b[:end])
		b[11] = 0
	}
	return b
}

func (c waitingConn) SetDeadline(time.Time) error {
	return c.UDPConn.SetDeadline(time.Now().Add(c.wait))
}

// lookup returns the addresses of a host, those to be tried first in front.
func (n *names) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{ip}, nil
	}
	if ip, ok := shortIPv4(name); ok {
		return []netip.Addr{ip}, nil
	}
	if base := strings.ToLower(strings.TrimSuffix(name, ".")); strings.HasSuffix(base, ".localhost") {
		return []netip.Addr{netip.IPv6Loopback(), netip.AddrFrom4([4]byte{127, 0, 0, 1})}, nil // RFC 6761, 6.3
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

// shortIPv4 reads an IPv4 address in the forms of inet_aton(3), which curl and so Nix accept: one to
// four numbers, decimal, octal or hexadecimal, the last of which fills all bytes that are left.
func shortIPv4(text string) (netip.Addr, bool) {
	parts := strings.Split(text, ".")
	if len(parts) > 4 {
		return netip.Addr{}, false
	}
	var value uint64
	for i, part := range parts {
		base := 10
		if digits, ok := strings.CutPrefix(strings.ToLower(part), "0x"); ok {
			part, base = digits, 16
		} else if len(part) > 1 && part[0] == '0' {
			base = 8
		}
		bits := 8
		if i == len(parts)-1 {
			bits = 8 * (4 - i)
		}
		n, err := strconv.ParseUint(part, base, bits)
		if err != nil {
			return netip.Addr{}, false
		}
		value = value<<bits | n
	}
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(value)))), true
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

// start looks a host up, and again as Nix does if that fails, unless it has just failed for good:
// name servers that are starting or whose line is, say for seconds that there is no such name. The
// caller holds mu.
func (n *names) start(ctx context.Context, name string, h *host) {
	l := &lookup{began: time.Now(), done: make(chan struct{})}
	ctx, l.cancel = runclock.WithTimeout(context.WithoutCancel(ctx), lookupLong)
	if n.ended {
		l.cancel()
	}
	h.running = l
	again := lookupAgain
	if time.Since(h.failed) < failedFresh {
		again = nil
	}
	n.all.Go(func() {
		publish := sync.OnceFunc(func() { close(l.done) })
		n.both(ctx, name, h, publish)
		for _, d := range again {
			if n.found(h) || time.Since(l.began) > n.timeout || !pause(ctx, d) {
				break
			}
			n.both(ctx, name, h, publish)
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		if len(l.addrs) == 0 {
			h.failed = time.Now()
		}
		h.running = nil
		l.cancel()
		publish()
	})
}

// found reports whether the lookup that runs has an address.
func (n *names) found(h *host) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(h.running.addrs) > 0
}

// both looks both families up. What one of them has is published if the other has none shortly
// after: many name servers answer for A and are silent for AAAA.
func (n *names) both(ctx context.Context, name string, h *host, publish func()) {
	l := h.running
	var families sync.WaitGroup
	for _, network := range []string{"ip6", "ip4"} {
		families.Go(func() {
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
		})
	}
	families.Wait()
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
