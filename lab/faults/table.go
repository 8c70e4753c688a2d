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
