package admin

import (
	"context"
	"errors"
	"fmt"
	"html"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
)

var names = []string{
	"firefox-151.0.1", "linux-6.18.7", "glibc-2.42-18", "texlive-combined-full-2026", "gcc-15.2.0", "libreoffice-26.2.3",
	"python3-3.13.9", "llvm-21.1.4-lib", "qemu-10.2.0", "hello-2.12.2",
}

// madePath returns the store path number i.
func madePath(i int) string {
	var h nix.StoreHash
	r := rand.New(rand.NewPCG(7, uint64(i)))
	for j := range h {
		h[j] = byte(r.Uint32())
	}
	return nix.StoreDir + "/" + h.String() + "-" + names[i%len(names)]
}

// madeUp is a node on a working day: peers, transfers and failures as many as told.
func madeUp(peers, transfers, failures int) *fake {
	r := rand.New(rand.NewPCG(1, 2))
	now := time.Now()
	f := &fake{state: State{
		Machine: "buildbox", Nix: NixUse{URL: "http://127.0.0.1:7654", Conf: "/etc/nix/nix.conf", Listed: true, Asked: now},
		Conditions: []Condition{{Part: "links", Text: "virbr0 is left out: only virtual machines of this host are on it", Note: true}},
		Upstreams: []Upstream{
			{URL: "https://cache.nixos.org", Up: true, LatencyMS: 23.4, Priority: 40, Requests: 18211},
			{URL: "https://nix-community.cachix.org", Up: true, LatencyMS: 61, Priority: 41, Requests: 2048, Why: "narinfos take 900 ms", Since: now.Add(-3 * time.Minute), LastError: "GET narinfo: status 503"},
			{URL: "http://cache.lan:5000", Why: "connection refused", Since: now.Add(-17 * time.Minute), LastError: "dial tcp 10.0.0.9:5000: connect: connection refused", Priority: 20, Requests: 310},
		},
		Cache: Cache{Dir: "/var/cache/nixp2p", Bytes: 6420 << 20, Limit: 10 << 30, Entries: 1184},
		Store: Store{Database: "live", Complete: true, Paths: 100210, Shared: 98764, Trusted: 210, Unsigned: 402, Addressed: 834},
		Saved: Saved{Spans: Spans{Today: 3412 << 20, Week: 48 << 30, Total: 412 << 30}, Estimated: Spans{Week: 2 << 30, Total: 31 << 30}},
	}}
	f.peers = madePeers(r, peers)
	for i := range transfers {
		t := Transfer{
			Direction: []string{In, Nix, Out, Nix}[i%4], Source: []string{"peer", "cache", "store", "peer", "upstream", "upstream", "cache", "store"}[i%8],
			StorePath: madePath(i), NarHash: fmt.Sprintf("sha256:%052d", i/4*4), Form: []string{"raw", "raw", "zstd", "xz", "xz"}[i%5],
			Size: int64(2+r.IntN(900)) << 20, BytesPerSecond: int64(1+r.IntN(60)) << 20, Readers: i % 4, Started: now,
		}
		t.Bytes = t.Size * int64(r.IntN(100)) / 100
		if t.Source == "peer" || t.Direction == Out {
			t.Peer = peerID(i)
		}
		f.state.Transfers = append(f.state.Transfers, t)
	}
	for i := range failures {
		f.state.Failures = append(f.state.Failures, []Failure{
			{What: "an upstream went down", Source: "upstream", Error: "http://cache.lan:5000: dial tcp 10.0.0.9:5000: connect: connection refused"},
			{What: "a peer gave wrong bytes and is not asked again", Source: "peer", StorePath: madePath(i), Error: "peer " + peerID(i) + ": nar hash mismatch"},
			{What: "a transfer went on from another source", Source: "peer", StorePath: madePath(i), Error: "stream reset"},
		}[i%3])
		f.state.Failures[i].At, f.state.Failures[i].Times = now.Add(-time.Duration(i*i)*time.Minute), 1+i%3
	}
	f.history = madeHistory(r, now)
	f.why = func(context.Context, nix.StoreHash) []Answer {
		return []Answer{
			{Source: "store", Result: Absent, TookMS: .04},
			{Source: "peer", Result: Has, TookMS: 2.1, StorePath: madePath(0), NarHash: "sha256:" + strings.Repeat("1", 52), NarSize: 280 << 20, Signers: []string{"cache.nixos.org-1"}},
			{Source: "upstream", Result: Unavailable, TookMS: 2000, Err: "cache.lan: connection refused"},
		}
	}
	return f
}

func peerID(i int) string { return fmt.Sprintf("12D3KooW%044x", uint64(i+1)*0x9e3779b97f4a7c15) }

func madePeers(r *rand.Rand, n int) (peers []Peer) {
	for i := range n {
		p := Peer{
			ID: peerID(i), Name: []string{"", "ada", "grace-hopper-laptop"}[i%3], Addresses: []string{fmt.Sprintf("/ip4/10.0.%d.%d/tcp/7656", i/100, 10+i%100), "/ip6/fd00::1/tcp/7656"}, FoundBy: []string{"mdns", "bootstrap", "peers"}[i%3],
			RTTMS: r.Float64() * 4, Paths: int64(r.IntN(90000)), SentBytes: r.Int64N(90 << 30), ReceivedBytes: r.Int64N(70 << 30), Standing: "good",
		}
		if i%5 == 0 {
			p.ReceivingBytesPerSecond, p.SendingBytesPerSecond = r.Int64N(80<<20), r.Int64N(30<<20)
		}
		if i == 3 {
			p.Standing = "silent"
		}
		peers = append(peers, p)
	}
	return peers
}

func madeHistory(r *rand.Rand, now time.Time) (h History) {
	made := func(start time.Time, busy float64, unit int64) Bucket {
		b := Bucket{Start: start}
		for i, at := range []*int64{&b.Store, &b.Cache, &b.Peer, &b.Upstream} {
			*at = int64(busy * r.Float64() * float64(unit) * []float64{.3, .7, 1, .35}[i])
		}
		b.Saved = (b.Store + b.Peer) / 3
		return b
	}
	hour := now.Truncate(time.Hour)
	for i := range 24 {
		t := hour.Add(time.Duration(i-23) * time.Hour)
		busy := []float64{.02, .02, 0, 0, .05, .1, .3, .7, 1, .9, .8, .9}[(i+3)%12]
		h.Hours = append(h.Hours, made(t, busy, 600<<20))
	}
	day := time.Date(now.Year(), now.Month(), now.Day(), 0, 0, 0, 0, time.Local)
	for i := range 30 {
		t := day.AddDate(0, 0, i-29)
		busy := 1.0
		if t.Weekday() == time.Saturday || t.Weekday() == time.Sunday {
			busy = .12
		}
		h.Days = append(h.Days, made(t, busy, 8<<30))
	}
	return h
}

// count fills the counters as such a node would.
func count(m *metrics.Metrics) {
	for source, n := range map[string]float64{"store": 3.1e9, "cache": 9.2e9, "peer": 2.46e10, "upstream": 5.7e9} {
		m.NarBytes.WithLabelValues(source).Add(n / 2)
		m.NarUnpacked.WithLabelValues(source).Add(n)
	}
	m.SavedBytes.Add(9.1e9)
	m.UpstreamBytes.Add(1.9e9)
	m.PeerReceivedBytes.Add(2.5e10)
	m.PeerSentBytes.Add(4.4e10)
	m.StorePathsShared.Set(98764)
	for i, source := range []string{"memory", "disk", "store", "peer", "upstream"} {
		m.NarinfoRequests.WithLabelValues(source, "hit").Add(float64(31234 / (i + 1)))
	}
	m.NarinfoRequests.WithLabelValues("memory", "miss").Add(812)
	m.NarinfoRequests.WithLabelValues("none", "miss").Add(1490)
	m.NarinfoRequests.WithLabelValues("none", "timeout").Add(2)
}

var dataValue = regexp.MustCompile(`<data [^>]*id="([^"]+)"[^>]*value="(-?\d+)"|<data [^>]*value="(-?\d+)"[^>]*id="([^"]+)"`)

// values returns the numbers on a page that have a name.
func values(page string) map[string]int64 {
	all := map[string]int64{}
	for _, m := range dataValue.FindAllStringSubmatch(page, -1) {
		n, _ := strconv.ParseInt(m[2]+m[3], 10, 64)
		all[m[1]+m[4]] = n
	}
	return all
}

// wanted are the same numbers as the API says them.
func wanted(s Status) map[string]int64 {
	want := map[string]int64{
		"saved-today": s.Saved.Today, "saved-week": s.Saved.Week, "saved-total": s.Saved.Total, "saved-start": s.SavedBytes,
		"bytes-store": s.Unpacked.Store, "bytes-cache": s.Unpacked.Cache, "bytes-peer": s.Unpacked.Peer, "bytes-upstream": s.Unpacked.Upstream,
		"transfers-total": int64(s.TransfersTotal), "peers": int64(s.Peers), "shared": s.StorePathsShared,
		"upstream-bytes": s.UpstreamBytes, "peer-received": s.PeerReceivedBytes, "peer-sent": s.PeerSentBytes,
	}
	if s.Cache.Limit > 0 {
		want["cache-bytes"] = s.Cache.Bytes
	}
	for source, r := range s.Requests {
		want["req-"+source+"-hit"], want["req-"+source+"-miss"], want["req-"+source+"-timeout"] = r.Hit, r.Miss, r.Timeout
	}
	return want
}

// TestPageNumbers: each number on the page is that of the API.
func TestPageNumbers(t *testing.T) {
	s, m := start(t, madeUp(12, 5, 6))
	count(m)
	c := Client{Addr: strings.TrimPrefix(s.URL, "http://")}
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	resp, body := do(t, s, "GET", "/")
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/html; charset=utf-8" {
		t.Fatalf("%s %v", resp.Status, resp.Header)
	}
	got, want := values(body), wanted(st)
	for name, n := range want {
		if have, ok := got[name]; !ok || have != n {
			t.Errorf("%s: the page says %d (%v), the API %d", name, have, ok, n)
		}
	}
	if len(got) != len(want) {
		t.Errorf("the page has %d numbers with a name, %d are compared", len(got), len(want))
	}
}

// TestPageHostile: what others chose never becomes markup.
func TestPageHostile(t *testing.T) {
	const evil = `"'><script>alert(1)</script><img src=x onerror=alert(1)> {{.}} javascript:alert(1)`
	f := &fake{
		state: State{
			Conditions: []Condition{{Text: evil}},
			Upstreams:  []Upstream{{URL: evil, Why: evil, LastError: evil}, {URL: evil, Up: true, LastError: evil}},
			Store:      Store{Database: evil},
			Transfers:  []Transfer{{Direction: evil, StorePath: evil, NarHash: evil, Form: evil, Source: evil, Peer: evil}, {Direction: Out, Peer: evil, NarHash: evil}, {Direction: Nix, Source: evil}},
			Failures:   []Failure{{What: evil, Source: evil, StorePath: evil, Error: evil}},
		},
		peers: []Peer{{ID: evil, Addresses: []string{evil}, FoundBy: evil, Standing: evil}, {Addresses: []string{"/ip4/" + evil}}},
		why: func(context.Context, nix.StoreHash) []Answer {
			return []Answer{{Source: evil, Result: Result(evil), Err: evil, StorePath: evil, Signers: []string{evil}, Forms: []string{evil}}}
		},
	}
	s, _ := start(t, f)
	for _, ready := range []error{nil, errors.New(evil)} {
		f.ready = ready
		for _, path := range []string{"/", "/?path=" + hash, "/?path=%22%3E%3Cscript%3Ealert(1)%3C/script%3E"} {
			_, body := do(t, s, "GET", path)
			if n := strings.Count(body, "<script"); n != 1 {
				t.Errorf("%s: %d scripts", path, n)
			}
			for _, bad := range []string{"<img", "onerror=alert(1)>", `href="javascript`, "style="} {
				if strings.Contains(body, bad) {
					t.Errorf("%s: has %q", path, bad)
				}
			}
			if !strings.Contains(html.UnescapeString(body), evil) {
				t.Errorf("%s: the text is not there at all", path)
			}
		}
	}
}

// TestPageSize: a large site's page stays small enough for any line.
func TestPageSize(t *testing.T) {
	s, m := start(t, madeUp(64, 160, 32))
	count(m)
	_, body := do(t, s, "GET", "/?path="+hash)
	t.Logf("%d bytes", len(body))
	if len(body) > 300<<10 {
		t.Errorf("%d bytes", len(body))
	}
	if n := strings.Count(body, "<tr data-key=\"12D3"); n != 64 {
		t.Errorf("%d peers", n)
	}
	if !strings.Contains(body, "The largest 64 of 80.") {
		t.Error("not said that transfers are missing")
	}
}

func BenchmarkPage(b *testing.B) {
	m := metrics.New()
	count(m)
	h, err := New(Config{Node: madeUp(64, 80, 32), Metrics: m, Addr: "127.0.0.1:7655", Version: "v1"})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = "localhost"
		h.ServeHTTP(w, r)
		if w.Code != 200 {
			b.Fatal(w.Code)
		}
		b.ReportMetric(float64(w.Body.Len()), "page-bytes")
	}
}

// TestLookup asks for what people put into the box.
func TestLookup(t *testing.T) {
	f := madeUp(0, 0, 0)
	answers := f.why
	var asked []string
	f.why = func(ctx context.Context, h nix.StoreHash) []Answer {
		asked = append(asked, h.String())
		return answers(ctx, h)
	}
	s, _ := start(t, f)
	for _, c := range []struct{ in, want string }{
		{nix.StoreDir + "/" + hash + "-hello-2.12", "It would come from a peer."},
		{nix.StoreDir + "/" + hash + "-hello-2.12/bin/hello", "It would come from a peer."},
		{hash + "-hello-2.12", "It would come from a peer."},
		{" " + hash + "\n", "It would come from a peer."},
		{"hello", "That is no store path."},
		{strings.ToUpper(hash), "That is no store path."},
		{"/etc/passwd", "it is not in /nix/store."},
		{"/" + hash, "it is not in /nix/store."},
		{strings.Repeat("a", 5000), "it is too long"},
		{"  ", "<div id=\"answer\" aria-live=\"polite\"></div>"},
	} {
		asked = nil
		resp, body := do(t, s, "GET", "/", func(r *http.Request) {
			q := r.URL.Query()
			q.Set("path", c.in)
			r.URL.RawQuery = q.Encode()
		})
		if resp.StatusCode != 200 || !strings.Contains(body, c.want) {
			t.Errorf("%q: %s, lacks %q", c.in, resp.Status, c.want)
		}
		if shown := strings.Contains(body, "connection refused</td>"); shown != (len(asked) == 1) || len(asked) == 1 && asked[0] != hash {
			t.Errorf("%q: asked for %q, answers shown: %v", c.in, asked, shown)
		}
	}
}

func TestVerdict(t *testing.T) {
	has := func(source string) Answer { return Answer{Source: source, Result: Has} }
	for _, c := range []struct {
		answers []Answer
		want    string
	}{
		{[]Answer{has("upstream"), has("store")}, "own store"},
		{[]Answer{has("upstream"), has("cache")}, "NAR cache"},
		{[]Answer{has("upstream"), has("peer")}, "a peer"},
		{[]Answer{{Source: "store", Result: Invalid}, has("upstream")}, "an upstream"},
		{[]Answer{has("disk")}, "No source has it."}, // a remembered narinfo has no bytes
		{[]Answer{{Source: "store", Result: Absent}, {Source: "upstream", Result: Unavailable}}, "not all could"},
		{nil, "No source has it."},
	} {
		if got := verdict(c.answers); !strings.Contains(got, c.want) {
			t.Errorf("%+v: %s", c.answers, got)
		}
	}
}

func TestChart(t *testing.T) {
	at := time.Date(2026, 3, 1, 0, 0, 0, 0, time.Local)
	named := func(t time.Time) string { return t.Format("15") }
	c := newChart("x", "X", []Bucket{
		{Start: at},
		{Start: at.Add(time.Hour), Bytes: Bytes{Store: 1 << 30, Upstream: 1 << 30}},
		{Start: at.Add(2 * time.Hour), Bytes: Bytes{Peer: 1}},
		{Start: at.Add(3 * time.Hour), Bytes: Bytes{Cache: 3 << 30}},
	}, named, named)
	if c.Top != 3<<30 || c.Half != 3<<29 {
		t.Errorf("lines at %d and %d", c.Top, c.Half)
	}
	if len(c.Bars) != 4 || len(c.Bars[0].Parts) != 0 || c.Bars[0].Text != "00: nothing" {
		t.Errorf("%+v", c.Bars)
	}
	if p := c.Bars[1].Parts; len(p) != 2 || p[0] != (part{"store", "66.67%", "33.33%"}) || p[1] != (part{"upstream", "33.33%", "33.33%"}) {
		t.Errorf("%+v", p)
	}
	if p := c.Bars[2].Parts; len(p) != 1 || p[0] != (part{"peer", "98.8%", "1.2%"}) {
		t.Errorf("one byte is not seen: %+v", p)
	}
	if c.Bars[1].Left != "27.75%" || c.Bars[1].Width != "19.5%" {
		t.Errorf("%+v", c.Bars[1])
	}
	if want := "2.0 GiB, of which 1.0 GiB from own store, 1.0 GiB from upstream"; c.Bars[1].Text != "01: "+want {
		t.Error(c.Bars[1].Text)
	}
	if len(c.Rows) != 4 || c.Rows[0].Name != "03" || c.Rows[0].Cache != 3<<30 {
		t.Errorf("%+v", c.Rows)
	}
	if empty := newChart("x", "X", nil, named, named); empty.Top != 1<<10 || empty.Summary != "nothing" {
		t.Errorf("%+v", empty)
	}
	for n, want := range map[int64]int64{0: 1 << 10, 1025: 2 << 10, 801 << 10: 1 << 20, 1 << 20: 1 << 20, 1<<63 - 1: 1<<63 - 1} {
		if got := roundUp(n); got != want {
			t.Errorf("%d: %d, want %d", n, got, want)
		}
	}
}

func TestNotShared(t *testing.T) {
	if got := (Store{Paths: 9, Shared: 9}).NotShared(); got != "" {
		t.Error(got)
	}
	if got := (Store{Trusted: 1, Unsigned: 2, Addressed: 3, Untrusted: 1234, Unreadable: 5}).NotShared(); got != "1 signed by a trusted key that is not a share key, 2 built here, 3 sources and fixed outputs, 1,234 signed by keys that are not trusted, 5 unreadable" {
		t.Error(got)
	}
}

func TestWords(t *testing.T) {
	now := time.Date(2026, 3, 2, 9, 0, 0, 0, time.Local)
	for _, c := range [][2]string{
		{FormatClock(now.Add(-time.Hour), now), "08:00:00"},
		{FormatClock(now.Add(-10*time.Hour), now), "1 Mar 23:00"},
		{formatCount(1234567), "1,234,567"},
		{formatCount(int64(-123)), "-123"},
		{formatCount(12), "12"},
		{FormatMS(0), "–"}, {FormatMS(.04), "< 0.1 ms"}, {FormatMS(9.96), "10 ms"},
		{host("/ip4/10.0.0.1/tcp/7656"), "10.0.0.1"}, {host("/ip6/fd00::1/tcp/1"), "fd00::1"}, {host("/x"), "/x"}, {host(""), ""}, {host("10.0.0.1:3"), "10.0.0.1:3"},
		{ShortID("12D3KooWabcdefgh"), "…abcdefgh"}, {ShortID("short"), "short"},
		{pathName(nix.StoreDir + "/" + hash + "-hello"), "hello"}, {pathName("x"), "x"},
		{pathHash(nix.StoreDir + "/" + hash + "-hello"), hash}, {pathHash("x"), ""},
		{shareText(0, 0), "0 %"}, {shareText(1, 1000), "< 1 %"}, {shareText(999, 1000), "> 99 %"}, {shareText(1000, 1000), "100 %"}, {shareText(1, 3), "33 %"},
	} {
		if c[0] != c[1] {
			t.Errorf("%q, want %q", c[0], c[1])
		}
	}
}
