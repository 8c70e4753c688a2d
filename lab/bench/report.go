package main

import (
	"crypto/sha256"
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
	rate := hashRate()
	fmt.Fprintf(&s, `
## What bounds it

Every NAR that leaves is hashed, and nginx hashes nothing. On this CPU SHA-256 makes %.0f MB/s a core%s, so a single stream from the own store
cannot be faster than that, and on two cores that also run the client a copy pays %.1f CPU seconds for it. A CPU with SHA instructions makes about 1,200 MB/s.
The profile of a remembered narinfo (`+"`/debug/pprof/profile`"+` of the admin listener) is a third system calls and the rest net/http's reading and writing of headers; the handler itself takes about 1 µs.
`, rate/1e6, shaNote(), b.narBytes(len(b.corpus.Paths))/rate)
	return s.String()
}

// hashRate measures SHA-256 on one core, in bytes a second.
func hashRate() float64 {
	buf := make([]byte, 1<<20)
	h := sha256.New()
	start := time.Now()
	const rounds = 256
	for range rounds {
		h.Write(buf)
	}
	return float64(rounds*len(buf)) / time.Since(start).Seconds()
}

func shaNote() string {
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil && !strings.Contains(string(text), "sha_ni") {
		return " (it has no instructions for it)"
	}
	return ""
}

func cpuName() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	_, rest, _ := strings.Cut(string(text), "model name")
	_, rest, _ = strings.Cut(rest, ": ")
	name, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(name)
}
