package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest/browser"
)

// shotsDir names a directory for pictures of the page.
const shotsDir = "NIXP2P_SCREENSHOTS"

// changing is a Node that can become another one while it is asked.
type changing struct{ atomic.Pointer[fake] }

func (c *changing) Ready() error                                      { return c.Load().Ready() }
func (c *changing) State() State                                      { return c.Load().State() }
func (c *changing) Peers() []Peer                                     { return c.Load().Peers() }
func (c *changing) History() History                                  { return c.Load().History() }
func (c *changing) Why(ctx context.Context, h nix.StoreHash) []Answer { return c.Load().Why(ctx, h) }
func (c *changing) TrimPlan(max int64) (any, error)                   { return c.Load().TrimPlan(max) }
func (c *changing) Follow(ctx context.Context, dry bool) ([]FollowPlan, error) {
	return c.Load().Follow(ctx, dry)
}
func (c *changing) Trim(max int64) (any, error) { return c.Load().Trim(max) }
func (c *changing) Prefetch(ctx context.Context, h nix.StoreHash, dry bool) (Prefetched, error) {
	return c.Load().Prefetch(ctx, h, dry)
}

// site is a listener for browser tests: its data can be changed, and it can stop answering.
type site struct {
	*httptest.Server
	node changing
	page atomic.Pointer[Handler]
	m    *metrics.Metrics
	away atomic.Bool
	read atomic.Int64 // how often the page was asked for
}

func startSite(t *testing.T) *site {
	s := &site{m: metrics.New()}
	s.node.Store(madeUp(12, 5, 5))
	count(s.m)
	s.m.Peers.Set(12)
	s.version(t, "1.0.0")
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.away.Load() {
			panic(http.ErrAbortHandler)
		}
		if r.URL.Path == "/" {
			s.read.Add(1)
		}
		s.page.Load().ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

// version makes it a daemon of this version.
func (s *site) version(t *testing.T, version string) {
	t.Helper()
	h, err := New(Config{Node: &s.node, Metrics: s.m, Addr: "127.0.0.1:7655", Version: version, Started: time.Now().Add(-77 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	s.page.Store(h)
}

// fast makes the page refresh ten times as often.
const fast = `{ const slow = setInterval; window.setInterval = (f, ms) => slow(f, ms / 10); }`

// numbers are the numbers with a name that the browser shows.
const numbers = `Object.fromEntries([...document.querySelectorAll("data[id]")].map((d) => [d.id, Number(d.value ?? d.getAttribute("value"))]))`

// compare compares the page with the API.
func (s *site) compare(t *testing.T, tab *browser.Tab) {
	t.Helper()
	st, err := (&Client{Addr: strings.TrimPrefix(s.URL, "http://")}).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := browser.Eval[map[string]int64](tab, numbers)
	for name, n := range wanted(st) {
		if have, ok := got[name]; !ok || have != n {
			t.Errorf("%s: the browser shows %d (%v), the API %d", name, have, ok, n)
		}
	}
}

func quiet(t *testing.T, tab *browser.Tab) {
	t.Helper()
	for _, p := range tab.Problems() {
		t.Errorf("in the console: %s", p)
	}
}

// TestInBrowser looks at the page in a real browser, and lets other sites try to use it.
func TestInBrowser(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped: no browser with -short")
	}
	b := browser.Start(t)
	t.Run("updates", func(t *testing.T) { testUpdates(t, b) })
	t.Run("without scripts", func(t *testing.T) { testNoScript(t, b) })
	t.Run("hostile text", func(t *testing.T) { testHostileText(t, b) })
	t.Run("other sites", func(t *testing.T) { testOtherSites(t, b) })
	t.Run("screenshots", func(t *testing.T) { testScreenshots(t, b) })
}

// testUpdates: new figures appear without a reload, and the look-up box answers. A daemon that
// does not answer is said not to answer.
func testUpdates(t *testing.T, b *browser.Browser) {
	s := startSite(t)
	tab := b.Open(t, 1280, 900)
	tab.Before(fast)
	tab.Load(s.URL + "/")
	s.compare(t, tab)
	browser.Eval[bool](tab, `window.same = true`)
	next := madeUp(41, 3, 6)
	next.state.Saved.Total = 500 << 30
	s.node.Store(next)
	s.m.Peers.Set(41)
	tab.Until(`document.getElementById("saved-total").value === "` + fmt.Sprint(500<<30) + `"`)
	s.compare(t, tab)
	tab.Do(chromedp.SendKeys("#path", hash+"-hello\r"))
	tab.Until(`document.querySelector("#answer .verdict")?.textContent === "It would come from a peer."`)
	if !browser.Eval[bool](tab, `window.same === true`) {
		t.Error("the page was reloaded")
	}
	quiet(t, tab)
	s.away.Store(true)
	tab.Until(`!document.getElementById("away").hidden`)
	s.away.Store(false)
	tab.Until(`document.getElementById("away").hidden`)
}

// testNoScript: everything is there without JavaScript, and the look-up box works.
func testNoScript(t *testing.T, b *browser.Browser) {
	s := startSite(t)
	tab := b.Open(t, 1280, 900)
	tab.Do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
		return err
	}))
	tab.Load(s.URL + "/")
	s.compare(t, tab)
	tab.Load(s.URL + "/?path=" + hash + "-hello")
	if got := browser.Eval[string](tab, `document.querySelector("#answer .verdict")?.textContent ?? document.body.textContent`); got != "It would come from a peer." {
		t.Errorf("answer: %s", got)
	}
	quiet(t, tab)
}

// testHostileText: text that other machines chose runs nothing.
func testHostileText(t *testing.T, b *browser.Browser) {
	s := startSite(t)
	const evil = `"><script>window.evil = 1</script><img src="/x" onerror="window.evil = 1"><svg onload="window.evil = 1">`
	n := madeUp(3, 3, 3)
	n.peers[0].ID, n.peers[0].Addresses, n.peers[0].Standing = evil, []string{evil}, evil
	n.state.Failures[0].Error, n.state.Transfers[0].StorePath, n.state.Upstreams[0].URL = evil, evil, evil
	tab := b.Open(t, 1280, 900)
	tab.Before(fast)
	tab.Load(s.URL + "/")
	s.node.Store(n) // appears with the next update
	tab.Until(`document.querySelector("#upstreams strong").textContent.startsWith("\">")`)
	tab.Load(s.URL + "/?path=%22%3E%3Cscript%3Ewindow.evil=1%3C/script%3E")
	if !browser.Eval[bool](tab, `window.evil === undefined && !document.querySelector("main img")`) {
		t.Error("somebody else's text became part of the page")
	}
}

// testOtherSites: no page of another site reads anything, also not after DNS rebinding.
func testOtherSites(t *testing.T, b *browser.Browser) {
	s := startSite(t)
	tab := b.Open(t, 1280, 900)
	for _, path := range []string{"/", "/api/v1/status", "/metrics", "/style.css"} {
		if worked := tab.CrossSite(s.URL + path); len(worked) > 0 {
			t.Errorf("%s: %q", path, worked)
		}
	}
	if text := tab.Rebind(s.URL + "/api/v1/status"); strings.Contains(text, "uptime") {
		t.Errorf("after DNS rebinding: %.200q", text)
	}
}

// testScreenshots takes pictures for people.
func testScreenshots(t *testing.T, b *browser.Browser) {
	dir := os.Getenv(shotsDir)
	if dir == "" {
		t.Skip("skipped: " + shotsDir + " names no directory")
	}
	s := startSite(t)
	busy := madeUp(64, 64, 32)
	busy.state.Conditions = []Condition{{Part: "cache", Text: "the NAR cache cannot write: no space left on device; everything streams through"}}
	unused := madeUp(2, 2, 1)
	unused.state.Nix = NixUse{URL: "http://127.0.0.1:7654", Conf: "/etc/nix/nix.conf"}
	broken := &fake{ready: errors.New("/etc/nixp2p/config.toml:3: unknown key \"upstreams\"")}
	empty := &fake{state: State{Upstreams: []Upstream{{URL: "https://cache.nixos.org", Up: true}}, Store: Store{Database: "live", Complete: true}}}
	for _, p := range []struct {
		name          string
		node          *fake
		scheme        string
		width, height int64
		path          string
	}{
		{"light", madeUp(12, 5, 5), "light", 1280, 900, "/"},
		{"dark", madeUp(12, 5, 5), "dark", 1280, 900, "/"},
		{"phone", madeUp(12, 5, 5), "light", 390, 844, "/"},
		{"busy-phone", busy, "dark", 360, 800, "/?path=" + hash},
		{"dark-phone", madeUp(12, 5, 5), "dark", 390, 844, "/"},
		{"empty", empty, "light", 1280, 900, "/"},
		{"unused", unused, "light", 1280, 900, "/"},
		{"broken", broken, "light", 390, 844, "/"},
	} {
		s.node.Store(p.node)
		s.m.Peers.Set(float64(len(p.node.peers)))
		tab := b.Open(t, p.width, p.height)
		tab.Do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
			_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: p.scheme}},
			})
			return err
		}))
		tab.Load(s.URL + p.path)
		tab.Screenshot(filepath.Join(dir, p.name+".png"))
	}
}
