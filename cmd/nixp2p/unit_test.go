package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
	"github.com/nixp2p/nixp2p/internal/nixtest/supervise"
)

// unit is a daemon under a socket that outlives it.
type unit struct {
	*supervise.Supervisor
	t       testing.TB
	dir     string
	program string // what is started, a link that tests replace
	config  string // its configuration file

	mu  sync.Mutex
	log bytes.Buffer
}

// newUnit prepares a unit: nothing runs yet, and tests may change its directory.
func newUnit(t testing.TB) *unit {
	t.Helper()
	u := &unit{t: t, dir: t.TempDir()}
	u.program, u.config = filepath.Join(u.dir, "nixp2p"), filepath.Join(u.dir, "config.toml")
	u.install()
	u.configure("")
	return u
}

// run starts the unit, which is stopped at the end of the test.
func (u *unit) run(cfg supervise.Config, args ...string) {
	u.t.Helper()
	cfg.Command = append([]string{
		u.program, "serve", "--config", u.config, "--admin-listen", "127.0.0.1:0",
		"--state-dir", u.dir + "/state", "--cache-dir", u.dir + "/cache",
	}, args...)
	cfg.Env = append(cfg.Env, beMain+"=1")
	cfg.Log = u
	var err error
	if u.Supervisor, err = supervise.New(cfg); err != nil {
		u.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- u.Run(ctx) }()
	u.t.Cleanup(func() {
		_ = u.Signal(syscall.SIGCONT)
		stop()
		if err := <-ended; err != nil {
			u.t.Error(err)
		}
	})
}

func (u *unit) Write(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.log.Write(p)
}

func (u *unit) text() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.log.String()
}

// install puts the program in its place, anew and under the same name.
func (u *unit) install() {
	self, err := os.Executable()
	if err == nil {
		err = errors.Join(os.Symlink(self, u.program+".new"), os.Rename(u.program+".new", u.program))
	}
	if err != nil {
		u.t.Fatal(err)
	}
}

// crash makes the program crash at its next starts.
func (u *unit) crash(times int) {
	self, _ := os.Executable()
	script := fmt.Sprintf("#!/bin/sh\necho >>%[1]s\n[ $(wc -l <%[1]s) -gt %[2]d ] || kill -SEGV $$\nexec %[3]s \"$@\"\n", u.dir+"/starts", times, self)
	if err := errors.Join(os.WriteFile(u.program+".new", []byte(script), 0o755), os.Rename(u.program+".new", u.program)); err != nil {
		u.t.Fatal(err)
	}
}

// crashSoon makes the program crash soon after it has answered, until it rests.
func (u *unit) crashSoon() {
	for {
		<-u.Ready()
		<-time.After(300 * time.Millisecond)
		if strings.Contains(u.Status(), "answering 404") {
			return
		}
		starts, _ := u.Starts()
		_ = u.Signal(syscall.SIGKILL)
		eventually(u.t, func() bool { n, _ := u.Starts(); return n > starts })
	}
}

func (u *unit) configure(text string) {
	if err := os.WriteFile(u.config, []byte(text), 0o644); err != nil {
		u.t.Fatal(err)
	}
}

var adminURL = regexp.MustCompile(`msg="listening for admin" url=(\S+)`)

// admin returns the address of the admin listener, as soon as the daemon that started first has
// told it: being ready does not wait for this listener, nor for the log.
func (u *unit) admin() string {
	u.t.Helper()
	<-u.Ready()
	var found []string
	eventually(u.t, func() bool { found = adminURL.FindStringSubmatch(u.text()); return found != nil })
	return found[1]
}

// tmpfs puts state and cache on a file system of this size.
func (u *unit) tmpfs(size string) {
	u.t.Helper()
	at := u.dir + "/disk"
	if err := os.Mkdir(at, 0o755); err != nil {
		u.t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", at, "tmpfs", 0, "size="+size); err != nil {
		u.t.Skipf("no file system can be mounted: %v", err)
	}
	u.t.Cleanup(func() { _ = syscall.Unmount(at, syscall.MNT_DETACH) })
	if err := errors.Join(os.Symlink("disk", u.dir+"/state"), os.Symlink("disk", u.dir+"/cache")); err != nil {
		u.t.Fatal(err)
	}
}

// inTheMiddle calls act at the n-th request for a NAR.
func inTheMiddle(h http.Handler, n int64, act func()) http.HandlerFunc {
	var seen atomic.Int64
	return func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/nar/") && seen.Add(1) == n {
			go act()
		}
		h.ServeHTTP(w, r)
	}
}

// Whatever happens to the daemon while Nix fetches a closure, the command succeeds.
func TestOutages(t *testing.T) {
	c := realnix.FindCorpus(t, realnix.Params{})
	const middle = 60 // of 220 NARs
	for _, tt := range []struct {
		name    string
		unit    supervise.Config
		prepare func(u *unit)
		act     func(u *unit)
		peers   bool
		good    bool // Nix has another cache as well: the daemon cannot work
		starts  int  // at least
	}{
		{name: "killed", starts: 2, act: func(u *unit) { _ = u.Signal(syscall.SIGKILL) }},
		{
			name: "stopped", starts: 2, unit: supervise.Config{Watchdog: 1500 * time.Millisecond, Abort: 200 * time.Millisecond},
			act: func(u *unit) { _ = u.Signal(syscall.SIGSTOP) },
		},
		{name: "crashing at its next starts", starts: 5, act: func(u *unit) {
			u.crash(3)
			_ = u.Signal(syscall.SIGKILL)
		}},
		{name: "crashing soon after each start", good: true, starts: 3, unit: supervise.Config{Burst: 3}, act: (*unit).crashSoon},
		{name: "upgraded", starts: 2, act: func(u *unit) {
			u.install()
			_ = u.Signal(syscall.SIGTERM)
		}},
		{name: "disk full from the start", prepare: func(u *unit) { u.tmpfs("256k") }},
		{name: "disk fills up", prepare: func(u *unit) { u.tmpfs("24m") }},
		{name: "directories are files", peers: true, prepare: func(u *unit) {
			if err := errors.Join(os.WriteFile(u.dir+"/state", nil, 0o600), os.WriteFile(u.dir+"/cache", nil, 0o600)); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "started with a broken configuration", good: true, prepare: func(u *unit) { u.configure("this is = not TOML\n") }},
		{name: "restarted with a broken configuration", good: true, starts: 2, act: func(u *unit) {
			u.configure("cache-size = \"lots\"\n")
			_ = u.Signal(syscall.SIGTERM)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // half of the time somebody waits for somebody
			u := newUnit(t)
			if tt.prepare != nil {
				tt.prepare(u)
			}
			files := http.FileServer(http.Dir(c.Caches["zstd"]))
			up := newServer(t, inTheMiddle(files, middle, func() {
				if tt.act != nil {
					tt.act(u)
				}
			}))
			args := corpusArgs(c, up, u.dir+"/none")
			if tt.peers {
				args = append(args, "--p2p=true", "--p2p-listen=/ip4/127.0.0.1/tcp/0", "--mdns=false")
			}
			u.run(tt.unit, args...)
			client := realnix.Find(t).TempClient(t, c.PublicKey)
			client.Substituters = []string{u.URL()}
			if tt.good {
				client.Substituters = append(client.Substituters, afterUs(t, files))
			}
			res, err := client.Realise(t.Context(), c.Top)
			starts, _ := u.Starts()
			t.Logf("%v, %d starts", res.Wall.Round(10*time.Millisecond), starts)
			if err != nil {
				t.Fatalf("%v\n%s", err, u.text())
			}
			if starts < tt.starts {
				t.Errorf("the daemon was started %d times, want %d: nothing has happened to it", starts, tt.starts)
			}
			check(t, client, c)
		})
	}
}

// afterUs is a cache with the usual priority, so that Nix asks the daemon first.
func afterUs(t *testing.T, files http.Handler) string {
	return newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/nix-cache-info" {
			fmt.Fprint(w, "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n")
			return
		}
		files.ServeHTTP(w, r)
	})
}

// A daemon that cannot work stays up under its socket, says why, and hurts nobody.
func TestDegradedStart(t *testing.T) {
	t.Parallel()
	p, key := nixtest.NewPath("p", 1000), nixtest.NewKey("trusted-1")
	up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: []nixtest.Path{p}, Keys: []nixtest.Key{key}})
	u := newUnit(t)
	u.configure("cache-size = \"lots\"\n")
	u.run(supervise.Config{}, "--p2p=false", "--upstream", up.URL(), "--trusted-public-key", key.Public(), "--store-root", u.dir)
	d := &process{t: t, url: u.URL()}
	if status, body := d.get(u.URL() + "/nix-cache-info"); status != http.StatusOK || !strings.Contains(body, "StoreDir: /nix/store") {
		t.Errorf("nix-cache-info: %d %q", status, body)
	}
	for _, path := range []string{"/" + p.Hash().String() + ".narinfo", "/nar/x.nar"} {
		if status, _ := d.get(u.URL() + path); status != http.StatusNotFound {
			t.Errorf("%s: %d, want 404", path, status)
		}
	}
	admin := u.admin()
	if status, body := d.get(admin + "/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "cache-size") {
		t.Errorf("readyz: %d %q, want 503 and the reason", status, body)
	}
	if status, _ := d.get(admin + "/healthz"); status != http.StatusOK {
		t.Errorf("healthz: %d, want 200: a restart would not help", status)
	}
	stdout, stderr, code := command(t, "status", "--config", os.DevNull, "--admin-listen", strings.TrimPrefix(admin, "http://"))
	if code != 1 || !strings.Contains(stdout, "cache-size") {
		t.Errorf("status: exit code %d\n%s%s", code, stdout, stderr)
	}
	eventually(t, func() bool { return strings.Contains(u.Status(), "404") && strings.Contains(u.Status(), "cache-size") })
	// What was repaired works after a restart, and no client has noticed anything.
	u.configure("")
	if err := u.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool {
		status, _ := d.get(u.URL() + "/" + p.Hash().String() + ".narinfo")
		return status == http.StatusOK
	})
	eventually(t, func() bool { return u.Status() == "answering" })
}

// A daemon that is well feeds the watchdog again and again.
func TestWatchdogFed(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	startDaemonWith(t, []string{"NOTIFY_SOCKET=" + name, "WATCHDOG_USEC=3000000"}, "--p2p=false", "--upstream", "http://127.0.0.1:1", "--store-root", t.TempDir())
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for fed := 0; fed < 3; {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("fed %d times: %v", fed, err)
		}
		if string(buf[:n]) == "WATCHDOG=1" {
			fed++
		}
	}
}

// A daemon that the watchdog ends leaves what it was doing in a file, and not in the log.
func TestAbort(t *testing.T) {
	t.Parallel()
	u := newUnit(t)
	u.run(supervise.Config{}, "--p2p=false", "--upstream", "http://127.0.0.1:1", "--store-root", u.dir)
	<-u.Ready()
	if err := u.Signal(syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool {
		text, _ := os.ReadFile(filepath.Join(u.dir, "state", hungFile))
		return strings.Contains(string(text), "goroutine profile") && strings.Contains(u.text(), "ended by SIGABRT")
	})
	if strings.Contains(u.text(), "\ngoroutine ") {
		t.Errorf("goroutines in the log:\n%s", u.text())
	}
}

// A store whose database cannot be opened, as on a file server that is gone, keeps nobody
// waiting for longer than a narinfo may take.
func TestHangingStart(t *testing.T) {
	t.Parallel() // it mostly waits
	u := newUnit(t)
	db := u.dir + "/nix/var/nix/db"
	// Who opens it waits for a writer.
	if err := errors.Join(os.MkdirAll(db, 0o755), syscall.Mkfifo(db+"/db.sqlite", 0o644)); err != nil {
		t.Fatal(err)
	}
	u.run(supervise.Config{Stop: time.Second}, "--p2p=false", "--upstream", "http://127.0.0.1:1", "--store-root", u.dir)
	d := &process{t: t}
	for path, want := range map[string]time.Duration{"/nix-cache-info": 3 * time.Second, "/" + nixtest.NewPath("p", 1).Hash().String() + ".narinfo": 12 * time.Second} {
		start := time.Now()
		status, _ := d.get(u.URL() + path)
		if took := time.Since(start); took > want || status != http.StatusOK && status != http.StatusNotFound {
			t.Errorf("%s: %d after %v, want 200 or 404 within %v", path, status, took, want)
		}
	}
	select {
	case <-u.Ready():
		t.Error("the daemon has started: the database does not hang")
	default:
	}
}

// Without a socket from systemd nobody waits: a broken configuration is an error at once.
func TestBrokenConfigurationByHand(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte("\ncache-size = \"lots\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := command(t, "serve", "--config", file, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
	if code != exitUsage || !strings.Contains(stderr, "config.toml:2") {
		t.Errorf("exit code %d, want %d and file with line:\n%s", code, exitUsage, stderr)
	}
}

// The socket that systemd hands over is taken. systemd-socket-activate starts the daemon with
// the first connection, whose request waits meanwhile.
func TestSocketActivate(t *testing.T) {
	t.Parallel()
	activate, err := exec.LookPath("systemd-socket-activate")
	if err != nil {
		t.Skip("no systemd-socket-activate (Debian: systemd)")
	}
	c := realnix.FindCorpus(t, realnix.Params{})
	// It prints no port: one that was free a moment ago has to do.
	address := freeAddress(t)
	dir := t.TempDir()
	args := append([]string{
		"--listen=" + address, "--setenv=" + beMain + "=1", os.Args[0], "serve", "--config", os.DevNull, "--admin-listen", "127.0.0.1:0",
		"--state-dir", dir + "/state", "--cache-dir", dir + "/cache",
	}, corpusArgs(c, serveFiles(t, c.Caches["zstd"]).URL, dir+"/none")...)
	cmd := exec.Command(activate, args...)
	var log lockedBuffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v\n%s", err, log.String())
		}
	}()
	eventually(t, func() bool { return strings.Contains(log.String(), "Listening on") })
	client := realnix.Find(t).TempClient(t, c.PublicKey)
	client.Substituters = []string{"http://" + address}
	if res, err := client.Realise(t.Context(), c.Top); err != nil {
		t.Fatalf("%v\n%s\n%s", err, res.Stderr, log.String())
	}
	if !strings.Contains(log.String(), "inherited=true") {
		t.Errorf("the socket was not taken:\n%s", log.String())
	}
}
