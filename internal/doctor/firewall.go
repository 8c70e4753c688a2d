package doctor

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// checkFirewall looks for rules of this machine that block the ports of the node.
func checkFirewall(ctx context.Context, p *facts) []Finding {
	at := p.peerPorts()
	switch {
	case !p.P2P:
		return ok("peers are off (--p2p=false)")
	case len(at) == 0:
		return unknown("the port for peers changes with each start")
	}
	rules, err := readRules(ctx)
	if err != nil {
		return unknown("cannot tell: %v", err)
	}
	port := strconv.Itoa(int(at[0].Port()))
	for _, x := range []string{port, "5353"} {
		if rule := blocks(rules, x); rule != "" && (x == port || p.MDNS) {
			return warn("remove that rule, or let "+x+" in before it", "a firewall rule blocks port %s: %s", x, rule)
		}
	}
	if !refuses(rules) {
		return ok("no local firewall rule found that blocks peers")
	}
	var shut []string
	if !names(rules, port) {
		shut = append(shut, port+"/tcp")
	}
	if p.MDNS && !names(rules, "5353") && !names(rules, "mdns") {
		shut = append(shut, "5353/udp")
	}
	if len(shut) > 0 {
		return warn("let it in: `services.nixp2p.openFirewall` on NixOS, `ufw allow "+shut[0]+"`, `firewall-cmd --add-port="+shut[0]+"`",
			"the firewall refuses what no rule accepts, and no rule names %s", strings.Join(shut, " and "))
	}
	return ok("the firewall has rules for the ports")
}

// rulesTime bounds the reading of rules.
const rulesTime = 2 * time.Second

// readRules returns the rules as text. What would load a part of the kernel that is not in use
// is not run.
func readRules(ctx context.Context) (rules string, err error) {
	if os.Geteuid() != 0 {
		return "", errors.New("only root may read the rules of the firewall")
	}
	read := false
	if _, err := os.Stat("/proc/net/netfilter"); err == nil {
		rules, read = output(ctx, "nft", "list", "ruleset")
	}
	for _, family := range [][2]string{{"/proc/net/ip_tables_names", "iptables"}, {"/proc/net/ip6_tables_names", "ip6tables"}} {
		tables, err := os.ReadFile(family[0])
		if err != nil || !strings.Contains(string(tables), "filter") {
			continue
		}
		text, ok := output(ctx, family[1], "-S")
		rules, read = rules+text, read || ok
	}
	if !read {
		return "", errors.New("neither nft nor iptables says what the rules are")
	}
	return rules, nil
}

func output(ctx context.Context, name string, args ...string) (string, bool) {
	ctx, cancel := context.WithTimeout(ctx, rulesTime)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.WaitDelay = &out, 100*time.Millisecond
	err := cmd.Run()
	return out.String(), err == nil
}

// Signs of a firewall that refuses what no rule lets in: a policy, or a last rule without a
// condition, as NixOS (nixos-fw-log-refuse) and firewalld have it.
var refusing = regexp.MustCompile(`(?m)hook input [^}]*?policy drop|^-P INPUT (DROP|REJECT)|^\s*(reject|drop)( with .*)?\s*$|^-A (INPUT|nixos-fw\S*) -j (DROP|REJECT|nixos-fw-log-refuse|nixos-fw-refuse)|jump nixos-fw-log-refuse`)

func refuses(rules string) bool { return refusing.MatchString(rules) }

// blocks returns the rule that drops or rejects what is for a port, "" if there is none.
func blocks(rules, port string) string {
	return strings.TrimSpace(regexp.MustCompile(`(?m)^.*dports?\b[^\n]*\b` + port + `\b[^\n]*\b(?:drop|reject|DROP|REJECT)\b.*$`).FindString(rules))
}

// names reports whether a rule names a port, alone or among others.
func names(rules, port string) bool {
	return regexp.MustCompile(`(?m)(dport|dports)\b[^\n]*\b` + port + `\b`).MatchString(rules)
}
