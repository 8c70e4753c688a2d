package admin

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
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
func (c *changing) Trim(max int64) (any, error)                       { return c.Load().Trim(max) }
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

// asked waits until the page was asked for n times.
func (s *site) asked(tb *tab, n int64) {
	tb.t.Helper()
	for limit := time.Now().Add(20 * time.Second); s.read.Load() < n; {
		if time.Now().After(limit) {
			tb.t.Fatal("the page is not asked for any more")
		}
		tb.eval(wait(50), nil)
	}
}

// hasty makes the page's two seconds a fifth of one and keeps what they were.
func hasty(tb *tab) {
	tb.t.Helper()
	tb.do("Page.addScriptToEvaluateOnNewDocument", params{"source": `{ const slow = setInterval; window.setInterval = (f, ms) => { window.interval = ms; return slow(f, ms / 10); }; }`}, nil)
}

// numbers returns the numbers with a name that the browser shows.
const numbers = `Object.fromEntries([...document.querySelectorAll("data[id]")].map((d) => [d.id, Number(d.value ?? d.getAttribute("value"))]))`

func (s *site) compare(t *testing.T, tb *tab) {
	t.Helper()
	st, err := (&Client{Addr: strings.TrimPrefix(s.URL, "http://")}).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]int64
	tb.eval(numbers, &got)
	for name, n := range wanted(st) {
		if have, ok := got[name]; !ok || have != n {
			t.Errorf("%s: the browser shows %d (%v), the API says %d", name, have, ok, n)
		}
	}
}

func quiet(t *testing.T, tb *tab) {
	t.Helper()
	for _, c := range tb.complained() {
		t.Errorf("the browser complains: %s", c)
	}
}

// TestInBrowser looks at the page with a real browser.
func TestInBrowser(t *testing.T) {
	if testing.Short() {
		t.Skip("short: no browser")
	}
	c := startChromium(t)
	t.Run("updates itself", func(t *testing.T) { testUpdates(t, c) })
	t.Run("daemon away", func(t *testing.T) { testAway(t, c) })
	t.Run("look-up", func(t *testing.T) { testLookup(t, c) })
	t.Run("without scripts", func(t *testing.T) { testNoScript(t, c) })
	t.Run("keyboard", func(t *testing.T) { testKeyboard(t, c) })
	t.Run("widths", func(t *testing.T) { testWidths(t, c) })
	t.Run("contrast", func(t *testing.T) { testContrast(t, c) })
	t.Run("hostile", func(t *testing.T) { testHostile(t, c) })
	t.Run("rebound", func(t *testing.T) { testRebound(t, c) })
	t.Run("pictures", func(t *testing.T) { testPictures(t, c) })
}

// testUpdates: new figures come without a new page; focus, selection, opened tables and
// scrolling stay; nothing is asked while the page is hidden or paused.
func testUpdates(t *testing.T, c *chromium) {
	s := startSite(t)
	s.node.Store(madeUp(40, 5, 5))
	tb := c.open(t, 1280, 900)
	hasty(tb)
	tb.load(s.URL + "/")
	s.compare(t, tb)
	tb.until(`window.interval === 2000`)
	tb.eval(`window.same = true; document.querySelector("#hours details").open = true;
		document.querySelector("#site .scroll").scrollTop = 40;
		window.row = document.querySelector("#site tbody tr"); document.querySelector("#transfers a").focus();
		getSelection().selectAllChildren(document.querySelector("#upstreams li strong"));`, nil)

	next := madeUp(41, 3, 6)
	next.state.Saved.Total, next.state.Saved.Today = 500<<30, 91<<30
	next.state.Upstreams[0].URL = "https://other.example"
	next.peers[40].SentBytes = 1 << 50 // comes first
	s.node.Store(next)
	s.m.NarBytes.WithLabelValues("peer").Add(1 << 30)
	s.m.Peers.Set(41)
	tb.until(`document.getElementById("saved-total").value === "` + fmt.Sprint(500<<30) + `"`)
	s.compare(t, tb)
	for what, is := range map[string]string{
		"the page was read anew":           `window.same`,
		"the table was closed":             `document.querySelector("#hours details").open`,
		"the scrolling was lost":           `document.querySelector("#site .scroll").scrollTop > 0`,
		"the focus was lost":               `document.activeElement.closest("#transfers")`,
		"the selection was lost":           `getSelection().toString() === "https://cache.nixos.org"`,
		"selected text was changed":        `document.querySelector("#upstreams li strong").textContent === "https://cache.nixos.org"`,
		"a row of a peer became another's": `window.row.isConnected && window.row.previousElementSibling?.dataset.key === "` + peerID(40) + `"`,
		"rows of peers are missing":        `document.querySelectorAll("#site tbody tr").length === 41`,
		"transfers that ended are there":   `document.querySelectorAll("#transfers li").length === 3`,
		"the title does not follow":        `document.title === "nixp2p"`,
	} {
		var ok bool
		if tb.eval("!!("+is+")", &ok); !ok {
			t.Error(what)
		}
	}
	tb.eval(`getSelection().removeAllRanges()`, nil)
	tb.until(`document.querySelector("#upstreams li strong").textContent === "https://other.example"`)

	// What is shown after updates is what a fresh page shows.
	worse := madeUp(2, 0, 0)
	worse.state.Degraded = []string{"the NAR cache cannot write"}
	s.node.Store(worse)
	tb.until(`document.title === "Degraded: nixp2p"`)
	const shown = `[...document.querySelectorAll("[data-live]")].filter((e) => !["asof", "about"].includes(e.id)).map((e) => e.outerHTML.replace(' open=""', "")).join("\n")`
	var updated, fresh string
	tb.eval(shown, &updated)
	other := c.open(t, 1280, 900)
	other.do("Emulation.setScriptExecutionDisabled", params{"value": true}, nil)
	other.load(s.URL + "/")
	if other.eval(shown, &fresh); updated != fresh {
		t.Errorf("after updates the page is\n%s\na fresh one is\n%s", updated, fresh)
	}

	// Five intervals pass without a question; then there is one at once.
	const look = `document.dispatchEvent(new Event("visibilitychange"))`
	for _, way := range [][2]string{
		{`document.getElementById("pause").click()`, `document.getElementById("pause").click()`},
		{`Object.defineProperty(document, "hidden", { configurable: true, get: () => true }); ` + look, `delete document.hidden; ` + look},
	} {
		tb.eval(way[0], nil)
		was := s.read.Load()
		for range 20 { // what was asked before is answered
			tb.eval(wait(500), nil)
			if n := s.read.Load(); n == was {
				break
			} else {
				was = n
			}
		}
		tb.eval(wait(1000), nil)
		if n := s.read.Load() - was; n != 0 {
			t.Errorf("asked %d times while nobody looks", n)
		}
		tb.eval(way[1], nil)
		s.asked(tb, was+1)
	}
	quiet(t, tb)

	// Another version may have another page.
	s.version(t, "1.0.1")
	tb.arrive()
	tb.until(`window.same === undefined && document.querySelector("meta[name=version]").content === "1.0.1"`)
}

// wait is a promise of a time in the page.
func wait(ms int) string {
	return fmt.Sprintf("new Promise((done) => setTimeout(done, %d))", ms)
}

// testAway: a daemon that is gone is said to be gone, and that it is back.
func testAway(t *testing.T, c *chromium) {
	s := startSite(t)
	tb := c.open(t, 1280, 900)
	hasty(tb)
	tb.load(s.URL + "/")
	quiet(t, tb)
	s.away.Store(true)
	tb.until(`!document.getElementById("away").hidden && document.getElementById("away").textContent.startsWith("The daemon does not answer.")`)
	picture(tb, "away")
	s.away.Store(false)
	tb.until(`document.getElementById("away").hidden && !document.body.classList.contains("stale")`)
}

// testLookup uses the box as a person does, by the keyboard.
func testLookup(t *testing.T, c *chromium) {
	s := startSite(t)
	tb := c.open(t, 1280, 900)
	hasty(tb)
	tb.load(s.URL + "/")
	tb.eval(`window.same = true; document.getElementById("path").focus()`, nil)
	tb.do("Input.insertText", params{"text": hash + "-hello"}, nil)
	tb.key("Enter", 13)
	tb.until(`document.querySelector("#answer .verdict")?.textContent === "It would come from a peer."`)
	tb.until(`window.same && location.search === "?path=` + hash + `-hello" && document.activeElement.id === "path"`)
	quiet(t, tb)
	s.asked(tb, s.read.Load()+2) // the answer outlives updates
	tb.until(`!!document.querySelector("#answer .verdict")`)
	picture(tb, "lookup")
	tb.eval(`document.getElementById("path").select()`, nil)
	tb.do("Input.insertText", params{"text": "hello"}, nil)
	tb.key("Enter", 13)
	tb.until(`document.getElementById("mistake")?.textContent.startsWith("it looks like /nix/store/") && document.getElementById("path").getAttribute("aria-invalid") === "true"`)
	tb.eval(`history.back()`, nil)
	tb.until(`document.getElementById("path").value === "` + hash + `-hello" && !!document.querySelector("#answer .verdict")`)
	tb.eval(`document.querySelector("#transfers a").click()`, nil)
	tb.until(`window.same && location.search.length === 38 && document.activeElement.id === "path"`)
	quiet(t, tb)
}

// testNoScript: all is there without JavaScript, and the look-up box works.
func testNoScript(t *testing.T, c *chromium) {
	s := startSite(t)
	tb := c.open(t, 1280, 900)
	tb.do("Emulation.setScriptExecutionDisabled", params{"value": true}, nil)
	tb.load(s.URL + "/")
	s.compare(t, tb)
	var bars int
	if tb.eval(`document.querySelectorAll("#hours .bar, #days .bar").length`, &bars); bars != 54 {
		t.Errorf("%d bars", bars)
	}
	var again bool
	if tb.eval(`document.querySelector("noscript a").checkVisibility() && !document.getElementById("pause").checkVisibility()`, &again); !again {
		t.Error("no way to read it again, or a button that does nothing")
	}
	tb.eval(`document.getElementById("path").focus()`, nil)
	tb.do("Input.insertText", params{"text": "/nix/store/" + hash + "-hello"}, nil)
	tb.key("Enter", 13)
	tb.arrive()
	var verdict string
	if tb.eval(`document.querySelector("#answer .verdict")?.textContent ?? document.body.textContent`, &verdict); verdict != "It would come from a peer." {
		t.Errorf("answer: %s", verdict)
	}
	quiet(t, tb)
}

// testKeyboard goes through the page with the tab key.
func testKeyboard(t *testing.T, c *chromium) {
	s := startSite(t)
	tb := c.open(t, 1280, 900)
	tb.load(s.URL + "/")
	var order []string
	for range 14 {
		tb.key("Tab", 9)
		var at struct {
			Name    string
			Visible bool
		}
		tb.eval(`(() => { const e = document.activeElement, r = e.getBoundingClientRect(), s = getComputedStyle(e);
			return { Name: e.closest("section[id]")?.id + " " + e.tagName + " " + (e.id || e.className), Visible: r.width > 0 && r.height > 0 && r.right > 0 && s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 2 }; })()`, &at)
		if !at.Visible {
			t.Errorf("the focus on %q cannot be seen", at.Name)
		}
		if len(order) == 0 || order[len(order)-1] != at.Name {
			order = append(order, at.Name)
		}
	}
	want := "undefined A skip|undefined BUTTON pause|hours SUMMARY |days SUMMARY |lookup INPUT path|lookup BUTTON |transfers A |failures UL rows scroll tall"
	if got := strings.Join(order, "|"); !strings.HasPrefix(got, want) {
		t.Errorf("order\n%s\nwant\n%s", got, want)
	}
	tb.load(s.URL + "/")
	tb.key("Tab", 9)
	tb.key("Enter", 13)
	tb.until(`document.activeElement.id === "main"`)

	// What assistive programs need to find their way.
	for what, is := range map[string]string{
		"a section without a name":        `[...document.querySelectorAll("section")].every((s) => document.getElementById(s.getAttribute("aria-labelledby"))?.textContent)`,
		"a reference to nothing":          `[...document.querySelectorAll("[aria-labelledby],[aria-describedby]")].every((e) => ((e.getAttribute("aria-labelledby") ?? "") + " " + (e.getAttribute("aria-describedby") ?? "")).trim().split(/\s+/).every((id) => document.getElementById(id)))`,
		"an identity twice":               `new Set([...document.querySelectorAll("[id]")].map((e) => e.id)).size === document.querySelectorAll("[id]").length`,
		"a table without headers":         `[...document.querySelectorAll("table")].every((t) => t.querySelector("th[scope=col]") && t.querySelector("th[scope=row]"))`,
		"a picture without words":         `[...document.querySelectorAll("svg")].every((s) => s.getAttribute("aria-hidden") === "true" || (s.getAttribute("role") === "img" && s.querySelector(":scope > title").textContent && s.querySelector(":scope > desc").textContent))`,
		"a progress bar without a name":   `[...document.querySelectorAll("progress")].every((p) => p.getAttribute("aria-label"))`,
		"no landmarks":                    `["header", "main", "footer", "nav[aria-label]", "[role=search]", "#state[role=status]", "#troubles[role=status]", "#away[role=alert]", "[role=log]"].every((s) => document.querySelectorAll(s).length === 1)`,
		"not one first heading":           `document.querySelectorAll("h1").length === 1`,
		"a target too small for a finger": `[...document.querySelectorAll("button, summary, input, nav a")].every((e) => !e.checkVisibility() || e.getBoundingClientRect().height >= 24)`,
	} {
		var ok bool
		if tb.eval("!!("+is+")", &ok); !ok {
			t.Error(what)
		}
	}
	quiet(t, tb)
}

// testWidths: no width scrolls sideways, whatever the page has to show.
func testWidths(t *testing.T, c *chromium) {
	s := startSite(t)
	long := madeUp(64, 64, 32)
	word := strings.Repeat("x", 300)
	long.state.Degraded = []string{word}
	long.state.Failures[0].Error, long.state.Upstreams[0].URL, long.peers[0].Standing = word, "https://"+word, "liar: "+word
	long.state.Transfers[0].StorePath = nix.StoreDir + "/" + hash + "-" + word[:200]
	long.state.Transfers[1].StorePath = ""
	long.peers[1].Addresses = []string{"/ip6/2001:db8:1234:5678:9abc:def0:1234:5678/tcp/7656"}
	s.node.Store(long)
	tb := c.open(t, 320, 800)
	tb.load(s.URL + "/?path=" + hash)
	tb.eval(`for (const d of document.querySelectorAll("details")) d.open = true`, nil)
	for _, width := range []int{320, 360, 390, 599, 600, 768, 1024, 1280, 1920} {
		tb.size(width, 800)
		tb.until(fmt.Sprintf("innerWidth === %d || document.documentElement.scrollWidth > %[1]d", width))
		var wide struct {
			Scroll, Client int
			Who            []string
		}
		tb.eval(`(() => { const d = document.documentElement; return { Scroll: d.scrollWidth, Client: d.clientWidth, Who: [...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > d.clientWidth && !e.closest(".scroll *, .what *")).map((e) => e.tagName + "." + e.getAttribute("class") + "#" + e.id + " " + e.textContent.slice(0, 20)).slice(0, 8) }; })()`, &wide)
		if wide.Scroll > wide.Client || wide.Client != width {
			t.Errorf("%d wide: the page is %d in %d, because of %q", width, wide.Scroll, wide.Client, wide.Who)
		}
	}
	quiet(t, tb)
}

// testContrast measures each text against what is behind it (WCAG 2.2, 1.4.3: 4.5 to 1), and
// the colours of the pictures against the card (1.4.11: 3 to 1).
func testContrast(t *testing.T, c *chromium) {
	s := startSite(t)
	n := madeUp(12, 5, 5)
	n.state.Degraded = []string{"the NAR cache cannot write"}
	s.node.Store(n)
	for _, scheme := range []string{"light", "dark"} {
		tb := c.open(t, 1280, 900)
		tb.do("Emulation.setEmulatedMedia", params{"features": []params{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
		for _, path := range []string{"/?path=" + hash, "/?path=x"} {
			tb.load(s.URL + path)
			var bad []string
			tb.eval(`(() => {
				const rgb = (c) => (c.match(/[\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
				const light = (c) => { const [r, g, b] = rgb(c).map((x) => (x /= 255, x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4)); return .2126 * r + .7152 * g + .0722 * b; };
				const ratio = (a, b) => { const [x, y] = [light(a), light(b)]; return (Math.max(x, y) + .05) / (Math.min(x, y) + .05); };
				const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor, a = rgb(c)[3] ?? 1; if (a === 1) return c; } return getComputedStyle(document.documentElement).backgroundColor; };
				const bad = [];
				for (const e of document.querySelectorAll("body *")) {
					if (!e.checkVisibility() || ![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || e.closest("title, desc, .bar")) continue;
					const style = getComputedStyle(e), colour = e.closest("svg") ? style.fill : style.color, r = ratio(colour, behind(e));
					if (r < 4.5) bad.push(e.tagName + "." + (e.getAttribute("class") ?? "") + " " + e.textContent.trim().slice(0, 30) + " " + r.toFixed(2));
				}
				const card = getComputedStyle(document.querySelector("section")).backgroundColor;
				for (const name of ["--store", "--cache", "--peer", "--upstream", "--edge", "--accent", "--focus"]) {
					const p = document.createElement("p"); document.body.append(p); p.attributeStyleMap.set("color", "var(" + name + ")");
					const r = ratio(getComputedStyle(p).color, card); p.remove();
					if (r < 3) bad.push(name + " " + r.toFixed(2));
				}
				return [...new Set(bad)];
			})()`, &bad)
			for _, b := range bad {
				t.Errorf("%s: %s", scheme, b)
			}
		}
	}
}

// testHostile: what others chose runs nothing.
func testHostile(t *testing.T, c *chromium) {
	s := startSite(t)
	const evil = `"><script>window.evil = 1</script><img src="/x" onerror="window.evil = 1"><svg onload="window.evil = 1">`
	n := madeUp(3, 3, 3)
	n.peers[0].ID, n.peers[0].Addresses, n.peers[0].Standing = evil, []string{evil}, evil
	n.state.Failures[0].Error, n.state.Transfers[0].StorePath, n.state.Upstreams[0].URL = evil, evil, evil
	tb := c.open(t, 1280, 900)
	hasty(tb)
	tb.load(s.URL + "/")
	s.node.Store(n) // comes in by an update
	tb.until(`document.querySelector("#upstreams strong").textContent.startsWith("\">")`)
	tb.load(s.URL + "/?path=%22%3E%3Cscript%3Ewindow.evil=1%3C/script%3E")
	var is bool
	if tb.eval(`window.evil === undefined && !document.querySelector("main img")`, &is); !is {
		t.Error("somebody else's text became part of the page")
	}
}

// testRebound: a name that somebody else made resolve to this machine shows nothing.
func testRebound(t *testing.T, c *chromium) {
	s := startSite(t)
	tb := c.open(t, 1280, 900)
	tb.load(strings.Replace(s.URL, "127.0.0.1", "evil.example", 1) + "/")
	var text string
	if tb.eval(`document.body.textContent`, &text); !strings.HasPrefix(text, "the Host header is neither") {
		t.Errorf("it says %.200q", text)
	}
	if n := s.read.Load(); n != 1 {
		t.Errorf("asked %d times: not the request that was meant", n)
	}
}

// picture writes one if they are wanted.
func picture(tb *tab, name string) {
	if dir := os.Getenv(shotsDir); dir != "" {
		tb.shoot(filepath.Join(dir, name+".png"))
	}
}

// testPictures takes pictures to be looked at by people.
func testPictures(t *testing.T, c *chromium) {
	if os.Getenv(shotsDir) == "" {
		t.Skip(shotsDir + " names no directory for pictures")
	}
	s := startSite(t)
	busy := madeUp(64, 64, 32)
	busy.state.Degraded = []string{"the NAR cache cannot write: no space left on device; everything streams through"}
	busy.state.Store.Complete, busy.state.Store.Quarantined = false, 2
	empty := &fake{state: State{Upstreams: []Upstream{{URL: "https://cache.nixos.org", Up: true}}, Store: Store{Database: "live", Complete: true}}}
	for _, p := range []struct {
		name          string
		node          *fake
		scheme        string
		width, height int
		path          string
	}{
		{"light", madeUp(12, 5, 5), "light", 1280, 900, "/"},
		{"dark", madeUp(12, 5, 5), "dark", 1280, 900, "/"},
		{"phone", madeUp(12, 5, 5), "light", 390, 844, "/"},
		{"phone-dark", madeUp(12, 5, 5), "dark", 390, 844, "/?path=" + hash},
		{"busy", busy, "light", 1280, 900, "/?path=" + hash},
		{"busy-phone", busy, "light", 360, 800, "/?path=x"},
		{"empty", empty, "light", 1280, 900, "/"},
	} {
		s.node.Store(p.node)
		s.m.Peers.Set(float64(len(p.node.peers)))
		tb := c.open(t, p.width, p.height)
		tb.do("Emulation.setEmulatedMedia", params{"features": []params{{"name": "prefers-color-scheme", "value": p.scheme}}}, nil)
		tb.load(s.URL + p.path)
		picture(tb, p.name)
	}
	tb := c.open(t, 1280, 900)
	tb.load(s.URL + "/")
	tb.do("Emulation.setEmulatedMedia", params{"media": "print"}, nil)
	picture(tb, "print")
}
