//go:build !linux

package admin

import (
	"errors"
	"net/netip"
)

// socketUID returns the owner of the socket of a client on this machine.
func socketUID(_, _ netip.AddrPort) (int, error) { return 0, errors.ErrUnsupported }
