package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
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

// silentFor is the quick lookup at a server that gives no answer at first: it asks twice.
func silentFor(d time.Duration) lookupFunc {
	return changing(d-lookupRepeat, after(2*quickServer, failing(lost)), fixed("10.0.0.1"))
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

// repeats is the sum of lookupAgain, which is taken at random by half more or less.
const repeats = 3750 * time.Millisecond

// about reports whether a lookup took as long as is wanted.
func about(took, want time.Duration) bool {
	return took == want || want == repeats && took > 0 && took <= repeats*3/2
}

// changing is a lookup that is another one at first.
func changing(d time.Duration, first, then lookupFunc) lookupFunc {
	var began time.Time
	var once sync.Once
	return func(ctx context.Context, network, host string) ([]netip.Addr, error) {
		if once.Do(func() { began = time.Now() }); time.Since(began) < d {
			return first(ctx, network, host)
		}
		return then(ctx, network, host)
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
		"no such name":                {failing(notFound), repeats, "not found", repeats, "not found"},
		"no such name at first":       {changing(2*time.Second, failing(notFound), both), repeats, "[2001:db8::1 10.0.0.1]", 0, "[2001:db8::1 10.0.0.1]"},
		"SERVFAIL at first":           {changing(2*time.Second, failing(&net.DNSError{Err: "server misbehaving", IsTemporary: true}), four), repeats, "[10.0.0.1]", 0, "[10.0.0.1]"},
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
				if got, took := get(); got != c.want || !about(took, c.first) {
					t.Errorf("first: %s after %v, want %s after %v", got, took, c.want, c.first)
				}
				time.Sleep(30 * time.Second)
				if got, took := get(); got != c.wantNext || !about(took, c.second) {
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

// TestFailedName: a name that was looked up again and again is not for the next ten seconds, so that
// nobody waits for each of many files at a host that is gone.
func TestFailedName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		n := newNames(8*time.Second, func(context.Context, string, string) ([]netip.Addr, error) {
			asked.Add(1)
			return nil, notFound
		})
		defer n.close()
		get := func(want int32, took time.Duration) {
			t.Helper()
			began, before := time.Now(), asked.Load()
			if _, err := n.lookup(t.Context(), "gone.example.org"); err == nil {
				t.Error("found")
			}
			synctest.Wait()
			if got := asked.Load() - before; got != want || !about(time.Since(began), took) {
				t.Errorf("asked %d times within %v, want %d", got, time.Since(began), want)
			}
		}
		get(2*5, repeats)
		get(2, 0)
		time.Sleep(failedFresh / 2)
		get(2, 0)
		time.Sleep(2 * failedFresh)
		get(2*5, repeats)
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
		"silent for 5 s":      {after(12*time.Second, failing(lost)), silentFor(5 * time.Second), 6200 * time.Millisecond, false},
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

// TestWaitingConn: the resolver of the Go library goes to the next server after the time that
// waitingConn gives it, over UDP.
func TestWaitingConn(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	c, err := net.Dial("udp", silent.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	q := waitingConn{c.(*net.UDPConn), quickServer, false}
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

// TestPlainQuestions: servers that know nothing of EDNS are asked without it. This one is real, and
// answers in one way to what has it.
func TestPlainQuestions(t *testing.T) {
	for name, answer := range map[string]func(q []byte) []byte{
		"FORMERR":   func(q []byte) []byte { return append(slices.Clone(q[:2]), 0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0) },
		"NOTIMP":    func(q []byte) []byte { return append(slices.Clone(q[:2]), 0x81, 0x84, 0, 0, 0, 0, 0, 0, 0, 0) },
		"no answer": func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			server, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				buf := make([]byte, 512)
				for {
					n, from, err := server.ReadFrom(buf)
					if err != nil {
						return
					}
					q := buf[:n]
					reply := answer(q)
					if q[11] == 0 { // no additional record
						reply = append(slices.Clone(q[:2]), 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0)
						reply = append(append(reply, q[12:]...), 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 0, 0, 1)
					}
					if reply != nil {
						_, _ = server.WriteTo(reply, from)
					}
				}
			}()
			defer func() { _ = server.Close(); <-done }()
			at := func(r *net.Resolver) lookupFunc {
				dial := r.Dial
				r.PreferGo = true
				r.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
					return dial(ctx, network, server.LocalAddr().String())
				}
				return r.LookupNetIP
			}
			got, err := persistent(at(resolver(2*time.Second, false)), at(resolver(20*time.Second, true)))(t.Context(), "ip4", "cache.example.org.")
			if err != nil || len(got) != 1 || got[0].Unmap().String() != "10.0.0.1" {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
	for _, b := range []string{"", "0123456789\x00\x01", "0123456789\x00\x02x\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00"} {
		if string(withoutEDNS([]byte(b))) != b {
			t.Errorf("%q was cut", b)
		}
	}
}

// TestLocalhost: names below localhost are this machine (RFC 6761), whatever name servers say.
func TestLocalhost(t *testing.T) {
	n := newNames(time.Second, failing(notFound))
	defer n.close()
	for _, name := range []string{"cache.localhost", "a.b.LocalHost."} {
		if got, err := n.lookup(t.Context(), name); err != nil || len(got) != 2 || !got[0].IsLoopback() || !got[1].IsLoopback() {
			t.Errorf("%s: %v, %v", name, got, err)
		}
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

// TestShortIPv4: what curl takes for an address is one here.
func TestShortIPv4(t *testing.T) {
	for text, want := range map[string]string{
		"127.1": "127.0.0.1", "127.0.1": "127.0.0.1", "2130706433": "127.0.0.1", "0x7f000001": "127.0.0.1", "0x7f.1": "127.0.0.1",
		"0177.0.0.01": "127.0.0.1", "10.258": "10.0.1.2", "127.0.0.08": "", "127.256.1": "", "1.2.3.256": "", "4294967296": "", "1.2.3.4.5": "",
		"": "", ".": "", "127.": "", "0x": "", "+1": "", "1_0": "", "cache": "", "-1": "",
	} {
		got := ""
		if ip, ok := shortIPv4(text); ok {
			got = ip.String()
		}
		if got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
