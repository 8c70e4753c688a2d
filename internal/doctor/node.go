package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

const startHint = "start it: `systemctl start nixp2p.socket nixp2p.service`, or `nixp2p serve`; `journalctl -u nixp2p` says why it ended"

// recent is how old an error of the node may be to be reported, maxRecent how many are.
const (
	recent    = time.Hour
	maxRecent = 5
)

func checkDaemon(_ context.Context, p *facts) []Finding {
	if p.status == nil {
		return unanswered("--admin-listen", p.AdminListen, p.statusErr)
	}
	s := p.status
	up := time.Duration(s.UptimeSeconds * float64(time.Second)).Round(time.Second)
	if !s.Ready {
		return fail("`journalctl -u nixp2p` says more, `nixp2p config check` what is wrong with the configuration; until then everything is answered 404",
			"nixp2p %s runs, but cannot work: %s", s.Version, s.NotReady)
	}
	return ok("nixp2p %s, up %s, asked on %s", s.Version, up, p.AdminListen)
}

// checkRecent reports the errors that the node has recorded lately, in its own words.
func checkRecent(_ context.Context, p *facts) []Finding {
	if p.status == nil {
		return unknown("the daemon is not running")
	}
	var all []Finding
	for _, f := range p.status.Failures {
		if time.Since(f.At) <= recent && len(all) < maxRecent {
			all = append(all, warn("`nixp2p status` lists all of them", "%s", f)...)
		}
	}
	if len(all) == 0 {
		return ok("no errors in the last hour")
	}
	return all
}

// portHint is about a port that another program has.
const portHint = "`ss -ltnp` shows which program it is; stop it, or give nixp2p another "

// unanswered says why a question to an address of the node got no answer.
func unanswered(flag, at string, err error) []Finding {
	var timeout net.Error
	var dial *net.OpError
	hint, text := portHint+flag, fmt.Sprintf("another program answers on %s: %v", at, err)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		hint, text = startHint, fmt.Sprintf("nothing listens on %s: the daemon is not running, or has another %s", at, flag)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		hint = "restart it: `systemctl restart nixp2p.service`; if it is not nixp2p that listens there, `ss -ltnp` says who"
		text = fmt.Sprintf("%s takes connections and does not answer", at)
	case errors.As(err, &dial) && dial.Op == "dial":
		return fail("is "+flag+" an address of this machine, and loopback up?", "%s cannot be asked: %v", at, dial)
	}
	if exec.Command("systemctl", "is-failed", "--quiet", "nixp2p.socket").Run() == nil {
		hint = "nixp2p.socket has failed: `systemctl status nixp2p.socket` says why; `ss -ltnp` shows which program has the port"
	} else if exec.Command("systemctl", "is-failed", "--quiet", "nixp2p-retry.service").Run() == nil {
		hint = "it cannot be started, and is tried again every minute: `journalctl -u nixp2p` says why"
	}
	return fail(hint, "%s", text)
}

// checkSubstituter asks as Nix does.
func checkSubstituter(_ context.Context, p *facts) []Finding {
	if p.frontErr != nil {
		return unanswered("--listen", p.Listen, p.frontErr)
	}
	switch {
	case p.front.StoreDir != nix.StoreDir:
		return fail(portHint+"--listen", "what answers on %s is not a cache for %s (it says %q)", p.Listen, nix.StoreDir, p.front.StoreDir)
	case p.front.Priority != p.Priority:
		return warn("restart it after changes of the configuration: `systemctl restart nixp2p.service`; or another cache listens there",
			"%s answers with priority %d, the configuration says %d", p.Listen, p.front.Priority, p.Priority)
	}
	return ok("answers on %s, priority %d", p.Listen, p.front.Priority)
}

func checkPeers(_ context.Context, p *facts) []Finding {
	switch {
	case !p.P2P:
		return ok("peers are off (--p2p=false)")
	case p.status == nil:
		return unknown("the daemon is not running")
	}
	if p.status.Peers == 0 {
		return warn("is nixp2p running on another machine of this network, with the same swarm key or none, and is its port open there? on other networks, name peers with --bootstrap",
			"no peers: this machine shares with no other")
	}
	giving := 0
	var blamed []Finding
	for _, peer := range p.peers {
		if peer.Paths > 0 {
			giving++
		}
		if strings.HasPrefix(peer.Standing, "liar") {
			blamed = append(blamed, warn("it is not asked any more; check that machine's disk and memory", "peer %s sent wrong data: %s", peer.ID, peer.Standing)...)
		}
	}
	return append(ok("%s, %d with paths to share", count(p.status.Peers, "peer"), giving), blamed...)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, strings.TrimSuffix(what, "s"))
}
