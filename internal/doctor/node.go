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
		return nodeSilent(p)
	}
	s := p.status
	up := time.Duration(s.UptimeSeconds * float64(time.Second)).Round(time.Second)
	if !s.Ready {
		return fail("`journalctl -u nixp2p` says more, `nixp2p config check` what is wrong with the configuration; until then everything is answered 404",
			"nixp2p %s runs, but cannot work: %s", s.Version, s.NotReady)
	}
	all := ok("nixp2p %s, up %s, asked on %s", s.Version, up, p.AdminListen)
	for _, d := range s.Degraded {
		all = append(all, warn("the rest works; `journalctl -u nixp2p` says more", "%s", d)...)
	}
	return all
}

// checkRecent reports the errors that the node has recorded lately, in its own words.
func checkRecent(_ context.Context, p *facts) []Finding {
	if p.status == nil {
		return unknown("the daemon is not running")
	}
	var all []Finding
	for _, f := range p.status.Failures {
		if time.Since(f.At) > recent || len(all) == maxRecent {
			continue
		}
		text := f.What
		if f.Error != "" {
			text += ": " + f.Error
		}
		if f.Times > 1 {
			text += fmt.Sprintf(" (%d times)", f.Times)
		}
		all = append(all, warn("`nixp2p status` lists all of them", "%s: %s", f.Source, text)...)
	}
	if len(all) == 0 {
		return ok("no errors in the last hour")
	}
	return all
}

// portHint is about a port that another program has.
const portHint = "`ss -ltnp` shows which program it is; stop it, or give nixp2p another "

// socketHint returns the given hint, or a better one if systemd could not open the socket.
func socketHint(hint string) string {
	if exec.Command("systemctl", "is-failed", "--quiet", "nixp2p.socket").Run() != nil {
		return hint
	}
	return "nixp2p.socket has failed: `systemctl status nixp2p.socket` says why; `ss -ltnp` shows which program has the port"
}

// nodeSilent reports why there is no status.
func nodeSilent(p *facts) []Finding {
	at, err := p.AdminListen, p.statusErr
	switch reach(err) {
	case refused:
		return fail(socketHint(startHint), "nothing listens on %s: the daemon is not running, or has another --admin-listen", at)
	case silent:
		return fail("restart it: `systemctl restart nixp2p.service`; if it is not nixp2p that listens there, `ss -ltnp` says who",
			"what listens on %s does not answer", at)
	case unreachable:
		return fail("is --admin-listen an address of this machine, and loopback up?", "%s cannot be asked: %v", at, inner(err))
	}
	return fail(portHint+"--admin-listen", "another program answers on %s: %v", at, err)
}

// reached says how far a question came.
type reached int

const (
	answered reached = iota // by whomever
	refused
	silent
	unreachable
)

func reach(err error) reached {
	var timeout net.Error
	var dial *net.OpError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		return refused
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return silent
	case errors.As(err, &dial) && dial.Op == "dial":
		return unreachable
	}
	return answered
}

// inner is the part of an error that says what happened, without the request.
func inner(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op
	}
	return err
}

// checkSubstituter asks as Nix does.
func checkSubstituter(_ context.Context, p *facts) []Finding {
	switch err := p.frontErr; {
	case err == nil:
	case reach(err) == refused:
		hint := startHint
		if p.status != nil {
			hint = "the daemon listens elsewhere: give this command the same --config and --listen"
		}
		return fail(hint, "nothing listens on %s: each Nix command that asks it waits 4.5 s or fails", p.Listen)
	case reach(err) == silent:
		return fail(socketHint("restart it: `systemctl restart nixp2p.service`"), "%s takes connections and does not answer: Nix waits for it, 300 s and longer", p.Listen)
	case reach(err) == unreachable:
		return fail("is --listen an address of this machine, and loopback up?", "%s cannot be asked: %v", p.Listen, inner(err))
	default:
		return fail(socketHint(portHint+"--listen"), "another program answers on %s: %v", p.Listen, err)
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
