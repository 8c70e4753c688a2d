package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var (
	notFound = &net.DNSError{Err: "no such host", IsNotFound: true}
	lost     = &net.DNSError{Err: "i/o timeout", IsTimeout: true}
)

// fixed is a lookup that knows these addresses.
func fixed(addrs ...string) lookupFunc {
	return func(_ context.Context, network, _ string) (of []netip.Addr, err error) {
		for _, text := range addrs {
			if ip := netip.MustParseAddr(text); ip.Is4() == (network == "ip4") {
				of = append(of, ip)
			}
		}
		if len(of) == 0 {
			return nil, notFound
		}
		return of, nil
	}
}

// after is find, later.
func after(d time.Duration, find lookupFunc) lookupFunc {
	return func(ctx context.Context, network, host string) ([]netip.Addr, error) {
		select {
		case <-time.After(d):
			return find(ctx, network, host)
		case <-ctx.Done():
			return nil, lost
		}
	}
}

func failing(err error) lookupFunc {
	return func(context.Context, string, string) ([]netip.Addr, error) { return nil, err }
}

// family is a lookup with one for each family.
func family(four, six lookupFunc) lookupFunc {
	return func(ctx context.Context, network, host string) ([]netip.Addr, error) {
		if network == "ip4" {
			return four(ctx, network, host)
		}
		return six(ctx, network, host)
	}
}

// TestNames: what name servers do, and what the first and the next attempt get when.
func TestNames(t *testing.T) {
	four, both := fixed("10.0.0.1"), fixed("10.0.0.1", "2001:db8::1")
	for name, c := range map[string]struct {
		find     lookupFunc
		first    time.Duration // when the first attempt ends
		want     string
		second   time.Duration // how long one that begins after 30 s takes
		wantNext string
	}{
		"quick":                       {both, 0, "[2001:db8::1 10.0.0.1]", 0, "[2001:db8::1 10.0.0.1]"},
		"only A":                      {four, 0, "[10.0.0.1]", 0, "[10.0.0.1]"},
		"no such name":                {failing(notFound), 0, "not found", 0, "not found"},
		"first of two servers silent": {after(5*time.Second, both), 5 * time.Second, "[2001:db8::1 10.0.0.1]", 0, "[2001:db8::1 10.0.0.1]"},
		"two of three servers silent": {after(10*time.Second, both), 8 * time.Second, "timeout", 0, "[2001:db8::1 10.0.0.1]"},
		"all silent":                  {after(30*time.Second, failing(lost)), 8 * time.Second, "timeout", 8 * time.Second, "timeout"},
		"silent for AAAA":             {family(four, after(20*time.Second, failing(lost))), 50 * time.Millisecond, "[10.0.0.1]", 0, "[10.0.0.1]"},
		"AAAA late":                   {family(four, after(3*time.Second, both)), 50 * time.Millisecond, "[10.0.0.1]", 0, "[2001:db8::1 10.0.0.1]"},
		"SERVFAIL for AAAA":           {family(four, failing(&net.DNSError{Err: "server misbehaving"})), 0, "[10.0.0.1]", 0, "[10.0.0.1]"},
		"silent for A, none for AAAA": {family(after(20*time.Second, failing(lost)), failing(notFound)), 8 * time.Second, "timeout", 8 * time.Second, "timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNames(8*time.Second, c.find)
				defer n.close()
				get := func() (string, time.Duration) {
					began := time.Now()
					addrs, err := n.lookup(t.Context(), "cache.example.org")
					var dns *net.DNSError
					switch {
					case err == nil:
						return fmt.Sprint(addrs), time.Since(began)
					case errors.As(err, &dns) && dns.IsNotFound:
						return "not found", time.Since(began)
					case isTimeout(err):
						return "timeout", time.Since(began)
					}
					return err.Error(), time.Since(began)
				}
				if got, took := get(); got != c.want || took != c.first {
					t.Errorf("first: %s after %v, want %s after %v", got, took, c.want, c.first)
				}
				time.Sleep(30 * time.Second)
				if got, took := get(); got != c.wantNext || took != c.second {
					t.Errorf("next: %s after %v, want %s after %v", got, took, c.wantNext, c.second)
				}
			})
		})
	}
}

// TestNamesAreKept: one lookup is for all who want it; what is known is used while it is looked
// up again, and dropped when nothing answers there.
func TestNamesAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		now := "10.0.0.1"
		n := newNames(8*time.Second, func(ctx context.Context, network, host string) ([]netip.Addr, error) {
			asked.Add(1)
			return after(5*time.Second, fixed(now))(ctx, network, host)
		})
		defer n.close()
		get := func(want string, took time.Duration) {
			t.Helper()
			began := time.Now()
			addrs, err := n.lookup(t.Context(), "cache.example.org")
			if got := fmt.Sprint(addrs); err != nil || got != "["+want+"]" || time.Since(began) != took {
				t.Errorf("%s, %v, after %v", got, err, time.Since(began))
			}
		}
		left, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		if _, err := n.lookup(left, "cache.example.org"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		get("10.0.0.1", 4*time.Second) // of the same lookup
		get("10.0.0.1", 0)
		if asked.Load() != 2 { // one a family
			t.Errorf("asked %d times", asked.Load())
		}
		time.Sleep(2 * time.Minute)
		now = "10.0.0.2"
		get("10.0.0.1", 0)
		time.Sleep(6 * time.Second)
		get("10.0.0.2", 0)
		now = "10.0.0.3"
		n.forget("cache.example.org") // it has just been looked up
		get("10.0.0.2", 0)
		time.Sleep(3 * time.Second)
		n.forget("cache.example.org")
		get("10.0.0.3", 5*time.Second)
		time.Sleep(2 * time.Hour)
		get("10.0.0.3", 5*time.Second)
		for i := range 2 * namesMost {
			_, _ = n.lookup(t.Context(), fmt.Sprintf("host%d", i))
		}
		if len(n.hosts) > namesMost {
			t.Errorf("%d hosts are kept", len(n.hosts))
		}
	})
}

// TestPersistent: a question that was lost is asked again after a second, and a slow server is
// waited for meanwhile.
func TestPersistent(t *testing.T) {
	found := fixed("10.0.0.1")
	for name, c := range map[string]struct {
		patient, quick lookupFunc
		want           time.Duration
		err            bool
	}{
		"quick":               {after(time.Millisecond, found), failing(lost), time.Millisecond, false},
		"slow server":         {after(3*time.Second, found), after(3*time.Second, failing(lost)), 3 * time.Second, false},
		"first server silent": {after(5*time.Second, found), after(quickServer, found), lookupRepeat + quickServer, false},
		"no such name":        {after(time.Millisecond, failing(notFound)), found, time.Millisecond, true},
		"SERVFAIL once":       {failing(&net.DNSError{Err: "server misbehaving"}), found, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				_, err := persistent(c.patient, c.quick)(t.Context(), "ip4", "cache.example.org")
				if took := time.Since(began); took != c.want || (err != nil) != c.err {
					t.Errorf("%v, %v, want %v", took, err, c.want)
				}
			})
		})
	}
}

// TestQuickResolver: the resolver of the Go library goes to the next server after the time that
// quickConn gives it, over UDP.
func TestQuickResolver(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	c, err := net.Dial("udp", silent.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	q := quickConn{c.(*net.UDPConn)}
	defer q.Close()
	if _, ok := any(q).(net.PacketConn); !ok {
		t.Error("the resolver would take it for TCP")
	}
	began := time.Now()
	_ = q.SetDeadline(began.Add(time.Hour))
	if _, err := q.Read(make([]byte, 1)); !isTimeout(err) || time.Since(began) > 4*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

func TestInterleave(t *testing.T) {
	parse := func(all ...string) (ips []netip.Addr) {
		for _, s := range all {
			ips = append(ips, netip.MustParseAddr(s))
		}
		return ips
	}
	got := interleave(parse("10.0.0.1", "::ffff:10.0.0.2", "10.0.0.3"), parse("2001:db8::1"))
	if want := parse("2001:db8::1", "10.0.0.1", "10.0.0.2", "10.0.0.3"); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}
