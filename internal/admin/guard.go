package admin

import (
	"mime"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// refusal is an answer to a request that is not followed.
type refusal struct {
	status int
	reason string
}

func (r *refusal) Error() string { return r.reason }

// refuse says why a request is not followed, nil when it is. The adversary is a web page in
// a browser on this machine: it can send requests to loopback, under a name that it made
// resolve to 127.0.0.1 it can read the answers too (DNS rebinding), and it can post forms.
func refuse(r *http.Request, addr string) *refusal {
	if !ownHost(r, addr) {
		return &refusal{http.StatusForbidden, "the Host header is neither this listener's address nor localhost"}
	}
	// Browsers say where a request comes from; other programs do not. Following a link to
	// the page, without a question, is all that another site may do: even a request whose
	// answer it cannot read costs something (profiles, look-ups).
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin":
	default:
		if r.URL.Path != "/" || r.URL.RawQuery != "" || r.Header.Get("Sec-Fetch-Mode") != "navigate" {
			return &refusal{http.StatusForbidden, "asked by another site"}
		}
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		return nil
	case http.MethodPost:
		// A form cannot send this type, and a script of another site would have to ask first.
		if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
			return &refusal{http.StatusUnsupportedMediaType, "only JSON is posted here"}
		}
		return nil
	}
	return &refusal{http.StatusMethodNotAllowed, "method not allowed"}
}

// ownHost tells whether the Host header names this machine: localhost, a loopback address,
// the configured host, or the address that the request came in on. Ports are not compared:
// they may be forwarded.
func ownHost(r *http.Request, addr string) bool {
	host := hostOf(r.Host)
	if host == "" {
		return false
	}
	if strings.EqualFold(host, "localhost") || strings.EqualFold(host, hostOf(addr)) {
		return true
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	ip = ip.Unmap().WithZone("")
	if ip.IsLoopback() {
		return true
	}
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return false
	}
	at, err := netip.ParseAddr(hostOf(local.String()))
	return err == nil && at.Unmap().WithZone("") == ip
}

// hostOf returns the host of "host", "host:port", "[v6]" or "[v6]:port".
func hostOf(s string) string {
	if host, _, err := net.SplitHostPort(s); err == nil {
		return host
	}
	return strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
}
