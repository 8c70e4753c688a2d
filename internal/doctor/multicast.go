package doctor

import (
	"context"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// sendOn sends a packet to a group on one link, and to this machine.
func sendOn(ctx context.Context, ifi *net.Interface, to *net.UDPAddr, text []byte) error {
	addrs, err := ifi.Addrs()
	if err != nil {
		return err
	}
	var from net.IP
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil {
			from = n.IP.To4()
			break
		}
	}
	if from == nil {
		return errLost
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		e := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInet4Addr(int(fd), unix.IPPROTO_IP, unix.IP_MULTICAST_IF, [4]byte(from))
			if err == nil {
				err = unix.SetsockoptByte(int(fd), unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 1)
			}
		})
		if e != nil {
			return e
		}
		return err
	}}
	c, err := lc.ListenPacket(ctx, "udp4", net.JoinHostPort(from.String(), "0"))
	if err != nil {
		return err
	}
	_, err = c.WriteTo(text, to)
	if e := c.Close(); err == nil {
		err = e
	}
	return err
}
