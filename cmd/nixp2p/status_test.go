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

// TestSaved: what is saved is what the upstream would have sent, by its own log, once for each
// NAR: not the bytes of the NARs, and not again for what comes out of the own cache. Page, API,
// command line and metrics say the same, also after a restart.
func TestSaved(t *testing.T) {
	t.Parallel()
	key := nixtest.NewKey("cache.example.org-1")
	paths := closure(12, 60<<10, 3<<20)
	up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: paths, Keys: []nixtest.Key{key}, Compression: nix.XZ})
	s := newSite(t, 2, "--upstream", up.URL(), "--trusted-public-key", key.Public(), "--share-key", key.Name)
	a, b := s.nodes[0], s.nodes[1]
	all := func(d *process) {
		t.Helper()
		if err := d.fetchAll(paths); err != nil {
			t.Fatal(err)
		}
	}
	all(a)
	eventually(t, func() bool { // B hears what A has
		var peers []admin.Peer
		_, body := b.get(b.admin + "/api/v1/peers")
		return json.Unmarshal([]byte(body), &peers) == nil && len(peers) == 1 && peers[0].Paths == int64(len(paths))
	})
	byA := up.Bytes(nixtest.NarFile)
	all(b)
	byB := up.Bytes(nixtest.NarFile) - byA // nothing, but on a machine so busy that a peer is late
	all(a)
	all(b)
	check := func(d *process, total, since int64) {
		t.Helper()
		var s admin.Status
		eventually(t, func() bool { // it is booked when a response has ended
			_, body := d.get(d.admin + "/api/v1/status")
			return json.Unmarshal([]byte(body), &s) == nil && s.Saved.Total >= total && s.SavedBytes >= since
		})
		if s.Saved.Spans != (admin.Spans{Today: total, Week: total, Total: total}) || s.SavedBytes != since {
			t.Errorf("API: %+v, %d since the start; want %d, %d", s.Saved, s.SavedBytes, total, since)
		}
		if n := int64(d.metric("nixp2p_saved_bytes_total")); n != since {
			t.Errorf("metric: %d, want %d", n, since)
		}
		if n := int64(d.metric("nixp2p_saved_estimated_bytes_total")); n != s.SavedEstimated || s.Saved.Estimated.Total > total {
			t.Errorf("estimated: %d by the metric, %d by the API, %+v", n, s.SavedEstimated, s.Saved.Estimated)
		}
		at := []string{"--config", os.DevNull, "--admin-listen", strings.TrimPrefix(d.admin, "http://")}
		out, _, code := command(t, append([]string{"status"}, at...)...)
		if code != 0 || !strings.Contains(out, savedText(s.Saved)) || strings.Contains(out, "\x1b") {
			t.Errorf("status: %d, want %s\n%s", code, savedText(s.Saved), out)
		}
		if _, page := d.get(d.admin + "/"); !strings.Contains(page, humanSize(total)+"</data>") {
			t.Errorf("the page lacks %s", humanSize(total))
		}
	}
	var files int64
	for _, p := range paths {
		files += int64(len(up.File(p)))
	}
	check(a, 0, 0)
	// People know what is in the cache by the names of packages.
	if out, _, code := command(t, "gc", "--config", os.DevNull, "--admin-listen", strings.TrimPrefix(a.admin, "http://")); code != 0 || !strings.Contains(out, " path-0\n") {
		t.Errorf("gc: %d\n%s", code, out)
	}
	check(b, files-byB, files-byB)
	b.restart(b.args...)
	all(b)
	check(b, files-byB, 0)
}

// Lines of a transfer that has begun and not ended.
var (
	toNix = regexp.MustCompile(`(?m)^upstream → Nix +█+░+ +\d\d?% +32 MiB +\S+ [KM]iB/s +hello$`)
)

// TestTransfersSeen: what is on its way is on the command line, with how far it is, and gone
// when it has ended.
func TestTransfersSeen(t *testing.T) {
	t.Parallel()
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
		return toNix.MatchString(out) && strings.Count(out, "hello") == 1
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
	t.Parallel()
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
	s.Conditions = []admin.Condition{{Text: "this machine has no peers: listen on a port that is taken by something else " + evil, Hint: evil}, {Text: evil, Note: true}}
	s.Machine, s.Nix.Conf = evil, evil
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
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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
