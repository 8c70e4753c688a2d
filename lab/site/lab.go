//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// net is the LAN with its hosts and its uplink, made by netlab.sh.
type lan struct {
	script string
	env    []string
	only6  bool
}

const labName = "site"

func place(where string) string {
	if where == "upstream" {
		return labName + "-up"
	}
	return labName + "-" + where
}

// newLAN makes a LAN of n hosts. Settings are variables of netlab.sh.
func newLAN(ctx context.Context, dir string, n int, settings ...string) (*lan, error) {
	script, err := findScript(ctx)
	if err != nil {
		return nil, err
	}
	l := &lan{script: script}
	l.env = append(environ(), "NETLAB_NAME="+labName, "NETLAB_STATE="+filepath.Join(dir, workName, "netlab"), "NETLAB_WANLINK="+filepath.Join(dir, linkName))
	l.env = append(l.env, settings...)
	for _, s := range settings {
		l.only6 = l.only6 || s == "NETLAB_NO4=1"
	}
	_, err = l.do(ctx, "up", strconv.Itoa(n))
	return l, err
}

// findScript returns where netlab.sh lies: beside this package, in the module's sources.
func findScript(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/nixp2p/nixp2p").Output()
	if err != nil {
		return "", fmt.Errorf("where the module is: %w", err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "lab/netlab/netlab.sh"), nil
}

// do runs netlab.sh.
func (l *lan) do(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", append([]string{l.script}, args...)...)
	cmd.Env = l.env
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	// The link goes on in the background and keeps its standard streams elsewhere, but not
	// those that bash gave its helpers.
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return "", fmt.Errorf("netlab.sh %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

// upstreamAddr is where the upstream listens, and gateways lead.
func (l *lan) upstreamAddr() string {
	if l.only6 {
		return "[fd78::1]:80"
	}
	return "10.78.0.1:80"
}

// ip returns the address of a host on the LAN.
func (l *lan) ip(k int) string {
	if l.only6 {
		return fmt.Sprintf("fd77::%x", k)
	}
	return fmt.Sprintf("10.77.%d.%d", k/256, k%256)
}

// lanBytes returns the bytes that a host has received from the LAN and sent to it.
func (l *lan) lanBytes(ctx context.Context, k int) (rx, tx int64, err error) {
	out, err := l.do(ctx, "bytes", fmt.Sprintf("h%d", k))
	if err == nil {
		_, err = fmt.Sscanf(out, "rx_bytes %d tx_bytes %d", &rx, &tx)
	}
	return rx, tx, err
}

// down takes the LAN away, with all that runs in it.
func (l *lan) down(ctx context.Context) error {
	_, err := l.do(ctx, "down")
	return err
}

// cache is the binary cache at the other end of the uplink. It counts what it sends.
type cache struct {
	url string
	dir string // files as nix copy --to file:// leaves them
	srv *http.Server
	end chan struct{}

	narBytes atomic.Int64 // bodies
	narinfos atomic.Int64 // requests
	nars     atomic.Int64

	mu     sync.Mutex
	refuse func(path string) bool // 404 instead, whatever is there
	asked  map[string]int         // by path
	extra  map[string][]byte      // files beside those of dir
}

func newCache(l *lan, dir string) (*cache, error) {
	ln, err := listenIn(place("upstream"), l.upstreamAddr())
	if err != nil {
		return nil, err
	}
	c := &cache{url: "http://" + strings.TrimSuffix(l.upstreamAddr(), ":80"), dir: dir, end: make(chan struct{}), asked: map[string]int{}, extra: map[string][]byte{}}
	c.srv = &http.Server{Handler: c}
	go func() {
		defer close(c.end)
		_ = c.srv.Serve(ln)
	}()
	return c, nil
}

func (c *cache) close() {
	_ = c.srv.Close()
	<-c.end
}

// setRefuse has the cache say that it has not what f says; nil: all is there.
func (c *cache) setRefuse(f func(path string) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuse = f
}

// requests returns how often a path was asked for.
func (c *cache) requests(path string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked[path]
}

// ServeHTTP answers as a plain file server does.
func (c *cache) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.asked[r.URL.Path]++
	refused := c.refuse != nil && c.refuse(r.URL.Path)
	extra := c.extra[r.URL.Path]
	c.mu.Unlock()
	isNAR := strings.HasPrefix(r.URL.Path, "/nar/")
	if isNAR {
		c.nars.Add(1)
		w = &counted{w, &c.narBytes}
	} else if strings.HasSuffix(r.URL.Path, ".narinfo") {
		c.narinfos.Add(1)
	}
	switch {
	case refused:
		http.NotFound(w, r)
	case extra != nil:
		http.ServeContent(w, r, r.URL.Path, time.Time{}, bytes.NewReader(extra))
	case r.URL.Path == "/nix-cache-info":
		_, _ = w.Write(nix.CacheInfo{StoreDir: nix.StoreDir, WantMassQuery: true, Priority: 40}.Text())
	default:
		http.ServeFile(w, r, filepath.Join(c.dir, filepath.Clean("/"+r.URL.Path)))
	}
}

// counted counts the bytes of a body before the reader can have them.
type counted struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (w *counted) Write(b []byte) (int, error) {
	w.n.Add(int64(len(b)))
	return w.ResponseWriter.Write(b)
}

// process is a program in a host.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	log  *os.File
}

// startIn starts a program in a namespace; what it prints goes to a file.
func startIn(name, logFile string, argv ...string) (*process, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	p := &process{done: make(chan struct{}), log: log}
	// ip execs the program: the process stays the same.
	p.cmd = exec.Command("ip", append([]string{"netns", "exec", name}, argv...)...)
	p.cmd.Env = environ()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait()
		_ = log.Close()
	}()
	return p, nil
}

func (p *process) signal(sig syscall.Signal) { _ = p.cmd.Process.Signal(sig) }

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// stop ends the process, with patience.
func (p *process) stop(patience time.Duration) {
	p.signal(syscall.SIGCONT)
	p.signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(patience):
		p.signal(syscall.SIGKILL)
		<-p.done
	}
}

// usage is what a process took of the machine so far.
type usage struct {
	cpu time.Duration
	rss int64 // bytes
}

func (p *process) usage() (u usage, err error) {
	pid := p.cmd.Process.Pid
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	// The name, in parentheses, may have spaces in it.
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(f) < 22 {
		return u, errors.New("stat: too short")
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	pages, _ := strconv.ParseInt(f[21], 10, 64)
	const ticks = 100 // a second, on every Linux that Go runs on
	return usage{time.Duration(user+system) * time.Second / ticks, pages * int64(os.Getpagesize())}, nil
}

// httpIn returns a client whose connections begin in a namespace.
func httpIn(name string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dialIn(ctx, name, network, addr)
		},
		MaxIdleConnsPerHost: 4,
		DisableCompression:  true,
	}}
}

// drain reads a body to its end and returns how much it was.
func drain(resp *http.Response) (int64, error) {
	n, err := io.Copy(io.Discard, resp.Body)
	return n, errors.Join(err, resp.Body.Close())
}

// upstreamURL returns the URL of a path's file at the upstream, as its narinfo says.
func upstreamURL(st *stage, storePath string) string {
	text, err := os.ReadFile(filepath.Join(st.cache.dir, hashOf(storePath)+".narinfo"))
	if err != nil {
		return ""
	}
	n, err := nix.ParseNarInfo(text)
	if err != nil {
		return ""
	}
	return n.URL
}
