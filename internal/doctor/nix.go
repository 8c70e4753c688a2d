package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixconf"
	"github.com/nixp2p/nixp2p/verify"
)

func checkNix(_ context.Context, p *facts) []Finding {
	if errors.Is(p.nixErr, fs.ErrNotExist) {
		return warn("install it, or run this as the user who has it in $PATH", "no nix command found: using the files alone")
	}
	if p.settingsErr != nil {
		return fail("fix the file: every Nix command fails with it", "Nix cannot read its configuration: %v", p.settingsErr)
	}
	if p.nixErr != nil {
		return fail("try `nix --version`", "the installed Nix does not work: %v", p.nixErr)
	}
	all := ok("Nix %s (%s)", p.nix.Version, p.nix.Path)
	if p.settings.Fallback && !p.nix.AtLeast(2, 13) {
		all = append(all, warn("remove `fallback` from nix.conf, or use Nix 2.13 or later",
			"`fallback = true`: this Nix crashes with it when a cache goes away")...)
	}
	if p.settings.ConnectTimeout == 0 && !p.nix.AtLeast(2, 29) {
		all = append(all, warn("set `connect-timeout = 5` in nix.conf (`nixp2p setup` does)",
			"connect-timeout is not set: a cache that cannot be reached costs minutes")...)
	}
	if p.multiUser() && !listed(p.system.AllowedUsers) && !listed(p.system.TrustedUsers) {
		all = append(all, warn("add the user to allowed-users in "+p.places.System, "the Nix daemon does not serve this user")...)
	}
	return all
}

// setupHint says how the node comes into the list.
func (p *facts) setupHint() string {
	if target, err := os.Readlink(p.places.System); err == nil && (strings.HasPrefix(target, "/nix/store/") || strings.HasPrefix(target, "/etc/static/")) {
		return "NixOS: `services.nixp2p.enable = true`; `nixp2p setup` shows what it sets"
	}
	return "`nixp2p setup --apply` adds it; then restart the Nix daemon"
}

// checkUsed says whether Nix asks the node at all.
func checkUsed(_ context.Context, p *facts) []Finding {
	switch {
	case p.URL == "":
		return fail("give --listen an address such as 127.0.0.1:7654", "Nix cannot ask a substituter on %s", p.Listen)
	case p.noNix():
		return unknown("there is neither Nix nor %s", p.places.System)
	case p.settingsErr != nil:
		return unknown("%v", p.settingsErr)
	}
	as, used := p.used()
	switch {
	case !used && p.system.Uses(p.URL):
		return fail("write `extra-substituters` in the user's nix.conf, which adds, instead of `substituters`, which replaces; look at $NIX_CONFIG, too",
			"%s lists %s, but this user's own settings replace that list", p.places.System, p.URL)
	case !used:
		return fail(p.setupHint(), "%s is not among the substituters of Nix: %s", p.URL, strings.Join(p.settings.Substituters, " "))
	case p.multiUser() && !p.system.Uses(as) && !slices.ContainsFunc(p.system.TrustedSubstituters, func(u string) bool { return nixconf.SameCache(u, as) }) &&
		!listed(p.system.TrustedUsers):
		return fail("put it into "+p.places.System+" instead: `sudo nixp2p setup --apply`, then restart the Nix daemon",
			"the Nix daemon ignores %s: only this user's settings name it, and this user is not in trusted-users", as)
	case !p.settings.Substitute && online() != "": // offline it says so by itself
		return fail("remove `substitute = false` from nix.conf", "Nix is told not to substitute at all")
	}
	if len(p.settings.Substituters) == 1 {
		return warn("keep https://cache.nixos.org in the list", "%s is the only substituter: while it is stopped, nothing can be substituted", as)
	}
	return ok("%s is one of %d substituters", as, len(p.settings.Substituters))
}

// checkProxy looks for a proxy between Nix and the node: Nix would ask the proxy for what is on
// this machine.
func checkProxy(ctx context.Context, p *facts) []Finding {
	host, _, err := net.SplitHostPort(strings.TrimPrefix(p.URL, "http://"))
	if err != nil || p.noNix() {
		return unknown("Nix does not ask the node")
	}
	who, getenv := "this user's Nix", p.Getenv
	if p.multiUser() {
		env, err := daemonEnv(ctx)
		if err != nil {
			return unknown("the environment of the Nix daemon is not known: %v", err)
		}
		who, getenv = "the Nix daemon", func(k string) string { return env[k] }
	}
	if variable, proxy := nixconf.ProxyTo(getenv, host); variable != "" {
		return fail("add to its environment: `no_proxy="+host+",localhost`", "%s asks %s through the proxy %s ($%s), which cannot reach it", who, p.URL, redacted(proxy), variable)
	}
	return ok("no proxy between %s and the node", who)
}

// daemonEnv returns the environment that systemd gives the Nix daemon.
func daemonEnv(ctx context.Context) (map[string]string, error) {
	env := map[string]string{}
	cmd := exec.CommandContext(ctx, "systemctl", "show", "--property=Environment", "--value", "nix-daemon.service")
	cmd.WaitDelay = 100 * time.Millisecond
	text, err := cmd.Output()
	for _, word := range strings.Fields(string(text)) {
		if k, v, set := strings.Cut(strings.Trim(word, `"'`), "="); set {
			env[k] = v
		}
	}
	return env, err
}

// redacted leaves out the password of a URL.
func redacted(s string) string {
	if u, err := url.Parse(s); err == nil {
		return u.Redacted()
	}
	return "in it"
}

// used returns how the node is written in the list of substituters.
func (p *facts) used() (string, bool) {
	_, port, _ := strings.Cut(strings.TrimPrefix(p.URL, "http://"), ":")
	for _, s := range p.settings.Substituters {
		for _, url := range []string{p.URL, "http://localhost:" + port, "http://127.0.0.1:" + port, "http://[::1]:" + port} {
			if nixconf.SameCache(s, url) {
				return s, true
			}
		}
	}
	return "", false
}

// checkOrder asks every substituter for its priority, as Nix does: it goes by them, then by the
// order of the list.
func checkOrder(ctx context.Context, p *facts) []Finding {
	as, used := p.used()
	if !used || p.front == nil {
		return unknown("the node is not asked, or does not answer")
	}
	list := p.settings.Substituters
	priorities := make([]int, len(list))
	var wg sync.WaitGroup
	for i, s := range list {
		wg.Go(func() { priorities[i] = p.priority(ctx, s, as) })
	}
	wg.Wait()
	own := slices.Index(list, as)
	var before, silent []string
	for i, n := range priorities {
		switch {
		case n < 0:
			silent = append(silent, list[i])
		case n < priorities[own], n == priorities[own] && i < own:
			before = append(before, fmt.Sprintf("%s (%d)", list[i], n))
		}
	}
	found := ok("asked first, with priority %d", priorities[own])
	if len(before) > 0 {
		found = warn("give nixp2p a lower --priority, or write ?priority=50 behind the other one's URL in nix.conf",
			"asked before nixp2p (%d): %s", priorities[own], strings.Join(before, ", "))
	}
	if len(silent) > 0 {
		found = append(found, unknown("no priority from %s", strings.Join(silent, ", "))...)
	}
	return found
}

// priority finds a substituter's priority, -1 if it cannot. A parameter in its URL wins over what
// it says.
func (p *facts) priority(ctx context.Context, url, own string) int {
	at, given, ok := withPriority(url)
	switch {
	case ok:
		return given
	case url == own:
		return p.front.Priority
	}
	info, _, err := cacheInfo(ctx, at)
	if err != nil {
		return -1
	}
	return info.Priority
}

// withPriority splits a substituter's URL from the priority given in it.
func withPriority(s string) (at string, priority int, ok bool) {
	at, query, _ := strings.Cut(s, "?")
	v, _ := url.ParseQuery(query)
	priority, err := strconv.Atoi(v.Get("priority"))
	return at, priority, err == nil
}

// cacheInfo reads what a cache says of itself, by HTTP or from a directory. Other machines are
// asked through the proxy of the environment, as Nix does.
func cacheInfo(ctx context.Context, at string) (info *nix.CacheInfo, head http.Header, err error) {
	var text []byte
	if dir, file := strings.CutPrefix(at, "file://"); file {
		text, err = os.ReadFile(dir + "/nix-cache-info")
	} else {
		client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}}
		text, head, err = fetch(ctx, client, strings.TrimRight(at, "/")+"/nix-cache-info", nix.MaxCacheInfo)
	}
	if err == nil {
		info, err = parseCacheInfo(text)
	}
	return info, head, err
}

// checkKeys compares whose word counts here and there: Nix takes nothing that is not signed by
// one of its own keys.
func checkKeys(_ context.Context, p *facts) []Finding {
	if p.noNix() || p.settingsErr != nil {
		return unknown("the configuration of Nix is not known")
	}
	var missing, other []string
	for _, k := range p.TrustedKeys {
		name, _, _ := strings.Cut(k, ":")
		switch theirs := p.settings.TrustedPublicKeys; {
		case slices.Contains(theirs, k):
		case slices.ContainsFunc(theirs, func(t string) bool { return strings.HasPrefix(t, name+":") }):
			other = append(other, name)
		default:
			missing = append(missing, k)
		}
	}
	var found []Finding
	if len(other) > 0 {
		found = append(found, fail("one of the two is wrong: compare nix.conf with --trusted-public-key",
			"Nix and nixp2p have different keys with the name %s", strings.Join(other, ", "))...)
	}
	if len(missing) > 0 {
		hint := "add to nix.conf: `extra-trusted-public-keys = " + strings.Join(missing, " ") + "`; then restart the Nix daemon"
		f := warn(hint, "Nix does not trust %d of the keys that nixp2p trusts: it refuses what only they have signed", len(missing))
		if len(missing) == len(p.TrustedKeys) {
			f[0].Level = Failure
		}
		found = append(found, f...)
	}
	if !p.settings.RequireSigs {
		found = append(found, warn("remove `require-sigs = false` from nix.conf", "Nix accepts unsigned paths")...)
	}
	if len(found) == 0 {
		return ok("Nix trusts the same keys (%s)", count(len(p.TrustedKeys), "key"))
	}
	return found
}

// checkSignatures takes one path that is shared and does what Nix does with its narinfo.
func checkSignatures(ctx context.Context, p *facts) []Finding {
	s, up := p.store()
	if !up || p.settingsErr != nil || p.noNix() {
		return unknown("there is no node or no Nix to try it with")
	}
	hash, err := nix.ParseStoreHash(s.Sample)
	if err != nil {
		return unknown("no path is shared with which it could be tried")
	}
	keys, err := verify.ParseKeys(p.settings.TrustedPublicKeys)
	if err != nil {
		return fail("fix trusted-public-keys in nix.conf", "the keys of Nix cannot be read: %v", err)
	}
	text, err := p.askFront(ctx, "/"+hash.String()+".narinfo", maxNarinfo)
	if err != nil {
		return warn("`nixp2p why "+hash.String()+"` asks every source", "%s is shared, but asked for it the node %v", hash, err)
	}
	info, err := keys.Open(text, hash)
	if err != nil {
		return fail("see the line about keys", "Nix refuses what it is offered for %s: %v", hash, err)
	}
	return ok("Nix accepts %s, signed by %s", info.StorePath(), strings.Join(info.Signers(), ", "))
}

// maxNarinfo is above the largest real one, which has thousands of references.
const maxNarinfo = 4 << 20
