//go:build linux

package main

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"

	"github.com/nixp2p/nixp2p/lab/rig"
)

// capture is the packets that passed a host's interface.
type capture struct {
	stop chan struct{}
	done chan struct{}
	pcap [][]byte
	seen int64 // bytes
	err  error
}

// captureIn records all packets of eth0 of a namespace, in and out, until its stop is closed.
func captureIn(name string) (*capture, error) {
	c := &capture{stop: make(chan struct{}), done: make(chan struct{})}
	var fd int
	err := rig.In(name, func() (err error) {
		const allProtocols = 0x0300 // ETH_P_ALL in network order
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, allProtocols); err != nil {
			return err
		}
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: allProtocols, Ifindex: i.Index})
	})
	if err != nil {
		return nil, err
	}
	go func() {
		defer close(c.done)
		defer unix.Close(fd)
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
		buf := make([]byte, 1<<17)
		for {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			switch {
			case err == nil:
				c.pcap = append(c.pcap, append([]byte(nil), buf[:n]...))
				c.seen += int64(n)
				continue
			case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			default:
				c.err = err
				return
			}
			select {
			case <-c.stop:
				return
			default:
			}
		}
	}()
	return c, nil
}

// end stops the capture and returns the packets.
func (c *capture) end() ([][]byte, error) {
	close(c.stop)
	<-c.done
	return c.pcap, c.err
}
