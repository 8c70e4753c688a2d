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
}

// on makes an interface that is up and connected.
func on(index int, name, kind string, bridge int, prefixes ...string) iface {
	i := iface{Link: Link{Index: index, Name: name, Multicast: true}, fact: fact{kind, bridge}, up: true, carrier: true}
	for _, p := range prefixes {
		i.Prefixes = append(i.Prefixes, netip.MustParsePrefix(p))
	}
	return i
}

// TestClassify: kinds, ports and routes decide, names do not.
func TestClassify(t *testing.T) {
	lo := on(1, "lo", "", 0, "127.0.0.1/8")
	lo.Loopback = true
	down, unplugged := on(9, "eth9", "", 0, "10.9.0.1/24"), on(10, "eth10", "", 0, "10.10.0.1/24")
	down.up, down.carrier, unplugged.carrier = false, false, false
	for _, c := range []struct {
		what string
		all  []iface
		out  string
		want map[string]string
	}{
		{"a card and docker", []iface{lo, on(2, "eth0", "", 0, "192.168.1.5/24"), on(3, "docker0", "bridge", 0, "172.17.0.1/16"), on(4, "veth1", "veth", 3)},
			"192.168.1.5", map[string]string{"lo": "", "eth0": "", "docker0": isInner}},
		{"docker's bridge named as a LAN", []iface{on(2, "eth0", "", 0, "192.168.1.5/24"), on(3, "br-lan", "bridge", 0, "172.18.0.1/16"), on(4, "x", "veth", 3)},
			"", map[string]string{"eth0": "", "br-lan": isInner}},
		{"a LAN bridge named as docker's", []iface{on(2, "wan0", "", 0, "203.0.113.2/24"), on(3, "docker0", "bridge", 0, "192.168.7.1/24"), on(4, "lan1", "", 3), on(5, "vnet0", "tun", 3)},
			"203.0.113.2", map[string]string{"wan0": "", "docker0": ""}},
		{"a LAN bridge over a vlan and wireless", []iface{on(2, "eth0", "", 0, "203.0.113.2/24"), on(3, "br-lan", "bridge", 0, "192.168.7.1/24"), on(4, "eth0.7", "vlan", 3), on(5, "br-iot", "bridge", 0, "192.168.8.1/24"), on(6, "wlan0", "wlan", 5)},
			"", map[string]string{"eth0": "", "br-lan": "", "br-iot": ""}},
		{"a card named as one of libvirt's", []iface{on(2, "vnet0", "", 0, "192.168.7.1/24"), on(3, "virbr-lan", "", 0, "192.168.8.1/24")},
			"", map[string]string{"vnet0": "", "virbr-lan": ""}},
		{"libvirt", []iface{on(2, "eth0", "", 0, "192.168.1.5/24"), on(3, "lan", "bridge", 0, "192.168.122.1/24"), on(4, "a", "tun", 3), on(5, "b", "dummy", 3)},
			"", map[string]string{"eth0": "", "lan": isInner}},
		{"the router is a virtual machine", []iface{on(2, "eth0", "", 0), on(3, "virbr0", "bridge", 0, "192.168.122.2/24"), on(4, "vnet0", "tun", 3)},
			"192.168.122.2", map[string]string{"virbr0": ""}},
		{"a container", []iface{lo, on(2, "eth0", "veth", 0, "172.17.0.2/16")}, "172.17.0.2", map[string]string{"lo": "", "eth0": ""}},
		{"a router in namespaces", []iface{on(2, "br-lan", "veth", 0, "192.168.7.1/24"), on(3, "wan0", "veth", 0, "203.0.113.2/24")},
			"", map[string]string{"br-lan": "", "wan0": ""}},
		{"a router in namespaces with a bridge", []iface{on(2, "br-lan", "bridge", 0, "192.168.7.1/24"), on(3, "p", "veth", 2), on(4, "wan0", "veth", 0, "203.0.113.2/24")},
			"203.0.113.2", map[string]string{"br-lan": "", "wan0": ""}},
		{"NixOS containers", []iface{on(2, "eth0", "", 0, "192.168.1.5/24"), on(3, "ve-web", "veth", 0, "10.233.1.1/32")},
			"", map[string]string{"eth0": "", "ve-web": isContainer}},
		{"VPNs", []iface{on(2, "eth0", "", 0, "192.168.1.5/24"), on(3, "tailscale0", "tun", 0, "100.64.0.5/32"), on(4, "wg0", "wireguard", 0, "10.5.0.2/24")},
			"", map[string]string{"eth0": "", "tailscale0": "", "wg0": ""}},
		{"kube-proxy", []iface{on(2, "eth0", "", 0, "10.0.0.5/24"), on(3, "kube-ipvs0", "dummy", 0, "10.96.0.1/32")},
			"", map[string]string{"eth0": "", "kube-ipvs0": isDummy}},
		{"nothing but docker", []iface{lo, on(3, "docker0", "bridge", 0, "172.17.0.1/16"), on(2, "eth0", "", 0)}, "", map[string]string{"lo": "", "docker0": ""}},
		{"down and unplugged", []iface{on(2, "eth0", "", 0, "192.168.1.5/24"), down, unplugged},
			"", map[string]string{"eth0": "", "eth9": isDown, "eth10": isUnplugged}},
		{"no facts", []iface{lo, on(2, "en0", "", 0, "192.168.1.5/24"), on(3, "bridge100", "", 0, "192.168.64.1/24")},
			"", map[string]string{"lo": "", "en0": "", "bridge100": ""}},
	} {
		t.Run(c.what, func(t *testing.T) {
			var out []netip.Addr
			if c.out != "" {
				out = append(out, netip.MustParseAddr(c.out))
			}
			links := classify(c.all, out)
			for _, l := range links {
				if want, ok := c.want[l.Name]; !ok || l.LeftOut != want {
					t.Errorf("%s: %q, want %q (%v)", l.Name, l.LeftOut, want, ok)
				}
			}
			if len(links) != len(c.want) {
				t.Errorf("%+v", links)
			}
		})
	}
}
