package admin

import (
	"errors"
	"net/netip"
	"os"
)

// socketUID returns the owner of the socket of a client on this machine.
func socketUID(client, server netip.AddrPort) (int, error) {
	var errs []error
	for _, name := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		f, err := os.Open(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		uid, err := findUID(f, client, server)
		_ = f.Close() // only read from
		if err == nil {
			return uid, nil
		}
		errs = append(errs, err)
	}
	return 0, errors.Join(errs...)
}
