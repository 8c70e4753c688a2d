// Package objectstore runs a real S3 server for tests, behind a wire on which faults can be made.
package objectstore

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// The credentials of the server.
const (
	AccessKey = "nixp2p-test"
	SecretKey = "nixp2p-test-secret"
)

// Store is a versitygw over a temporary directory. It ends with the test.
type Store struct {
	Dir      string // holds a directory for each bucket
	Endpoint string // host:port of the wire
	wire     *wire
}

// Start starts a server with one bucket. The test is skipped if versitygw is not installed: `go
// install github.com/versity/versitygw/cmd/versitygw@v1.8.0` does that, and so does `make deps`.
func Start(t testing.TB, bucket string) *Store {
	t.Helper()
	program, err := exec.LookPath("versitygw")
	if err != nil {
		if home, e := os.UserHomeDir(); e == nil {
			program, err = exec.LookPath(filepath.Join(home, "go", "bin", "versitygw"))
		}
	}
	if err != nil {
		t.Skip("versitygw is not installed: make deps")
	}
	s := &Store{Dir: t.TempDir()}
	if err := os.Mkdir(filepath.Join(s.Dir, bucket), 0o755); err != nil {
		t.Fatal(err)
	}
	addr := freeAddr(t)
	ctx, stop := context.WithCancel(context.Background())
	run := exec.CommandContext(ctx, program, "--port", addr, "--quiet", "posix", "--nometa", s.Dir)
	run.Env = append(os.Environ(), "ROOT_ACCESS_KEY_ID="+AccessKey, "ROOT_SECRET_ACCESS_KEY="+SecretKey)
	out := &output{}
	run.Stdout, run.Stderr = out, out
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(); _ = run.Wait() })
	deadline := time.Now().Add(time.Minute)
	for {
		resp, err := http.Get("http://" + addr + "/")
		if err == nil {
			_ = resp.Body.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("versitygw does not answer: %v\n%s", err, out)
		}
		time.Sleep(20 * time.Millisecond)
	}
	s.wire = newWire(t, addr)
	s.Endpoint = s.wire.Addr().String()
	return s
}

// URL returns the address of a bucket as --bucket takes it.
func (s *Store) URL(bucket, prefix string) string {
	return "s3://" + bucket + "/" + prefix + "?endpoint=http://" + s.Endpoint + "&region=us-east-1"
}

// Fault is what the wire does to connections.
type Fault int

// The faults.
const (
	None   Fault = iota
	Gone         // connections are refused
	Silent       // connections are accepted, and nothing comes
	Slow         // 20 kB/s, after a second
	Cut          // each connection breaks off after 30 kB of answers
)

// Set has the wire do f from now on. Open connections end.
func (s *Store) Set(f Fault) { s.wire.set(f) }

type output struct {
	mu   sync.Mutex
	text []byte
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, p...)
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.text)
}

func freeAddr(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// wire passes connections on.
type wire struct {
	to string
	net.Listener
	all sync.WaitGroup

	mu    sync.Mutex
	fault Fault
	open  map[net.Conn]bool
}

func newWire(t testing.TB, to string) *wire {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{to: to, Listener: l, open: map[net.Conn]bool{}}
	w.all.Go(w.accept)
	t.Cleanup(func() {
		_ = l.Close()
		w.set(Gone)
		w.all.Wait()
	})
	return w
}

func (w *wire) set(f Fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = f
	for c := range w.open {
		_ = c.Close()
	}
}

func (w *wire) accept() {
	for {
		c, err := w.Accept()
		if err != nil {
			return
		}
		w.mu.Lock()
		f := w.fault
		if f == Gone {
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		} else {
			w.open[c] = true
		}
		w.mu.Unlock()
		if f != Gone {
			w.all.Go(func() { w.pass(c, f) })
		}
	}
}

func (w *wire) track(c net.Conn, open bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open[c] = true; !open {
		delete(w.open, c)
	}
}

func (w *wire) pass(c net.Conn, f Fault) {
	defer w.track(c, false)
	defer c.Close()
	if f == Silent {
		_, _ = io.Copy(io.Discard, c)
		return
	}
	s, err := net.Dial("tcp", w.to)
	if err != nil {
		return
	}
	w.track(s, true)
	defer w.track(s, false)
	defer s.Close()
	var asked sync.WaitGroup
	asked.Go(func() {
		_, _ = io.Copy(s, c)
		_ = s.(*net.TCPConn).CloseWrite()
	})
	switch f {
	case Slow:
		time.Sleep(time.Second)
		for {
			if _, err := io.CopyN(c, s, 2000); err != nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
	case Cut:
		_, _ = io.CopyN(c, s, 30_000)
	default:
		_, _ = io.Copy(c, s)
	}
	_ = c.Close()
	_ = s.Close()
	asked.Wait()
}
