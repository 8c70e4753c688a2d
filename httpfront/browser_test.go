package httpfront

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/nixp2p/nixp2p/internal/source"
)

// requireChromium makes a missing browser a failure.
const requireChromium = "NIXP2P_REQUIRE_CHROMIUM"

// browser starts Chromium, in which evil.example is this machine.
func browser(t *testing.T) context.Context {
	t.Helper()
	name, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv(requireChromium) != "" {
			t.Fatal("there is no chromium")
		}
		t.Skip("THERE IS NO chromium: the substituter is not attacked by a browser")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(name), chromedp.NoSandbox, chromedp.Flag("host-resolver-rules", "MAP evil.example 127.0.0.1"))...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	return ctx
}

// TestBrowser: what a web page in a real browser of this machine learns from the substituter: that
// it is there, and nothing else.
func TestBrowser(t *testing.T) {
	f := newFake(t)
	var asked atomic.Int64
	f.asked = func(context.Context, source.Scope, bool) { asked.Add(1) }
	handler := newHandler(t, f)
	front, _ := serve(t, handler)
	// The attacker's site. When it is rebound, its name leads to the substituter.
	var rebound atomic.Bool
	site, _ := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if rebound.Load() {
			handler.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte("<html><body>hello</body></html>"))
	}))
	ctx := browser(t)
	if err := chromedp.Do(ctx, chromedp.Navigate(strings.Replace(site, "127.0.0.1", "evil.example", 1)+"/")); err != nil {
		t.Fatal(err)
	}
	eval := func(expression string) string {
		t.Helper()
		got, err := chromedp.Run(ctx, chromedp.Evaluate[string](expression, chromedp.EvalAwaitPromise))
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	private, absent := "/"+secret.Hash().String()+".narinfo", "/"+strings.Repeat("0", 32)+".narinfo"
	for _, path := range []string{private, absent, "/" + secretName.URL()} {
		script := fmt.Sprintf(`new Promise(done => { const s = document.createElement("script");
			s.onload = () => done("load"); s.onerror = () => done("error"); s.src = %q; document.body.append(s); })`, front+path)
		if got := eval(script); got != "error" {
			t.Errorf("a script from %s: %s", path, got)
		}
		for _, mode := range []string{"no-cors", "cors"} {
			eval(fmt.Sprintf(`fetch(%q, {mode: %q, cache: "no-store"}).then(() => "", () => "")`, front+path, mode))
		}
	}
	rebound.Store(true)
	for _, path := range []string{private, "/nix-cache-info", "/" + secretName.URL()} {
		if got := eval(fmt.Sprintf(`fetch(%q, {cache: "no-store"}).then(r => r.status + "")`, path)); got != "404" {
			t.Errorf("rebound, %s: %s", path, got)
		}
	}
	if n := asked.Load(); n > 0 {
		t.Errorf("the page caused %d questions", n)
	}
	if err := chromedp.Do(ctx, chromedp.Navigate(front+"/nix-cache-info")); err != nil {
		t.Errorf("typed by hand: %v", err)
	}
	if got := eval(`document.body.innerText`); !strings.Contains(got, "StoreDir") {
		t.Errorf("typed by hand: %q", got)
	}
}
