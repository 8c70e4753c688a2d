package nixconf

import (
	"net/netip"
	"slices"
	"strings"
)

// ProxyTo returns the variable of an environment that makes Nix ask host (a name or an address)
// through a proxy over http, and its value; "" if none does. Nix reads the environment as curl
// does, which goes through the proxy also to this machine.
func ProxyTo(getenv func(string) string, host string) (variable, proxy string) {
	for _, v := range []string{"http_proxy", "all_proxy", "ALL_PROXY"} {
		if proxy = strings.TrimSpace(getenv(v)); proxy != "" {
			variable = v
			break
		}
	}
	none := getenv("no_proxy")
	if none == "" {
		none = getenv("NO_PROXY")
	}
	if variable == "" || strings.TrimSpace(none) == "*" {
		return "", ""
	}
	exempt := func(entry string) bool { return coversHost(entry, host) }
	if slices.ContainsFunc(strings.Fields(strings.ReplaceAll(none, ",", " ")), exempt) {
		return "", ""
	}
	return variable, proxy
}

// coversHost reports whether an entry of no_proxy stands for host: an address, a network, a name
// or its end.
func coversHost(entry, host string) bool {
	entry = strings.Trim(entry, ".")
	if addr, err := netip.ParseAddr(host); err == nil {
		if network, err := netip.ParsePrefix(entry); err == nil {
			return network.Contains(addr)
		}
		same, err := netip.ParseAddr(strings.Trim(entry, "[]"))
		return err == nil && same == addr
	}
	entry, host = strings.ToLower(entry), strings.ToLower(strings.Trim(host, "."))
	return entry != "" && (host == entry || strings.HasSuffix(host, "."+entry))
}
