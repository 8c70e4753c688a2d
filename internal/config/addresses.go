package config

import (
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/nixp2p/nixp2p/internal/bucket"
	"github.com/nixp2p/nixp2p/internal/mirror"
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
	if err := checkPort(port); err != nil {
		return "", err
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" && !hostname(host) {
		return "", wrong(hint, "%q is neither an address nor a name", host)
	}
	return net.JoinHostPort(host, port), nil
}

func checkPort(s string) error {
	if n, err := strconv.ParseUint(s, 10, 16); err != nil || s != strconv.FormatUint(n, 10) {
		return wrong("ports go from 0 to 65535, 0 picks a free one", "%q is not a port", s)
	}
	return nil
}

// hostname reports whether s may be a DNS name. An underscore is allowed: names of services
// have it.
func hostname(s string) bool {
	return len(s) < 255 && name.MatchString(s)
}

var name = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?$`)

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

// parseBucket checks the address of a bucket.
func parseBucket(s string) (string, error) {
	s = strings.TrimSpace(s)
	if _, err := bucket.Parse(s, func(string) string { return "" }); err != nil {
		return "", wrong("it looks like s3://NAME/PREFIX?endpoint=s3.example.org&region=eu-1", "%v", err)
	}
	return s, nil
}

// parseFollow checks a list to follow.
func parseFollow(s string) (string, error) {
	s = strings.TrimSpace(s)
	if _, err := mirror.ParseList(s); err != nil {
		return "", wrong("it looks like channel:nixos-unstable?keep=2", "%v", err)
	}
	return s, nil
}

// parseUpstream reads the URL of a cache. A name and password in it, and Nix's setting
// "?priority=N", are internal/upstream's to use. Other settings are for Nix, which may have the same URL.
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
	priority := u.Query()["priority"]
	u.RawQuery, u.ForceQuery = "", false
	if len(priority) > 0 {
		if _, err := strconv.Atoi(priority[0]); err != nil || len(priority) > 1 {
			return "", wrong("it looks like ?priority=N", "%q has priority=%s in it", u.Redacted(), strings.Join(priority, " and "))
		}
		u.RawQuery = "priority=" + priority[0]
	}
	if u.Scheme == "file" {
		u.Fragment, u.RawFragment = "", "" // as for Nix
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
		return checkPort(u.Port())
	}
	return nil
}

const bootstrapHint = "it looks like /ip4/10.0.0.5/tcp/7656, dns:nixp2p.example.org, srv:_nixp2p._tcp.example.org, https://… or file:/…"

// parseBootstrap reads one place where peers' addresses are found.
func parseBootstrap(s string) (string, error) {
	scheme, rest, _ := strings.Cut(s, ":")
	switch {
	case strings.HasPrefix(s, "/"):
		return parseMultiaddr(s, false)
	case scheme == "dns", scheme == "srv":
		host, port, given := strings.Cut(rest, ":")
		if !hostname(host) || given && (scheme == "srv" || checkPort(port) != nil) {
			return "", wrong(bootstrapHint, "%q does not name a host", s)
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

const multiaddrHint = "it looks like /ip4/10.0.0.5/tcp/7656 or /ip6/fd00::5/tcp/7656, with or without /p2p/ID"

// multiaddr matches what this program can use of multiaddrs (https://multiformats.io/multiaddr/).
// Whether the text behind /p2p/ is a peer ID shows when it is dialled.
var multiaddr = regexp.MustCompile(`^(/ip6zone/[^/]+)?/(ip4|ip6|dns|dns4|dns6)/([^/]+)/tcp/(\d+)(/p2p/[0-9A-Za-z]{40,80})?$`)

// parseMultiaddr reads where peers are dialled, or where this node listens.
func parseMultiaddr(s string, listen bool) (string, error) {
	m := multiaddr.FindStringSubmatch(s)
	if m == nil {
		return "", wrong(multiaddrHint, "%q is not a multiaddr with an address and a TCP port", s)
	}
	zone, kind, host, port, peer := m[1], m[2], m[3], m[4], m[5]
	name := strings.HasPrefix(kind, "dns")
	ip, err := netip.ParseAddr(host)
	switch {
	case zone != "" && kind != "ip6", name && !hostname(host), !name && (err != nil || ip.Zone() != "" || ip.Is4() != (kind == "ip4")):
		return "", wrong(multiaddrHint, "%q: %q is not what follows %s/%s/", s, host, zone, kind)
	case listen && (name || peer != ""):
		return "", wrong("leave out /p2p/…", "%q: to listen, an address of this machine is needed, without a name or peer ID", s)
	}
	return s, checkPort(port)
}

func parseP2PListen(s string) (string, error) { return parseMultiaddr(s, true) }
