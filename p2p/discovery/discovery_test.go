package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/p2p/machine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type names map[string][]netip.Addr

func (n names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	if a, ok := n[host]; ok {
		return a, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func (n names) LookupSRV(_ context.Context, service, proto, name string) (string, []*net.SRV, error) {
	if service != "" || proto != "" || name != "_nixp2p._tcp.site" {
		return "", nil, errors.New("no such service")
	}
	return "", []*net.SRV{{Target: "one.", Port: 1}, {Target: "gone.", Port: 2}}, nil
}

func look(t *testing.T, s string, r Resolver) ([]string, error) {
	t.Helper()
	src, err := Parse(s, r)
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := src.Look(t.Context())
	slices.Sort(addrs)
	return addrs, err
}

func TestDNS(t *testing.T) {
	var many []netip.Addr
	for i := range 200 {
		many = append(many, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	r := names{"one": {netip.MustParseAddr("10.1.1.1"), netip.MustParseAddr("fd00::1")}, "many": many}
	for _, c := range []struct {
		source string
		want   []string
	}{
		{"dns:one", []string{"/ip4/10.1.1.1/tcp/7656", "/ip6/fd00::1/tcp/7656"}},
		{"dns:one:99", []string{"/ip4/10.1.1.1/tcp/99", "/ip6/fd00::1/tcp/99"}},
		{"srv:_nixp2p._tcp.site", []string{"/ip4/10.1.1.1/tcp/1", "/ip6/fd00::1/tcp/1"}},
		{"/ip4/10.1.1.1/tcp/5", []string{"/ip4/10.1.1.1/tcp/5"}},
		{"/dns4/one/tcp/5/p2p/x", []string{"/ip4/10.1.1.1/tcp/5/p2p/x", "/ip6/fd00::1/tcp/5/p2p/x"}},
		{"/dns/none/tcp/5", nil},
	} {
		if got, err := look(t, c.source, r); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, %v", c.source, got, err)
		}
	}
	for _, bad := range []string{"dns:none", "srv:none", "dns:one:x"} {
		if got, err := look(t, bad, r); err == nil {
			t.Errorf("%s: %q", bad, got)
		}
	}
	// If all nodes took the same few, those would carry all of them.
	first, _ := look(t, "dns:many", r)
	if len(first) != maxEntries {
		t.Errorf("%d addresses", len(first))
	}
	for range 20 {
		if next, _ := look(t, "dns:many", r); !slices.Equal(next, first) {
			return
		}
	}
	t.Error("always the same addresses")
}

func TestHTTP(t *testing.T) {
	answer := `["/ip4/10.0.0.1/tcp/1", "[fd00::1]:2", "nonsense"]`
	status := http.StatusOK
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		fmt.Fprint(w, answer)
	}))
	defer srv.Close()
	want := []string{"/ip4/10.0.0.1/tcp/1", "/ip6/fd00::1/tcp/2"}
	if got, err := look(t, srv.URL, nil); err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	answer = strings.Repeat("x", maxList+10)
	if got, err := look(t, srv.URL, nil); err == nil {
		t.Errorf("an endless list: %q", got)
	}
	status = http.StatusForbidden
	if got, err := look(t, srv.URL, nil); err == nil {
		t.Errorf("status %d: %q", status, got)
	}
}

func TestFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "peers")
	src, err := Parse("file:"+name, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := src.Look(t.Context()); err == nil {
		t.Error("a file that is not there")
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if src.Changed() {
		t.Error("a file that is not there has changed")
	}
	write("# site\n10.0.0.1:7656\n\n/ip4/10.0.0.2/tcp/1/p2p/x\n")
	if !src.Changed() {
		t.Error("the file that came has not changed")
	}
	got, err := src.Look(t.Context())
	slices.Sort(got)
	if want := []string{"/ip4/10.0.0.1/tcp/7656", "/ip4/10.0.0.2/tcp/1/p2p/x"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	if src.Changed() {
		t.Error("changed by looking")
	}
	write("10.0.0.3:7656\n")
	if !src.Changed() {
		t.Error("the change is not seen")
	}
}

func TestParse(t *testing.T) {
	for _, bad := range []string{"", "dns:", "srv:", "file:", "gopher://x", "x", "/dnsaddr/x"} {
		if _, err := Parse(bad, nil); err == nil {
			t.Errorf("%q is a source", bad)
		}
	}
	for _, s := range []string{"dns:a:1", "/ip4/1.2.3.4/tcp/1", "https://example.org/peers", "file:/x"} {
		src, err := Parse(s, nil)
		if err != nil || src.String() != s {
			t.Errorf("%q: %v, %v", s, src, err)
		}
	}
}

func contact(id, addr string) Contact {
	return Contact{Peer: id, Addrs: []string{addr}, By: Origin{Kind: "static"}}
}

// named is a contact that a peer on the machine 10.0.0.m names.
func named(id, addr string, m int, by string) Contact {
	return Contact{Peer: id, Addrs: []string{addr}, By: Origin{Kind: ByPeer, Machine: on(m), Peer: by}}
}

func on(m int) machine.ID { return machine.Of(netip.AddrFrom4([4]byte{10, 0, byte(m >> 8), byte(m)})) }

// due returns all contacts that are due.
func due(b *Book, now time.Time) (list []Contact) {
	for {
		c, ok := b.Due(now)
		if !ok {
			return list
		}
		list = append(list, c)
	}
}

func ids(list []Contact) string {
	var s []string
	for _, c := range list {
		s = append(s, c.key())
	}
	slices.Sort(s)
	return strings.Join(s, " ")
}

// TestRedial: a peer that was lost is tried again every few seconds, then ever more rarely,
// then no more.
func TestRedial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBook("self")
		if n := b.Found(false, contact("a", "/x"), contact("self", "/y"), Contact{}); n != 1 {
			t.Errorf("%d are new", n)
		}
		first := due(b, time.Now())
		if ids(first) != "a" || len(due(b, time.Now())) != 0 {
			t.Errorf("due: %q", ids(first))
		}
		b.Connected("a")
		b.Reached(first[0], "a", time.Now())
		if b.FoundBy("a") != "static" || len(due(b, time.Now().Add(time.Hour))) != 0 {
			t.Errorf("found by %q", b.FoundBy("a"))
		}
		b.Lost("a", on(1), nil, time.Now())
		lost := time.Now()
		var tries []time.Duration
		for b.Len() > 0 && len(tries) < 100 {
			for _, c := range due(b, time.Now()) {
				tries = append(tries, time.Since(lost))
				b.Failed(c, time.Now())
			}
			<-time.After(100 * time.Millisecond)
		}
		if len(tries) != giveUpConfigured || tries[0] > 2*time.Second || tries[4] > 16*time.Second {
			t.Errorf("tried after %v", tries)
		}
		if last := tries[len(tries)-1]; last < 5*time.Minute || last > 20*time.Minute {
			t.Errorf("given up after %v", last)
		}
		if b.Found(false, contact("a", "/x")) != 1 {
			t.Error("who was given up is not new when named again")
		}
	})
}

// TestUnknownBecomesKnown: an address leads to a peer, to ourselves, or to one who is known.
func TestUnknownBecomesKnown(t *testing.T) {
	b, now := NewBook("self"), time.Now()
	b.Found(false, Contact{Addrs: []string{"/x"}, By: Origin{Kind: "dns"}}, Contact{Addrs: []string{"/me"}, By: Origin{Kind: "dns"}})
	for _, c := range due(b, now) {
		if c.Addrs[0] == "/me" {
			b.Reached(c, "self", now)
		} else {
			b.Reached(c, "a", now)
			b.Connected("a")
		}
	}
	if b.FoundBy("a") != "dns" {
		t.Errorf("found by %q", b.FoundBy("a"))
	}
	if n := b.Found(false, Contact{Addrs: []string{"/x"}}, Contact{Addrs: []string{"/me"}}); n != 0 {
		t.Errorf("%d are new", n)
	}
	if list := due(b, now.Add(time.Minute)); len(list) != 0 {
		t.Errorf("due: %q", ids(list))
	}
	if list := due(b, now.Add(selfPause+time.Minute)); ids(list) != "/me" {
		t.Errorf("after the pause: %q", ids(list))
	}
}

// TestConnectedFirst: one who came by himself is not dialled when somebody names him, nor
// is anybody at once who was reached a moment ago.
func TestConnectedFirst(t *testing.T) {
	b, now := NewBook("self"), time.Now()
	b.Connected("a")
	b.Found(false, contact("a", "/x"))
	if list := due(b, now); len(list) != 0 {
		t.Errorf("due: %q", ids(list))
	}
	b.Found(false, contact("b", "/y"), Contact{Addrs: []string{"/z"}})
	for _, c := range due(b, now) {
		b.Reached(c, strings.Trim(c.key(), "/"), now)
	}
	if list := due(b, now); len(list) != 0 {
		t.Errorf("due again at once: %q", ids(list))
	}
	if list := due(b, now.Add(5*time.Second)); ids(list) != "b z" {
		t.Errorf("due again: %q", ids(list))
	}
}

// TestCourtesy: of two who are told of each other one waits a moment.
func TestCourtesy(t *testing.T) {
	now := time.Now()
	for _, self := range []string{"1", "3"} {
		b := NewBook(self)
		b.Found(false, Contact{Peer: "2", Addrs: []string{"/x"}, By: Origin{Kind: ByPeer}})
		first := len(due(b, now.Add(time.Second))) == 1
		if first != (self < "2") {
			t.Errorf("%s dials 2 at once: %v", self, first)
		}
		if !first && len(due(b, now.Add(2*courtesy+time.Second))) != 1 {
			t.Errorf("%s never dials", self)
		}
	}
}

func TestForget(t *testing.T) {
	b, now := NewBook("self"), time.Now()
	b.Found(false, contact("a", "/x"), contact("b", "/y"))
	b.Forget("a")
	b.Postpone("b", now, time.Minute)
	b.Postpone("c", now, time.Minute)
	if list := due(b, now); len(list) != 0 || b.Len() != 1 {
		t.Errorf("due: %q", ids(list))
	}
	if list := due(b, now.Add(61*time.Second)); ids(list) != "b" {
		t.Errorf("due after the pause: %q", ids(list))
	}
}

// TestSeenAlive: one who failed often is tried at once when he is seen on the link.
func TestSeenAlive(t *testing.T) {
	b, now := NewBook("self"), time.Now()
	b.Found(false, contact("a", "/x"))
	for range giveUpConfigured - 2 {
		now = now.Add(time.Hour)
		for _, c := range due(b, now) {
			b.Failed(c, now)
		}
	}
	if len(due(b, now)) != 0 {
		t.Error("due at once after a failure")
	}
	b.Found(true, contact("a", "/new"))
	list := due(b, now)
	if ids(list) != "a" || list[0].Addrs[0] != "/new" {
		t.Errorf("due: %+v", list)
	}
}

func TestBookIsBounded(t *testing.T) {
	b := NewBook("self")
	for i := range maxContacts + 200 {
		b.Found(false, contact(fmt.Sprint(i), "/x"))
		b.Found(false, contact("a", fmt.Sprint("/", i)))
		b.Found(false, named(fmt.Sprint("m", i), "/x", i, fmt.Sprint("by", i)))
		b.Lost(fmt.Sprint("l", i), on(i), []string{"/l"}, time.Now())
	}
	if b.Len() > 2*maxContacts {
		t.Errorf("%d contacts", b.Len())
	}
	if e := b.entries["a"]; e != nil && len(e.Addrs) > maxAddrs {
		t.Errorf("%d addresses", len(e.Addrs))
	}
}

// TestBogusContacts: a peer that names addresses without end has 32 places and a dial each
// second, and one that another peer names is dialled next; also if both are on one machine.
func TestBogusContacts(t *testing.T) {
	for _, other := range []int{1, 2} {
		synctest.Test(t, func(t *testing.T) {
			b := NewBook("0")
			b.Found(false, contact("configured", "/c"))
			for i := range 1536 {
				b.Found(false, named(fmt.Sprint("bogus", i), fmt.Sprint("/", i), 1, "evil"))
			}
			if b.Len() > 1+placesByMachine {
				t.Errorf("%d contacts", b.Len())
			}
			dials, end := 0, time.Now().Add(30*time.Second)
			fail := func() {
				for _, c := range due(b, time.Now()) {
					if c.By.Peer == "evil" {
						dials++
					}
					b.Failed(c, time.Now())
				}
			}
			fail()
			b.Found(false, named("honest", "/h", other, "good"))
			// It may have to wait for courtesy.
			found := false
			for range 40 {
				<-time.After(100 * time.Millisecond)
				for _, c := range due(b, time.Now()) {
					found = found || c.Peer == "honest"
					if c.By.Peer == "evil" {
						dials++
					}
				}
			}
			if !found {
				t.Error("an honest peer is not dialled within 4 s")
			}
			for i := 0; time.Now().Before(end); i++ {
				b.Found(false, named(fmt.Sprint("more", i), fmt.Sprint("/m", i), 1, "evil"))
				fail()
				<-time.After(100 * time.Millisecond)
			}
			if dials > dialBurst+31 {
				t.Errorf("%d dials in 30 s for one peer", dials)
			}
		})
	}
}

// TestHonestLists: a list of peers that can be reached is dialled at once.
func TestHonestLists(t *testing.T) {
	b, now := NewBook("0"), time.Now()
	for i := range placesByMachine {
		b.Found(false, named(fmt.Sprint("p", i), fmt.Sprint("/", i), 1, "good"))
	}
	n := 0
	for c, ok := b.Due(now); ok; c, ok = b.Due(now) {
		b.Connected(c.Peer)
		b.Reached(c, c.Peer, now)
		n++
	}
	if n != placesByMachine {
		t.Errorf("%d are dialled at once", n)
	}
}

// TestWrongAddress: somebody who names a peer with a wrong address does not keep others from
// naming the right one.
func TestWrongAddress(t *testing.T) {
	b, now := NewBook("0"), time.Now()
	b.Found(false, named("a", "/wrong", 1, "evil"))
	for range 3 {
		for _, c := range due(b, now) {
			b.Failed(c, now)
		}
		now = now.Add(time.Minute)
	}
	for _, c := range due(b, now) {
		b.Failed(c, now)
	}
	b.Found(false, named("a", "/right", 2, "good"))
	if list := due(b, now); ids(list) != "a" || list[0].Addrs[0] != "/right" {
		t.Errorf("due: %+v", list)
	}
}

func FuzzParseList(f *testing.F) {
	f.Add([]byte(`["/ip4/10.0.0.1/tcp/1"]`))
	f.Add([]byte("10.0.0.1:1\n[::1]:2\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		addrs, _ := ParseList(b)
		for _, a := range addrs {
			if a == "" || a[0] != '/' || len(a) > 300 || strings.ContainsAny(a, "\n ") {
				t.Errorf("%q", a)
			}
		}
	})
}
