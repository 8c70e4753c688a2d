package httpfront

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"
)

// bound starts a server with at most max connections.
func bound(t *testing.T, max int, h http.Handler) (addr string, conns *Conns) {
	t.Helper()
	conns = NewConns(max)
	srv := httptest.NewUnstartedServer(h)
	srv.Listener = conns.Listener(srv.Listener)
	srv.Config.ConnState = conns.State
	srv.Start()
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String(), conns
}

// dial opens a connection and sends text.
func dial(t *testing.T, addr, text string) *bufio.Reader {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	return bufio.NewReader(c)
}

const get = "GET /nix-cache-info HTTP/1.1\r\nHost: localhost\r\n\r\n"

// answered reads one response.
func answered(t *testing.T, r *bufio.Reader) {
	t.Helper()
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Error(err)
		return
	}
	if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("status %d, %v", res.StatusCode, err)
	}
}

// TestFullOfConnections: whatever one client holds open, the next one is answered.
func TestFullOfConnections(t *testing.T) {
	const max = 128
	release := make(chan struct{})
	f := newFake(t)
	front := newHandler(t, f)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			<-release
			return
		}
		front.ServeHTTP(w, r)
	})
	for _, c := range []struct {
		name, text string
		answered   bool
	}{
		{"idle", get, true},
		{"silent", "", false},
		{"half a request", "GET /nix-cache-info HTTP/1.1\r\nHost:", false},
		{"busy", "GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n", false},
	} {
		addr, conns := bound(t, max, h)
		for range 2 * max {
			r := dial(t, addr, c.text)
			if c.answered {
				answered(t, r)
			}
		}
		for range 3 {
			answered(t, dial(t, addr, get))
		}
		conns.mu.Lock()
		if n := len(conns.all); n > max*3/2 {
			t.Errorf("%s: %d connections", c.name, n)
		}
		conns.mu.Unlock()
	}
	close(release)
}

// TestIdleConnectionsFirst: a transfer goes on while idle connections are closed.
func TestIdleConnectionsFirst(t *testing.T) {
	const max = 8
	next := make(chan struct{})
	addr, _ := bound(t, max, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/long" {
			return
		}
		for range 2 {
			_, _ = w.Write(make([]byte, 1000))
			_ = http.NewResponseController(w).Flush()
			<-next
		}
	}))
	long := dial(t, addr, "GET /long HTTP/1.0\r\n\r\n")
	if line, err := long.ReadString('\n'); err != nil || !strings.Contains(line, "200") {
		t.Fatal(line, err)
	}
	for range 5 * max {
		answered(t, dial(t, addr, get))
	}
	close(next)
	body, err := io.ReadAll(long)
	if err != nil || len(body) < 2000 {
		t.Errorf("%d bytes, %v", len(body), err)
	}
}

// failing is a listener whose process has no file descriptor left, now and then.
type failing struct {
	net.Listener
	n    int
	full chan struct{} // closed before the third call fails
}

func (l *failing) Accept() (net.Conn, error) {
	if l.n++; l.n == 3 {
		<-l.full
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

func TestNoDescriptorsLeft(t *testing.T) {
	conns := NewConns(100)
	srv := httptest.NewUnstartedServer(newHandler(t, newFake(t)))
	full := make(chan struct{})
	srv.Listener = conns.Listener(&failing{Listener: srv.Listener, full: full})
	srv.Config.ConnState = conns.State
	srv.Start()
	defer srv.Close()
	for i := range 5 {
		if i == 2 {
			close(full)
		}
		answered(t, dial(t, srv.Listener.Addr().String(), get))
	}
}

// TestBodyThatDoesNotCome: a request with a body is answered at once, and its connection ends.
func TestBodyThatDoesNotCome(t *testing.T) {
	url, _ := serve(t, newHandler(t, newFake(t)))
	addr := strings.TrimPrefix(url, "http://")
	for _, header := range []string{"Content-Length: 1000", "Content-Length: 100000000", "Transfer-Encoding: chunked", "Content-Length: 5\r\nExpect: 100-continue"} {
		for _, request := range []string{"GET /nix-cache-info", "HEAD /nix-cache-info", "GET /" + helloName.URL(), "GET /nothing", "PUT /x"} {
			r := dial(t, addr, fmt.Sprintf("%s HTTP/1.1\r\nHost: localhost\r\n%s\r\n\r\n", request, header))
			method, _, _ := strings.Cut(request, " ")
			res, err := http.ReadResponse(r, &http.Request{Method: method})
			if err != nil {
				t.Errorf("%s, %s: %v", request, header, err)
				continue
			}
			if _, err := io.Copy(io.Discard, res.Body); err != nil || !res.Close {
				t.Errorf("%s, %s: status %d, closes %v, %v", request, header, res.StatusCode, res.Close, err)
			}
			if n, err := r.Read(make([]byte, 1)); n > 0 || err == nil {
				t.Errorf("%s, %s: the connection goes on", request, header)
			}
		}
	}
}

// TestWebPage: a page in a browser of this machine learns nothing and causes nothing.
func TestWebPage(t *testing.T) {
	f := newFake(t)
	h := newHandler(t, f)
	rebound := from(http.MethodGet, "/nothing", "")
	rebound.Host = "evil.example"
	absent := answer(h, rebound)
	if absent.Code != http.StatusNotFound {
		t.Errorf("status %d", absent.Code)
	}
	for name, edit := range map[string]func(*http.Request){
		"script":                           func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
		"fetch":                            func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") },
		"rebound":                          func(r *http.Request) { r.Host = "evil.example:7654" },
		"a browser that does not say more": func(r *http.Request) { r.Header.Set("User-Agent", "Mozilla/5.0") },
	} {
		for _, path := range []string{"/nix-cache-info", "/" + secret.Hash().String() + ".narinfo", "/" + hello.Hash().String() + ".narinfo", "/" + helloName.URL()} {
			for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost} {
				r := from(method, path, "")
				edit(r)
				same(t, name+" of "+path, answer(h, r), absent)
			}
		}
	}
	for _, n := range f.nars {
		if n.opened.Load() > 0 {
			t.Error("a NAR was opened")
		}
	}
}

// TestCrowdOfOneMachine: a machine that fills all connections, and has taken bytes over each, costs other
// machines none that waits for its first byte.
func TestCrowdOfOneMachine(t *testing.T) {
	const max = 32
	release, waits := make(chan struct{}), make(chan struct{})
	addr, _ := bound(t, max, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			close(waits)
			<-release
			return
		}
		_, _ = w.Write(make([]byte, 8<<10))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	waiting := dial(t, addr, "GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n")
	<-waits
	other := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	for range 4 * max {
		c, err := other.Dial("tcp", addr)
		if err != nil {
			close(release)
			t.Skip("no second address on loopback:", err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if _, err := io.WriteString(c, "GET /take HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			continue // it gave way at once
		}
		_, _ = c.Read(make([]byte, 1))                // its request has come
		go func() { _, _ = io.Copy(io.Discard, c) }() // ends with c
	}
	close(release)
	answered(t, waiting)
}
