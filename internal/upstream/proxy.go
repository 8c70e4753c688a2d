package upstream

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"slices"
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
	port := map[bool]string{true: "443", false: "1080"}[scheme == schemeHTTPS]
	u.Host = net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port))
	u.Path, u.RawQuery, u.Fragment = "", "", ""
	return u.String()
}

// noProxy writes a list of hosts as httpproxy wants it: in curl's, spaces separate too, a dot
// in front makes no difference, a dot at the end is none, and only a lone * is everything.
func noProxy(text string) string {
	if text == "*" {
		return text
	}
	list := strings.Fields(strings.ReplaceAll(text, ",", " "))
	for i, entry := range list {
		list[i] = strings.TrimLeft(strings.TrimSuffix(entry, "."), ".")
	}
	return strings.Join(slices.DeleteFunc(list, func(s string) bool { return s == "*" }), ",")
}

func isSOCKS4(proxy *url.URL) bool { return proxy != nil && strings.HasPrefix(proxy.Scheme, "socks4") }

var errSOCKS = errors.New("SOCKS4 proxy refused")

// socks4 connects to addr through a SOCKS4 proxy, which net/http does not know. With socks4a
// the proxy looks the name up.
func (n *network) socks4(ctx context.Context, proxy *url.URL, addr string, tries int) (net.Conn, error) {
	name, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, err
	}
	// 4a: an address that cannot be, and the name follows.
	ip, tail := netip.AddrFrom4([4]byte{0, 0, 0, 1}), name+"\x00"
	var addrs []netip.Addr
	if literal, err := netip.ParseAddr(name); err == nil {
		addrs = []netip.Addr{literal}
	} else if proxy.Scheme == "socks4" && n.names != nil {
		if addrs, err = n.names.lookup(ctx, name); err != nil {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
		}
	}
	if i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Unmap().Is4() }); i >= 0 {
		ip, tail = addrs[i].Unmap(), ""
	}
	conn, err := n.tcp(ctx, "tcp", proxy.Host, tries)
	if err != nil {
		return nil, err
	}
	msg := append(binary.BigEndian.AppendUint16([]byte{4, 1}, uint16(port)), ip.AsSlice()...)
	msg = append(msg, proxy.User.Username()+"\x00"+tail...)
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
