package admin

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/nixp2p/nixp2p/internal/origin"
)

// refuse returns why a request is not followed, "" if it is.
func (h *Handler) refuse(r *http.Request) (status int, reason string) {
	if err := h.check.Refuse(r); err != nil {
		return http.StatusNotFound, err.Error()
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodPost:
		// A form cannot send this type, and a script of another site would have to ask first.
		if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
			return http.StatusUnsupportedMediaType, "only JSON is posted here"
		}
	default:
		return http.StatusMethodNotAllowed, "method not allowed"
	}
	if needsOwner(r) && !h.isOwner(r) {
		return http.StatusForbidden, "only root and the user of the service may do this"
	}
	return 0, ""
}

// needsOwner reports whether the request changes something, or shows or costs what other users
// must not have.
func needsOwner(r *http.Request) bool {
	return r.Method == http.MethodPost || strings.HasPrefix(r.URL.Path, "/debug/")
}

// fromOwner reports whether the process that sent the request belongs to root or to this
// process's user. Systems that do not tell whose connection it is let every process of this machine
// through.
func fromOwner(r *http.Request) bool {
	if !origin.SameMachine(r) {
		return false
	}
	uid, err := clientUID(r)
	if errors.Is(err, errors.ErrUnsupported) {
		return true
	}
	return err == nil && (uid == 0 || uid == os.Geteuid())
}

// clientUID returns the user of the process that opened the connection of r.
func clientUID(r *http.Request) (int, error) {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	client, err := netip.ParseAddrPort(r.RemoteAddr)
	if !ok || err != nil {
		return 0, errors.New("not a TCP connection")
	}
	uid, err := socketUID(client, local.AddrPort())
	if err != nil {
		return 0, err
	}
	// A socket that is closed while the kernel lists it may have lost its owner and not yet its
	// state. The second time it is found to be closed.
	again, err := socketUID(client, local.AddrPort())
	if err == nil && again != uid {
		err = errors.New("the owner of the connection has changed")
	}
	return uid, err
}

// stateEstablished is the state of an open connection. The kernel lists sockets that their
// process has closed as root's.
const stateEstablished = "01"

// findUID reads a table of the kernel's TCP sockets (Linux: proc_net_tcp) and returns the owner of
// the one from client to server.
func findUID(table io.Reader, client, server netip.AddrPort) (int, error) {
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
		f := strings.Fields(lines.Text())
		if len(f) < 10 || f[3] != stateEstablished || f[9] == "0" {
			continue
		}
		from, ok := parseSocketAddr(f[1])
		to, ok2 := parseSocketAddr(f[2])
		if !ok || !ok2 || from != plain(client) || to != plain(server) {
			continue
		}
		return strconv.Atoi(f[7])
	}
	if err := lines.Err(); err != nil {
		return 0, err
	}
	return 0, fmt.Errorf("no socket of %s", client)
}

// plain returns a without what the kernel's table does not tell.
func plain(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// parseSocketAddr reads "0100007F:1EA6": each 32 bits of the address in the machine's byte order.
func parseSocketAddr(s string) (netip.AddrPort, bool) {
	addr, portText, ok := strings.Cut(s, ":")
	port, err := strconv.ParseUint(portText, 16, 16)
	if !ok || err != nil || len(addr) != 8 && len(addr) != 32 {
		return netip.AddrPort{}, false
	}
	var b []byte
	for ; addr != ""; addr = addr[8:] {
		word, err := strconv.ParseUint(addr[:8], 16, 32)
		if err != nil {
			return netip.AddrPort{}, false
		}
		b = binary.NativeEndian.AppendUint32(b, uint32(word))
	}
	a, _ := netip.AddrFromSlice(b)
	return plain(netip.AddrPortFrom(a, uint16(port))), true
}
