package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
)

// TestOneNumber: page, API, command line and metrics say the same, and what was saved is there
// after a restart.
func TestOneNumber(t *testing.T) {
	key := nixtest.NewKey("cache.example.org-1")
	p := nixtest.NewPath("hello", 3<<20)
	up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: []nixtest.Path{p}, Keys: []nixtest.Key{key}})
	args := []string{"--p2p=false", "--upstream", up.URL(), "--trusted-public-key", key.Public(), "--store-root", t.TempDir()}
	d := startDaemon(t, args...)
	for range 3 { // from the upstream, then twice from the cache
		if code, body := d.get(d.url + "/nar/" + nix.NARName{Store: p.Hash(), Nar: p.NarHash()}.String()); code != 200 || len(body) != len(p.NAR) {
			t.Fatalf("%d, %d bytes", code, len(body))
		}
	}
	size := int64(len(p.NAR))
	check := func(total, since int64) {
		t.Helper()
		eventually(t, func() bool { return d.metric("nixp2p_upstream_bytes_total") > 0 }) // its nix-cache-info is here
		var s admin.Status
		_, body := d.get(d.admin + "/api/v1/status")
		if err := json.Unmarshal([]byte(body), &s); err != nil {
			t.Fatal(err)
		}
		if s.Saved != (admin.Saved{Today: total, Week: total, Total: total}) || s.SavedBytes != since {
			t.Errorf("API: %+v, %d since the start; want %d, %d", s.Saved, s.SavedBytes, total, since)
		}
		if n := int64(d.metric("nixp2p_saved_bytes_total")); n != since {
			t.Errorf("metric: %d, want %d", n, since)
		}
		if got := s.Bytes; got.Cache != int64(d.metric("nixp2p_nar_bytes_total", `"cache"`)) || got.Upstream != int64(d.metric("nixp2p_nar_bytes_total", `"upstream"`)) {
			t.Errorf("by source: %+v", got)
		}
		if s.UpstreamBytes != int64(d.metric("nixp2p_upstream_bytes_total")) || s.Requests["none"].Miss != int64(d.metric("nixp2p_narinfo_requests_total", `"none"`, `"miss"`)) {
			t.Errorf("from upstreams %d, requests %v", s.UpstreamBytes, s.Requests)
		}
		var h admin.History
		_, body = d.get(d.admin + "/api/v1/history")
		if err := json.Unmarshal([]byte(body), &h); err != nil || len(h.Hours) != 24 || len(h.Days) != 30 {
			t.Fatalf("history: %v: %d hours, %d days", err, len(h.Hours), len(h.Days))
		}
		var hours, days int64
		for _, b := range h.Hours {
			hours += b.Saved
		}
		for _, b := range h.Days {
			days += b.Saved
		}
		if hours != total || days != total {
			t.Errorf("history: %d in hours, %d in days, want %d", hours, days, total)
		}
		out, _, code := command(t, "status", "--config", os.DevNull, "--admin-listen", strings.TrimPrefix(d.admin, "http://"))
		if want := "in all " + humanSize(total); code != 0 || !strings.Contains(out, want) {
			t.Errorf("status: %d\n%s", code, out)
		}
		if strings.Contains(out, "\x1b") {
			t.Error("colours in a pipe")
		}
		if _, page := d.get(d.admin + "/"); !strings.Contains(page, humanSize(total)) {
			t.Errorf("the page lacks %s", humanSize(total))
		}
	}
	check(2*size, 2*size)
	d.restart(args...)
	check(2*size, 0)
	d.get(d.url + "/nar/" + nix.NARName{Store: p.Hash(), Nar: p.NarHash()}.String())
	check(3*size, size)
}

// Lines of a transfer that has begun and not ended.
var (
	into  = regexp.MustCompile(`(?m)^upstream → cache +█+░+ +\d\d?% +32 MiB +\S+ [KM]iB/s +hello$`)
	toNix = regexp.MustCompile(`(?m)^upstream → Nix +█+░+ +\d\d?% +32 MiB .* hello$`)
)

// TestTransfersSeen: what is on its way is on the command line, with how far it is, and gone
// when it has ended.
func TestTransfersSeen(t *testing.T) {
	key := nixtest.NewKey("cache.example.org-1")
	p := nixtest.NewPath("hello", 32<<20)
	up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: []nixtest.Path{p}, Keys: []nixtest.Key{key}, Compression: nix.None})
	up.Set(nixtest.NarFile, nixtest.Fault{Rate: 2 << 20})
	d := startDaemon(t, "--p2p=false", "--upstream", up.URL(), "--trusted-public-key", key.Public(), "--store-root", t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	var client sync.WaitGroup
	defer client.Wait()
	defer cancel()
	client.Go(func() {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url+"/nar/"+nix.NARName{Store: p.Hash(), Nar: p.NarHash()}.String(), http.NoBody)
		if err != nil {
			return
		}
		if res, err := http.DefaultClient.Do(req); err == nil {
			_, _ = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
		}
	})
	at := []string{"--config", os.DevNull, "--admin-listen", strings.TrimPrefix(d.admin, "http://")}
	var out string
	eventually(t, func() bool {
		out, _, _ = command(t, append([]string{"status"}, at...)...)
		return into.MatchString(out) && toNix.MatchString(out)
	})
	cancel()
	client.Wait()
	eventually(t, func() bool {
		out, _, _ = command(t, append([]string{"status"}, at...)...)
		return !strings.Contains(out, "→ Nix")
	})
}

// syncBuffer takes the output of a process while a test looks at it.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// TestWatch: into a pipe one block follows the other until the end, through a restart of the
// daemon.
func TestWatch(t *testing.T) {
	d := startDaemon(t, "--p2p=false", "--upstream", "http://127.0.0.1:1", "--store-root", t.TempDir())
	cmd := exec.Command(os.Args[0], "status", "--watch", "--every", "100ms", "--config", os.DevNull, "--admin-listen", strings.TrimPrefix(d.admin, "http://"))
	cmd.Env = append(os.Environ(), beMain+"=1")
	var out, errs syncBuffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	blocks := func() int { return strings.Count(out.String(), "\nsaved ") }
	eventually(t, func() bool { return blocks() >= 2 })
	d.restart(d.args...)
	seen := blocks()
	eventually(t, func() bool { return blocks() >= seen+2 })
	_ = cmd.Process.Signal(os.Interrupt)
	if err := cmd.Wait(); err != nil {
		t.Errorf("ended with %v", err)
	}
	if n := strings.Count(errs.String(), "ask the daemon"); n > 1 {
		t.Errorf("told %d times that the daemon is not there:\n%s", n, errs.String())
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("the cursor was moved in a pipe")
	}
}

// busy is the status of a node that has everything.
func busy(now time.Time) admin.Status {
	evil := "\x1b]0;owned\x07 \u202e\r\n"
	s := admin.Status{
		Version: "1.2.3", Since: now.Add(-50 * time.Hour), UptimeSeconds: 50 * 3600, StorePathsShared: 100_000, Peers: 64,
		Bytes: admin.Bytes{Store: 5 << 40, Cache: 1, Peer: 3 << 30, Upstream: 7 << 20}, NotReady: evil,
		Requests: map[string]admin.Results{"memory": {Hit: 1e9}, "none": {Miss: 5, Timeout: 2}},
	}
	s.Degraded = []string{"this machine has no peers: listen on a port that is taken by something else " + evil}
	s.Cache = admin.Cache{Bytes: 5 << 30, Limit: 10 << 30, Entries: 1234}
	s.Upstreams = []admin.Upstream{
		{URL: "https://cache.nixos.org", Up: true, LatencyMS: 23, Since: now},
		{URL: "https://a-mirror-with-a-long-name.example.org/some/where", Why: "dial tcp: refused " + evil, Since: now.Add(-30 * time.Hour)},
	}
	s.TransfersTotal = 80
	for i := range 64 {
		s.Transfers = append(s.Transfers, admin.Transfer{
			Direction: []string{admin.In, admin.Out, admin.Nix}[i%3], Source: "upstream", Bytes: int64(i) << 20, Size: 64 << 20,
			BytesPerSecond: 1 << 20, StorePath: "/nix/store/" + strings.Repeat("a", 32) + "-some-package-with-a-long-name-1.2.3" + evil,
		})
	}
	for range 32 {
		s.Failures = append(s.Failures, admin.Failure{At: now, Times: 3, What: "gave wrong bytes, which were refused", Source: "peer", StorePath: "/nix/store/" + strings.Repeat("a", 32) + "-x", Error: evil + strings.Repeat("long ", 50)})
	}
	return s
}

// TestTerminal: nothing that others wrote reaches the terminal as anything but letters, and what is
// drawn in place is no wider than the terminal.
func TestTerminal(t *testing.T) {
	now := time.Now()
	peers := []admin.Peer{{ID: strings.Repeat("x", 52) + "\x1b", Standing: "liar: " + strings.Repeat("no ", 40), Addresses: []string{"/ip4/192.0.2.1/tcp/7656"}}, {ID: "", Standing: "good"}}
	for _, width := range []int{0, 20, 30, 40, 60, 80, 132, 300} {
		p := terminal{width: width}
		lines := append(p.status(busy(now), now), p.peers(peers)...)
		lines = append(lines, p.status(admin.Status{}, now)...)
		text := strings.Join(lines, "\n")
		for _, l := range p.cut(lines) {
			if n := utf8.RuneCountInString(l); width > 0 && n > width {
				t.Errorf("%d letters on %d: %q", n, width, l)
			}
			if strings.ContainsAny(l, "\x1b\x07\r\n\u202e") {
				t.Errorf("not clean: %q", l)
			}
		}
		for _, want := range []string{"saved", "RECENT ERRORS", "down", "and 70 more"} {
			if !strings.Contains(text, want) {
				t.Errorf("on %d letters %q is missing:\n%s", width, want, text)
			}
		}
	}
	colour := strings.Join(terminal{colour: true}.status(busy(now), now), "\n")
	if !strings.Contains(colour, "\x1b[31mdown\x1b[00m") || strings.Contains(colour, "\x1b]0;") {
		t.Error("no colours, or foreign ones")
	}
	if got := (terminal{colour: true, width: 3}).cut([]string{"\x1b[31mabcd\x1b[00m", "\x1b[31mabc\x1b[00m"}); got[0] != "\x1b[31mab\x1b[00m…\x1b[00m" || got[1] != "\x1b[31mabc\x1b[00m" {
		t.Errorf("%q", got)
	}
}

func TestProgress(t *testing.T) {
	for _, c := range []struct {
		done, size int64
		bar, text  string
	}{
		{0, 0, "░░░░░░░░░░░░", "–"}, {0, 100, "░░░░░░░░░░░░", "0%"}, {50, 100, "██████░░░░░░", "50%"}, {99, 100, "███████████░", "99%"},
		{100, 100, "████████████", "100%"}, {500, 100, "████████████", "100%"}, {-5, 100, "░░░░░░░░░░░░", "0%"},
	} {
		if got := progress(c.done, c.size); got != c.bar {
			t.Errorf("%d of %d: %s", c.done, c.size, got)
		}
		if got := percent(c.done, c.size); got != c.text {
			t.Errorf("%d of %d: %s", c.done, c.size, got)
		}
	}
}

// TestWhy: every answer is told whole.
func TestWhy(t *testing.T) {
	w := admin.Why{StoreHash: "h", Answers: []admin.Answer{
		{Source: "store", Result: admin.Absent, TookMS: 0.1},
		{Source: "peer", Result: admin.Invalid, TookMS: 12, Err: "signature \x1b[2J of nobody"},
		{Source: "upstream", Result: admin.Has, TookMS: 1234.5, StorePath: "/nix/store/" + strings.Repeat("a", 32) + "-hello", NarSize: 5 << 20, Signers: []string{"key-1"}, Forms: []string{"raw", "xz"}},
	}}
	var told bytes.Buffer
	if err := (&ui{out: &told}).why(w); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"1234 ms", "5.0 MiB", "signed by key-1", "holds raw, xz", "of nobody", "-hello"} {
		if !strings.Contains(told.String(), want) {
			t.Errorf("%s is missing:\n%s", want, &told)
		}
	}
	if strings.Contains(told.String(), "\x1b") {
		t.Errorf("not clean: %q", &told)
	}
	var out bytes.Buffer
	if err := (&ui{out: &out}).why(admin.Why{StoreHash: "h"}); !errors.Is(err, errSilent) || !strings.Contains(out.String(), "no source has h") {
		t.Errorf("nobody has it: %v\n%s", err, &out)
	}
}
