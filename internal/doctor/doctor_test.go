package doctor

import (
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixconf"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// only returns the single finding.
func only(t *testing.T, all []Finding) Finding {
	t.Helper()
	if len(all) != 1 {
		t.Fatalf("%+v", all)
	}
	return all[0]
}

func TestWifi(t *testing.T) {
	sys := t.TempDir()
	add := func(link, state string, wireless bool) {
		dir := filepath.Join(sys, "class/net", link)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if wireless {
			if err := os.Mkdir(filepath.Join(dir, "wireless"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "operstate"), []byte(state+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := &facts{Config: Config{P2P: true, Sys: sys}}
	look := func() Finding { return only(t, checkWifi(t.Context(), p)) }
	add("eth0", "up", false)
	add("wlan0", "down", true)
	if f := look(); f.Level != OK {
		t.Errorf("Wi-Fi down: %+v", f)
	}
	add("wlan1", "up", true)
	if f := look(); f.Level != Warning || !strings.Contains(f.Message, "wlan1") || !strings.Contains(f.Hint, "swarm-key") {
		t.Errorf("Wi-Fi up: %+v", f)
	}
	for _, c := range []Config{{P2P: true, Closed: true, Sys: sys}, {Sys: sys}} {
		if f := only(t, checkWifi(t.Context(), &facts{Config: c})); f.Level != OK {
			t.Errorf("%+v: %+v", c, f)
		}
	}
}

func TestPeerPorts(t *testing.T) {
	p := &facts{Config: Config{P2PListen: []string{"/ip4/0.0.0.0/tcp/7656", "/ip6zone/eth0/ip6/fe80::1/tcp/7657", "/ip4/127.0.0.1/tcp/0", "/dns/x/tcp/1", "junk"}}}
	if got := fmt.Sprint(p.peerPorts()); got != "[0.0.0.0:7656 [fe80::1]:7657]" {
		t.Errorf("%s", got)
	}
}

func TestCheckPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	for m, want := range map[string]Level{
		fmt.Sprintf("/ip4/0.0.0.0/tcp/%d", port): OK, fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port): OK,
		"/ip4/127.0.0.1/tcp/1": Failure, "/ip4/127.0.0.1/tcp/0": Unknown,
	} {
		p := &facts{Config: Config{P2P: true, P2PListen: []string{m}}, status: &admin.Status{}}
		if f := only(t, checkPort(t.Context(), p)); f.Level != want {
			t.Errorf("%s: %+v", m, f)
		}
	}
}

func TestCheckPeers(t *testing.T) {
	on := Config{P2P: true}
	for _, tt := range []struct {
		p    facts
		want []Level
	}{
		{facts{}, []Level{OK}},
		{facts{Config: on}, []Level{Unknown}},
		{facts{Config: on, status: &admin.Status{}}, []Level{Warning}},
		{facts{Config: on, status: &admin.Status{Peers: 2}, peers: []admin.Peer{{ID: "a", Paths: 3, Standing: "good"}, {ID: "b", Standing: "silent"}}}, []Level{OK}},
		{facts{Config: on, status: &admin.Status{Peers: 1}, peers: []admin.Peer{{ID: "a", Standing: "good"}, {ID: "b", Standing: "liar: bad hash"}}}, []Level{OK, Warning}},
	} {
		var got []Level
		for _, f := range checkPeers(t.Context(), &tt.p) {
			got = append(got, f.Level)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%v, want %v", got, tt.want)
		}
	}
}

// The clock goes by certificates and by what upstreams say, and does not blame a single one.
func TestCheckClock(t *testing.T) {
	at := func(off time.Duration) probe { return probe{url: "http://x", date: time.Now(), off: off} }
	expired := probe{url: "https://x", err: fmt.Errorf("tls: %w", x509.CertificateInvalidError{Reason: x509.Expired})}
	for _, tt := range []struct {
		name   string
		probes []probe
		want   Level
	}{
		{"nobody says", []probe{{}}, Unknown},
		{"right", []probe{at(3 * time.Second), at(-4 * time.Minute)}, OK},
		{"ahead", []probe{at(time.Hour)}, Failure},
		{"behind", []probe{at(-15 * time.Minute)}, Failure},
		{"two opinions", []probe{at(time.Hour), at(0)}, Warning},
		{"certificate", []probe{expired}, Failure},
	} {
		if f := only(t, checkClock(t.Context(), &facts{probes: tt.probes})); f.Level != tt.want {
			t.Errorf("%s: %+v", tt.name, f)
		}
	}
}

func TestProbe(t *testing.T) {
	key, path := nixtest.NewKey("k-1"), nixtest.NewPath("p", 10)
	up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: []nixtest.Path{path}, Keys: []nixtest.Key{key}})
	if pr := probeOne(t.Context(), up.URL()+"?priority=3"); pr.err != nil || pr.date.IsZero() || pr.off.Abs() > time.Minute || pr.url != up.URL() {
		t.Errorf("%+v", pr)
	}
	if pr := probeOne(t.Context(), "http://user:secret@127.0.0.1:1/x"); pr.err == nil || strings.Contains(pr.url+pr.err.Error(), "secret") {
		t.Errorf("%+v", pr)
	}
	dir := t.TempDir()
	if pr := probeOne(t.Context(), "file://"+dir); pr.err == nil {
		t.Errorf("%+v", pr)
	}
	if err := os.WriteFile(filepath.Join(dir, "nix-cache-info"), []byte("StoreDir: /nix/store\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if pr := probeOne(t.Context(), "file://"+dir); pr.err != nil {
		t.Errorf("%+v", pr)
	}
}

// A mirror that is down is a warning as long as another one answers.
func TestCheckUpstream(t *testing.T) {
	ill := errors.New("ill")
	status := &admin.Status{State: admin.State{Upstreams: []admin.Upstream{{URL: "http://a/", Up: true}, {URL: "http://b/", Why: "refused"}}}, Ready: true}
	absent := []admin.Answer{{Source: "peer", Result: admin.Has}, {Source: "upstream", Result: admin.Absent, TookMS: 12}}
	for _, tt := range []struct {
		name   string
		probes []probe
		tried  []admin.Answer
		want   []Level
		says   string
	}{
		{"none", nil, absent, []Level{Warning}, "no upstream"},
		{"well", []probe{{url: "http://a"}}, absent, []Level{OK}, "asked through the node: 1 cache, http://a first, after 12 ms"},
		{"too slow for the node", []probe{{url: "http://a"}}, nil, []Level{Warning}, "the node got no answer from its caches within 3s"},
		{"the node is refused", []probe{{url: "http://a"}}, []admin.Answer{{Source: "upstream", Result: admin.Unavailable, Err: "status 407"}}, []Level{Failure}, "the node gets no answer from its caches: status 407"},
		{"one of two", []probe{{url: "http://a"}, {url: "c", err: ill}}, absent, []Level{Warning, OK}, "c cannot be reached: ill"},
		{"all", []probe{{url: "http://d", err: ill}, {url: "c", err: ill}}, absent, []Level{Failure, Failure}, "http://d cannot be reached"},
		{"the node does not ask it", []probe{{url: "http://a"}, {url: "http://b"}}, absent, []Level{Warning, OK}, "the node does not ask http://b: refused"},
		{"the node does not ask the only one", []probe{{url: "http://b"}}, absent, []Level{Failure}, "the node does not ask http://b: refused"},
		{"the node does not have it", []probe{{url: "http://n"}}, absent, []Level{Failure}, "the running node does not have http://n"},
	} {
		var got []Level
		all := checkUpstream(t.Context(), &facts{probes: tt.probes, status: status, tried: tt.tried})
		for _, f := range all {
			got = append(got, f.Level)
		}
		if !slices.Equal(got, tt.want) || !strings.Contains(all[0].Message, tt.says) {
			t.Errorf("%s: %+v, want %v", tt.name, all, tt.want)
		}
	}
}

// TestConditions: what the node says of a part is said in its words, and nothing is fine where
// it wanted something and did not get it.
func TestConditions(t *testing.T) {
	p := &facts{status: &admin.Status{State: admin.State{Conditions: []admin.Condition{
		{Part: "port", Text: "listen tcp :7656: address already in use", Hint: "stop it"}, {Part: "mdns", Text: "no mDNS over IPv4"},
		{Part: "links", Text: "virbr0 is left out", Note: true},
	}}}}
	if got := p.withConditions("port", append(ok("listening"), unknown("perhaps")...)); fmt.Sprint(got) != "[{port unknown perhaps } {port warning listen tcp :7656: address already in use stop it}]" {
		t.Errorf("%+v", got)
	}
	if got := p.withConditions("links", ok("fine")); fmt.Sprint(got) != "[{links ok fine } {links ok virbr0 is left out }]" {
		t.Errorf("%+v", got)
	}
	if got := p.otherParts(map[string]bool{"port": true}); !slices.Equal(got, []string{"mdns", "links"}) {
		t.Errorf("%v", got)
	}
}

// TestRules: rules as nft, iptables, NixOS and firewalld write them.
func TestRules(t *testing.T) {
	const open = "table inet filter {\n\tchain input {\n\t\ttype filter hook input priority filter; policy accept;\n"
	for _, tt := range []struct {
		name, rules, want string // of what is found, "" for nothing
	}{
		{"none", "", ""},
		{"open", open + "\t}\n}\n", ""},
		{"a rule drops the port", open + "\t\ttcp dport 7656 drop\n\t}\n}\n", "a firewall rule keeps peers out of port 7656: tcp dport 7656 drop"},
		{"a rule rejects several", open + "\t\ttcp dport { 80, 7656 } reject\n\t}\n}\n", "a firewall rule keeps peers out of port 7656"},
		{"mDNS dropped", open + "\t\tudp dport 5353 drop\n\t}\n}\n", "a firewall rule keeps peers out of port 5353"},
		{"iptables", "-P INPUT ACCEPT\n-A INPUT -p tcp -m tcp --dport 7656 -j DROP\n", "a firewall rule keeps peers out of port 7656"},
		{"default drop", strings.Replace(open, "accept", "drop", 1) + "\t\ttcp dport 22 accept\n\t}\n}\n", "no rule names 7656/tcp"},
		{"default drop, let in", strings.Replace(open, "accept", "drop", 1) + "\t\ttcp dport 7656 accept\n\t\tudp dport 5353 accept\n\t}\n}\n", ""},
		{"NixOS", "-P INPUT ACCEPT\n-A nixos-fw -p tcp -m tcp --dport 7656 -j nixos-fw-accept\n-A nixos-fw -j nixos-fw-log-refuse\n", "no rule names 5353/udp"},
		{"another port", open + "\t\ttcp dport 17656 drop\n\t}\n}\n", ""},
	} {
		f := judgeRules(tt.rules, "7656", true)[0]
		if f.Level == OK != (tt.want == "") || tt.want != "" && !strings.Contains(f.Message, tt.want) {
			t.Errorf("%s: %+v", tt.name, f)
		}
	}
}

func TestHints(t *testing.T) {
	for want, err := range map[string]error{
		"name server": &net.OpError{Op: "dial", Err: &net.DNSError{}},
		"clock":       x509.CertificateInvalidError{Reason: x509.Expired},
		"proxy":       x509.UnknownAuthorityError{},
		"log in":      source.ErrWebPage,
		"URL":         &answerError{"404 Not Found"},
		"network":     errors.New("other"),
	} {
		if got := hintFor(err); !strings.Contains(got, want) {
			t.Errorf("%v: %s", err, got)
		}
	}
}

// How the node is written in nix.conf does not matter to whether it is used.
func TestUsed(t *testing.T) {
	p := &facts{Config: Config{URL: "http://127.0.0.1:7654"}}
	for url, want := range map[string]bool{
		"http://127.0.0.1:7654": true, "http://127.0.0.1:7654/": true, "http://localhost:7654": true, "http://127.0.0.1:7654?priority=1": true,
		"http://[::1]:7654": true, "http://127.0.0.1:7655": false, "https://cache.nixos.org": false,
	} {
		p.settings.Substituters = []string{"https://a", url}
		if as, got := p.used(); got != want || got && as != url {
			t.Errorf("%s: %t (%s)", url, got, as)
		}
	}
	for s, want := range map[string]string{"http://a": "http://a 0 false", "http://a?priority=7": "http://a 7 true", "http://a?x=1&priority=7": "http://a 7 true", "http://a?priority=x": "http://a 0 false"} {
		at, n, given := withPriority(s)
		if got := fmt.Sprintf("%s %d %t", at, n, given); got != want {
			t.Errorf("%s: %s", s, got)
		}
	}
}

func TestCheckKeys(t *testing.T) {
	a, b, other := nixtest.NewKey("a-1").Public(), nixtest.NewKey("b-1").Public(), "a-1:"+strings.Repeat("A", 43)+"="
	for _, tt := range []struct {
		nix, ours []string
		sigs      bool
		want      []Level
	}{
		{[]string{a, b}, []string{a}, true, []Level{OK}},
		{[]string{a}, []string{a, b}, true, []Level{Warning}},
		{[]string{b}, []string{a}, true, []Level{Failure}},
		{[]string{other}, []string{a}, true, []Level{Failure}},
		{[]string{a}, []string{a}, false, []Level{Warning}},
	} {
		p := &facts{Config: Config{TrustedKeys: tt.ours}, settings: nixconf.Settings{TrustedPublicKeys: tt.nix, RequireSigs: tt.sigs}}
		var got []Level
		for _, f := range checkKeys(t.Context(), p) {
			got = append(got, f.Level)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%v: %v, want %v", tt, got, tt.want)
		}
	}
}

func TestShared(t *testing.T) {
	for _, tt := range []struct {
		store admin.Store
		want  []Level
		text  string
	}{
		{admin.Store{Database: "none"}, []Level{Unknown}, "no database"},
		{admin.Store{Database: "live", Complete: true}, []Level{OK}, "0 of 0 paths"},
		{admin.Store{Database: "live", Complete: true, Paths: 9, Shared: 4, Unsigned: 3, Addressed: 2}, []Level{OK}, "4 of 9 paths can be shared; not 3 built here, 2 sources"},
		{admin.Store{Database: "live", Complete: true, Paths: 1, Trusted: 1}, []Level{Warning}, "not a share key"},
		{admin.Store{Database: "live", Paths: 1}, []Level{OK}, "still counting"},
		{admin.Store{Database: "live", Complete: true, Paths: 2, Shared: 2, Quarantined: 1}, []Level{OK, Warning}, "2 of 2"},
	} {
		p := &facts{status: &admin.Status{Ready: true, State: admin.State{Store: tt.store}}}
		all := checkShared(t.Context(), p)
		var got []Level
		for _, f := range all {
			got = append(got, f.Level)
		}
		if !slices.Equal(got, tt.want) || !strings.Contains(all[0].Message, tt.text) {
			t.Errorf("%+v: %+v", tt.store, all)
		}
	}
}

func TestRoom(t *testing.T) {
	dir := t.TempDir()
	free, nodes, err := room(filepath.Join(dir, "not/yet/there"))
	if err != nil || free == 0 || nodes == 0 {
		t.Errorf("%d bytes, %d inodes, %v", free, nodes, err)
	}
}

// memoryFile writes what Nix would remember of a cache.
func memoryFile(t *testing.T, url string, wal bool, absences map[string]time.Time) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "binary-cache-v6.sqlite")
	db, err := sql.Open("sqlite", name)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	exec := func(text string, args ...any) {
		t.Helper()
		if _, err := db.Exec(text, args...); err != nil {
			t.Fatal(err)
		}
	}
	if wal {
		exec(`PRAGMA journal_mode = wal`)
	}
	exec(`CREATE TABLE BinaryCaches (id integer primary key autoincrement not null, url text unique not null, timestamp integer not null,
		storeDir text not null, wantMassQuery integer not null, priority integer not null)`)
	exec(`CREATE TABLE NARs (cache integer not null, hashPart text not null, timestamp integer not null, present integer not null, primary key (cache, hashPart))`)
	exec(`INSERT INTO BinaryCaches VALUES (7, ?1, ?2, '/nix/store', 1, 40)`, url, time.Now().Unix())
	for hash, at := range absences {
		exec(`INSERT INTO NARs VALUES (7, ?1, ?2, 0)`, hash, at.Unix())
	}
	exec(`INSERT INTO NARs VALUES (7, 'present', ?1, 1)`, time.Now().Unix())
	exec(`INSERT INTO NARs VALUES (8, 'elsewhere', ?1, 0)`, time.Now().Unix())
	return name
}

func TestReadMemory(t *testing.T) {
	const url = "http://127.0.0.1:7654"
	fresh, old := strings.Repeat("a", 32), strings.Repeat("b", 32)
	for _, wal := range []bool{false, true} {
		name := memoryFile(t, url, wal, map[string]time.Time{fresh: time.Now(), old: time.Now().Add(-2 * time.Hour), "junk": time.Now()})
		m, err := readMemory(t.Context(), name, url+"/?trusted=1", time.Now().Add(-time.Hour))
		if err != nil || m == nil || m.priority != 40 || m.absences != 2 || len(m.absent) != 1 || m.absent[0].String() != fresh {
			t.Errorf("wal %t: %+v, %v", wal, m, err)
		}
		if m, err := readMemory(t.Context(), name, "http://127.0.0.1:1", time.Now()); m != nil || err != nil {
			t.Errorf("of another: %+v, %v", m, err)
		}
		if left, _ := filepath.Glob(name + "*"); len(left) != 1 {
			t.Errorf("left behind: %v", left)
		}
	}
	for text, name := range map[string]string{"": "empty", "no database, but long enough for the header of one": "junk"} {
		name = filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readMemory(t.Context(), name, url, time.Now()); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

// What Nix remembers as absent is no fault as long as it is.
func TestCheckRemembered(t *testing.T) {
	gone, here := strings.Repeat("a", 32), strings.Repeat("b", 32)
	mux := http.NewServeMux()
	mux.HandleFunc("/"+here+".narinfo", func(http.ResponseWriter, *http.Request) {})
	srv := &http.Server{Handler: mux} //nolint:gosec // ends with the test
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	defer func() { _ = srv.Close(); <-done }()
	at := l.Addr().String()
	for _, tt := range []struct {
		name     string
		absences []string
		priority int
		up       bool
		want     Level
	}{
		{"nothing", nil, 40, true, OK},
		{"rightly", []string{gone}, 40, true, OK},
		{"wrongly", []string{gone, here}, 40, true, Warning},
		{"node down", []string{gone}, 40, false, Warning},
		{"other priority", nil, 30, true, Warning},
	} {
		absences := map[string]time.Time{}
		for _, h := range tt.absences {
			absences[h] = time.Now()
		}
		name := memoryFile(t, "http://"+at, false, absences)
		cache := filepath.Join(filepath.Dir(name), "nix")
		if err := errors.Join(os.Mkdir(cache, 0o755), os.Rename(name, filepath.Join(cache, filepath.Base(name)))); err != nil {
			t.Fatal(err)
		}
		env := map[string]string{"XDG_CACHE_HOME": filepath.Dir(cache)}
		p := &facts{Config: Config{Listen: at, URL: "http://" + at, Getenv: func(k string) string { return env[k] }}, settings: nixconf.Defaults()}
		if tt.up {
			p.front = &nix.CacheInfo{Priority: tt.priority}
		}
		// What root's Nix remembers may be closed to whoever runs the tests.
		all := slices.DeleteFunc(checkRemembered(t.Context(), p), func(f Finding) bool { return f.Level == Unknown })
		if f := only(t, all); f.Level != tt.want {
			t.Errorf("%s: %+v", tt.name, f)
		}
	}
}

// What does not answer costs its time and no more, and a look that does not heed its context
// is left behind.
func TestRunEnds(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	r := run(t.Context(), Config{Listen: "127.0.0.1:1", AdminListen: "127.0.0.1:1", Getenv: func(string) string { return "" }}, []check{
		{"stuck", func(context.Context, *facts) []Finding { <-release; return nil }},
		{"well", func(context.Context, *facts) []Finding { return ok("well") }},
		{"slow", func(ctx context.Context, _ *facts) []Finding { <-ctx.Done(); return warn("wait", "slow") }},
	}, 100*time.Millisecond)
	if fmt.Sprint(r.Findings) != "[{stuck unknown no answer within 100ms } {well ok well } {slow warning slow wait}]" || r.Failures != 0 || r.Warnings != 1 {
		t.Errorf("%+v", r)
	}
}
