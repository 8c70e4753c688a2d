// Package supervise stands in for systemd where there is none: it holds the listening socket,
// hands it to the daemon, ends one that no longer feeds the watchdog, and starts it again
// whatever it ended of, with the delays of the unit; on demand it gives up as the unit does. It
// reads no unit files and is for tests and measurements only.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Config says what is run and how. The zero durations are those of systemd/nixp2p.service.
type Config struct {
	Command []string  // program and arguments
	Env     []string  // beside this process's own
	Listen  string    // TCP address of the socket; "" is a free port of 127.0.0.1
	Log     io.Writer // what the daemon prints; nil is nowhere

	Watchdog time.Duration // WatchdogSec=
	Abort    time.Duration // TimeoutAbortSec=: from SIGABRT to SIGKILL
	Stop     time.Duration // TimeoutStopSec=: from SIGTERM to SIGKILL
	Restart  time.Duration // RestartSec=

	// Burst is StartLimitBurst=: after as many starts in a row that failed, the socket is closed and
	// Run returns. As in the unit, a start failed if the daemon neither ended well nor worked for
	// 10 s. 0 is no limit.
	Burst int
}

// worked is how long a daemon that was started well has worked at least.
const worked = 10 * time.Second

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, unit time.Duration) {
		if *d == 0 {
			*d = unit
		}
	}
	set(&c.Watchdog, 10*time.Second)
	set(&c.Abort, 3*time.Second)
	set(&c.Stop, 35*time.Second)
	set(&c.Restart, 250*time.Millisecond)
	if c.Listen == "" {
		c.Listen = "127.0.0.1:0"
	}
	return c
}

// Supervisor is one unit with its socket. Run it once; the other methods are safe for
// concurrent use.
type Supervisor struct {
	cfg    Config
	socket *net.TCPListener
	file   *os.File // the same, to hand over
	dir    string
	notes  *net.UnixConn

	mu      sync.Mutex
	process *os.Process
	starts  int
	bitten  int    // times that the watchdog ended the daemon
	status  string // STATUS= that the daemon told last
	ready   chan struct{}
}

// New opens the socket: from now on connections wait in it.
func New(cfg Config) (*Supervisor, error) {
	s := &Supervisor{cfg: cfg.withDefaults(), ready: make(chan struct{})}
	l, err := net.Listen("tcp", s.cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("supervise: %w", err)
	}
	s.socket = l.(*net.TCPListener)
	if s.file, err = s.socket.File(); err != nil {
		return nil, errors.Join(fmt.Errorf("supervise: %w", err), l.Close())
	}
	// A socket's path has to be short.
	if s.dir, err = os.MkdirTemp("", "sup"); err != nil {
		return nil, errors.Join(fmt.Errorf("supervise: %w", err), s.close())
	}
	at := &net.UnixAddr{Name: filepath.Join(s.dir, "notify"), Net: "unixgram"}
	if s.notes, err = net.ListenUnixgram("unixgram", at); err != nil {
		return nil, errors.Join(fmt.Errorf("supervise: %w", err), s.close())
	}
	return s, nil
}

func (s *Supervisor) close() error {
	errs := []error{s.socket.Close(), s.file.Close()}
	if s.notes != nil {
		errs = append(errs, s.notes.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// URL returns the address of the socket.
func (s *Supervisor) URL() string { return "http://" + s.socket.Addr().String() }

// Run starts the daemon and starts it again whenever it ends. When ctx ends it stops the
// daemon, closes the socket and returns.
func (s *Supervisor) Run(ctx context.Context) error {
	notes := make(chan string)
	var readers sync.WaitGroup
	readers.Go(func() { s.listen(notes) })
	for failed := 0; ctx.Err() == nil; {
		failed++
		well, err := s.once(ctx, notes)
		if err != nil {
			fmt.Fprintf(s.log(), "supervise: %v\n", err)
		}
		if well {
			failed = 0
		}
		if failed == s.cfg.Burst && failed > 0 {
			break
		}
		pause(ctx, s.cfg.Restart)
	}
	err := s.close()
	readers.Wait()
	return err
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

func (s *Supervisor) log() io.Writer {
	if s.cfg.Log == nil {
		return io.Discard
	}
	return s.cfg.Log
}

// listen reads what the daemon tells, until the socket is closed. What nobody waits for is
// dropped.
func (s *Supervisor) listen(notes chan<- string) {
	buf := make([]byte, 4096)
	for {
		n, err := s.notes.Read(buf)
		if err != nil {
			return
		}
		select {
		case notes <- string(buf[:n]):
		case <-time.After(time.Second):
		}
	}
}

// once runs the daemon until it has ended, and reports whether it was started well.
func (s *Supervisor) once(ctx context.Context, notes <-chan string) (well bool, err error) {
	// LISTEN_PID is known only in the process itself.
	argv := append([]string{"-c", `LISTEN_PID=$$ exec "$@"`, "sh"}, s.cfg.Command...)
	cmd := exec.Command("/bin/sh", argv...)
	cmd.Stdout, cmd.Stderr = s.log(), s.log()
	cmd.ExtraFiles = []*os.File{s.file}
	cmd.Env = append(os.Environ(), s.cfg.Env...)
	cmd.Env = append(cmd.Env, "LISTEN_FDS=1", "NOTIFY_SOCKET="+filepath.Join(s.dir, "notify"),
		fmt.Sprintf("WATCHDOG_USEC=%d", s.cfg.Watchdog.Microseconds()))
	if err := cmd.Start(); err != nil {
		return false, err
	}
	s.mu.Lock()
	s.process = cmd.Process
	s.starts++
	s.mu.Unlock()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	well, err = s.watch(ctx, cmd.Process, notes, ended)
	s.mu.Lock()
	s.process = nil
	select {
	case <-s.ready:
		s.ready = make(chan struct{})
	default:
	}
	s.mu.Unlock()
	return well, err
}

// watch returns when the daemon has ended, with whether it was started well.
func (s *Supervisor) watch(ctx context.Context, p *os.Process, notes <-chan string, ended <-chan error) (bool, error) {
	// Armed when the daemon says that it is ready; until then it may take its time.
	hungry := time.NewTimer(math.MaxInt64)
	defer hungry.Stop()
	kill := make(<-chan time.Time)
	done := ctx.Done()
	hung := false
	var ready time.Time
	for {
		select {
		case err := <-ended:
			return err == nil || !hung && !ready.IsZero() && time.Since(ready) >= worked, err
		case note := <-notes:
			s.noteStatus(note)
			if has(note, "READY=1") {
				s.setReady()
				ready = time.Now()
				hungry.Reset(s.cfg.Watchdog)
			}
			if has(note, "WATCHDOG=1") {
				hungry.Reset(s.cfg.Watchdog)
			}
		case <-hungry.C:
			s.mu.Lock()
			s.bitten++
			s.mu.Unlock()
			hung = true
			_ = p.Signal(syscall.SIGABRT)
			kill = time.After(s.cfg.Abort)
		case <-done:
			done = nil
			hungry.Stop()
			_ = p.Signal(syscall.SIGTERM)
			kill = time.After(s.cfg.Stop)
		case <-kill:
			_ = p.Kill()
		}
	}
}

func (s *Supervisor) noteStatus(note string) {
	for l := range strings.Lines(note) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(l), "STATUS="); ok {
			s.mu.Lock()
			s.status = text
			s.mu.Unlock()
		}
	}
}

// Status returns what `systemctl status` would show of the daemon.
func (s *Supervisor) Status() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

func has(note, line string) bool {
	for l := range strings.Lines(note) {
		if strings.TrimSpace(l) == line {
			return true
		}
	}
	return false
}

func (s *Supervisor) setReady() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.ready:
	default:
		close(s.ready)
	}
}

// Ready returns a channel that is closed when the daemon that runs now, or else the next,
// says that it answers.
func (s *Supervisor) Ready() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready
}

// Signal sends the daemon a signal; there may be none at the moment.
func (s *Supervisor) Signal(sig os.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return os.ErrProcessDone
	}
	return s.process.Signal(sig)
}

// Starts returns how often the daemon was started, and how often the watchdog ended it.
func (s *Supervisor) Starts() (starts, bitten int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.starts, s.bitten
}
