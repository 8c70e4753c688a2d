package site

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/p2p/netif"
)

// explainEvery is how often it is looked which links are left out.
const explainEvery = 10 * time.Second

// maxExplained bounds the links that are explained: a host of many containers has hundreds.
const maxExplained = 16

// explain says which links are left out and why, until ctx ends.
func (c *core) explain(ctx context.Context) {
	said := map[string]bool{}
	for ctx.Err() == nil {
		now := map[string]bool{}
		if links, err := netif.All(); err == nil {
			for _, l := range links {
				if n, ok := c.gate.note(l); ok && len(now) < maxExplained {
					now["links/"+l.Name] = true
					c.conditions.Report(c.log, "links/"+l.Name, n)
				}
			}
		}
		for key := range said {
			if !now[key] {
				c.conditions.Over(c.log, key)
			}
		}
		said = now
		if !pause(ctx, explainEvery) {
			return
		}
	}
}

// note returns why no peer is looked for on a link, if none is. Addresses of the link alone are
// not worth a word.
func (g *gate) note(l netif.Link) (source.Condition, bool) {
	n := source.Condition{Part: source.PartLinks, Note: true}
	var addrs []string
	refused := true
	for _, p := range l.Prefixes {
		if p.Addr().IsLinkLocalUnicast() {
			continue
		}
		addrs = append(addrs, p.String())
		refused = refused && !g.allowed(p.Addr()) || p.IsSingleIP() && !g.configured(p.Addr())
	}
	what := fmt.Sprintf("%s (%s)", l.Name, strings.Join(addrs, ", "))
	switch {
	case l.Loopback || len(addrs) == 0:
		return n, false
	case l.LeftOut != "":
		n.Text = what + " is left out: " + l.LeftOut
		return n, true
	case refused:
		n.Text = what + " is left out: --allow-cidr does not contain its network, so that no peer is accepted or dialled there"
		n.Hint = g.lineWith("the network of " + l.Name)
		return n, true
	}
	return n, false
}

// keptOut returns the addresses of peers that may not be dialled, without port and ID.
func (g *gate) keptOut(addrs []string) (list []netip.Addr) {
	for _, s := range addrs {
		if m, _, err := parseAddr(s); err == nil && !g.allowedAddr(m) {
			if ip, ok := machine.Addr(m); ok {
				list = append(list, ip)
			}
		}
	}
	return list
}

// aboutKeptOut is what there is to say of a source of addresses that --allow-cidr keeps out.
func (g *gate) aboutKeptOut(name string, ips []netip.Addr) source.Condition {
	more := ""
	if len(ips) > 1 {
		more = fmt.Sprintf(" and %d more", len(ips)-1)
	}
	return source.Condition{
		Part: source.PartBootstrap,
		Text: fmt.Sprintf("--bootstrap %s names %s%s, which --allow-cidr keeps out: no peer there is dialled", name, ips[0], more),
		Hint: g.lineWith(netip.PrefixFrom(ips[0].WithZone(""), ips[0].BitLen()).String()),
	}
}

// lineWith is the line of the configuration that lets in one more network.
func (g *gate) lineWith(network string) string {
	var all []string
	for _, p := range g.allow {
		if !slices.Contains(all, p.String()) {
			all = append(all, p.String())
		}
	}
	if g.onLink {
		all = append(all, "on-link")
	}
	return `to let it in: allow-cidr = ["` + strings.Join(append(all, network), `", "`) + `"]; the same on the other machine`
}

// KeptOut explains which of the configured addresses of peers --allow-cidr keeps out. Names are not
// looked up.
func KeptOut(cfg Config) (list []source.Condition) {
	g := newGate(&cfg)
	for _, b := range cfg.Bootstrap {
		if ips := g.keptOut([]string{b}); len(ips) > 0 {
			list = append(list, g.aboutKeptOut(b, ips))
		}
	}
	return list
}
