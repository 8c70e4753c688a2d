package site

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/p2p/swarmkey"
)

// tryAgain is how often an address that could not be had, or a secret that could not be read, is
// tried again.
const tryAgain = 5 * time.Second

// ports has the host listen on the configured addresses: on one that is taken, as soon as it is
// free. Peers that this node dials do not depend on it.
type ports struct {
	*core
	missing []ma.Multiaddr
}

// open tries what is missing, and reports whether it got anything.
func (p *ports) open(h host.Host) (got bool) {
	sw, ok := h.Network().(*swarm.Swarm)
	if !ok {
		return false
	}
	p.missing = slices.DeleteFunc(p.missing, func(a ma.Multiaddr) bool {
		err := sw.AddListenAddr(a)
		key := "port" + a.String()
		switch {
		case err == nil:
			got = true
			p.conditions.Over(p.log, key)
		case !noIPv6(a, err):
			p.conditions.Report(p.log, key, source.Condition{
				Part: source.PartPeerPort,
				Text: fmt.Sprintf("cannot listen for peers on %s: %v; only peers that this machine can reach itself are connected", a, err),
				Hint: "`ss -ltnp` shows which program has the port; stop it, or give nixp2p another --p2p-listen",
			})
		}
		return err == nil
	})
	return got
}

// run tries again until there is nothing missing or ctx ends.
func (p *ports) run(ctx context.Context, h host.Host) {
	for len(p.missing) > 0 && pause(ctx, tryAgain) {
		if p.open(h) {
			p.sayListening(h)
		}
	}
}

func (p *ports) sayListening(h host.Host) {
	p.log.Info("peers can connect", "peer", p.self, "addresses", fullAddrs(p.self, h.Addrs()))
}

// noIPv6 reports whether all IPv6 addresses were asked for, and this machine has none.
func noIPv6(a ma.Multiaddr, err error) bool {
	ip, ok := machine.Addr(a)
	return ok && ip == netip.IPv6Unspecified() && (errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL))
}

// readKeys reads the secrets of a closed site, again and again until there are some or ctx ends:
// without them nobody is a peer. It reports whether the node may go on.
func (c *core) readKeys(ctx context.Context) bool {
	if c.keyFile == "" {
		return true
	}
	const key = "swarm-key"
	for {
		text, err := os.ReadFile(c.keyFile)
		if err == nil {
			c.keys, err = swarmkey.Parse(text)
		}
		if err == nil {
			c.conditions.Over(c.log, key)
			return true
		}
		c.conditions.Report(c.log, key, source.Condition{
			Part: source.PartPeers,
			Text: fmt.Sprintf("this machine has no peers: the swarm key in %s cannot be used: %v", c.keyFile, err),
			Hint: "put the key of the site there, readable by the service, or make one with `nixp2p swarm-key`",
		})
		if !pause(ctx, tryAgain) {
			return false
		}
	}
}
