// Package discovery knows where other nodes may be found (addresses that were configured,
// names in the DNS, lists behind a URL or in a file, and what peers name) and says when each
// of them is to be tried. Addresses are multiaddrs as text, with or without a peer ID.
package discovery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	// defaultPort is that of --p2p-listen, for names without one.
	defaultPort = 7656
	// lookTime bounds one look at one source.
	lookTime = 10 * time.Second
	// maxList bounds the text of a list, maxEntries what is taken of it or of the DNS: at
	// random, because if all nodes took the same few, those would carry all of them.
	maxList    = 1 << 20
	maxEntries = 16
)

// Resolver is the part of *net.Resolver that is used.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error)
}

// Source is one place where addresses are found.
type Source struct {
	kind, arg string
	resolver  Resolver
	client    *http.Client
	seen      time.Time // of a file: when it was changed last
	size      int64
}

// Parse reads one entry of --bootstrap: a multiaddr, "dns:NAME[:PORT]", "srv:NAME",
// "http(s)://…" or "file:PATH". Nil stands for the resolver of the system.
func Parse(s string, r Resolver) (*Source, error) {
	if r == nil {
		r = net.DefaultResolver
	}
	if strings.HasPrefix(s, "/dnsaddr/") {
		return nil, fmt.Errorf("discovery: %q: use dns:NAME, or /dns4/NAME/tcp/PORT", s)
	}
	if strings.HasPrefix(s, "/") {
		return &Source{kind: "static", arg: s, resolver: r}, nil
	}
	kind, arg, _ := strings.Cut(s, ":")
	switch kind {
	case "dns", "srv", "file":
		if arg == "" {
			return nil, fmt.Errorf("discovery: %q names nothing", s)
		}
	case "http", "https":
		kind, arg = "http", s
	default:
		return nil, fmt.Errorf("discovery: %q is not a place to find peers", s)
	}
	src := &Source{kind: kind, arg: arg, resolver: r}
	if kind == "http" {
		// A look every few minutes needs no connection that is kept, or shared with others.
		src.client = &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}}
	}
	return src, nil
}

// Kind returns what sort of source it is: static, dns, srv, http or file.
func (s *Source) Kind() string { return s.kind }

// String returns the source as it was configured, near enough to recognise it.
func (s *Source) String() string {
	if s.kind == "static" || s.kind == "http" {
		return s.arg
	}
	return s.kind + ":" + s.arg
}

// Changed reports whether a file has changed since the last Look. Other sources report false.
func (s *Source) Changed() bool {
	if s.kind != "file" {
		return false
	}
	fi, err := os.Stat(s.arg)
	return err == nil && (!fi.ModTime().Equal(s.seen) || fi.Size() != s.size)
}

// Look returns addresses, at most some, in random order. It is not for concurrent use.
func (s *Source) Look(ctx context.Context) (addrs []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	switch s.kind {
	case "static":
		addrs = []string{s.arg}
	case "dns":
		addrs, err = s.lookDNS(ctx)
	case "srv":
		addrs, err = s.lookSRV(ctx)
	case "http":
		addrs, err = s.lookHTTP(ctx)
	case "file":
		addrs, err = s.lookFile()
	}
	if err != nil {
		return nil, fmt.Errorf("discovery: %s: %w", s, err)
	}
	return some(s.resolve(ctx, addrs)), nil
}

// resolve replaces addresses that begin with a name, which only the configuration may give,
// by the addresses that the name has. Those that have none are left out.
func (s *Source) resolve(ctx context.Context, addrs []string) (list []string) {
	names := 0
	for _, a := range addrs {
		part := strings.SplitN(a, "/", 4) // "", dns4, NAME, the rest
		if len(part) < 4 || !strings.HasPrefix(part[1], "dns") {
			list = append(list, a)
			continue
		}
		network := map[string]string{"dns": "ip", "dns4": "ip4", "dns6": "ip6"}[part[1]]
		if names++; network == "" || names > maxEntries {
			continue
		}
		ips, err := s.resolver.LookupNetIP(ctx, network, part[2])
		if err != nil {
			continue
		}
		for _, ip := range ips {
			kind := "ip6"
			if ip = ip.Unmap(); ip.Is4() {
				kind = "ip4"
			}
			list = append(list, "/"+kind+"/"+ip.WithZone("").String()+"/"+part[3])
		}
	}
	return list
}

func some(addrs []string) []string {
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	return addrs[:min(len(addrs), maxEntries)]
}

func (s *Source) lookDNS(ctx context.Context) ([]string, error) {
	host, portText, given := strings.Cut(s.arg, ":")
	port := uint64(defaultPort)
	if given {
		var err error
		if port, err = strconv.ParseUint(portText, 10, 16); err != nil {
			return nil, errors.New("no port")
		}
	}
	return s.lookHost(ctx, host, uint16(port))
}

func (s *Source) lookHost(ctx context.Context, host string, port uint16) ([]string, error) {
	ips, err := s.resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	var addrs []string
	for _, ip := range ips {
		addrs = append(addrs, Multiaddr(netip.AddrPortFrom(ip, port)))
	}
	return addrs, nil
}

func (s *Source) lookSRV(ctx context.Context) ([]string, error) {
	_, records, err := s.resolver.LookupSRV(ctx, "", "", s.arg)
	if err != nil {
		return nil, err
	}
	rand.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
	var addrs []string
	var errs []error
	for _, r := range records[:min(len(records), maxEntries)] {
		a, err := s.lookHost(ctx, strings.TrimSuffix(r.Target, "."), r.Port)
		addrs, errs = append(addrs, a...), append(errs, err)
	}
	if len(addrs) == 0 {
		return nil, errors.Join(errs...)
	}
	return addrs, nil
}

func (s *Source) lookHTTP(ctx context.Context) ([]string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.arg, nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxList+1))
	if err != nil {
		return nil, err
	}
	return ParseList(text)
}

func (s *Source) lookFile() ([]string, error) {
	f, err := os.Open(s.arg)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxList+1))
	if err != nil {
		return nil, err
	}
	s.seen, s.size = fi.ModTime(), fi.Size()
	return ParseList(text)
}

// ParseList reads a list of addresses: a JSON array of texts, or one a line, empty lines
// and those that begin with # left out. An address is a multiaddr or "IP:PORT". Lines that
// are neither are skipped: a list may be for newer nodes as well.
func ParseList(text []byte) ([]string, error) {
	if len(text) > maxList {
		return nil, errors.New("the list is too long")
	}
	var entries []string
	if t := strings.TrimSpace(string(text)); strings.HasPrefix(t, "[") && !strings.HasPrefix(t, "[:") && json.Unmarshal([]byte(t), &entries) != nil {
		entries = strings.Split(t, "\n") // "[fd00::1]:7656"
	} else if entries == nil {
		entries = strings.Split(t, "\n")
	}
	var addrs []string
	for _, e := range entries {
		e = strings.TrimSpace(e)
		switch ap, err := netip.ParseAddrPort(e); {
		case e == "" || e[0] == '#' || len(e) > 256:
		case err == nil:
			addrs = append(addrs, Multiaddr(ap))
		case e[0] == '/' && !strings.ContainsAny(e, " \t\r\n\x00"):
			addrs = append(addrs, e)
		}
	}
	return addrs, nil
}

// Multiaddr returns the text of a TCP address.
func Multiaddr(a netip.AddrPort) string {
	ip := a.Addr().Unmap()
	if ip.Is4() {
		return fmt.Sprintf("/ip4/%s/tcp/%d", ip, a.Port())
	}
	zone := ""
	if z := ip.Zone(); z != "" {
		zone = "/ip6zone/" + z
	}
	return fmt.Sprintf("%s/ip6/%s/tcp/%d", zone, ip.WithZone(""), a.Port())
}
