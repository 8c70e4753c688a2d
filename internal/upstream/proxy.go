package upstream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// proxies returns which proxy a URL is reached through, nil for none. It reads the environment
// as curl does, and so Nix: http_proxy, https_proxy and, where they are not set, all_proxy, in
// small letters before capitals; no_proxy. Other than curl it also takes HTTP_PROXY, as it
// always did, and reaches this machine's own addresses directly.
func proxies(getenv func(string) string) func(*url.URL) (*url.URL, error) {
	env := func(names ...string) string {
		for _, name := range names {
			if v := strings.TrimSpace(getenv(name)); v != "" {
				return v
			}
		}
		return ""
	}
	cfg := httpproxy.Config{
		HTTPProxy:  proxyURL(env("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")),
		HTTPSProxy: proxyURL(env("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")),
		NoProxy:    noProxy(env("no_proxy", "NO_PROXY")),
	}
	find := cfg.ProxyFunc()
	return func(to *url.URL) (*url.URL, error) {
		via, err := find(to)
		if err == nil && via != nil && via.Hostname() == "" {
			err = errProxy
		}
		return via, err
	}
}

var errProxy = errors.New("the proxy in the environment has no host")

// proxyURL writes a proxy as httpproxy and net/http want it: with a scheme (http if none is
// said) and a port (1080 if none is said, as curl has it, 443 for https).
func proxyURL(text string) string {
	if text == "" {
		return ""
	}
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok {
		scheme, rest = schemeHTTP, text
	}
	if scheme = strings.ToLower(scheme); scheme == "socks" {
		scheme = "socks4"
	}
	u, err := url.Parse(scheme + "://" + rest)
	if err != nil || u.Hostname() == "" {
		return text // httpproxy reports it with each request
	}
	if u.Port() == "" {
		port := "1080"
		if scheme == schemeHTTPS {
			port = "443"
		}
		u.Host = net.JoinHostPort(u.Hostname(), port)
	}
	u.Path, u.RawQuery, u.Fragment = "", "", ""
	return u.String()
}

// noProxy writes a list of hosts as httpproxy wants it: in curl's, spaces separate too, a dot
// in front makes no difference, a dot at the end is none, and only a lone * is everything.
func noProxy(text string) string {
	if text == "*" {
		return text
	}
	var list []string
	for _, entry := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(", \t", r) }) {
		entry = strings.TrimSuffix(entry, ".")
		if entry = strings.TrimLeft(entry, "."); entry == "" || entry == "*" {
			continue
		}
		list = append(list, entry)
	}
	return strings.Join(list, ",")
}

func isSOCKS4(proxy *url.URL) bool { return proxy != nil && strings.HasPrefix(proxy.Scheme, "socks4") }

var errSOCKS = errors.New("SOCKS4 proxy refused")

// socks4 connects to addr through a SOCKS4 proxy, which net/http does not know. With socks4a
// the proxy looks the name up.
func (n *network) socks4(ctx context.Context, proxy *url.URL, addr string) (net.Conn, error) {
	name, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, err
	}
	ip, tail := netip.AddrFrom4([4]byte{0, 0, 0, 1}), name+"\x00" // 4a: the name follows
	if literal, err := netip.ParseAddr(name); err == nil && literal.Unmap().Is4() {
		ip, tail = literal.Unmap(), ""
	} else if proxy.Scheme == "socks4" && n.names != nil {
		addrs, err := n.names.lookup(ctx, name)
		if err != nil {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
		}
		for _, a := range addrs {
			if a.Is4() {
				ip, tail = a, ""
				break
			}
		}
	}
	conn, err := n.tcp(ctx, "tcp", proxy.Host)
	if err != nil {
		return nil, err
	}
	msg := binary.BigEndian.AppendUint16([]byte{4, 1}, uint16(port))
	four := ip.As4()
	msg = append(append(append(msg, four[:]...), proxy.User.Username()+"\x00"...), tail...)
	_ = conn.SetDeadline(time.Now().Add(n.timeouts.tls))
	var reply [8]byte
	if _, err = conn.Write(msg); err == nil {
		_, err = io.ReadFull(conn, reply[:])
	}
	if err == nil && reply[1] != 90 {
		err = fmt.Errorf("%w: %d", errSOCKS, reply[1])
	}
	if err != nil {
		_ = conn.Close()
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
	}
	return conn, conn.SetDeadline(time.Time{})
}
