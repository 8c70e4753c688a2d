package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// notify tells systemd a state; without systemd it does nothing.
func notify(state string) { _, _ = daemon.SdNotify(false, state) }

// feedWatchdog tells systemd that this process is healthy as long as it answers real requests. It
// returns when ctx ends, or at once without a watchdog.
func feedWatchdog(ctx context.Context, front net.Listener) error {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("watchdog: %w", err)
	}
	if every <= 0 {
		return nil
	}
	client := selfClient(front, every/3)
	defer client.CloseIdleConnections()
	tick := time.NewTicker(every / 3)
	defer tick.Stop()
	for {
		if askSelf(ctx, client) {
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
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://nixp2p/nix-cache-info", http.NoBody)
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
