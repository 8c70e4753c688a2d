package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// beMain makes the test binary run as the program.
const beMain = "NIXP2P_TEST_BE_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(beMain) == "1" {
		os.Exit(run())
	}
	os.Exit(m.Run())
}

// process is a nixp2p process with directories of its own.
type process struct {
	t          testing.TB
	cmd        *exec.Cmd
	dir        string
	args       []string
	env        []string
	prefix     []string // of the command, such as nsenter
	url, admin string

	mu  sync.Mutex
	log bytes.Buffer
	end chan struct{} // closed when the log has ended
}

// startDaemon runs serve with args, on free ports, and waits until it listens. It is stopped at
// the end of the test, which fails if it does not end well.
func startDaemon(t testing.TB, args ...string) *process {
	t.Helper()
	return startDaemonWith(t, nil, args...)
}

// startDaemonWith is startDaemon with more in the environment.
func startDaemonWith(t testing.TB, env []string, args ...string) *process {
	t.Helper()
	d := &process{t: t, dir: t.TempDir(), args: args, env: env}
	d.start()
	t.Cleanup(func() {
		if d.cmd != nil {
			d.stop()
		}
	})
	return d
}

var listening = regexp.MustCompile(`msg="?listening(?: for admin)?"? url=(\S+)`)

func (d *process) start() {
	d.t.Helper()
	args := append([]string{
		"serve", "--config", os.DevNull, "--listen", orAny(d.url), "--admin-listen", orAny(d.admin),
		"--state-dir", d.dir + "/state", "--cache-dir", d.dir + "/cache", "--log-level", "debug",
	}, d.args...)
	argv := slices.Concat(d.prefix, []string{os.Args[0]}, args)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(append(os.Environ(), beMain+"=1"), d.env...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.cmd, d.end = cmd, make(chan struct{})
	urls := make(chan string, 2)
	go d.readLog(stderr, urls)
	for _, to := range []*string{&d.url, &d.admin} {
		select {
		case *to = <-urls:
		case <-d.end:
			d.t.Fatalf("the daemon ended:\n%s", d.logText())
		case <-time.After(time.Minute):
			d.t.Fatalf("the daemon does not listen:\n%s", d.logText())
		}
	}
}

func orAny(url string) string {
	if url == "" {
		return "127.0.0.1:0"
	}
	return strings.TrimPrefix(url, "http://")
}

func (d *process) readLog(r io.Reader, urls chan<- string) {
	defer close(d.end)
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		d.mu.Lock()
		d.log.WriteString(lines.Text() + "\n")
		d.mu.Unlock()
		if m := listening.FindStringSubmatch(lines.Text()); m != nil {
			select {
			case urls <- m[1]:
			default:
			}
		}
	}
}

func (d *process) logText() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.String()
}

// stop ends the daemon as systemd does.
func (d *process) stop() {
	d.t.Helper()
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	d.wait()
}

// kill ends it as the out-of-memory killer does.
func (d *process) kill() {
	_ = d.cmd.Process.Kill()
	<-d.end
	_ = d.cmd.Wait()
	d.cmd = nil
}

func (d *process) wait() {
	d.t.Helper()
	select {
	case <-d.end:
	case <-time.After(2 * time.Minute):
		_ = d.cmd.Process.Kill()
		d.t.Errorf("the daemon does not stop")
	}
	if err := d.cmd.Wait(); err != nil {
		d.t.Errorf("the daemon ended with %v:\n%s", err, d.logText())
	}
	d.cmd = nil
}

// restart stops the daemon and starts it on the same addresses and directories.
func (d *process) restart(args ...string) {
	d.t.Helper()
	d.stop()
	d.args = args
	d.start()
}

// get returns status and body.
func (d *process) get(url string) (int, string) {
	d.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, http.NoBody)
	if err != nil {
		d.t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return res.StatusCode, "cut: " + err.Error()
	}
	return res.StatusCode, string(body)
}

// metric returns the sum of the samples of a metric whose line has all the words.
func (d *process) metric(name string, words ...string) float64 {
	d.t.Helper()
	_, text := d.get(d.admin + "/metrics")
	var sum float64
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name); !ok || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		fits := true
		for _, w := range words {
			fits = fits && strings.Contains(line, w)
		}
		if fits {
			sum += parseFloat(line[strings.LastIndexByte(line, ' ')+1:])
		}
	}
	return sum
}

// command runs another command of the program.
func command(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), beMain+"=1")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}
