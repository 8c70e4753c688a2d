package main

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"
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

func (r *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, intro, r.Limit.Seconds(), runtime.NumCPU(), r.Took.Minutes())
	for _, n := range r.Nixes {
		fmt.Fprintf(&b, "\n## Nix %s: a cache is ill\n\n", n.Version)
		fmt.Fprintln(&b, "| fault of the cache | without nixp2p | nixp2p, then the good cache | nixp2p over both | slowest narinfo | narinfos answered |")
		fmt.Fprintln(&b, "| --- | --- | --- | --- | --- | --- |")
		for _, row := range n.Rows {
			statuses, worst := row.statuses()
			slowest := seconds(worst)
			if worst == 0 {
				slowest = "–"
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", row.Name,
				row.Cells[without], row.Cells[before], row.Cells[alone], slowest, statuses)
		}
		writeSaid(&b, n)
		writeOutages(&b, n)
	}
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

// peersHeading begins the part about peers, which goes to the end of the file.
const peersHeading = "\n## A peer lies\n"

// merge returns the file with the parts that were made, and those of the old one that were not.
func (r *report) merge(old string, o *options) string {
	caches, peers, _ := strings.Cut(old, peersHeading)
	if o.part != partPeers {
		caches = r.markdown()
	}
	if o.part != partCaches {
		return caches + peersHeading + r.peersMarkdown()
	}
	if peers == "" {
		return caches
	}
	return caches + peersHeading + peers
}

func (r *report) peersMarkdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, peersIntro, r.Limit.Seconds())
	fmt.Fprint(&b, "| the peer |")
	line := "| --- |"
	for _, n := range r.Nixes {
		fmt.Fprintf(&b, " Nix %s |", n.Version)
		line += " --- |"
	}
	fmt.Fprintln(&b, " wrong in a store | what it was at the end | goroutines | live heap | peak memory |")
	fmt.Fprintln(&b, line+" --- | --- | --- | --- | --- |")
	for i, first := range r.Nixes[0].Peers {
		fmt.Fprintf(&b, "| %s |", first.Name)
		wrong := "nothing"
		for _, n := range r.Nixes {
			p := n.Peers[i]
			if !p.Verified || p.Outcome.Wrong {
				wrong = "**WRONG**"
			}
			fmt.Fprintf(&b, " %s |", p.Outcome)
		}
		standing := first.Standing
		if first.Came != "" {
			standing += " (" + first.Came + ")"
		}
		fmt.Fprintf(&b, " %s | %s | %d → %d → %d | %s → %s → %s | %s |\n", wrong, standing,
			first.Before.Goroutines, first.During.Goroutines, first.After.Goroutines,
			mib(first.Before.Heap), mib(first.During.Heap), mib(first.After.Heap), mib(first.After.Peak)+" MiB")
	}
	return b.String()
}

func mib(n int64) string { return fmt.Sprintf("%.1f", float64(n)/(1<<20)) }

const peersIntro = `
Made by ` + "`go run ./lab/faults -part peers`" + `, or with the rest. A node has the good cache as its only
upstream, and one peer, which says that it has the whole closure and is false in one way. Nix asks
the node alone and has no other substituter: it must get everything within %.0f s. Before the peer
is met the node's goroutines and its live heap in MiB (after a collection) are counted, then again right
after the command while the peer is still there, and at last when the peer is gone, at most 10 s
later. *Wrong in a store*: the files were compared, and ` + "`nix-store --verify --check-contents`" + ` was run.
A *liar* is not asked again for a day. *Good* is one who said nothing wrong that a signature or a hash
shows: failing and being slow are no lies. Those who break the protocol are hung up on and kept out for ten minutes.

`

const intro = `# What is felt when something is down

Made by ` + "`make faults`" + ` (` + "`go run ./lab/faults`" + `), which runs the real Nix against caches that are ill in
one way each, and against a nixp2p that is ill itself. Nothing here is edited by hand.

## How it was made

Two caches hold a closure of four paths (2 kB to 3 MiB of noise, as xz): an ill one, which is
asked first, and a good one. Each cell is one ` + "`nix-store -r`" + ` of the closure into an empty store, with
Nix's own defaults. *Without nixp2p* the substituters are the ill cache and the good one. *nixp2p,
then the good cache*: Nix asks nixp2p, whose only upstream is the ill cache, and after it the good
one. *nixp2p over both*: Nix asks nixp2p alone, which has both as upstreams and finds out by
itself; the good one answers 20 ms later, so that the ill one looks better. A cell says whether the
command succeeded and how long it took, and in brackets how many lines of warnings and errors Nix
printed; after %.0f s it was ended. The files were compared with what they should be. The last two
columns were taken between Nix and nixp2p, over both arrangements: how long the slowest narinfo
took, and with which statuses narinfos were answered (the promise is 200 or 404, within 10 s).
Everything ran in one network namespace without a way out; "no route" is a route of type
unreachable, "packets are lost" an address whose neighbour does not exist, and the name that does
not resolve ends in .invalid with no DNS server in reach.

In the tables about nixp2p itself the closure has 220 paths with 90 MB of NARs, and it happens in
the middle of the command. There was no systemd: a small program did for nixp2p what the unit
makes systemd do. It holds the socket, starts nixp2p again with the delays of the unit, and ends
it when the watchdog was not fed for 10 s (SIGABRT, and SIGKILL 3 s later). *nixp2p alone* means
that Nix had no other substituter and yet got everything.

The seconds are from a loaded machine with %d cores that did other work meanwhile: a command that
meets no fault takes some tenths of a second in the tables about caches, two to five seconds in
those about nixp2p. Read them as "at once", "seconds" or "stuck", not as measurements. The whole
took %.0f minutes.

## What nixp2p cannot mend

- A wrong byte in a NAR of more than 1 MiB, before its last MiB: it has left for Nix before the
  hash of the whole can tell. nixp2p cuts the response so that it cannot be taken for whole,
  and does not ask that cache for this NAR again, but Nix cannot begin anew at the same
  substituter. With another one in the list it goes on there; without, the next command succeeds.
- A file that is not the NAR although it has the FileHash that its cache announced: files of
  configured caches pass through without being decoded, so it is Nix that finds out.
- A cache that is merely slow, when no other has the path: it is as slow with nixp2p.
- A program that cannot be started at all, under a socket that is held for it: connections wait
  for somebody to answer. So check an upgrade (` + "`nixp2p version`" + `) before it is put in place, as packages do.

All of these are reasons to keep another cache in the list of substituters behind nixp2p.
`
