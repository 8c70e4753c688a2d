package browser

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/chromedp/chromedp"
)

// The helper sees what it is there for: a listener without checks is open to other sites.
func TestBrowser(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped: no browser with -short")
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/missing":
			http.NotFound(w, r)
		case r.URL.Path == "/guarded" && r.Header.Get("Sec-Fetch-Site") == "cross-site":
			http.NotFound(w, r)
		case r.URL.Path == "/page":
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, `<!doctype html><p id="n">0</p><script>setTimeout(() => { document.getElementById("n").textContent = "1"; console.error("seen") }, 50)</script>`)
		default:
			w.Header().Set("Content-Type", "text/javascript")
			fmt.Fprint(w, "secret = 1")
		}
	}))
	defer s.Close()
	b := Start(t)
	tab := b.Open(t, 400, 300)
	if got := tab.CrossSite(s.URL + "/open"); !slices.Contains(got, "script") {
		t.Errorf("a script of an open listener is not loaded: %q", got)
	}
	for _, path := range []string{"/guarded", "/missing"} {
		if got := tab.CrossSite(s.URL + path); len(got) > 0 {
			t.Errorf("%s: %q", path, got)
		}
	}
	if got := tab.Rebind(s.URL + "/open"); got != "secret = 1" {
		t.Errorf("after rebinding: %q", got)
	}
	tab = b.Open(t, 400, 300)
	tab.Before(`window.early = true`)
	tab.Load(s.URL + "/page")
	tab.Until(`document.getElementById("n").textContent === "1"`)
	if !Eval[bool](tab, `window.early`) {
		t.Error("the early script did not run")
	}
	if got := tab.Problems(); !slices.ContainsFunc(got, func(s string) bool { return s != "" }) {
		t.Errorf("problems %q", got)
	}
	tab.Do(chromedp.KeyEvent("a"))
}
