package httpfront

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nixtest/browser"
	"github.com/nixp2p/nixp2p/internal/source"
)

// TestBrowser: what a web page in a real browser of this machine learns from the substituter: that
// it is there, and nothing else.
func TestBrowser(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped: no browser with -short")
	}
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
		_, _ = w.Write([]byte("<!doctype html><title>another site</title>"))
	}))
	paths := []string{
		"/" + secret.Hash().String() + ".narinfo", "/" + strings.Repeat("0", 32) + ".narinfo",
		"/" + secretName.URL(), "/nix-cache-info",
	}
	tab := browser.Start(t).Open(t, 400, 300)
	for _, path := range paths {
		if worked := tab.CrossSite(front + path); len(worked) > 0 {
			t.Errorf("%s from another site: %q", path, worked)
		}
	}
	tab.Load(strings.Replace(site, "127.0.0.1", browser.Evil, 1) + "/")
	rebound.Store(true)
	for _, path := range paths {
		if got := browser.Eval[int](tab, fmt.Sprintf(`fetch(%q, {cache: "no-store"}).then(r => r.status)`, path)); got != http.StatusNotFound {
			t.Errorf("rebound, %s: %d", path, got)
		}
	}
	if n := asked.Load(); n > 0 {
		t.Errorf("the page caused %d questions", n)
	}
	tab.Load(front + "/nix-cache-info")
	if got := browser.Eval[string](tab, `document.body.innerText`); !strings.Contains(got, "StoreDir") {
		t.Errorf("typed by hand: %q", got)
	}
}
