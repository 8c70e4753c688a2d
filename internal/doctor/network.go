package doctor

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// checkOnline reports what the nix command thinks of the network when it starts.
func checkOnline(context.Context, *facts) []Finding {
	if at := online(); at != "" {
		return ok("Nix considers this machine online (%s)", at)
	}
	return warn("`nix build --option substitute true` asks all the same, and `nix-store -r` always does",
		"no interface but loopback is up: the nix command considers itself offline and asks no substituter, not even this one")
}

// online returns an address for which the nix command considers the machine online, "" if there
// is none: any but the two of loopback and IPv6's link-local ones.
func online() string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return err.Error() // Nix considers that online, too
	}
	for _, a := range addrs {
		n, isNet := a.(*net.IPNet)
		if !isNet {
			continue
		}
		ip, valid := netip.AddrFromSlice(n.IP)
		ip = ip.Unmap()
		if valid && ip != netip.AddrFrom4([4]byte{127, 0, 0, 1}) && ip != netip.IPv6Loopback() && (ip.Is4() || !ip.IsLinkLocalUnicast()) {
			return ip.String()
		}
	}
	return ""
}

// tcpAddr is the part of a multiaddr that names an address and a fixed port.
var tcpAddr = regexp.MustCompile(`/ip[46]/([^/]+)/tcp/([1-9]\d*)$`)

// peerPorts returns where the node listens for peers.
func (p *facts) peerPorts() (at []netip.AddrPort) {
	for _, m := range p.P2PListen {
		part := tcpAddr.FindStringSubmatch(m)
		if part == nil {
			continue
		}
		if a, err := netip.ParseAddrPort(net.JoinHostPort(part[1], part[2])); err == nil {
			at = append(at, a)
		}
	}
	return at
}

// checkPort connects to the ports for peers. Whether it is the node that listens there, the node
// says: a port that it could not have is in its status.
func checkPort(ctx context.Context, p *facts) []Finding {
	at := p.peerPorts()
	switch {
	case !p.P2P:
		return ok("peers are off (--p2p=false)")
	case len(at) == 0:
		return unknown("the port for peers changes with each start")
	case p.status == nil:
		return unknown("the daemon is not running")
	}
	var open []string
	for _, a := range at {
		if connects(ctx, a) {
			open = append(open, a.String())
		}
	}
	if len(open) == 0 {
		return fail("`journalctl -u nixp2p` says why; `ss -ltnp` shows which program has the port",
			"nothing listens on %s: no peer can reach this machine", strings.Join(p.P2PListen, ", "))
	}
	return ok("listening for peers on %s", strings.Join(open, ", "))
}

// connects tries a connection within this machine. An address that stands for all is dialled
// as loopback.
func connects(ctx context.Context, at netip.AddrPort) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", at.String())
	if err != nil {
		return false
	}
	return conn.Close() == nil
}

// checkWifi warns on networks with unknown machines.
func checkWifi(_ context.Context, p *facts) []Finding {
	if !p.P2P || p.Closed {
		return ok("only machines with the swarm key can be peers")
	}
	names, _ := filepath.Glob(filepath.Join(cmp.Or(p.Sys, "/sys"), "class/net/*/wireless"))
	var up []string
	for _, n := range names {
		dir := filepath.Dir(n)
		if state, err := os.ReadFile(filepath.Join(dir, "operstate")); err == nil && strings.TrimSpace(string(state)) == "up" {
			up = append(up, filepath.Base(dir))
		}
	}
	if len(up) == 0 {
		return ok("no Wi-Fi is up")
	}
	return warn("close the site with `nixp2p swarm-key` and --swarm-key-file, or share nothing with --p2p=false; docs/privacy.md lists what others see",
		"on Wi-Fi (%s) without a swarm key: any machine on the network can be a peer, and sees which public paths this machine has", strings.Join(up, ", "))
}
