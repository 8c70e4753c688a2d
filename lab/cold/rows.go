//go:build linux

package main

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Arrangements.
const (
	direct = "direct" // no nixp2p
	plain  = "plain"  // nodes without leases
	leases = "leases"
)

// Clients, states of the mesh when the builds start, and what happens meanwhile.
const (
	discard  = "discard"
	realNix  = "nix"
	standing = "standing"
	starting = "starting"

	none      = "none"
	spread    = "spread"
	killed    = "killed"
	fetcher   = "fetcher"
	partition = "partition"
	liars     = "liars"
	attackers = "attackers"
	few       = "few"
	slow      = "slow"
)

var events = map[string]string{
	none:      "nothing",
	spread:    "starts spread over 30 s",
	killed:    "10 % of the hosts vanish during the run",
	fetcher:   "the fetcher of the largest NAR vanishes when it has half of it",
	partition: "the LAN is cut in two halves at 30 %, for 5 s",
	liars:     "3 more hosts claim to have all and give wrong bytes",
	attackers: "4 more hosts attack: wrong bytes, 40 KiB/s, unsigned lines, and a coordinator that leads to a byte every 6 s",
	few:       "--max-peers 8",
	slow:      "the uplink has 25 Mbit/s, so that the cores are not the limit",
}

// slowUplink is the rate of the slow row, in Mbit/s.
const slowUplink = 25

// row is one line of the tables.
type row struct {
	Hosts       int
	Arrangement string
	Client      string
	Mesh        string // of direct: standing
	Event       string
}

func (r row) name() string {
	n := fmt.Sprintf("%d-%s-%s", r.Hosts, r.Arrangement, r.Client)
	if r.Arrangement != direct {
		n += "-" + r.Mesh
	}
	if r.Event != none {
		n += "-" + r.Event
	}
	return n
}

// order is the rank of a row in a table.
func (r row) order() []int {
	return []int{
		slices.Index([]string{discard, realNix}, r.Client),
		slices.Index([]string{none, slow, spread, killed, fetcher, partition, liars, attackers, few}, r.Event),
		r.Hosts,
		slices.Index([]string{direct, plain, leases}, r.Arrangement),
		slices.Index([]string{standing, starting}, r.Mesh),
	}
}

func (r row) uplink(rate float64) float64 {
	if r.Event == slow {
		return slowUplink
	}
	return rate
}

// series is what is played if nothing else is asked for: what says most comes first, so that a
// run that ends early has it.
func series() (list []row) {
	with := func(hosts int, client, event string, arrangements ...string) {
		for _, a := range arrangements {
			mesh := standing
			if b, ok := strings.CutSuffix(a, "-"+starting); ok {
				a, mesh = b, starting
			}
			list = append(list, row{hosts, a, client, mesh, event})
		}
	}
	for _, hosts := range []int{8, 16, 32} {
		with(hosts, discard, none, leases, leases+"-"+starting, plain, plain+"-"+starting, direct)
	}
	for _, event := range []string{spread, killed, fetcher, partition, few, slow} {
		with(32, discard, event, leases)
	}
	with(16, realNix, none, leases, leases+"-"+starting, plain, direct)
	with(16, realNix, liars, leases)
	with(16, discard, attackers, leases)
	with(32, discard, spread, plain)
	with(32, discard, killed, plain)
	with(32, discard, fetcher, plain)
	with(8, realNix, none, leases, plain, direct)
	with(32, discard, partition, plain)
	with(32, discard, few, plain)
	with(16, realNix, killed, leases)
	with(16, realNix, fetcher, leases)
	with(16, realNix, liars, plain)
	with(32, realNix, none, leases)
	return list
}

// choose returns the rows that were asked for.
func choose(o *options) ([]row, error) {
	list := series()
	if o.rows == "" {
		return list, nil
	}
	var chosen []row
	for pattern := range strings.SplitSeq(o.rows, ",") {
		n := len(chosen)
		for _, r := range list {
			if ok, err := path.Match(pattern, r.name()); err != nil {
				return nil, err
			} else if ok && !slices.Contains(chosen, r) {
				chosen = append(chosen, r)
			}
		}
		if n == len(chosen) {
			r, err := parseRow(pattern)
			if err != nil {
				return nil, err
			}
			chosen = append(chosen, r)
		}
	}
	return chosen, nil
}

// check tells which word of a row is none.
func (r row) check() error {
	switch {
	case r.Hosts < 2 || r.Hosts > 200:
		return fmt.Errorf("%d hosts", r.Hosts)
	case slices.Contains(r.order(), -1):
		return fmt.Errorf("no row %q: -list names some", r.name())
	case r.Arrangement == direct && (r.Event == liars || r.Event == attackers || r.Event == few || r.Event == partition || r.Event == fetcher):
		return fmt.Errorf("%s: without nixp2p there is nobody to whom that happens", r.name())
	}
	return nil
}

// parseRow reads a name.
func parseRow(name string) (r row, err error) {
	part := strings.Split(name, "-")
	if len(part) < 3 {
		return r, fmt.Errorf("no row %q: -list names some", name)
	}
	r = row{Arrangement: part[1], Client: part[2], Mesh: standing, Event: none}
	if r.Hosts, err = strconv.Atoi(part[0]); err != nil {
		return r, fmt.Errorf("no row %q: -list names some", name)
	}
	rest := part[3:]
	if r.Arrangement != direct && len(rest) > 0 {
		r.Mesh, rest = rest[0], rest[1:]
	}
	if len(rest) > 0 {
		r.Event = rest[0]
	}
	return r, r.check()
}

// Seconds of both cores that a host's node and client take for the closure, and a row takes
// besides: what was measured on two cores without instructions for SHA-256.
const (
	discardCPU = 2.8
	nixCPU     = 11.0
	rowTime    = 12 * time.Second
	hostTime   = 250 * time.Millisecond
)

// estimate returns what the row is expected to take.
func (r row) estimate(w *world) time.Duration {
	one := w.oneCopy(r)
	copies := float64(r.Hosts)
	if r.Arrangement == leases {
		copies = 1.1
	} else if r.Arrangement == plain {
		copies = min(copies, 2+copies/8)
	}
	cpu := discardCPU
	if r.Client == realNix {
		cpu = nixCPU
	}
	if r.Arrangement == direct && r.Client == discard {
		cpu = 0.3
	}
	took := max(one.Seconds()*copies, cpu*float64(r.Hosts)/2) + 2
	if r.Event == spread {
		took = max(took, 32)
	}
	d := rowTime + time.Duration(r.Hosts)*hostTime + time.Duration(took*float64(time.Second))
	if r.Client == realNix {
		d += 15 * time.Second // two stores are compared with their databases
	}
	return d
}

// limit is when a row is given up, builds and all.
func (r row) limit(w *world) time.Duration {
	return time.Duration(float64(3*r.estimate(w)+60*time.Second) * w.o.patience)
}

func printRows(o *options, rows []row) {
	w := &world{o: o}
	if err := w.measure(); err != nil {
		w.fileBytes = 175_000_000 // about what it will be
	}
	var sum time.Duration
	for _, r := range rows {
		d := r.estimate(w)
		sum += d
		if o.list {
			fmt.Printf("%-36s about %4.0f s  %s\n", r.name(), d.Seconds(), events[r.Event])
		}
	}
	fmt.Fprintf(os.Stderr, "%d rows, at most about %.0f minutes\n", len(rows), sum.Minutes())
}
