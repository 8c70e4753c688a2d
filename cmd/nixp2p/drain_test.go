package main

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/nixtest/supervise"
)

// eventually waits for what another process does.
func eventually(t testing.TB, done func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(time.Minute)
	for !done() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("it does not come about")
		}
	}
}

// freeAddress was free a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// slowTransfer starts a daemon and a transfer of 4 MiB through it, at so many bytes/s.
func slowTransfer(t *testing.T, rate int) (d *process, p nixtest.Path, res *http.Response) {
	t.Helper()
	key := nixtest.NewKey("trusted-1")
	p = nixtest.NewPath("slow", 4<<20)
	up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: []nixtest.Path{p}, Keys: []nixtest.Key{key}})
	up.Set(nixtest.NarFile, nixtest.Fault{Rate: rate})
	d = startDaemon(t, "--p2p=false", "--upstream", up.URL(), "--trusted-public-key", key.Public(), "--store-root", t.TempDir())
	res = open(t, d.url+"/nar/"+(nix.NARName{Store: p.Hash(), Nar: p.NarHash()}).String())
	t.Cleanup(func() { _ = res.Body.Close() })
	// The transfer is under way when bytes have come.
	if _, err := io.ReadFull(res.Body, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	return d, p, res
}

// A transfer in progress ends after SIGTERM, and the daemon with it.
func TestDrain(t *testing.T) {
	t.Parallel()
	d, p, res := slowTransfer(t, 2<<20)
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool {
		conn, err := net.Dial("tcp", strings.TrimPrefix(d.url, "http://"))
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	rest, err := io.ReadAll(res.Body)
	if err != nil || len(rest) != len(p.NAR)-1000 || !bytes.Equal(rest, p.NAR[1000:]) {
		t.Errorf("the transfer ended with %v after %d of %d bytes", err, len(rest)+1000, len(p.NAR))
	}
	start := time.Now()
	d.wait()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("the daemon ended %v after the last transfer", took)
	}
}

// While transfers end under systemd's socket, nobody else waits for them: not before the daemon
// has ended and not after. They take longer than the watchdog waits.
func TestDrainKeepsAnswering(t *testing.T) {
	t.Parallel()
	key := nixtest.NewKey("trusted-1")
	slow, other := nixtest.NewPath("slow", 6<<20), nixtest.NewPath("other", 1000)
	up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: []nixtest.Path{slow, other}, Keys: []nixtest.Key{key}})
	up.Set(nixtest.NarFile, nixtest.Fault{Rate: 400 << 10})
	u := newUnit(t)
	u.run(supervise.Config{}, "--p2p=false", "--upstream", up.URL(), "--trusted-public-key", key.Public(), "--store-root", u.dir)
	res := open(t, u.URL()+"/nar/"+(nix.NARName{Store: slow.Hash(), Nar: slow.NarHash()}).String())
	defer res.Body.Close()
	if _, err := io.ReadFull(res.Body, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	_ = u.Signal(syscall.SIGTERM)
	ended := make(chan error, 1)
	go func() {
		rest, err := io.ReadAll(res.Body)
		if err == nil && !bytes.Equal(rest, slow.NAR[1000:]) {
			err = io.ErrUnexpectedEOF
		}
		ended <- err
	}()
	d := &process{t: t}
	var worst time.Duration
	for meanwhile := 0; ; meanwhile++ {
		start := time.Now()
		if status, _ := d.get(u.URL() + "/" + other.Hash().String() + ".narinfo"); status != http.StatusOK {
			t.Fatalf("narinfo: %d", status)
		}
		worst = max(worst, time.Since(start))
		wait(t.Context(), 10*time.Millisecond)
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the transfer in progress: %v", err)
			}
			ended = nil
		default:
		}
		if starts, _ := u.Starts(); starts == 2 && ended == nil {
			t.Logf("%d narinfos meanwhile, the slowest took %v", meanwhile, worst)
			if worst > 10*time.Second { // what narinfos have in any case
				t.Errorf("a narinfo took %v", worst)
			}
			return
		}
	}
}

// A second signal ends the daemon at once.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	d, _, res := slowTransfer(t, 512<<10)
	start := time.Now()
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	eventually(t, func() bool { return strings.Contains(d.logText(), "shutting down") })
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	d.wait()
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("the daemon took %v", took)
	}
	if _, err := io.ReadAll(res.Body); err == nil {
		t.Error("the transfer was not cut")
	}
}

// SIGHUP takes over what is safe, says what is not, and survives a mistake.
func TestReload(t *testing.T) {
	t.Parallel()
	u := newUnit(t)
	u.configure("log-level = \"info\"\npriority = 31\n")
	u.run(supervise.Config{}, "--p2p=false", "--upstream", "http://127.0.0.1:1", "--store-root", u.dir)
	hangup := func(want string) {
		t.Helper()
		<-u.Ready()
		if err := u.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() bool { return strings.Contains(u.text(), want) })
	}
	<-u.Ready() // it has read the first one
	u.configure("log-level = \"debug\"\npriority = 32\n")
	hangup(`take a restart: priority`)
	u.configure("log-level = \"loud\"\n")
	hangup(`msg="configuration not reloaded"`)
	d := &process{t: t}
	if status, body := d.get(u.URL() + "/nix-cache-info"); status != http.StatusOK || !strings.Contains(body, "Priority: 31") {
		t.Errorf("after it: %d %q", status, body)
	}
	if starts, _ := u.Starts(); starts != 1 {
		t.Errorf("%d starts, want 1", starts)
	}
}
