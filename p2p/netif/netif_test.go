package netif

import (
	"net/netip"
	"slices"
	"testing"
)

func TestLinks(t *testing.T) {
	links, err := Links()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(links, func(l Link) bool {
		return l.Loopback && slices.ContainsFunc(l.Prefixes, func(p netip.Prefix) bool { return p.Addr().IsLoopback() })
	}) {
		t.Errorf("no loopback in %+v", links)
	}
}

func TestChoice(t *testing.T) {
	links := []Link{
		{Name: "lo", Loopback: true, Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8")}},
		{Name: "eth0", Prefixes: []netip.Prefix{
			netip.MustParsePrefix("fe80::1/64"), netip.MustParsePrefix("fd00::5/64"), netip.MustParsePrefix("203.0.113.9/24"),
		}},
	}
	want := []netip.Addr{netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("fd00::5"), netip.MustParseAddr("fe80::1")}
	if got := Advertised(links); !slices.Equal(got, want) {
		t.Errorf("advertises %v", got)
	}
	nets := []netip.Prefix{netip.MustParsePrefix("fe80::/64"), netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("203.0.113.0/24")}
	if got := OnLink(links); !slices.Equal(got, nets) {
		t.Errorf("on link %v", got)
	}
	for name, want := range map[string]bool{"eth0": false, "br0": false, "wlan0": false, "docker0": true, "br-1a2b": true, "virbr0": true, "tailscale0": false} {
		if Virtual(name) != want {
			t.Errorf("%s is virtual: %v", name, !want)
		}
	}
}
