package doctor

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/nixconf"
	"github.com/nixp2p/nixp2p/internal/source"
)

// probe is one question to an upstream, past the node.
type probe struct {
	url  string // without a password
	err  error
	date time.Time     // by the upstream's clock; zero when it did not say
	off  time.Duration // of this machine's clock, ahead when positive
}

func (p *facts) probeUpstreams(ctx context.Context) {
	p.probes = make([]probe, len(p.Upstreams))
	var wg sync.WaitGroup
	for i, u := range p.Upstreams {
		wg.Go(func() { p.probes[i] = probeOne(ctx, u) })
	}
	wg.Wait()
}

func probeOne(ctx context.Context, upstream string) probe {
	at, _, _ := strings.Cut(upstream, "?")
	pr := probe{url: at}
	if u, err := url.Parse(at); err == nil {
		pr.url = u.Redacted()
	}
	start := time.Now()
	_, head, err := cacheInfo(ctx, at)
	pr.err = err
	if date, err := http.ParseTime(head.Get("Date")); err == nil {
		pr.date = date
		// The answer was made somewhere between the two, and its clock shows whole seconds.
		pr.off = start.Add(time.Since(start) / 2).Sub(date)
	}
	var answer *answerError
	if errors.As(err, &answer) && (strings.HasPrefix(answer.status, "401") || strings.HasPrefix(answer.status, "403")) {
		pr.err = nil // it wants credentials that the node may have
	}
	return pr
}

// checkUpstream reports what the node says about its upstreams, and how they answer here.
func checkUpstream(_ context.Context, p *facts) []Finding {
	if len(p.probes) == 0 {
		return warn("name one with --upstream", "no upstream: only paths of peers and of this machine are available")
	}
	var found []Finding
	fine := 0
	for _, pr := range p.probes {
		if f := p.judge(pr); f != nil {
			found = append(found, f...)
		} else {
			fine++
		}
	}
	if fine == 0 {
		for i := range found {
			found[i].Level = Failure
		}
	}
	if len(found) > 0 || p.status == nil || !p.status.Ready {
		return append(found, ok("%s answering from here, %s first", count(fine, "cache"), p.probes[0].url)[:min(fine, 1)]...)
	}
	return p.throughNode(fine)
}

// throughNode reports how the node's own question to its caches ended.
func (p *facts) throughNode(caches int) []Finding {
	i := slices.IndexFunc(p.tried, func(a admin.Answer) bool { return a.Source == "upstream" })
	switch {
	case i < 0:
		return warn("`nixp2p status` shows how fast they answer", "the node got no answer from its caches within %s", askTime)
	case p.tried[i].Result == admin.Absent:
		return ok("asked through the node: %s, %s first, after %s", count(caches, "cache"), p.probes[0].url, admin.FormatMS(p.tried[i].TookMS))
	}
	return fail("`nixp2p status` shows which; "+restartHint, "the node gets no answer from its caches: %s", p.tried[i].Err)
}

const restartHint = "after changes of the network or the configuration: `systemctl restart nixp2p.service`"

// judge returns what is wrong with an upstream, nil if nothing is.
func (p *facts) judge(pr probe) []Finding {
	up := p.upstream(pr.url)
	if up == nil {
		if pr.err == nil && (p.status == nil || !p.status.Ready) {
			return nil
		}
		if pr.err == nil {
			return warn(restartHint, "the running node does not have %s among its upstreams", pr.url)
		}
		return warn(hintFor(pr.err), "%s cannot be reached: %s", pr.url, describe(pr.err))
	}
	why := cmp.Or(up.Why, up.LastError)
	switch {
	case !up.Up && pr.err == nil:
		return warn("it answers here: has the service another network or proxy ($https_proxy in its unit)? the node tries it again within seconds",
			"the node does not ask %s: %s", pr.url, why)
	case !up.Up:
		return warn(hintFor(pr.err), "the node does not ask %s: %s", pr.url, why)
	case up.Why != "":
		return warn("`nixp2p status` shows it", "the node finds %s degraded: %s", pr.url, up.Why)
	case pr.err != nil:
		return warn(hintFor(pr.err), "%s cannot be reached from here: %s", pr.url, describe(pr.err))
	}
	return nil
}

// describe says what an error means to a user.
func describe(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("no answer within %.1f s", factsTime.Seconds())
	}
	return err.Error()
}

// upstream returns what the node says about an upstream, nil if it does not.
func (p *facts) upstream(url string) *admin.Upstream {
	if p.status == nil || !p.status.Ready {
		return nil
	}
	i := slices.IndexFunc(p.status.Upstreams, func(u admin.Upstream) bool { return nixconf.SameCache(u.URL, url) })
	if i < 0 {
		return nil
	}
	return &p.status.Upstreams[i]
}

// hintFor says what an error on the way to a cache usually means.
func hintFor(err error) string {
	var dns *net.DNSError
	var expired x509.CertificateInvalidError
	switch {
	case errors.Is(err, source.ErrWebPage):
		return "log in to this network with a browser"
	case errors.As(err, &dns):
		return "names are not resolved: is there a network, and a name server that answers?"
	case errors.As(err, &expired) && expired.Reason == x509.Expired:
		return "is this machine's clock right?"
	case errors.As(err, new(x509.UnknownAuthorityError)), errors.As(err, new(x509.HostnameError)), errors.As(err, &expired):
		return "a proxy between here and there? its certificate has to be in $NIX_SSL_CERT_FILE or the system's"
	case errors.As(err, new(*answerError)):
		return "is the URL in --upstream right?"
	}
	return "is the URL in --upstream right, is there a network, does it need a proxy ($https_proxy)? meanwhile peers and this machine's store still serve"
}

// maxOff is how wrong a clock may be: certificates and the ages of remembered answers are in
// hours, a wrong time zone is off by at least a quarter of one.
const maxOff = 5 * time.Minute

func checkClock(_ context.Context, p *facts) []Finding {
	const hint = "set the clock: `timedatectl set-ntp true`; with a wrong one certificates look expired, and Nix remembers too long or not at all"
	for _, pr := range p.probes {
		var invalid x509.CertificateInvalidError
		if errors.As(pr.err, &invalid) && invalid.Reason == x509.Expired {
			return fail(hint, "the certificate of %s is not valid at %s, by this machine's clock", pr.url, time.Now().Format(time.DateTime))
		}
	}
	said := slices.DeleteFunc(slices.Clone(p.probes), func(pr probe) bool { return pr.date.IsZero() })
	if len(said) == 0 {
		return unknown("no upstream says what time it is")
	}
	first := said[0]
	right := slices.ContainsFunc(said, func(pr probe) bool { return pr.off.Abs() <= maxOff })
	wrong := slices.ContainsFunc(said, func(pr probe) bool { return pr.off.Abs() > maxOff })
	switch {
	case !wrong:
		return ok("within %s of %s", max(first.off.Abs().Round(time.Second), time.Second), first.url)
	case right:
		return warn("compare with another clock", "upstreams do not agree on the time")
	}
	way := "ahead"
	if first.off < 0 {
		way = "behind"
	}
	return fail(hint, "the clock is %s %s of %s", first.off.Abs().Round(time.Second), way, first.url)
}
