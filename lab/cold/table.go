//go:build linux

package main

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/nixp2p/nixp2p/lab/rig"
)

// performanceText is the section of docs/performance.md.
func performanceText(list []*result) string {
	last := slices.MaxFunc(list, func(a, b *result) int { return a.When.Compare(b.When) })
	var b strings.Builder
	fmt.Fprintf(&b, `## Cold start of a whole site

Written by `+"`make cold`"+` (`+"`go run ./lab/cold`"+`), last on %s: %d cores (%s) for all hosts together. Each host is a network namespace with its own
store, its own build and its own node, on a LAN of %s a host; the upstream is behind %g Mbit/s and 20 ms there and back, and counts what it sends. All want the same closure at once and nobody has any of it:
%d paths, %.0f MB of NARs, %.0f MB as the upstream's xz files, the largest NAR %.0f MB. They start within 2 s.

- *direct*: no nixp2p, each build asks the upstream. *plain*: nodes with `+"`--leases=false`"+`. *leases*: nodes as they are by default.
- *discard* is a client that asks in the order in which Nix does, on %d connections, and throws the bytes away: a cluster has cores for each host, this machine has %d for all. *nix* is real Nix %s, which decodes
  and hashes. `+"`busy`"+` says how much of all cores was used: where it is near 100 %%, they are the limit and not the network.
- *standing*: all nodes were connected before the first build started. *starting*: each daemon starts with its build.
- Upstream NAR bytes and narinfo requests are over what one host alone needs; 1.00 is one copy for the whole site. Finish is counted from the first start. One copy takes the uplink %.1f s.
- Each host has to end with the whole closure. With real Nix each store is compared with the closure and two of them byte by byte (`+"`nix-store --verify --check-contents`"+`).

![Finish of the slowest host against the number of hosts](cold-time.svg)

![Bytes from upstream against the number of hosts](cold-egress.svg)
`, last.When.Format("2006-01-02"), last.Cores, last.Machine, last.LAN, common(list).Uplink, last.Paths, float64(last.NARSum)/1e6, float64(last.FileBytes)/1e6, float64(last.Largest)/1e6,
		connections, last.Cores, last.Nix, common(list).OneCopy)
	for _, part := range []struct {
		title  string
		client string
		event  bool
	}{
		{"### The network's part: clients that discard", discard, false},
		{"### Real Nix", realNix, false},
		{"### When things happen, clients that discard", discard, true},
		{"### When things happen, real Nix", realNix, true},
	} {
		var rows []*result
		for _, r := range list {
			if r.Client == part.client && (r.Event != none) == part.event {
				rows = append(rows, r)
			}
		}
		if len(rows) > 0 {
			fmt.Fprintf(&b, "\n%s\n\n", part.title)
			table(&b, rows, part.event)
		}
	}
	aims(&b, list)
	return b.String()
}

// common returns a result with the usual uplink.
func common(list []*result) *result {
	for _, r := range list {
		if r.Event != slow {
			return r
		}
	}
	return list[0]
}

func table(b *strings.Builder, rows []*result, event bool) {
	heads := []string{">hosts", "arrangement", "mesh", ">upstream NAR bytes / one copy", ">narinfo requests / one host's", ">median finish", ">slowest",
		">slowest / one copy on the uplink", ">CPU: nodes + clients + lab", ">busy", "all complete"}
	if event {
		heads = append([]string{"what happens"}, heads...)
	}
	t := rig.NewTable(heads...)
	for _, r := range rows {
		lead := ""
		if event {
			what := events[r.Event]
			if len(r.Notes) > 0 {
				what += " (" + strings.Join(r.Notes, ", ") + ")"
			}
			lead = strings.ReplaceAll(rig.Plain(what), "%", "%%") + "|"
		}
		mesh := r.Mesh
		if r.Arrangement == direct {
			mesh = ""
		}
		whole := fmt.Sprintf("%d of %d", len(r.Finish), r.Hosts-r.Gone)
		if r.Gone > 0 {
			whole += fmt.Sprintf(", %d gone", r.Gone)
		}
		if !r.good() {
			whole = "**" + whole + ": " + rig.Plain(strings.Join(append(r.Failures, r.Err), "; ")) + "**"
		}
		t.Rowf(lead+"%d|%s|%s|%.2f|%.2f|%.1f s|%.1f s|%.2f|%.0f + %.0f + %.0f s|%.0f %%|%s", r.Hosts, r.Arrangement, mesh, r.egress(), r.narinfos(), r.Median,
			r.Slowest, r.Slowest/r.OneCopy, r.NodeCPU, r.ClientCPU, r.LabCPU, 100*r.Busy, whole)
	}
	b.WriteString(t.String())
}

// aims holds the main rows against what is aimed at.
func aims(b *strings.Builder, list []*result) {
	const maxEgress, maxTime = 1.05, 1.5
	word := func(ok bool) string {
		if ok {
			return "reached"
		}
		return "**not reached**"
	}
	b.WriteString("\n### Against the aims\n\n")
	for _, r := range list {
		if r.Arrangement != leases || r.Mesh != standing || r.Event != none && r.Event != slow {
			continue
		}
		fmt.Fprintf(b, "- %d hosts, %s, uplink %g Mbit/s: upstream NAR bytes %.3f × (aim ≤ %.2f): %s; slowest host %.2f × one copy (aim ≤ %.1f): %s, cores %.0f %% busy.\n",
			r.Hosts, r.Client, r.Uplink, r.egress(), maxEgress, word(r.egress() <= maxEgress), r.Slowest/r.OneCopy, maxTime, word(r.Slowest <= maxTime*r.OneCopy), 100*r.Busy)
	}
	r := common(list)
	rate := rig.HashRate()
	fmt.Fprintf(b, `
What %d cores for all hosts leave of the second aim at %g Mbit/s: every host has to hash what it gets, and SHA-256 makes %.2f GB/s a core here. One copy of %.0f MB for each of 8, 16 and 32 hosts is %.1f, %.1f and
%.1f s of hashing, of the %.1f s of CPU that %d cores have in %.1f times %.1f s; nothing is received, decrypted, written or passed on yet. The row with %d Mbit/s is the same site with slower lines and as many cores.
`, r.Cores, r.Uplink, rate/1e9, float64(r.FileBytes)/1e6, 8*float64(r.FileBytes)/rate, 16*float64(r.FileBytes)/rate, 32*float64(r.FileBytes)/rate, float64(r.Cores)*maxTime*r.OneCopy, r.Cores, maxTime, r.OneCopy, slowUplink)
}

// pick returns the main results of an arrangement, by hosts: those of clients that discard, else
// those of Nix.
func pick(list []*result, arrangement, mesh string) (rows []*result) {
	for _, client := range []string{discard, realNix} {
		for _, r := range list {
			if r.Arrangement == arrangement && r.Mesh == mesh && r.Event == none && r.Client == client {
				rows = append(rows, r)
			}
		}
		if len(rows) > 0 {
			return rows
		}
	}
	return nil
}

// scaleText is the section of docs/scale.md: what is measured, and what follows.
func scaleText(list []*result) string {
	rows := pick(list, leases, standing)
	var b strings.Builder
	b.WriteString("## Cold start of a whole site\n\n")
	if len(rows) < 2 {
		b.WriteString("Not measured with leases yet: `make cold`.\n")
		return b.String()
	}
	cpu, base := slope(rows)
	big := rows[len(rows)-1]
	fmt.Fprintf(&b, `The model: each byte crosses the uplink once, so all are done when the uplink is (one copy), the last hosts have started (2 s) and the last NAR has gone down the tree of followers; unless the cores
are slower. Each host takes CPU for what it receives, passes on and hands out, whatever the number of hosts: the same for all, so that the sum grows with the hosts. On a machine per host this is a share of its
own; in the lab it is shared by %d cores. From the rows of docs/performance.md (clients that %s): %.2f s of CPU a host and %.1f s besides.

`, big.Cores, big.Client, cpu, base)
	t := rig.NewTable(">hosts", ">measured: upstream NAR bytes / one copy", ">measured: slowest", ">model: one copy + 2 s",
		fmt.Sprintf(">model: CPU / %d cores", big.Cores), ">larger of both", ">measured / model")
	for _, r := range rows {
		network := r.OneCopy + 2
		cores := (base + cpu*float64(r.Hosts)) / float64(r.Cores)
		t.Rowf("%d|%.2f|%.1f s|%.1f s|%.1f s|%.1f s|%.2f", r.Hosts, r.egress(), r.Slowest, network, cores, math.Max(network, cores), r.Slowest/math.Max(network, cores))
	}
	fmt.Fprintf(&b, `%s
On paper, with a machine per host and the same closure (%d paths, %.0f MB of files), uplink %g Mbit/s, LAN 1 Gbit/s:

`, t, big.Paths, float64(big.FileBytes)/1e6, big.Uplink)
	t = rig.NewTable(">hosts", ">everybody straight from the upstream", ">one copy + 2 s", ">leases that a node answers for, as coordinator", ">depth of the tree, 4 uploads each")
	for _, n := range []int{8, 32, 64, 256, 1000, 10_000} {
		t.Rowf("%d|%.0f s|%.1f s|%d|%.0f", n, float64(n)*big.OneCopy, big.OneCopy+2, big.Paths, math.Ceil(math.Log(float64(n)*3+1)/math.Log(4))-1)
	}
	fmt.Fprintf(&b, `%s
A node is coordinator for paths / hosts of the NARs and is asked about each by all hosts: %d questions whatever the size. A follower passes on while it receives, so a level of the tree costs one
round trip and one piece, not one NAR. Above 256 nodes a node is connected to a part of the site only, and two may ask different coordinators: `, t, big.Paths)
	if i := slices.IndexFunc(list, func(r *result) bool {
		return r.Event == few && r.Arrangement == leases && r.Client == discard
	}); i >= 0 {
		r := list[i]
		fmt.Fprintf(&b, "with 8 of %d connected, a quarter as 256 of 1,000 are, the upstream sent %.2f copies.\n", r.Hosts, r.egress())
	} else {
		b.WriteString("the row `few` of the lab measures that, and was not run yet.\n")
	}
	return b.String()
}

// slope fits CPU seconds = base + cpu * hosts.
func slope(rows []*result) (cpu, base float64) {
	var n, sx, sy, sxx, sxy float64
	for _, r := range rows {
		x, y := float64(r.Hosts), r.NodeCPU+r.ClientCPU+r.LabCPU
		n, sx, sy, sxx, sxy = n+1, sx+x, sy+y, sxx+x*x, sxy+x*y
	}
	if d := n*sxx - sx*sx; d > 0 {
		cpu = (n*sxy - sx*sy) / d
	}
	return cpu, (sy - cpu*sx) / n
}
