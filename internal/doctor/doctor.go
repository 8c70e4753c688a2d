// Package doctor finds out why nothing is substituted, or slowly. It asks the running node, looks at
// Nix's settings and memory, at the disk, the clock and the network, and says of each whether it is
// fine, and what to do if not. It also works without a node, without Nix and without privileges. It
// changes nothing, and never takes longer than TotalTime.
package doctor

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/nixp2p/nixp2p/internal/admin"
)

// Level says how serious a finding is.
type Level string

// Levels. Unknown means that it could not be checked; it is no sign of a fault.
const (
	OK      Level = "ok"
	Unknown Level = "unknown"
	Warning Level = "warning"
	Failure Level = "failure"
)

// Finding is what one look has shown.
type Finding struct {
	Check   string `json:"check"` // the name of the check; programs read it
	Level   Level  `json:"level"`
	Message string `json:"message"`        // a sentence without capital and full stop
	Hint    string `json:"hint,omitempty"` // what to do about it
}

// Report has all findings.
type Report struct {
	Findings []Finding `json:"findings"`
	Failures int       `json:"failures"`
	Warnings int       `json:"warnings"`
}

// Add adds a finding.
func (r *Report) Add(f Finding) {
	r.Findings = append(r.Findings, f)
	switch f.Level {
	case Failure:
		r.Failures++
	case Warning:
		r.Warnings++
	}
}

// Config is the configuration of the node, as far as it counts here, and the surroundings.
type Config struct {
	Listen      string // "host:port" or "unix:PATH"
	URL         string // at which Nix asks; "" if it cannot
	AdminListen string
	Priority    int
	Upstreams   []string // URLs
	TrustedKeys []string // "name:base64"
	StateDir    string
	CacheDir    string
	CacheSize   int64
	StoreRoot   string

	P2P       bool
	P2PListen []string // multiaddrs
	MDNS      bool
	Closed    bool // there is a swarm key

	Getenv func(string) string // the environment of the user
	Sys    string              // "" means /sys
}

// Bounds. The facts come first, since the checks go by them; then all checks run at once.
const (
	factsTime = 3500 * time.Millisecond
	checkTime = 4500 * time.Millisecond
	// TotalTime is what Run takes at most.
	TotalTime = 9 * time.Second
)

// check is one check. If it does not heed its context, since a file system or a program hangs, it
// is left behind.
type check struct {
	name string
	run  func(context.Context, *facts) []Finding
}

// checks are in the order in which they are reported: from the node outwards.
func checks() []check {
	return []check{
		{"daemon", checkDaemon},
		{"substituter", checkSubstituter},
		{"recent", checkRecent},
		{"nix", checkNix},
		{"used", checkUsed},
		{"proxy", checkProxy},
		{"order", checkOrder},
		{"keys", checkKeys},
		{"signatures", checkSignatures},
		{"remembered", checkRemembered},
		{"database", checkDatabase},
		{"shared", checkShared},
		{"disk", checkDisk},
		{"upstream", checkUpstream},
		{"clock", checkClock},
		{"online", checkOnline},
		{"port", checkPort},
		{"firewall", checkFirewall},
		{"peers", checkPeers},
		{"wifi", checkWifi},
	}
}

// Run checks at everything. What hangs, since a file system does not answer, is left behind:
// the command that called ends anyway.
func Run(ctx context.Context, cfg Config) Report {
	done := make(chan Report, 1)
	go func() { done <- run(ctx, cfg, checks(), checkTime) }()
	select {
	case r := <-done:
		return r
	case <-time.After(TotalTime):
		var r Report
		r.Add(Finding{"doctor", Failure, fmt.Sprintf("not finished within %s", TotalTime), "does a file system hang, of $HOME or of Nix? see `dmesg`"})
		return r
	}
}

// run gives each look the limit, and a little more for those that come in time.
func run(ctx context.Context, cfg Config, checks []check, limit time.Duration) Report {
	p := &facts{Config: cfg}
	p.gather(ctx)
	checkCtx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	found := make([]chan []Finding, len(checks))
	for i, l := range checks {
		found[i] = make(chan []Finding, 1) // a look that comes too late has nobody to wait for it
		go func() { found[i] <- l.run(checkCtx, p) }()
	}
	late, stop := context.WithTimeout(ctx, limit+200*time.Millisecond)
	defer stop()
	var r Report
	said := map[string]bool{} // parts whose conditions have been reported
	for i, l := range checks {
		said[l.name] = true
		all := unknown("no answer within %s", limit)
		select {
		case all = <-found[i]:
		case <-late.Done():
			select {
			case all = <-found[i]: // in time, while another one was waited for
			default:
			}
		}
		for _, f := range p.withConditions(l.name, all) {
			r.Add(f)
		}
	}
	for _, part := range p.otherParts(said) {
		for _, f := range p.withConditions(part, nil) {
			r.Add(f)
		}
	}
	return r
}

// withConditions names the findings of a check, and adds what the node says of the part of that
// name, in its own words. Where the node wanted something and did not get it, nothing is fine.
func (p *facts) withConditions(name string, found []Finding) []Finding {
	var said []Finding
	faulty := false
	for _, c := range p.conditions() {
		switch {
		case c.Part != name:
		case c.Note:
			said = append(said, ok("%s", c.Text)...)
		default:
			faulty = true
			said = append(said, warn(cmp.Or(c.Hint, "the rest works; `journalctl -u nixp2p` says more"), "%s", c.Text)...)
		}
	}
	if faulty {
		found = slices.DeleteFunc(found, func(f Finding) bool { return f.Level == OK })
	}
	found = append(found, said...)
	for i := range found {
		found[i].Check = name
	}
	return found
}

// conditions are what the node says of its parts.
func (p *facts) conditions() []admin.Condition {
	if p.status == nil {
		return nil
	}
	return p.status.Conditions
}

// otherParts returns the parts that have no check of their own and of which the node says
// something.
func (p *facts) otherParts(checked map[string]bool) (parts []string) {
	for _, c := range p.conditions() {
		if !checked[c.Part] {
			checked[c.Part] = true
			parts = append(parts, c.Part)
		}
	}
	return parts
}

// ok, unknown, warn and fail make findings of one look; the last argument but one of warn and
// fail is what to do.
func ok(format string, args ...any) []Finding {
	return []Finding{{"", OK, fmt.Sprintf(format, args...), ""}}
}

func unknown(format string, args ...any) []Finding {
	return []Finding{{"", Unknown, fmt.Sprintf(format, args...), ""}}
}

func warn(hint, format string, args ...any) []Finding {
	return []Finding{{"", Warning, fmt.Sprintf(format, args...), hint}}
}

func fail(hint, format string, args ...any) []Finding {
	return []Finding{{"", Failure, fmt.Sprintf(format, args...), hint}}
}

// store returns what the node says of its store, false when it says nothing.
func (p *facts) store() (admin.Store, bool) {
	if p.status == nil || !p.status.Ready {
		return admin.Store{}, false
	}
	return p.status.Store, true
}
