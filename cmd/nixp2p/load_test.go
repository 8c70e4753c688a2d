package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
)

// hugeEnv is the size of the NAR in TestHugeNAR in bytes: 4294967296 is the figure that is
// promised, the default is for every day.
const hugeEnv = "NIXP2P_TEST_HUGE"

// limited is what the daemon is told to keep to, and peak what it may take with code, stacks
// and what the limit does not know of.
var limited = []string{"GOMEMLIMIT=128MiB"}

const peak = 200 << 20

// huge is a cache with one NAR of a file of zeros, made while it is read.
type huge struct {
	head, tail []byte
	zeros      int64
	path       nixtest.Path // without the NAR
	hash       [sha256.Size]byte
	narinfo    []byte
}

func newHuge(size int64, key nixtest.Key) *huge {
	// The NAR of an empty file, with a file in the middle of it.
	empty := nixtest.FileNAR(nil)
	cut := len(empty) - 8 - 16 // before the length of the contents and the string ")"
	size = size &^ 7
	h := &huge{
		head: binary.LittleEndian.AppendUint64(slices.Clone(empty[:cut]), uint64(size)), tail: empty[cut+8:], zeros: size,
		path: nixtest.NewPath("huge", 0),
	}
	sum := sha256.New()
	h.write(sum)
	h.hash = [sha256.Size]byte(sum.Sum(nil))
	n := h.path.NarInfo()
	n.NarHash, n.NarSize = h.hash, h.size()
	n.FileHash, n.FileSize, n.URL = h.hash, n.NarSize, "nar/huge.nar"
	key.Sign(n)
	h.narinfo = n.AppendText(nil)
	return h
}

func (h *huge) size() int64 { return int64(len(h.head)) + h.zeros + int64(len(h.tail)) }

func (h *huge) write(w io.Writer) {
	_, _ = w.Write(h.head)
	zeros := make([]byte, 1<<20)
	for left := h.zeros; left > 0; left -= min(left, int64(len(zeros))) {
		if _, err := w.Write(zeros[:min(left, int64(len(zeros)))]); err != nil {
			return
		}
	}
	_, _ = w.Write(h.tail)
}

func (h *huge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/" + h.path.Hash().String() + ".narinfo":
		_, _ = w.Write(h.narinfo)
	case "/nar/huge.nar":
		w.Header().Set("Content-Length", strconv.FormatInt(h.size(), 10))
		h.write(w)
	default:
		http.NotFound(w, r)
	}
}

// A NAR of any size passes through without the daemon growing with it, streamed and kept.
func TestHugeNAR(t *testing.T) {
	t.Parallel()
	size := number(t, hugeEnv, 256<<20)
	key := nixtest.NewKey("trusted-1")
	h := newHuge(size, key)
	up := newServer(t, h.ServeHTTP)
	for _, cache := range []string{"0", "10GiB"} {
		t.Run("cache-size="+cache, func(t *testing.T) {
			d := startDaemonWith(t, limited, "--p2p=false", "--upstream", up, "--trusted-public-key", key.Public(), "--store-root", t.TempDir(),
				"--cache-size", cache, "--log-level", "info")
			before := d.memory()
			start := time.Now()
			for round := range 2 { // the second from the cache, where there is one
				res := open(t, d.url+"/nar/"+(nix.NARName{Store: h.path.Hash(), Nar: h.hash}).String())
				sum := sha256.New()
				n, err := io.CopyBuffer(sum, res.Body, make([]byte, 1<<20))
				_ = res.Body.Close()
				if err != nil || n != h.size() || [sha256.Size]byte(sum.Sum(nil)) != h.hash {
					t.Fatalf("round %d: %d of %d bytes, %v\n%s", round, n, h.size(), err, d.logText())
				}
				if size > 1<<30 && cache == "0" {
					break
				}
			}
			t.Logf("%d bytes in %v: memory %d MB before, %d MB at its peak", h.size(), time.Since(start).Round(time.Millisecond), before>>20, d.memory()>>20)
			if d.memory() > peak {
				t.Errorf("%d MB at its peak, want at most %d", d.memory()>>20, int64(peak)>>20)
			}
		})
	}
}

// memory returns the peak of the daemon's resident memory in bytes.
func (d *process) memory() int64 {
	d.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		d.t.Skip("no /proc: ", err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, _ := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			return kb << 10
		}
	}
	d.t.Fatal("no VmHWM")
	return 0
}

// crowdDaemon is a daemon that has one path of 8 MiB and many small ones.
func crowdDaemon(t *testing.T) (d *process, large nixtest.Path, small []nixtest.Path) {
	t.Helper()
	key := nixtest.NewKey("trusted-1")
	large = nixtest.NewPath("large", 8<<20)
	for i := range 100 {
		small = append(small, nixtest.NewPath(fmt.Sprintf("small-%d", i), 100))
	}
	up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: append(small, large), Keys: []nixtest.Key{key}})
	d = startDaemonWith(t, limited, "--p2p=false", "--upstream", up.URL(), "--trusted-public-key", key.Public(), "--store-root", t.TempDir(), "--log-level", "info")
	return d, large, small
}

// answersMeanwhile asks for a narinfo every few milliseconds until stop is called, which fails
// the test when most answers took 50 ms or more.
func answersMeanwhile(t *testing.T, d *process, p nixtest.Path) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	client := &http.Client{Transport: &http.Transport{}}
	var took []time.Duration
	var asker sync.WaitGroup
	asker.Go(func() {
		for ctx.Err() == nil {
			start := time.Now()
			res, err := client.Get(d.url + "/" + p.Hash().String() + ".narinfo")
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
			took = append(took, time.Since(start))
			if res.StatusCode != http.StatusOK {
				t.Errorf("narinfo: %s", res.Status)
			}
			wait(ctx, 5*time.Millisecond)
		}
	})
	return func() {
		t.Helper()
		cancel()
		asker.Wait()
		client.CloseIdleConnections()
		slices.Sort(took)
		n := len(took)
		t.Logf("%d narinfos meanwhile: median %v, p99 %v, worst %v; memory %d MB at its peak", n, took[n/2], took[n*99/100], took[n-1], d.memory()>>20)
		if n < 20 || took[n*9/10] >= 50*time.Millisecond {
			t.Errorf("of %d narinfos one in ten took %v or more, want < 50ms", n, took[n*9/10])
		}
	}
}

func dial(t *testing.T, d *process) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(d.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// A thousand connections that never say anything are closed after a while and hurt nobody.
func TestSilentConnections(t *testing.T) {
	t.Parallel() // it mostly waits
	d, _, small := crowdDaemon(t)
	var silent []net.Conn
	for range 1000 {
		silent = append(silent, dial(t, d))
	}
	stop := answersMeanwhile(t, d, small[0])
	for _, c := range silent {
		_ = c.SetReadDeadline(time.Now().Add(headerTime + 5*time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Fatalf("the daemon keeps a connection that says nothing: %v", err)
		}
	}
	stop()
	if m := d.memory(); m > peak {
		t.Errorf("%d MB", m>>20)
	}
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

// Readers that take nothing cost no more than the window that is held back for each, and hold
// nobody up.
func TestSlowReaders(t *testing.T) {
	t.Parallel()
	const readers, window = 100, 2<<20 + 256<<10
	d, large, small := crowdDaemon(t)
	for i := range readers {
		c := dial(t, d)
		_ = c.(*net.TCPConn).SetReadBuffer(4096)
		p := nix.NARName{Store: large.Hash(), Nar: large.NarHash()}
		from := i * 1000
		fmt.Fprintf(c, "GET /nar/%s HTTP/1.1\r\nHost: nixp2p\r\nRange: bytes=%d-\r\n\r\n", p, from)
		// It is being answered when the first byte is here.
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatalf("reader %d: %v\n%s", i, err, d.logText())
		}
	}
	stop := answersMeanwhile(t, d, small[0])
	wait(t.Context(), time.Second)
	stop()
	if m := d.memory(); m > readers*window+peak/2 {
		t.Errorf("%d MB with %d readers that read nothing", m>>20, readers)
	}
}

// 200 Nix processes with 25 connections each are all answered.
func TestManyClients(t *testing.T) {
	t.Parallel()
	const clients, connections, requests = 200, 25, 4
	d, _, small := crowdDaemon(t)
	// What the crowd asks for is remembered: it is the front that is under test, not the upstream.
	for _, p := range small {
		if status, _ := d.get(d.url + "/" + p.Hash().String() + ".narinfo"); status != http.StatusOK {
			t.Fatalf("%s: %d\n%s", p.StorePath, status, d.logText())
		}
	}
	var answered atomic.Int64
	var all sync.WaitGroup
	start := time.Now()
	for i := range clients {
		transport := &http.Transport{MaxConnsPerHost: connections, MaxIdleConnsPerHost: connections}
		t.Cleanup(transport.CloseIdleConnections)
		client := &http.Client{Transport: transport}
		for j := range connections {
			all.Go(func() {
				for k := range requests {
					res, err := client.Get(d.url + "/" + small[(i+j+k)%len(small)].Hash().String() + ".narinfo")
					if err != nil {
						t.Error(err)
						return
					}
					_, _ = io.Copy(io.Discard, res.Body)
					_ = res.Body.Close()
					if res.StatusCode == http.StatusOK {
						answered.Add(1)
					}
				}
			})
		}
	}
	all.Wait()
	t.Logf("%d narinfos over %d connections in %v, memory %d MB at its peak", answered.Load(), clients*connections, time.Since(start).Round(time.Millisecond), d.memory()>>20)
	if n := answered.Load(); n != clients*connections*requests {
		t.Errorf("%d of %d narinfos were answered 200", n, clients*connections*requests)
	}
	// They stay open, as those of Nix do while it builds.
	answersMeanwhileFor(t, d, small[0], time.Second)
	if m := d.memory(); m > 2*peak {
		t.Errorf("%d MB with %d connections", m>>20, clients*connections)
	}
}

func answersMeanwhileFor(t *testing.T, d *process, p nixtest.Path, how time.Duration) {
	t.Helper()
	stop := answersMeanwhile(t, d, p)
	wait(t.Context(), how)
	stop()
}
