package main

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/nixp2p/nixp2p/lab/rig"
)

func (o *outcome) String() string {
	switch {
	case o == nil:
		return "–"
	case o.TimedOut:
		return fmt.Sprintf("**not done after %.0f s**", o.Took.Seconds())
	case o.Wrong:
		return "**WRONG: " + o.Said + "**"
	case !o.OK:
		return "**fails**, " + seconds(o.Took)
	}
	text := "ok, " + seconds(o.Took)
	if o.Complaints > 0 {
		text += fmt.Sprintf(" (%d)", o.Complaints)
	}
	return text
}

// statuses lists the statuses of narinfos in all cells.
func (r *rowReport) statuses() (text string, worst time.Duration) {
	sum := map[int]int{}
	for _, c := range r.Cells {
		if c == nil {
			continue
		}
		for status, n := range c.Seen.Narinfo {
			sum[status] += n
		}
		worst = max(worst, c.Seen.Worst)
	}
	if len(sum) == 0 {
		return "none asked", 0
	}
	var parts []string
	for _, status := range slices.Sorted(maps.Keys(sum)) {
		parts = append(parts, fmt.Sprint(status))
	}
	return strings.Join(parts, ", "), worst
}

// write puts the parts that were measured into their sections of a file.
func (r *report) write(file string, o *options) error {
	for _, part := range []struct {
		name string
		text func() string
	}{{partCaches, r.caches}, {partWays, r.ways}, {partPeers, r.peers}, {partAttacks, r.attacks}} {
		if !o.does(part.name) || part.name == partWays && !r.Network {
			continue
		}
		if part.name == partWays && o.only.String() != "" {
			if _, err := rig.ReplaceRows(file, part.name, part.text()); err != nil {
				return err
			}
			continue
		}
		if err := rig.WriteSection(file, part.name, part.text()); err != nil {
			return err
		}
	}
	return nil
}

func (r *report) caches() string {
	var b strings.Builder
	for i, n := range r.Nixes {
		if i > 0 {
			b.WriteString("\n")
		}
		t := rig.NewTable("fault of the cache", "without nixp2p", "nixp2p, then the good cache", "nixp2p over both", "slowest narinfo", "narinfos answered")
		for _, row := range n.Rows {
			statuses, worst := row.statuses()
			slowest := seconds(worst)
			if worst == 0 {
				slowest = "–"
			}
			t.Row(row.Name, row.Cells[without], row.Cells[before], row.Cells[alone], slowest, statuses)
		}
		fmt.Fprintf(&b, "## Nix %s: a cache is ill\n\n%s", n.Version, t)
		writeSaid(&b, n)
		writeOutages(&b, n)
	}
	fmt.Fprintf(&b, "\nMade on %d cores within %.0f minutes, each command limited to %.0f s.\n", runtime.NumCPU(), r.Took.Minutes(), r.Limit.Seconds())
	return b.String()
}

// writeSaid quotes what Nix said where it gave up.
func writeSaid(b *strings.Builder, n *nixReport) {
	var lines []string
	for _, row := range n.Rows {
		if c := row.Cells[without]; c != nil && !c.OK && !c.TimedOut {
			lines = append(lines, fmt.Sprintf("- %s: `%s`\n", row.Name, strings.ReplaceAll(c.Said, "`", "'")))
		}
	}
	if len(lines) > 0 {
		fmt.Fprintf(b, "\nWhere Nix %s failed without nixp2p, its last words (the cache that could have answered was the second one):\n\n%s",
			n.Version, strings.Join(slices.Compact(lines), ""))
	}
}

// heads are those of a table with a column for each Nix.
func (r *report) heads(first string, last ...string) *rig.Table {
	heads := []string{first}
	for _, n := range r.Nixes {
		heads = append(heads, "Nix "+n.Version)
	}
	return rig.NewTable(append(heads, last...)...)
}

func (r *report) peers() string {
	t := r.heads("the peer", "wrong in a store", "what it was at the end", "goroutines", "live heap", "peak memory")
	for i, first := range r.Nixes[0].Peers {
		cells := []any{first.Name}
		wrong := "nothing"
		for _, n := range r.Nixes {
			p := n.Peers[i]
			if !p.Verified || p.Outcome.Wrong {
				wrong = "**WRONG**"
			}
			cells = append(cells, p.Outcome)
		}
		standing := first.Standing
		if first.Came != "" {
			standing += " (" + first.Came + ")"
		}
		t.Row(append(cells, wrong, standing, fmt.Sprintf("%d → %d → %d", first.Before.Goroutines, first.During.Goroutines, first.After.Goroutines),
			fmt.Sprintf("%s → %s → %s", mib(first.Before.Heap), mib(first.During.Heap), mib(first.After.Heap)), mib(first.After.Peak)+" MiB")...)
	}
	return fmt.Sprintf(peersIntro, r.Limit.Seconds()) + t.String()
}

func (r *report) attacks() string {
	t := r.heads("the attack", "blamed", "peak memory of the node", "how far the attack came")
	for i, first := range r.Nixes[0].Attacks {
		cells := []any{first.Name}
		peak := int64(0)
		for _, n := range r.Nixes {
			cells = append(cells, n.Attacks[i])
			peak = max(peak, n.Attacks[i].Peak)
		}
		t.Row(append(cells, first.Blamed, mib(peak)+" MiB", first.Came)...)
	}
	return fmt.Sprintf(attacksIntro, r.Limit.Seconds()) + t.String()
}

func mib(n int64) string { return fmt.Sprintf("%.1f", float64(n)/(1<<20)) }

const peersIntro = `## A peer lies

A node has the good cache as its only upstream, and one peer, which says that it has the whole
closure and is false in one way. Nix asks the node alone and has no other substituter: it must get
everything within %.0f s. Before the peer is met the node's goroutines and its live heap in MiB (after a
collection) are counted, then again right after the command while the peer is still there, and at last
when the peer is gone, at most 10 s later. *Wrong in a store*: the files were compared, and
` + "`nix-store --verify --check-contents`" + ` was run. A *liar* is not asked again for a day. *Good* is one
who said nothing wrong that a signature or a hash shows: failing and being slow are no lies. Those who
break the protocol are hung up on and kept out for ten minutes.

`

const attacksIntro = `## A machine attacks

One machine of the LAN attacks a node, with as many identities as the row says. The node has the good
cache as its only upstream, and Nix has no other substituter than the node; a command may take %.0f s.
Where there is a newcomer, the node has the closure in its cache. Nix then asks the newcomer, which
joins during the attack and has no upstream: all that it gets, it gets from the node that is attacked.
"In after" is how long it took until it knew what the node has. Where only the cache lies there is no right
file to be had, so those commands must fail; once it is honest, it is asked again at once.

`
