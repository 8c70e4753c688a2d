//go:build linux

package rig

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// In runs f on a thread that is in the named network namespace: sockets that f opens itself
// stay there. The thread is thrown away.
func In(name string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The first thread does not end with its goroutine, and would leave the whole
			// process in the namespace for those who look. While it waits, others work.
			defer runtime.UnlockOSThread()
			done <- In(name, f)
			return
		}
		done <- func() error {
			ns, err := os.Open("/run/netns/" + name)
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter %s: %w", name, err)
			}
			return f()
		}()
	}()
	return <-done
}

// DialIn dials from a namespace. The address is numeric: a name would be looked up elsewhere.
func DialIn(ctx context.Context, name, network, addr string) (c net.Conn, err error) {
	err = In(name, func() (err error) {
		c, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// ListenIn listens in a namespace.
func ListenIn(name, addr string) (l net.Listener, err error) {
	err = In(name, func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	return l, err
}

// httpIn returns a client whose connections begin in a namespace.
func httpIn(name string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return DialIn(ctx, name, network, addr)
		},
		MaxIdleConnsPerHost: 4,
		DisableCompression:  true,
	}}
}

// Environ is this process's environment without what Go's tests put there.
func Environ() []string {
	var list []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "NIXP2P_") && !strings.HasPrefix(e, "NOTIFY_SOCKET=") {
			list = append(list, e)
		}
	}
	return list
}
