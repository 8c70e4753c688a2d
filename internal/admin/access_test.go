package admin

import (
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/nixp2p/nixp2p/internal/metrics"
)

const socketTable = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1DE7 00000000:0000 0A 00000000:00000000 00:00000000 00000000   990        0 11 1 0 100 0 0 10 0
   1: 0100007F:1DE7 0100007F:C001 01 00000000:00000000 00:00000000 00000000   990        0 12 1 0 100 0 0 10 0
   2: 0100007F:C001 0100007F:1DE7 01 00000000:00000000 00:00000000 00000000  1000        0 13 1 0 100 0 0 10 0
   3: 0100007F:C002 0100007F:1DE7 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0
   4: 0100007F:C003 0100007F:1DE7 04 00000000:00000000 00:00000000 00000000     0        0 0 1 0 100 0 0 10 0
   5: 0100007F:C004 0100007F:1DE7 01 00000000:00000000 00:00000000 00000000     0        0 0 1 0 100 0 0 10 0
   6: 0000000000000000FFFF00000100007F:C005 0000000000000000FFFF00000100007F:1DE7 01 00000000:00000000 00:00000000 00000000  1005        0 14 1 0 100 0 0 10 0
   7: 00000000000000000000000001000000:C006 00000000000000000000000001000000:1DE7 01 00000000:00000000 00:00000000 00000000  1006        0 15 1 0 100 0 0 10 0
`

// TestFindUID: the client's socket, as long as it is open; the kernel lists closed ones as root's.
func TestFindUID(t *testing.T) {
	for _, c := range []struct {
		client, server string
		want           int // -1: not found
	}{
		{"127.0.0.1:49153", "127.0.0.1:7655", 1000},
		{"[::ffff:127.0.0.1]:49153", "[::ffff:127.0.0.1]:7655", 1000},
		{"127.0.0.1:49154", "127.0.0.1:7655", -1},
		{"127.0.0.1:49155", "127.0.0.1:7655", -1},
		{"127.0.0.1:49156", "127.0.0.1:7655", -1},
		{"127.0.0.1:49157", "127.0.0.1:7655", 1005},
		{"[::1]:49158", "[::1]:7655", 1006},
		{"127.0.0.1:49153", "127.0.0.1:7656", -1},
		{"127.0.0.2:49153", "127.0.0.1:7655", -1},
	} {
		uid, err := findUID(strings.NewReader(socketTable), netip.MustParseAddrPort(c.client), netip.MustParseAddrPort(c.server))
		if err != nil {
			uid = -1
		}
		if uid != c.want {
			t.Errorf("%s to %s: %d, %v; want %d", c.client, c.server, uid, err, c.want)
		}
	}
}

func FuzzFindUID(f *testing.F) {
	f.Add(socketTable)
	f.Add("x 0:0 0:0 01 0 0 0 0 0 1")
	f.Fuzz(func(t *testing.T, table string) {
		at := netip.MustParseAddrPort("127.0.0.1:1")
		if uid, err := findUID(strings.NewReader(table), at, at); err == nil && !strings.Contains(table, "01") {
			t.Errorf("found %d", uid)
		}
	})
}

// TestOwner: everybody on this machine may read, only the owner may change something.
func TestOwner(t *testing.T) {
	f := &fake{}
	h, err := New(Config{Node: f, Metrics: metrics.New(), Addr: "127.0.0.1:7655"})
	if err != nil {
		t.Fatal(err)
	}
	owner := false
	h.isOwner = func(*http.Request) bool { return owner }
	s := serve(t, h)
	for _, path := range []string{"/", "/metrics", "/healthz", "/api/v1/status", "/api/v1/peers", "/api/v1/history", "/api/v1/why/" + hash} {
		if resp, _ := do(t, s, http.MethodGet, path); resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	json := func(r *http.Request) { r.Header.Set("Content-Type", "application/json") }
	for path, method := range map[string]string{
		"/api/v1/gc": http.MethodPost, "/api/v1/prefetch": http.MethodPost, "/api/v1/nothing": http.MethodPost,
		"/debug/pprof/": http.MethodGet, "/debug/pprof/goroutine?debug=2": http.MethodGet, "/debug/pprof/profile?seconds=1": http.MethodGet, "/debug/pprof/cmdline": http.MethodGet,
	} {
		if resp, body := do(t, s, method, path, json); resp.StatusCode != http.StatusForbidden || !strings.Contains(body, "only root and the user of the service may do this") {
			t.Errorf("%s: %s %s", path, resp.Status, body)
		}
	}
	if len(f.trimmed) > 0 {
		t.Error("the cache was trimmed")
	}
	owner = true
	if resp, body := do(t, s, http.MethodGet, "/debug/pprof/profile?seconds=86400"); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a profile of a day: %s %s", resp.Status, body)
	}
}

// TestBodyThatDoesNotCome: a GET with a body is answered at once.
func TestBodyThatDoesNotCome(t *testing.T) {
	s, _ := start(t, &fake{})
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 OK") {
		t.Errorf("%q, %v", answer, err)
	}
}

// TestElsewhere: a client on another machine owns nothing.
func TestElsewhere(t *testing.T) {
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/api/v1/gc", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.RemoteAddr = "192.0.2.1:7"
	if fromOwner(r) {
		t.Error("taken for the owner")
	}
}
