package admin

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// dialAs opens a connection that belongs to another user.
func dialAs(t *testing.T, uid int, addr string) net.Conn {
	t.Helper()
	to := netip.MustParseAddrPort(addr)
	conns := make(chan net.Conn, 1)
	go func() {
		defer close(conns)
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		if err := unix.Setfsuid(uid); err != nil {
			return
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return
		}
		f := os.NewFile(uintptr(fd), "socket")
		defer f.Close()
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
			return
		}
		if c, err := net.FileConn(f); err == nil {
			conns <- c
		}
	}()
	c := <-conns
	if c == nil {
		t.Skip("cannot open a socket as another user")
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestOtherUser: the kernel is asked whose connection it is.
func TestOtherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	f := &fake{}
	s, _ := start(t, f)
	const post = "POST /api/v1/gc HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{\"max_bytes\":0}"
	for uid, want := range map[int]int{0: http.StatusOK, 12345: http.StatusForbidden} {
		c := dialAs(t, uid, s.Listener.Addr().String())
		if _, err := io.WriteString(c, post); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || res.StatusCode != want {
			t.Errorf("user %d: %v, %v; want %d", uid, res, err, want)
		}
	}
	// Who closes the connection at once is not taken for root.
	trimmed := len(f.trimmed)
	for range 50 {
		c := dialAs(t, 12345, s.Listener.Addr().String())
		if _, err := io.WriteString(c, strings.Replace(post, "Host", "Connection: close\r\nHost", 1)); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	s.Close() // waits for all requests
	if len(f.trimmed) > trimmed {
		t.Error("a user who has left changed something")
	}
}
