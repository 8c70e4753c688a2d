package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
)

// listeners are the sockets of the substituter. Inherited ones outlive this process: systemd
// keeps them open, so that a restart is not felt.
type listeners struct {
	front     []net.Listener
	inherited bool
}

func (l *listeners) close() {
	for _, x := range l.front {
		_ = x.Close()
	}
}

// listenFront takes the sockets that systemd hands over, or opens address.
func listenFront(ctx context.Context, address string) (*listeners, error) {
	inherited, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("sockets from systemd: %w", err)
	}
	l := &listeners{}
	for _, x := range inherited {
		if x != nil {
			l.front = append(l.front, x)
		}
	}
	if len(l.front) > 0 {
		l.inherited = true
		return l, nil
	}
	x, err := listen(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	l.front = append(l.front, x)
	return l, nil
}

// listen opens "host:port" or "unix:PATH".
func listen(ctx context.Context, address string) (net.Listener, error) {
	var lc net.ListenConfig
	path, ok := strings.CutPrefix(address, "unix:")
	if !ok {
		return lc.Listen(ctx, "tcp", address)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	return lc.Listen(ctx, "unix", path)
}

// removeStale removes a socket that a killed process left behind; one that answers stays.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and is no socket", path)
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("%s: %w", path, syscall.EADDRINUSE)
	}
	return os.Remove(path)
}

// urlOf returns the URL at which a local client finds the listener.
func urlOf(l net.Listener) string {
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return "unix:" + l.Addr().String()
	}
	host := addr.IP
	if host.IsUnspecified() {
		host = net.IPv4(127, 0, 0, 1)
	}
	return "http://" + net.JoinHostPort(host.String(), fmt.Sprint(addr.Port))
}
