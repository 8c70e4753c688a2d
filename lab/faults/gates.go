package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// gates are what stands between a client and the cache, while one command runs.
type gates struct {
	ca    *authority
	cache http.Handler
	ends  []func()
	tasks sync.WaitGroup
}

func (g *gates) close() {
	for _, end := range g.ends {
		end()
	}
	g.tasks.Wait()
}

// listen serves connections at a free port of 127.0.0.1, which it returns.
func (g *gates) listen(serve func(nth int, c net.Conn)) (port string) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	g.ends = append(g.ends, func() {
		_ = l.Close()
		mu.Lock()
		defer mu.Unlock()
		for c := range open {
			_ = c.Close()
		}
	})
	g.tasks.Go(func() {
		for nth := 1; ; nth++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			g.tasks.Go(func() {
				serve(nth, c)
				_ = c.Close()
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	})
	return portOf(l)
}

func portOf(l net.Listener) string {
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// serve is the cache behind a listener.
func (g *gates) serve(l net.Listener) string { return g.serveWith(l, g.cache) }

func (g *gates) serveWith(l net.Listener, h http.Handler) string {
	srv := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0)}
	g.tasks.Go(func() { _ = srv.Serve(l) })
	g.ends = append(g.ends, func() { _ = srv.Close() })
	return portOf(l)
}

// plain is the cache over HTTP.
func (g *gates) plain() string {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	return g.serve(l)
}

// six is the cache at ::1.
func (g *gates) six() string {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		panic(err)
	}
	return g.serve(l)
}

// guarded is the cache for those who say name and password.
func (g *gates) guarded(name, password string) string {
	return g.handler(func(w http.ResponseWriter, r *http.Request) {
		if n, p, ok := r.BasicAuth(); !ok || n != name || p != password {
			w.Header().Set("WWW-Authenticate", "Basic realm=x")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		g.cache.ServeHTTP(w, r)
	})
}

// answering is a server that has one answer for everything.
func (g *gates) answering(status int) string {
	return g.handler(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
}

func (g *gates) handler(h http.HandlerFunc) string {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	return g.serveWith(l, h)
}

// secure is the cache over HTTPS.
func (g *gates) secure(cfg *tls.Config) string {
	l, err := tls.Listen("tcp4", "127.0.0.1:0", cfg)
	if err != nil {
		panic(err)
	}
	return g.serve(l)
}

// before is a gate in front of a port: what happens to the nth connection before it is passed on, and
// whether it is.
func (g *gates) before(port string, what func(nth int, c net.Conn) bool) string {
	return g.listen(func(nth int, c net.Conn) {
		if what(nth, c) {
			pass(c, net.JoinHostPort("127.0.0.1", port))
		}
	})
}

// pass connects c with an address until one side ends.
func pass(c net.Conn, to string) {
	up, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(up, c)
		_ = up.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(c, up)
	_, _ = c.Close(), up.Close()
	<-done
}

// full is the cache behind a port whose queue of connections is full for d: as if the first packets
// of each connection were lost.
func (g *gates) full(d time.Duration) string {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		panic(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		panic(err)
	}
	at, err := syscall.Getsockname(fd)
	if err != nil {
		panic(err)
	}
	port := fmt.Sprint(at.(*syscall.SockaddrInet4).Port)
	filler, err := net.Dial("tcp4", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		panic(err)
	}
	inner := g.plain()
	var end sync.Once
	shut := func() { end.Do(func() { _ = syscall.Shutdown(fd, syscall.SHUT_RDWR); _ = syscall.Close(fd) }) }
	g.ends = append(g.ends, func() { _ = filler.Close(); shut() })
	opens := time.Now().Add(d)
	g.tasks.Go(func() {
		time.Sleep(time.Until(opens))
		for {
			nfd, _, err := syscall.Accept4(fd, syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK)
			if err != nil {
				return
			}
			c, err := connOf(nfd)
			if err != nil {
				continue
			}
			g.tasks.Go(func() { pass(c, net.JoinHostPort("127.0.0.1", inner)) })
		}
	})
	return port
}

// connOf makes a connection of a descriptor.
func connOf(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "connection")
	defer f.Close()
	return net.FileConn(f)
}

// proxy is an HTTP proxy that knows where the cache is. user, if not empty, is NAME:PASSWORD.
func (g *gates) proxy(plain, secure, user string) string {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	return g.proxyAt(l, plain, secure, user)
}

func (g *gates) proxyAt(l net.Listener, plain, secure, user string) string {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		want := "Basic " + base64.StdEncoding.EncodeToString([]byte(user))
		switch {
		case user != "" && r.Header.Get("Proxy-Authorization") != want:
			w.Header().Set("Proxy-Authenticate", "Basic realm=x")
			w.WriteHeader(http.StatusProxyAuthRequired)
		case r.Method == http.MethodConnect:
			to := plain
			if strings.HasSuffix(r.Host, ":"+secure) {
				to = secure
			}
			c, buf, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
			_ = buf.Flush()
			pass(c, net.JoinHostPort("127.0.0.1", to))
		case r.URL.Host == "":
			w.WriteHeader(http.StatusBadRequest) // no proxy was meant
		default:
			g.cache.ServeHTTP(w, r)
		}
	})
	return g.serveWith(l, h)
}

// socks is a SOCKS proxy, 4, 4a or 5, that leads everything to one port. user, if not empty, is the NAME that
// version 4 or the NAME:PASSWORD that version 5 has to say.
func (g *gates) socks(to, user string) string {
	return g.listen(func(_ int, c net.Conn) {
		if negotiate(c, user) {
			pass(c, net.JoinHostPort("127.0.0.1", to))
		}
	})
}

// negotiate reports whether a client of a SOCKS proxy is let in.
func negotiate(c net.Conn, user string) bool {
	read := func(n int) []byte {
		b := make([]byte, n)
		_, _ = io.ReadFull(c, b)
		return b
	}
	text := func() (s string) {
		for b := read(1); b[0] != 0; b = read(1) {
			s += string(b)
		}
		return s
	}
	if read(1)[0] == 4 {
		head := read(7)
		name := text()
		if head[3] == 0 && head[4] == 0 && head[5] == 0 {
			text()
		}
		if user != "" && name != user {
			_, _ = c.Write([]byte{0, 93, 0, 0, 0, 0, 0, 0})
			return false
		}
		_, _ = c.Write([]byte{0, 90, 0, 0, 0, 0, 0, 0})
		return true
	}
	method := byte(0)
	if user != "" {
		method = 2
	}
	if !bytes.Contains(read(int(read(1)[0])), []byte{method}) {
		_, _ = c.Write([]byte{5, 255})
		return false
	}
	_, _ = c.Write([]byte{5, method})
	if method == 2 {
		read(1)
		name := read(int(read(1)[0]))
		password := read(int(read(1)[0]))
		if string(name)+":"+string(password) != user {
			_, _ = c.Write([]byte{1, 1})
			return false
		}
		_, _ = c.Write([]byte{1, 0})
	}
	switch head := read(4); head[3] {
	case 1:
		read(4 + 2)
	case 3:
		read(int(read(1)[0]) + 2)
	case 4:
		read(16 + 2)
	}
	_, _ = c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	return true
}

// authority signs certificates that nobody trusts without being told.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority() *authority { return authorityUntil(time.Now().Add(24 * time.Hour)) }

func expiredAuthority() *authority { return authorityUntil(time.Now().Add(-time.Minute)) }

func authorityUntil(end time.Time) *authority {
	a := &authority{}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		panic(err)
	}
	of := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Corp CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: end, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, of, of, &a.key.PublicKey, a.key)
	if err != nil {
		panic(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		panic(err)
	}
	return a
}

// block is the authority as text in PEM.
func (a *authority) block(kind string) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: a.cert.Raw}))
}

// issue returns a certificate for the cache, changed by edit.
func (a *authority) issue(edit func(*x509.Certificate)) tls.Certificate {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	of := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: cacheName}, DNSNames: []string{cacheName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if edit != nil {
		edit(of)
	}
	der, err := x509.CreateCertificate(rand.Reader, of, a.cert, &key.PublicKey, a.key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key}
}
