package doctor

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// checkFirewall looks for rules of this machine that keep peers out: one that names a port of
// the node and refuses it, or a firewall that refuses all that no rule names.
func checkFirewall(ctx context.Context, p *facts) []Finding {
	at := p.peerPorts()
	if !p.P2P || len(at) == 0 {
		return ok("no port to look for")
	}
	if os.Geteuid() != 0 {
		return unknown("only root may read the rules of the firewall")
	}
	return judgeRules(readRules(ctx), strconv.Itoa(int(at[0].Port())), p.MDNS)
}

func judgeRules(rules, port string, mdns bool) []Finding {
	ports := []string{port}
	if mdns {
		ports = append(ports, "5353")
	}
	var found []Finding
	for _, x := range ports {
		let := map[string]string{port: x + "/tcp", "5353": "5353/udp"}[x]
		if rule := blocking(rules, x); rule != "" {
			found = append(found, warn("remove that rule, or let "+let+" in before it", "a firewall rule keeps peers out of port %s: %s", x, rule)...)
		} else if refusing.MatchString(rules) && !naming(rules, x) {
			found = append(found, warn("let it in: `services.nixp2p.openFirewall` on NixOS, `ufw allow "+let+"`, `firewall-cmd --add-port="+let+"`",
				"the firewall refuses what no rule accepts, and no rule names %s", let)...)
		}
	}
	if len(found) == 0 {
		return ok("no rule of this machine keeps peers out of port %s", strings.Join(ports, " and "))
	}
	return found
}

// readRules returns the rules as text, "" if there are none. A program that would load a part of
// the kernel that is not in use is not run.
func readRules(ctx context.Context) (rules string) {
	for _, family := range []struct {
		sign string
		argv []string
	}{
		{"/proc/net/netfilter", []string{"nft", "list", "ruleset"}},
		{"/proc/net/ip_tables_names", []string{"iptables", "-S"}}, {"/proc/net/ip6_tables_names", []string{"ip6tables", "-S"}},
	} {
		if _, err := os.Stat(family.sign); err != nil {
			continue
		}
		cmd := exec.CommandContext(ctx, family.argv[0], family.argv[1:]...)
		cmd.WaitDelay = 100 * time.Millisecond
		text, _ := cmd.Output() // not installed: nothing is known of these rules
		rules += string(text)
	}
	return rules
}

// refusing finds a firewall that refuses what no rule lets in: a policy, or a last rule without a
// condition, as NixOS (nixos-fw-log-refuse) and firewalld have it.
var refusing = regexp.MustCompile(`(?m)hook input [^}]*?policy drop|^-P INPUT (DROP|REJECT)|^\s*(reject|drop)( with .*)?\s*$|^-A (INPUT|nixos-fw\S*) -j (DROP|REJECT|nixos-fw-log-refuse|nixos-fw-refuse)|jump nixos-fw-log-refuse`)

// blocking returns the rule that drops or rejects what is for a port, "" if there is none.
func blocking(rules, port string) string {
	return strings.TrimSpace(regexp.MustCompile(`(?m)^.*dports?\b[^\n]*\b` + port + `\b[^\n]*\b(?:drop|reject|DROP|REJECT)\b.*$`).FindString(rules))
}

// naming reports whether a rule names a port.
func naming(rules, port string) bool {
	return regexp.MustCompile(`dports?\b[^\n]*\b`+port+`\b`).MatchString(rules) || port == "5353" && strings.Contains(rules, "mdns")
}
