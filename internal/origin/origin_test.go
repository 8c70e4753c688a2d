package origin

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

// request returns a request from a program on this machine.
func request(edit ...func(*http.Request)) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Host, r.RemoteAddr = "127.0.0.1:7654", "127.0.0.1:1234"
	r = to(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7654}, r)
	for _, e := range edit {
		e(r)
	}
	return r
}

func to(local net.Addr, r *http.Request) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, local))
}

func head(key, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(key, value) }
}

func host(h string) func(*http.Request) { return func(r *http.Request) { r.Host = h } }

func at(u string) func(*http.Request) {
	return func(r *http.Request) { r.URL.Path, r.URL.RawQuery = u, "" }
}

func all(edits ...func(*http.Request)) func(*http.Request) {
	return func(r *http.Request) {
		for _, e := range edits {
			e(r)
		}
	}
}

func TestRefuse(t *testing.T) {
	site := func(s string) func(*http.Request) { return head("Sec-Fetch-Site", s) }
	link := all(site("cross-site"), head("Sec-Fetch-Mode", "navigate"), head("Sec-Fetch-Dest", "document"))
	browser := head("User-Agent", "Mozilla/5.0 (X11; Linux x86_64)")
	for _, c := range []struct {
		name         string
		edit         func(*http.Request)
		cache, pages bool // answered by the substituter; by a listener with a page
	}{
		{"Nix", head("User-Agent", "curl/8.9.1 Nix/2.34.8"), true, true},
		{"no Host", host(""), true, true},
		{"localhost", host("localhost:7654"), true, true},
		{"LOCALHOST without a port", host("LOCALHOST"), true, true},
		{"another loopback address", host("127.0.0.2:9"), true, true},
		{"loopback of IPv6", host("[::1]:7654"), true, true},
		{"loopback of IPv6 without a port", host("[::1]"), true, true},
		{"configured name", host("Node.example:80"), true, true},
		{"rebound name", host("evil.example:7654"), false, false},
		{"a name that begins like ours", host("localhost.evil.example"), false, false},
		{"a name that begins like an address", host("127.0.0.1.evil.example"), false, false},
		{"another machine's address", host("192.0.2.1"), false, false},

		{"image on another site", all(site("cross-site"), head("Sec-Fetch-Mode", "no-cors"), head("Sec-Fetch-Dest", "image")), false, false},
		{"page on another port", site("same-site"), false, false},
		{"unknown site", site("new-value"), false, false},
		{"link on another site", link, false, true},
		{"frame on another site", all(link, head("Sec-Fetch-Dest", "iframe")), false, false},
		{"link to a path", all(link, at("/debug/pprof/profile")), false, false},
		{"link with a question", all(link, func(r *http.Request) { r.URL.RawQuery = "path=x" }), false, false},
		{"form on another site", all(link, func(r *http.Request) { r.Method = http.MethodPost }), false, false},
		{"our own page", site("same-origin"), true, true},
		{"typed by hand", site("none"), true, true},

		{"fetch from another site", head("Origin", "http://evil.example"), false, false},
		{"fetch from a file", head("Origin", "null"), false, false},
		{"fetch from our page", head("Origin", "http://127.0.0.1:7654"), false, true},
		{"fetch from another port", head("Origin", "http://127.0.0.1:80"), false, false},
		{"two origins", func(r *http.Request) { r.Header["Origin"] = []string{"http://127.0.0.1:7654", "http://x"} }, false, false},

		{"browser that says nothing", browser, false, true},
		{"browser that calls itself curl", all(head("User-Agent", "curl"), head("Accept-Language", "en")), false, true},
		{"browser with a referrer", all(head("User-Agent", ""), head("Referer", "http://evil.example/")), false, true},
		{"rebound browser", all(browser, host("evil.example")), false, false},
	} {
		for _, pages := range []bool{false, true} {
			check := &Check{Names: []string{"node.example:7654"}, Pages: pages}
			want := c.cache
			if pages {
				want = c.pages
			}
			if err := check.Refuse(request(c.edit)); (err == nil) != want {
				t.Errorf("%s, pages %v: %v", c.name, pages, err)
			}
		}
	}
}

// TestElsewhere: clients on other machines may know this one by any name, unless people look at
// the listener.
func TestElsewhere(t *testing.T) {
	local := &net.TCPAddr{IP: net.ParseIP("192.0.2.1"), Port: 7654}
	for _, c := range []struct {
		host         string
		remote       string
		cache, pages bool
	}{
		{"192.0.2.1:7654", "192.0.2.7:99", true, true},
		{"seed.example:7654", "192.0.2.7:99", true, false},
		{"192.0.2.9:7654", "192.0.2.7:99", true, false}, // of the machine whose port is forwarded
		{"seed.example:7654", "192.0.2.1:99", false, false},
		{"192.0.2.1:7654", "[::ffff:192.0.2.1]:99", true, true},
		{"192.0.2.9:7654", "192.0.2.1:99", false, false},
	} {
		for _, pages := range []bool{false, true} {
			want := c.cache
			if pages {
				want = c.pages
			}
			r := to(local, request(host(c.host), func(r *http.Request) { r.RemoteAddr = c.remote }))
			if err := (&Check{Pages: pages}).Refuse(r); (err == nil) != want {
				t.Errorf("%+v, pages %v: %v", c, pages, err)
			}
		}
	}
	zoned := to(&net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0"}, request(host("[fe80::1]:7655")))
	if err := (&Check{Pages: true}).Refuse(zoned); err != nil {
		t.Errorf("link-local address: %v", err)
	}
	unix := to(&net.UnixAddr{Name: "/run/x"}, request(host("anything"), func(r *http.Request) { r.RemoteAddr = "@" }))
	if err := (&Check{}).Refuse(unix); err != nil || !SameMachine(unix) {
		t.Errorf("unix socket: %v", err)
	}
}

func FuzzRefuse(f *testing.F) {
	f.Add("localhost:1", "http://x", "127.0.0.1:5")
	f.Add("[::1", "null", "")
	f.Fuzz(func(t *testing.T, hostHeader, origin, remote string) {
		r := request(host(hostHeader), func(r *http.Request) { r.RemoteAddr = remote })
		if origin != "" {
			r.Header.Set("Origin", origin)
		}
		if (&Check{}).Refuse(r) == nil && origin != "" {
			t.Errorf("a page of %q is answered", origin)
		}
		_ = (&Check{Pages: true}).Refuse(r)
	})
}
