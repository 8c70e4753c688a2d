package config

import (
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// parseListen reads "host:port" or "unix:PATH".
func parseListen(s string) (string, error) {
	if p, ok := strings.CutPrefix(s, "unix:"); ok {
		p, err := parseDir(p)
		if err == nil && len(p) > 107 { // sun_path of Linux, with its NUL
			err = wrong("use a shorter one", "%q is too long for a socket", p)
		}
		return "unix:" + p, err
	}
	return parseAddr(s)
}

// parseAddr reads "host:port". The host is an IP address, a name, or empty for all.
func parseAddr(s string) (string, error) {
	const hint = "it looks like 127.0.0.1:7654 or [::1]:7654"
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", wrong(hint, "%q is not HOST:PORT", s)
	}
	if _, err := parsePort(port); err != nil {
		return "", err
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" && !hostname(host) {
		return "", wrong(hint, "%q is neither an address nor a name", host)
	}
	return net.JoinHostPort(host, port), nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || s != strconv.FormatUint(n, 10) {
		return 0, wrong("ports go from 0 to 65535, 0 picks a free one", "%q is not a port", s)
	}
	return uint16(n), nil
}

// hostname reports whether s may be a DNS name. An underscore is allowed: names of services
// have it.
func hostname(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if c != '-' && c != '_' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
				return false
			}
		}
	}
	return true
}

// parseServerName reads a host name.
func parseServerName(s string) (string, error) {
	if !hostname(s) {
		return "", wrong("it looks like cache.example.org, without a port", "%q is not a host name", s)
	}
	return strings.ToLower(strings.TrimSuffix(s, ".")), nil
}

// loopback reports whether "host:port" can be reached from this machine only.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback() || host == "localhost"
}

// parseUpstream reads the URL of a cache. A name and password in it, and Nix's setting
// "?priority=N", are internal/upstream's to use.
func parseUpstream(s string) (string, error) {
	u, err := url.Parse(strings.TrimSpace(s))
	if err != nil {
		return "", wrong("it looks like https://cache.nixos.org", "%q is not a URL", s)
	}
	switch {
	case u.Scheme == "file" && u.Host == "" && len(u.Path) > 1 && u.Path[0] == '/':
	case u.Scheme == "http" || u.Scheme == "https":
		if err := checkHost(u); err != nil {
			return "", err
		}
	default:
		return "", wrong("http, https and file work", "%q is not the URL of a cache", s)
	}
	for key, v := range u.Query() {
		if _, err := strconv.Atoi(v[0]); key != "priority" || len(v) > 1 || err != nil {
			return "", wrong("priority=N is all that may follow a ?", "%q has %s=%s in it", u.Redacted(), key, v[0])
		}
	}
	if u.Fragment != "" || u.User != nil && u.Scheme == "file" {
		return "", wrong("it looks like https://cache.nixos.org", "%q has what no cache has", u.Redacted())
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), strings.TrimRight(u.RawPath, "/")
	return u.String(), nil
}

func checkHost(u *url.URL) error {
	host := u.Hostname()
	if _, err := netip.ParseAddr(host); err != nil && !hostname(host) {
		return wrong("it looks like https://cache.nixos.org", "%q has no host", u.Redacted())
	}
	if u.Port() != "" {
		_, err := parsePort(u.Port())
		return err
	}
	return nil
}

const bootstrapHint = "it looks like /ip4/10.0.0.5/tcp/7656, dns:nixp2p.example.org, srv:_nixp2p._tcp.example.org, https://… or file:/…"

// parseBootstrap reads one place where peers' addresses are found.
func parseBootstrap(s string) (string, error) {
	switch scheme, rest, _ := strings.Cut(s, ":"); {
	case strings.HasPrefix(s, "/"):
		_, err := parseMultiaddr(s)
		return s, err
	case scheme == "dns":
		name, port, given := strings.Cut(rest, ":")
		if !hostname(name) {
			return "", wrong(bootstrapHint, "%q has no name", s)
		}
		if given {
			if _, err := parsePort(port); err != nil {
				return "", err
			}
		}
		return s, nil
	case scheme == "srv":
		if !hostname(rest) {
			return "", wrong(bootstrapHint, "%q has no name", s)
		}
		return s, nil
	case scheme == "http" || scheme == "https":
		u, err := url.Parse(s)
		if err != nil {
			return "", wrong(bootstrapHint, "%q is not a URL", s)
		}
		return s, checkHost(u)
	case scheme == "file":
		path, err := parseDir(strings.TrimPrefix(rest, "//"))
		return "file:" + path, err
	}
	return "", wrong(bootstrapHint, "%q is not a place where peers can be found", s)
}

// multiaddr is the part of a multiaddr (https://multiformats.io/multiaddr/) that this
// program can use: an address or a name, a TCP port, perhaps a peer ID.
type multiaddr struct {
	ip   netip.Addr // invalid when host is a name
	host string
	port uint16
	peer string
}

const multiaddrHint = "it looks like /ip4/10.0.0.5/tcp/7656 or /ip6/fd00::5/tcp/7656, with or without /p2p/ID"

func parseMultiaddr(s string) (m multiaddr, err error) {
	bad := func(format string, args ...any) (multiaddr, error) {
		return m, wrong(multiaddrHint, "%q: "+format, append([]any{s}, args...)...)
	}
	part := strings.Split(s, "/")
	if len(part) < 5 || part[0] != "" {
		return bad("not a multiaddr with an address and a port")
	}
	part = part[1:]
	zone := part[0] == "ip6zone" // only link-local addresses need it
	if zone {
		if len(part) < 6 || part[1] == "" || part[2] != "ip6" {
			return bad("a zone is followed by /ip6/")
		}
		part = part[2:]
	}
	m.host = part[1]
	switch part[0] {
	case "ip4", "ip6":
		m.ip, err = netip.ParseAddr(m.host)
		if err != nil || m.ip.Zone() != "" || m.ip.Is4() != (part[0] == "ip4") {
			return bad("%q is not an %s address", m.host, part[0])
		}
	case "dns", "dns4", "dns6":
		if !hostname(m.host) {
			return bad("%q is not a name", m.host)
		}
	default:
		return bad("/%s/ cannot be used", part[0])
	}
	if part[2] != "tcp" {
		return bad("only TCP is spoken, not %s", part[2])
	}
	if m.port, err = parsePort(part[3]); err != nil {
		return m, err
	}
	switch part = part[4:]; {
	case len(part) == 0:
	case len(part) == 2 && part[0] == "p2p" && peerID(part[1]):
		m.peer = part[1]
	default:
		return bad("%q is not /p2p/ and a peer ID", "/"+strings.Join(part, "/"))
	}
	return m, nil
}

// peerID reports whether s looks like a peer ID: base58 (Qm…, 12D3Koo…), or a CID in base 32
// or 36 (b…, k…). Whether it is one shows when it is dialled.
func peerID(s string) bool {
	const base58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
	const lower = "abcdefghijklmnopqrstuvwxyz0123456789"
	if len(s) < 40 || len(s) > 80 {
		return false
	}
	if s[0] == 'b' || s[0] == 'k' {
		return strings.Trim(s, lower) == ""
	}
	return strings.Trim(s, base58) == ""
}

func parseP2PListen(s string) (string, error) {
	m, err := parseMultiaddr(s)
	switch {
	case err != nil:
		return "", err
	case !m.ip.IsValid():
		return "", wrong(multiaddrHint, "%q: to listen, an address is needed, not a name", s)
	case m.peer != "":
		return "", wrong("leave out /p2p/…", "%q: the ID is this node's own", s)
	}
	return s, nil
}
