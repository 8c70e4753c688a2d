package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// notify tells systemd a state; without systemd it does nothing.
func notify(state string) { _, _ = daemon.SdNotify(false, state) }

// statusTime is how long after a change systemd's STATUS= says so at most.
const statusTime = 5 * time.Second

// statusText says in one line how the daemon is; `systemctl status` shows it.
func (s *server) statusText() string {
	n := s.admin.node.Load()
	if n == nil {
		return clean(fmt.Sprintf("cannot work, answering 404 to everything: %v", s.admin.Ready()))
	}
	text := "answering"
	var degraded []string
	for _, c := range n.current() {
		if !c.Note {
			degraded = append(degraded, c.Text)
		}
	}
	if degraded != nil {
		text = "degraded: " + strings.Join(degraded, "; ")
	}
	if n.peers != nil {
		text += ", " + count(len(n.peers.Peers()), "peer")
	}
	return clean(text)
}

// tellStatus tells systemd how the daemon is whenever that changes, from the start of the node
// until ctx ends.
func (s *server) tellStatus(ctx context.Context) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return
	}
	select {
	case <-ctx.Done():
		return
	case <-s.started:
	}
	tick := time.NewTicker(statusTime)
	defer tick.Stop()
	for told := ""; ; {
		if text := s.statusText(); text != told {
			notify("STATUS=" + text)
			told = text
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// hungFile is where a daemon that the watchdog ends writes what it was doing, in the state
// directory.
const hungFile = "hung.txt"

// dumpOnAbort ends the process on SIGABRT, which the watchdog sends, and writes what each goroutine
// was doing to a file. What Go does by itself is a line for each call of each goroutine in the log.
func (s *server) dumpOnAbort(ctx context.Context) {
	abort := make(chan os.Signal, 1)
	signal.Notify(abort, syscall.SIGABRT)
	defer signal.Stop(abort)
	select {
	case <-ctx.Done():
		return
	case <-abort:
	}
	var calls bytes.Buffer
	_ = pprof.Lookup("goroutine").WriteTo(&calls, 1) // the same calls are counted, not repeated
	file := filepath.Join(s.cfg.StateDir, hungFile)
	why := slog.String("goroutines", file)
	if err := os.WriteFile(file, calls.Bytes(), 0o600); err != nil {
		why = slog.Any("err", err)
	}
	// Not through the log's writer, which would not get to it any more.
	log := newLog(s.ui.err, s.ui.err, s.cfg.LogFormat, s.level)
	log.Error("ended by SIGABRT, which systemd's watchdog sends to a daemon that does not answer itself", why)
	os.Exit(exitFailed)
}

// feedWatchdog tells systemd that this process is healthy: until serving ends as long as it answers real
// requests, and then in any case, while transfers end, for which there is a limit of its own. It returns
// when ctx ends, or at once without a watchdog.
func feedWatchdog(ctx, serving context.Context, front net.Listener) error {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("watchdog: %w", err)
	}
	if every <= 0 {
		return nil
	}
	// On a busy machine an answer may take seconds: it counts until the watchdog ends the daemon.
	client := selfClient(front, every*9/10)
	defer client.CloseIdleConnections()
	tick := time.NewTicker(every / 3)
	defer tick.Stop()
	for {
		if askSelf(serving, client) || serving.Err() != nil {
			notify(daemon.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// selfClient returns a client whose every request goes to the listener.
func selfClient(front net.Listener, timeout time.Duration) *http.Client {
	addr := front.Addr() // one that stands for all is dialled as loopback
	return &http.Client{Timeout: timeout, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, addr.Network(), addr.String())
		},
	}}
}

func askSelf(ctx context.Context, client *http.Client) bool {
	// Under other names than this one, the front answers nobody on this machine.
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/nix-cache-info", http.NoBody)
	if err != nil {
		return false
	}
	res, err := client.Do(req)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	return err == nil && res.StatusCode == http.StatusOK
}
