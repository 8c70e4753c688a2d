package main

import (
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/nixp2p/nixp2p/lab/rig"
)

// report returns docs/performance.md.
func (b *bench) report() string {
	var s strings.Builder
	fmt.Fprintf(&s, `# Performance

Made by `+"`make bench`"+` on %s: %d cores (%s), Linux, Go %s; client Nix %s.
The closure has %d paths and %.0f MB of NARs, sizes log-normal, made by real Nix. Both sides of a ratio are measured one right after
the other on the same machine, servers and clients sharing its cores; the figure is the median of %d such ratios, in brackets the least and the greatest.
Absolute times say nothing about another machine. nginx is Debian's, with sendfile and an open-file cache.

`, time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), rig.CPUName(), strings.TrimPrefix(runtime.Version(), "go"), b.nix.Version,
		len(b.corpus.Paths), b.narBytes(len(b.corpus.Paths))/1e6, b.runs)
	t := rig.NewTable("what", ">nixp2p", ">nginx", ">ratio", "aim", "reached")
	for _, r := range b.rows {
		ratio := fmt.Sprintf("(%.2f–%.2f)", r.lo, r.hi)
		if r.theirs != "" {
			ratio = fmt.Sprintf("%.2f %s", r.ratio, ratio)
		}
		reached := "yes"
		if !r.reached {
			reached = "**no**"
		}
		if r.aim == "" {
			reached = ""
		}
		t.Row(r.what, r.ours, r.theirs, ratio, r.aim, reached)
	}
	s.WriteString(t.String() + b.bounds())
	return s.String()
}

// instructions is what SHA-256 makes a core with the CPU's instructions for it, in bytes a second.
const instructions = 1.16e9

// bounds says what stands between the figures and the aims.
func (b *bench) bounds() string {
	rate, bytes := rig.HashRate(), b.narBytes(len(b.corpus.Paths))
	const gb = 1e9
	// What a NAR from the own store costs beside its hash, in CPU seconds a GB, by the profile.
	const rest = 1.2
	// What the corpus's xz files have of its NARs' bytes.
	const packed = 0.29
	return fmt.Sprintf(`
## What bounds it

Every NAR that leaves is hashed, once, and nginx hashes nothing. On this CPU SHA-256 makes %.0f MB/s a core; one with SHA instructions makes about %.0f.

- **NARs from the own store.** No stream can be faster than that, and all together not faster than the cores that the clients leave. SHA-256 is 60 to 70 %% of the server's CPU time; the rest, some %.1f s a GB,
  is the kernel: reading files and directories (two thirds), and the socket. Together %.1f s of CPU a GB here, and %.1f with SHA instructions. A NAR of up to 64 MiB is proven before its first byte leaves, so
  hashing and sending it follow each other, and a client that takes one NAR after the other waits for both.
- **nix copy from the own store.** Hashing takes %.1f CPU seconds on the cores that Nix needs for its own hashing; with SHA instructions %.1f.
- **Cold and warm copies of xz files.** Their files have %.2f of the NARs' bytes, so hashing takes %.1f CPU seconds (%.1f with SHA instructions): half of what the server takes for a cold copy, three quarters for a
  warm one. A cold copy hashes what comes in, and nothing once more on its way out. The rest is making, writing and syncing the cache's files; nginx makes and writes them too, but does not sync.
- **Remembered narinfo.** Of the server's CPU time a third are system calls, a twelfth is garbage collection, and nearly all else is net/http's reading and writing of headers. The handler itself takes about 1 µs and allocates nothing.

Tried and left out: reading and hashing in two goroutines (7 to 10 %% more CPU time where all cores are busy), rarer garbage collection (some 2 %% of a narinfo, for more memory).
A CPU with AVX-512 can hash 16 streams at once at 1.1 GB/s a core, but one alone at less than half of what it makes now: not used.
`, rate/1e6, instructions/1e6, rest, gb/rate+rest, gb/instructions+rest, bytes/rate, bytes/instructions,
		packed, packed*bytes/rate, packed*bytes/instructions)
}
