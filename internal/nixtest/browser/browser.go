// Package browser drives a real browser in tests. It is for what only a browser can show: what a
// page of another site can do to a listener on this machine, and whether our own page works.
package browser

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

const (
	// Require makes a missing browser a failure instead of a reason to skip.
	Require = "NIXP2P_REQUIRE_CHROMIUM"
	// Evil is a host name that the browser resolves to 127.0.0.1, as after DNS rebinding.
	Evil = "evil.example"
	// limit bounds each step. A browser is slow on a busy machine.
	limit = 60 * time.Second
)

// Browser is a browser without windows, with a profile of its own.
type Browser struct {
	newTab func(...chromedp.ContextOption) (context.Context, context.CancelFunc)
}

// Start starts a browser that ends with the test. The test is skipped if there is none.
func Start(t testing.TB) *Browser {
	t.Helper()
	name, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv(Require) != "" {
			t.Fatal("there is no chromium")
		}
		t.Skip("skipped: there is no chromium")
	}
	options := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(name), chromedp.UserDataDir(t.TempDir()), chromedp.WSURLReadTimeout(limit), chromedp.DisableGPU,
		chromedp.Flag("no-proxy-server", true), chromedp.Flag("force-color-profile", "srgb"),
		chromedp.Flag("host-resolver-rules", "MAP "+Evil+" 127.0.0.1"),
	}
	if os.Getuid() == 0 {
		options = append(options, chromedp.NoSandbox) // it refuses to run as root with one
	}
	main, end := chromedp.NewContext(context.Background(), chromedp.WithAllocatorOptions(options...))
	t.Cleanup(func() {
		_ = chromedp.Cancel(main)
		end()
	})
	if err := chromedp.Do(main); err != nil {
		t.Fatal(err)
	}
	return &Browser{func(more ...chromedp.ContextOption) (context.Context, context.CancelFunc) {
		return chromedp.NewContext(main, append(more, chromedp.WithNewBrowserContext())...)
	}}
}

// Tab is a page.
type Tab struct {
	t testing.TB
	// within runs f with the context of the page.
	within func(f func(context.Context) error) error

	mu       sync.Mutex
	problems []string
}

// Open opens an empty page of this size; less than 600 wide is a phone.
func (b *Browser) Open(t testing.TB, width, height int64) *Tab {
	t.Helper()
	tab := &Tab{t: t}
	ctx, end := b.newTab(chromedp.WithListener(tab.event))
	t.Cleanup(end)
	if err := chromedp.Do(ctx); err != nil { // without a time-out: it would end the page
		t.Fatal(err)
	}
	tab.within = func(f func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		return f(ctx)
	}
	tab.Do(chromedp.EmulateViewport(width, height, func(p *emulation.SetDeviceMetricsOverrideParams, _ *emulation.SetTouchEmulationEnabledParams) {
		p.Mobile = width < 600
	}))
	return tab
}

// event records what must not appear in the browser's console.
func (tab *Tab) event(event any) {
	problem := ""
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		problem = fmt.Sprintf("exception: %v", e.ExceptionDetails.Text)
	case *runtime.EventConsoleAPICalled:
		if e.Type == "error" || e.Type == "warning" {
			problem = fmt.Sprintf("console.%s", e.Type)
		}
	case *log.EventEntryAdded:
		if e.Entry.Level == "error" || e.Entry.Level == "warning" {
			problem = e.Entry.Text + " " + e.Entry.URL
		}
	}
	if problem != "" {
		tab.mu.Lock()
		defer tab.mu.Unlock()
		tab.problems = append(tab.problems, problem)
	}
}

// Problems returns what the console showed since the last call.
func (tab *Tab) Problems() []string {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	list := tab.problems
	tab.problems = nil
	return list
}

// Do runs actions of chromedp.
func (tab *Tab) Do(actions ...chromedp.Action[chromedp.Void]) {
	tab.t.Helper()
	if err := tab.within(func(ctx context.Context) error { return chromedp.Do(ctx, actions...) }); err != nil {
		tab.t.Fatal(err)
	}
}

// Load opens an address and waits until it is loaded.
func (tab *Tab) Load(url string) {
	tab.t.Helper()
	tab.Do(chromedp.Navigate(url))
}

// Before runs a script before those of each page that is loaded later.
func (tab *Tab) Before(script string) {
	tab.t.Helper()
	tab.Do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: script})
		return err
	}))
}

// Eval returns the value of an expression; of a promise, the value that it resolves to.
func Eval[T any](tab *Tab, expression string) (v T) {
	tab.t.Helper()
	err := tab.within(func(ctx context.Context) (err error) {
		v, err = chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
		return err
	})
	if err != nil {
		tab.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// Until waits until an expression is true.
func (tab *Tab) Until(expression string) {
	tab.t.Helper()
	err := tab.within(func(ctx context.Context) error {
		_, err := chromedp.Run(ctx, chromedp.Poll[bool](expression, chromedp.WithPollingTimeout(limit/2)))
		return err
	})
	if err != nil {
		tab.t.Fatalf("never true: %s: %v", expression, err)
	}
}

// Screenshot writes a picture of the whole page.
func (tab *Tab) Screenshot(file string) {
	tab.t.Helper()
	const png = 100
	err := tab.within(func(ctx context.Context) error {
		picture, err := chromedp.Run(ctx, chromedp.FullScreenshot(png))
		if err != nil {
			return err
		}
		return os.WriteFile(file, picture, 0o600)
	})
	if err != nil {
		tab.t.Fatal(err)
	}
}

// Rebind loads address, which is on 127.0.0.1, under the name of another site, and returns the
// text that a script of that site can read.
func (tab *Tab) Rebind(address string) string {
	tab.t.Helper()
	tab.Load(strings.Replace(address, "127.0.0.1", Evil, 1))
	return Eval[string](tab, `document.documentElement.textContent`)
}

// CrossSite lets a page of another site try to load address in each way that needs no
// permission. It returns the ways that worked. A fetch works if anything was answered with
// success, as far as that page can tell.
func (tab *Tab) CrossSite(address string) []string {
	tab.t.Helper()
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, "<!doctype html><title>another site</title>")
	}))
	defer site.Close()
	to, err := url.Parse(site.URL)
	if err != nil {
		tab.t.Fatal(err)
	}
	tab.Load("http://" + Evil + ":" + to.Port() + "/")
	return Eval[[]string](tab, fmt.Sprintf(`(async () => {
		const url = %q, worked = [];
		const element = (name, attribute) => new Promise((done) => {
			const e = document.createElement(name);
			e.onload = () => done(true); e.onerror = () => done(false);
			e[attribute] = url; if (name === "link") e.rel = "stylesheet";
			document.head.append(e);
		});
		for (const [name, attribute] of [["script", "src"], ["img", "src"], ["link", "href"]]) if (await element(name, attribute)) worked.push(name);
		try { if ((await (await fetch(url)).text()).length > 0) worked.push("fetch"); } catch {}
		try { await fetch(url, { method: "POST", mode: "no-cors", body: "{}" }); } catch {}
		return worked;
	})()`, address))
}
