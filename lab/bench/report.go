package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// report returns docs/performance.md.
func (b *bench) report() string {
	var s strings.Builder
	fmt.Fprintf(&s, `# Performance

Made by `+"`make bench`"+` on %s: %d cores (%s), Linux, Go %s; client Nix %s.
The closure has %d paths and %.0f MB of NARs, sizes log-normal, made by real Nix. Both sides of a ratio are measured one right after
the other on the same machine, servers and clients sharing its cores; the figure is the median of %d such ratios, in brackets the least and the greatest.
Absolute times say nothing about another machine. nginx is Debian's, with sendfile and an open-file cache.

| what | nixp2p | nginx | ratio | aim | reached |
| --- | ---: | ---: | ---: | --- | --- |
`, time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), cpuName(), strings.TrimPrefix(runtime.Version(), "go"), b.nix.Version,
		len(b.corpus.Paths), b.narBytes(len(b.corpus.Paths))/1e6, b.runs)
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
		fmt.Fprintf(&s, "| %s | %s | %s | %s | %s | %s |\n", r.what, r.ours, r.theirs, ratio, r.aim, reached)
	}
	return s.String()
}

func cpuName() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	_, rest, _ := strings.Cut(string(text), "model name")
	_, rest, _ = strings.Cut(rest, ": ")
	name, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(name)
}
