package supervise

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"testing"
	"time"
)

// beDaemon makes the test binary serve the socket that it inherits.
const beDaemon = "NIXP2P_TEST_BE_DAEMON"

func TestMain(m *testing.M) {
	if os.Getenv(beDaemon) == "1" {
		daemon()
		return
	}
	os.Exit(m.Run())
}

// daemon is the least that the real one does: it says that it is ready, and answers with what
// it was told.
func daemon() {
	l, err := listener()
	if err == nil {
		err = tell("READY=1")
	}
	if err == nil {
		err = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/exit" {
				os.Exit(3)
			}
			_ = tell("WATCHDOG=1")
			_, _ = io.WriteString(w, os.Getenv("LISTEN_FDS"))
		}))
	}
	_, _ = io.WriteString(os.Stderr, err.Error())
}

func listener() (net.Listener, error) { return net.FileListener(os.NewFile(3, "socket")) }

func tell(state string) error {
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte(state))
	return err
}

// TestSocketOutlivesTheDaemon: a request that comes while there is no daemon is answered by the
// next one, whatever the last one ended of.
func TestSocketOutlivesTheDaemon(t *testing.T) {
	s, err := New(Config{
		Command: []string{os.Args[0]}, Env: []string{beDaemon + "=1"}, Log: os.Stderr,
		Restart: 10 * time.Millisecond, Watchdog: 300 * time.Millisecond, Abort: 50 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	for i, end := range []func(){
		func() { _ = s.Signal(syscall.SIGKILL) },
		func() { _ = s.Signal(syscall.SIGSTOP) }, // and starves
		func() { _, _ = http.Get(s.URL() + "/exit") },
		func() {},
	} {
		// Ready too is of the last one until its end was noticed.
		tick := time.NewTicker(5 * time.Millisecond)
		for n := 0; n <= i; n, _ = s.Starts() {
			<-tick.C
		}
		tick.Stop()
		<-s.Ready()
		end()
		res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(s.URL())
		if err != nil {
			// It was under way when the daemon ended.
			res, err = http.Get(s.URL())
		}
		if err != nil {
			t.Fatalf("%d: %v", i, err)
		}
		body, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil || string(body) != "1" {
			t.Errorf("%d: %q, %v", i, body, err)
		}
	}
	starts, bitten := s.Starts()
	if starts < 4 || bitten < 1 {
		t.Errorf("%d starts, %d by the watchdog", starts, bitten)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestBurst: three starts in a row that fail close the socket, and none follows.
func TestBurst(t *testing.T) {
	s, err := New(Config{Command: []string{"false"}, Restart: time.Millisecond, Burst: 3})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err != nil {
		t.Error(err)
	}
	if starts, _ := s.Starts(); starts != 3 {
		t.Errorf("%d starts", starts)
	}
	if res, err := http.Get(s.URL()); err == nil {
		_ = res.Body.Close()
		t.Error("the socket takes connections")
	}
}
