//go:build linux

package main

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"

	"github.com/nixp2p/nixp2p/lab/rig"
)

const siteHead = `# A site of nodes, as it was run

Written by ` + "`go run ./lab/site`" + `, which plays the scenarios below on one machine: each host is a
network namespace on a LAN bridge with its own store, its own real Nix and its own ` + "`nixp2p`" + `
with default flags (plus directories, the upstream's address and the test key); the upstream
is behind a link of 200 Mbit/s and 20 ms round trip, and counts what it sends. Nothing is
simulated but the distances. All hosts share the processors of one machine with whatever else
ran there, so times are upper bounds and no evidence of speed; what has to hold does not
depend on them, but for the limits named.

    sudo go run ./lab/site -list                      # what there is
    sudo go run ./lab/site -scenario closure -v       # one scenario, with logs where it fails
    sudo go run ./lab/site -results site.json -o docs/site.md -scale docs/scale.md -performance docs/performance.md   # everything

It needs root, Debian's ` + "`iproute2 nftables sqlite3 nix-bin`" + ` and ` + "`/dev/net/tun`" + `. It works in namespaces
of its own: the machine's network is not touched, and nothing is left when it ends, also by Ctrl-C.
A shorter story of three hosts is part of ` + "`make test`" + ` (` + "`go test ./lab/site`" + `).

`

// siteMarkdown writes docs/site.md.
func siteMarkdown(list []*result) string {
	var b strings.Builder
	b.WriteString(siteHead)
	fmt.Fprintf(&b, "Machine: %s, %d processors, %s. The corpus is a closure of 220 paths and 90 MB, one NAR of them 73 MB.\n\n", rig.CPUName(), runtime.NumCPU(), rig.Memory())
	b.WriteString("## Scenarios\n\n")
	t := rig.NewTable("scenario", "hosts", "Nix", "what happens", "held", "took", "load")
	for _, r := range list {
		ok := 0
		for _, c := range r.Checks {
			if c.OK {
				ok++
			}
		}
		t.Rowf("[%s](#%s)|%d|%s|%s|%s, %d of %d|%.0f s|%.1f", r.Name, r.Name, r.Hosts, r.Nix, r.What, r.verdict(), ok, len(r.Checks), r.Took.Seconds(), r.Load)
	}
	b.WriteString(t.String() + "\nLoad is how many processes of the whole machine wanted to run when the scenario began.\n\n")
	faultTable(&b, list)
	b.WriteString("## What was seen\n")
	for _, r := range list {
		fmt.Fprintf(&b, "\n### %s\n\n%s.\n\n", r.Name, upper(r.What))
		if r.Err != "" {
			fmt.Fprintf(&b, "It could not be played to its end: %s\n\n", rig.Plain(r.Err))
		}
		for _, c := range r.Checks {
			word := "ok"
			if !c.OK {
				word = "**FAIL**"
			}
			fmt.Fprintf(&b, "- %s: %s: %s\n", word, rig.Plain(c.What), rig.Plain(c.Seen))
		}
		for _, f := range r.Figures {
			fmt.Fprintf(&b, "- %s: %s\n", rig.Plain(f.What), rig.Plain(f.Value))
		}
	}
	return b.String()
}

// faultTable puts the faults side by side.
func faultTable(b *strings.Builder, list []*result) {
	row := func(r *result) string {
		if r == nil {
			return "not run"
		}
		t := r.value("h2: time for the closure")
		if math.IsNaN(t) {
			return r.verdict()
		}
		return fmt.Sprintf("%s, %.1f s", r.verdict(), t)
	}
	find := func(name string) *result {
		i := slices.IndexFunc(list, func(r *result) bool { return r.Name == name })
		if i < 0 {
			return nil
		}
		return list[i]
	}
	if find("fault-killed") == nil {
		return
	}
	b.WriteString("## Faults in the middle of the largest NAR\n\n")
	b.WriteString("`nix-store -r` of 220 paths on B, LAN links of " + lanRate + ", B asks nixp2p alone. With one holder the upstream\ngoes on (through 200 Mbit/s, xz); with two holders the uplink is cut, and the one that gives is hit.\n\n")
	t := rig.NewTable("what happens to the holder", "one holder, the upstream behind it", "two holders, no uplink")
	for _, f := range faults() {
		second := row(find("fault-" + f.name + "-2"))
		if f.name == "none" {
			second = "-"
		}
		t.Row(f.name+": "+f.what, row(find("fault-"+f.name)), second)
	}
	b.WriteString(t.String())
	if r := find("fault-nobody"); r != nil {
		fmt.Fprintf(b, "\nFor comparison, nobody has it: straight from the upstream %.1f s, through nixp2p %.1f s.\n",
			r.value("time for the closure, straight from the upstream"), r.value("time for the closure, through nixp2p"))
	}
	b.WriteString("\n")
}

// about is a figure of docs/performance.md: its name, where it is from, and what is aimed at.
type about struct {
	what, scenario, figure, aim string
	check                       bool // it is what a check saw
}

var aboutPeers = []about{
	{"four fresh nodes, from the start of the first process until all are connected (mDNS)", "mdns-both", "from the start of the first process to the whole mesh", "< 5 s", false},
	{"220 paths (90 MB) from a neighbour's live store, real Nix, nothing from upstream", "closure", "h2: time for the closure", "", false},
	{"100,000 paths in a store, filled before the first start: known to the neighbour after", "prefilled", "B knows all 100,000 paths within 10s of A's first start", "10 s", true},
	{"CPU for that, one signature each", "prefilled", "A: CPU until then", "", false},
	{"memory of the node then", "prefilled", "A: memory then", "< 150 MB", false},
	{"inventory of 100,000 paths", "prefilled", "inventory of 100,000 paths on the wire", "", false},
	{"a new path is known to the neighbour after", "prefilled", "a path that A's Nix registers is known to B within 3s", "3 s", true},
	{"look-up in the DHT, with connecting to the holder", "dht", "look-up in the DHT, with connecting to the holder", "", false},
	{"one NAR of 1 GB between two hosts, no limit on the LAN", "large-nar", "again: from A's store through both nodes to B's client", "", false},
	{"plain TCP there, in the same run", "large-nar", "plain TCP, memory to memory", "", false},
	{"SHA-256 on one core there; each side hashes once", "large-nar", "SHA-256 on one core, which each side needs once", "", false},
	{"CPU for each GB, the giving and the taking node", "large-nar", "again: CPU per GB, A's node and B's node", "", false},
	{"the same NAR over links of 1 Gbit/s", "large-nar-gigabit", "again: from A's store through both nodes to B's client", "", false},
	{"as a part of what plain TCP makes of that link", "large-nar-gigabit", "again: of plain TCP", "0.83, which is 1.2 times what the link needs", false},
	{"at rest among 32 nodes, 220 paths each: CPU", "grow-32", figIdle, "10 ms a second", false},
	{"the same: memory", "grow-32", figMemory, "< 150 MB", false},
	{"at rest among 64 nodes: CPU", "grow-64", figIdle, "10 ms a second", false},
	{"the same: memory", "grow-64", figMemory, "< 150 MB", false},
}

// peersMarkdown writes what docs/performance.md has of peers.
func peersMarkdown(list []*result) string {
	var b strings.Builder
	b.WriteString("## Peers\n\nWritten by `go run ./lab/site`: real nodes in network namespaces, all on the " + fmt.Sprint(runtime.NumCPU()) + " cores of one machine (" + rig.CPUName() +
		"), with what else each scenario says in [site.md](site.md).\n\n")
	t := rig.NewTable("what", "measured", "aim", "scenario")
	for _, a := range aboutPeers {
		i := slices.IndexFunc(list, func(r *result) bool { return r.Name == a.scenario })
		if i < 0 {
			continue
		}
		if seen := list[i].saw(a); seen != "" {
			t.Rowf("%s|%s|%s|[%s](site.md#%s)", a.what, rig.Plain(seen), a.aim, a.scenario, a.scenario)
		}
	}
	b.WriteString(t.String() + "\nA million records of providers, 256 peers, five for each NAR, is `go test -run none -bench Providers1M ./p2p/dht`; it prints its own figures.\n")
	return b.String()
}

// saw returns the text of a figure, "" when there is none. The names of figures may go on with
// what they were measured of.
func (r *result) saw(a about) string {
	for _, c := range r.Checks {
		if a.check && c.What == a.figure {
			return c.Seen
		}
	}
	for _, f := range r.Figures {
		if !a.check && strings.HasPrefix(f.What, a.figure) {
			return f.Value
		}
	}
	return ""
}

const scaleHead = `# How a site grows

The first table is measured by ` + "`go run ./lab/site -scenario %s`" + `: real nodes in network
namespaces of one machine, found by mDNS, all connected to all, 220 paths each, at rest for 20 s
before 30 s are measured. The rest is arithmetic from it and says so.

`

// scaleMarkdown writes docs/scale.md.
func scaleMarkdown(list []*result) string {
	var b strings.Builder
	var names []string
	sizes := map[int]*result{}
	for _, n := range growth {
		names = append(names, fmt.Sprintf("grow-%d", n))
	}
	var have []int
	for _, r := range list {
		if slices.Contains(names, r.Name) && r.Err == "" {
			sizes[r.Hosts] = r
			have = append(have, r.Hosts)
		}
	}
	fmt.Fprintf(&b, scaleHead, strings.Join(names, ","))
	if len(have) == 0 {
		return b.String() + "Not measured yet.\n"
	}
	slices.Sort(have)
	fmt.Fprintf(&b, "Machine: %s, %d processors for all nodes together.\n\n## Measured\n\n", rig.CPUName(), runtime.NumCPU())
	heads := []string{"nodes"}
	for _, n := range have {
		heads = append(heads, fmt.Sprint(n))
	}
	t := rig.NewTable(heads...)
	for _, what := range []string{figMesh, figCPUMesh, figLate, figMemory, figIdle, figTraffic, figSent} {
		cells := []any{what}
		for _, n := range have {
			value := "-"
			for _, f := range sizes[n].Figures {
				if f.What == what {
					value = f.Value
				}
			}
			cells = append(cells, value)
		}
		t.Row(cells...)
	}
	b.WriteString(t.String())
	extrapolate(&b, sizes[have[0]], sizes[have[len(have)-1]])
	return b.String()
}

// filterBytes is what one path takes in an inventory, of 100,000 as measured.
const filterBytes = 2.376

// extrapolate does the arithmetic: what a connected peer adds, times the peers that there are.
func extrapolate(b *strings.Builder, small, big *result) {
	if small == big {
		return
	}
	step := float64(big.Hosts - small.Hosts)
	per := func(what string) float64 { return (big.value(what) - small.value(what)) / step }
	memory, idle, traffic, mesh := per(figMemory), per(figIdle), per(figSent), per(figCPUMesh)
	fmt.Fprintf(b, `
## On paper

From %d to %d nodes, each further connected peer adds to a node %.2f MB of memory, %.2f ms of CPU
a second at rest, %.0f bytes a second sent at rest, and %.0f ms of CPU while the mesh comes to
stand. A node has at most `+"`--max-peers`"+` (256) sessions whatever the size of the site, so from
there on these stay as they are; an inventory takes %.2f bytes a path and peer beside that
(measured with 100,000 paths). Beyond the connected ones the DHT knows who has a NAR (where
every node is connected to every other it is not used): it
keeps some 20 nodes a distance, a look-up takes at most log2(n/20) steps more than in a site of
20, and each announced NAR (of at least 1 MiB, 20,000 a node at most) lies on 5 others: in a site
of equal nodes each holds five times as many records as it announces, whatever the size.

`, small.Hosts, big.Hosts, memory/1e6, idle, traffic, mesh*1000, filterBytes)
	t := rig.NewTable("nodes", "peers of a node", "memory, 10,000 paths each", "memory, 100,000 paths each", "CPU at rest", "sent at rest", "inventories fetched at the start, 100,000 paths", "steps of a look-up, at most")
	for _, n := range []int{2, 8, 32, 64, 256, 1000, 10_000} {
		peers := math.Min(float64(n-1), 256)
		base := small.value(figMemory) - memory*float64(small.Hosts-1)
		of := func(paths float64) float64 { return (base + peers*(memory+paths*filterBytes)) / 1e6 }
		idleAt := math.Max(0, small.value(figIdle)+idle*(peers-float64(small.Hosts-1)))
		sent := math.Max(0, small.value(figSent)+traffic*(peers-float64(small.Hosts-1)))
		steps := 1.0
		if n > 20 {
			steps += math.Ceil(math.Log2(float64(n) / 20))
		}
		t.Rowf("%d|%.0f|%.0f MB|%.0f MB|%.1f %% of a core|%.1f kB/s|%.1f MB|%.0f",
			n, peers, of(10_000), of(100_000), idleAt/10, sent/1000, peers*100_000*filterBytes/1e6, steps)
	}
	b.WriteString(t.String() + `
What the table leaves out: the store's own index (about 150 bytes a shared path, 100,000 paths
are in the figure of ` + "`prefilled`" + ` in docs/site.md); records of the DHT (some 200 bytes each);
multicast, of which every node hears all others' answers: mDNS is asked only while fewer than four
peers are known; and that 64 nodes at a switch are 2,016 connections, which their kernels hold.
A site of more than 256 nodes is not one full mesh: a narinfo that no connected peer has is asked
of the upstream, though a NAR of at least 1 MiB is still found by the DHT. Nothing above the largest
measured size was run.
`)
}

func upper(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
