// Package origin checks where an HTTP request comes from. The adversary is a web page in a
// browser of this machine or of another one that reaches a listener of this node. It can send
// requests to any address, it can measure how they end, and under a name of its own that it
// makes resolve to the listener's address (DNS rebinding) it can read the answers, too.
package origin

import (
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// Check is the check of one listener. It is safe for concurrent use.
type Check struct {
	// Names are the host names of the listener besides localhost and its addresses, each
	// perhaps with a port, which is ignored.
	Names []string
	// Public are further names: those by which a proxy on this machine asks for clients on others.
	Public []string
	// Pages is set if people look at the listener with a browser: a link to "/" may be followed
	// from anywhere, and a browser that says nothing about a request's origin is answered.
	Pages bool
}

// Reasons to refuse a request.
var (
	errHost    = errors.New("the Host header is neither an address of this listener nor localhost nor a configured name")
	errSite    = errors.New("sent by a page of another site")
	errBrowser = errors.New("sent by a browser")
)

// Refuse returns why r must not be answered, nil if it may be.
func (c *Check) Refuse(r *http.Request) error {
	if isUnix(r) {
		return nil // no browser gets there
	}
	// A client on another machine may know this one by any name. It is shown only what is
	// public, so that the name matters only where people look.
	if !c.hostAllowed(r) && (c.Pages || SameMachine(r)) {
		return errHost
	}
	if o := r.Header["Origin"]; len(o) > 0 && !c.ownOrigin(o, r.Host) {
		return errSite
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "none", "same-origin":
		return nil
	case "":
		// Browsers leave it out towards addresses that they do not trust, such as those of the
		// local network by http.
		if !c.Pages && isBrowser(r) {
			return errBrowser
		}
		return nil
	}
	if c.Pages && isLink(r) {
		return nil
	}
	return errSite
}

// isLink reports whether r follows a link to the page, without a question: even a request
// whose answer the other site cannot read may cost something.
func isLink(r *http.Request) bool {
	dest := r.Header.Get("Sec-Fetch-Dest")
	return r.Method == http.MethodGet && r.URL.Path == "/" && r.URL.RawQuery == "" &&
		r.Header.Get("Sec-Fetch-Mode") == "navigate" && (dest == "document" || dest == "")
}

// isBrowser reports whether a browser sent r. Nix sends none of this, and a page cannot have it
// left out.
func isBrowser(r *http.Request) bool {
	return strings.HasPrefix(r.UserAgent(), "Mozilla/") || r.Header["Accept-Language"] != nil || r.Header["Referer"] != nil
}

// ownOrigin reports whether the page that sent the request came from the listener that got it.
func (c *Check) ownOrigin(values []string, host string) bool {
	if len(values) != 1 || !c.Pages {
		return false
	}
	u, err := url.Parse(values[0])
	return err == nil && strings.EqualFold(u.Host, host)
}

// hostAllowed reports whether the Host header is absent or names the listener: localhost, a loopback address,
// a configured name, or the address that the request came in on. Ports are not compared: they
// may be forwarded.
func (c *Check) hostAllowed(r *http.Request) bool {
	host := hostOf(r.Host)
	if host == "" || strings.EqualFold(host, "localhost") { // no browser leaves it out
		return true
	}
	if named(host, c.Names) || named(host, c.Public) {
		return true
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	ip = ip.Unmap().WithZone("")
	local, ok := localAddr(r)
	return ip.IsLoopback() || ok && ip == local
}

// named reports whether a host, without a port, is one of the names.
func named(host string, names []string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return strings.EqualFold(host, hostOf(name)) })
}

// Own reports whether a program on this machine sent r for itself. A proxy on this machine sends what
// others asked it: it says so, or it passes on a name that they used.
func (c *Check) Own(r *http.Request) bool {
	if !SameMachine(r) || named(hostOf(r.Host), c.Public) {
		return false
	}
	for _, key := range []string{"Forwarded", "X-Forwarded-For", "X-Real-Ip"} {
		if r.Header[key] != nil {
			return false
		}
	}
	return true
}

// SameMachine reports whether the client is on this machine: it came by a socket of the file
// system, from a loopback address, or from the very address that it connected to.
func SameMachine(r *http.Request) bool {
	if isUnix(r) {
		return true
	}
	client, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	addr := client.Addr().Unmap().WithZone("")
	local, ok := localAddr(r)
	return addr.IsLoopback() || ok && local == addr
}

func isUnix(r *http.Request) bool {
	_, ok := r.Context().Value(http.LocalAddrContextKey).(*net.UnixAddr)
	return ok
}

// localAddr returns the address that the request came in on.
func localAddr(r *http.Request) (netip.Addr, bool) {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	if !ok {
		return netip.Addr{}, false
	}
	return local.AddrPort().Addr().Unmap().WithZone(""), true
}

// hostOf returns the host of "host", "host:port", "[v6]" or "[v6]:port".
func hostOf(s string) string {
	if host, _, err := net.SplitHostPort(s); err == nil {
		return host
	}
	return strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
}
