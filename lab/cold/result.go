//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nixp2p/nixp2p/lab/rig"
)

// result is a row as it was played.
type result struct {
	row
	When    time.Time
	Machine string
	Cores   int
	Nix     string
	Uplink  float64 // Mbit/s
	LAN     string

	Paths     int
	NARSum    int64 // bytes of the closure's NARs
	FileBytes int64 // of their files at the upstream, each once: what has to cross the uplink
	Largest   int64 // bytes of the largest NAR
	OneCopy   float64

	NARBytes int64 // that the upstream sent
	NARs     int64 // requests
	Again    int   // NARs of which more than one copy was sent
	NarInfos int64 // requests

	Finish   []float64 // seconds after the first start, of the hosts that finished, sorted
	Slowest  float64
	Median   float64
	MeshTook float64 `json:",omitempty"`

	NodeCPU   float64 // seconds, all hosts together
	ClientCPU float64
	LabCPU    float64 // upstream, uplink and this program
	Busy      float64 // share of all cores, also by others
	NodeRSS   int64   // most, at the end
	Retries   int     // of clients that count them
	Spool     int64   // bytes of the largest cache directory of a node, at the end

	Gone     int // hosts that were made to vanish
	Verified int // stores that were compared
	Failures []string
	Notes    []string `json:",omitempty"`
	Disk     bool     // hosts' files were not in memory
	Load     float64  // of the machine before
	Took     float64
	Err      string `json:",omitempty"`
	Skipped  string `json:",omitempty"`

	mu sync.Mutex
}

func newResult(w *world, r row) *result {
	return &result{row: r, When: time.Now().UTC().Truncate(time.Second), Machine: rig.CPUName(), Cores: runtime.NumCPU(), Nix: w.nix.Version,
		Uplink: r.uplink(w.o.uplink), LAN: w.o.lan, Paths: len(w.corpus.Paths), NARSum: w.corpus.NARBytes, FileBytes: w.fileBytes,
		Largest: w.corpus.Largest().NarSize, OneCopy: w.oneCopy(r).Seconds(), Failures: []string{}}
}

func (r *result) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

func (r *result) fail(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Failures = append(r.Failures, fmt.Sprintf(format, args...))
}

// good tells whether each host has what it wanted, or nobody wanted anything.
func (r *result) good() bool { return r.Err == "" && len(r.Failures) == 0 }

// egress is how often each byte crossed the uplink.
func (r *result) egress() float64 { return float64(r.NARBytes) / float64(r.FileBytes) }

func (r *result) narinfos() float64 { return float64(r.NarInfos) / float64(r.Paths) }

// line tells the result to who waits for it.
func (r *result) line() string {
	switch {
	case r.Skipped != "":
		return r.name() + ": SKIPPED: " + r.Skipped
	case r.Err != "" && r.Slowest == 0:
		return r.name() + ": FAILED: " + r.Err
	}
	verdict := "ok"
	if !r.good() {
		verdict = "FAILED: " + strings.Join(append(r.Failures, r.Err), "; ")
	}
	line := fmt.Sprintf("%s: upstream %.3f ×, (%d NARs again), narinfos %.2f ×, median %.1f s, slowest %.1f s = %.2f × one copy (%.1f s), CPU %.1f + %.1f + %.1f s (nodes, clients, lab), cores %.0f %% busy, spool %.0f MB, %s (%.0f s)",
		r.name(), r.egress(), r.Again, r.narinfos(), r.Median, r.Slowest, r.Slowest/r.OneCopy, r.OneCopy, r.NodeCPU, r.ClientCPU, r.LabCPU, 100*r.Busy, float64(r.Spool)/1e6, verdict, r.Took)
	if len(r.Notes) > 0 {
		line += " [" + strings.Join(r.Notes, "; ") + "]"
	}
	return line
}

// counts are what grows while a row is played.
type counts struct {
	narBytes, nars, narInfos int64
	nodes, lab               time.Duration
	busy, total              float64 // ticks of all cores
	rss                      int64
}

func (s *scene) count() (c counts) {
	u := s.site.Cache
	c.narBytes, c.nars, c.narInfos = u.NARBytes.Load(), u.NARs.Load(), u.NarInfos.Load()
	for _, h := range s.builders() {
		if h.Node == nil {
			continue
		}
		if u, err := h.Node.Usage(); err == nil {
			c.nodes += u.CPU
			c.rss = max(c.rss, u.RSS)
		}
	}
	var ru syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &ru) == nil {
		c.lab = time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	}
	c.lab += s.site.LAN.LinkCPU()
	line, _, _ := strings.Cut(rig.ReadText("/proc/stat"), "\n")
	for i, f := range strings.Fields(line) {
		// user, nice, system, idle, iowait, irq, softirq, steal; guests are in user.
		if v, err := strconv.ParseFloat(f, 64); err == nil && i <= 8 {
			c.total += v
			if i != 4 && i != 5 {
				c.busy += v
			}
		}
	}
	return c
}

// judge makes the figures.
func (r *result) judge(s *scene, before, after counts, took time.Duration) {
	r.NARBytes, r.NARs, r.NarInfos = after.narBytes-before.narBytes, after.nars-before.nars, after.narInfos-before.narInfos
	r.NodeCPU, r.LabCPU = (after.nodes - before.nodes).Seconds(), (after.lab - before.lab).Seconds()
	r.NodeRSS = after.rss
	if d := after.total - before.total; d > 0 {
		r.Busy = (after.busy - before.busy) / d
	}
	r.Again, r.Spool = s.again(), s.spool()
	for _, h := range s.builders() {
		r.ClientCPU += h.client.Seconds()
		r.Retries += h.retries
		switch {
		case h.gone:
			r.Gone++
		case h.failed != "":
			r.fail("%s: %s", h, h.failed)
		default:
			r.Finish = append(r.Finish, h.finish.Seconds())
		}
	}
	slices.Sort(r.Finish)
	if n := len(r.Finish); n > 0 {
		r.Slowest, r.Median = r.Finish[n-1], r.Finish[n/2]
	} else {
		r.fail("no host finished in %.0f s", took.Seconds())
	}
}

// again counts the NARs of which the upstream sent more than one copy, and names the worst.
func (s *scene) again() int {
	type nar struct {
		path  string
		extra int64
		asked int
	}
	var list []nar
	asked := s.site.Cache.Requests()
	for path, n := range s.site.Cache.Sent() {
		info, err := os.Stat(filepath.Join(s.site.Cache.Dir, path))
		if err == nil && n > info.Size() {
			list = append(list, nar{path, n - info.Size(), asked[path]})
		}
	}
	slices.SortFunc(list, func(a, b nar) int { return int(b.extra - a.extra) })
	if s.w.o.verbose && s.row.Arrangement == leases {
		for _, n := range list[:min(8, len(list))] {
			fmt.Fprintf(os.Stderr, "    again: %s: %s more than once, %d requests\n", n.path, rig.Megabytes(n.extra), n.asked)
		}
	}
	return len(list)
}

// spool returns how much the node that keeps most has in its cache directory.
func (s *scene) spool() (most int64) {
	for _, h := range s.builders() {
		var sum int64
		_ = filepath.WalkDir(filepath.Join(h.Dir, "cache"), func(_ string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return nil // what vanishes meanwhile is not needed
			}
			if info, err := d.Info(); err == nil {
				sum += info.Size()
			}
			return nil
		})
		most = max(most, sum)
	}
	return most
}

// readResults returns what was measured before, by name of the row.
func readResults(file string) (map[string]*result, error) {
	kept := map[string]*result{}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return kept, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &kept)
	}
	if err != nil {
		return nil, fmt.Errorf("results: %w", err)
	}
	return kept, nil
}

// publish adds one result to those of earlier runs and writes everything anew: what was measured
// is not lost when a later row ends the run. A row that could not be played leaves the earlier
// result alone.
func publish(o *options, r *result) error {
	if o.small {
		return nil
	}
	kept, err := readResults(o.results)
	if err != nil {
		return err
	}
	if r != nil && r.Skipped == "" && r.Slowest > 0 {
		kept[r.name()] = r
		text, err := json.MarshalIndent(kept, "", "\t")
		if err == nil {
			err = os.WriteFile(o.results, append(text, '\n'), 0o644)
		}
		if err != nil {
			return err
		}
	}
	var list []*result
	for _, r := range kept {
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b *result) int { return slices.Compare(a.order(), b.order()) })
	if len(list) == 0 {
		return errors.New("nothing was measured yet")
	}
	errs := []error{
		os.WriteFile(filepath.Join(o.pictures, "cold-time.svg"), timePicture(list), 0o644),
		os.WriteFile(filepath.Join(o.pictures, "cold-egress.svg"), egressPicture(list), 0o644),
		rig.WriteSection(o.performance, sectionName, performanceText(list)),
	}
	if o.scale != "" {
		errs = append(errs, rig.WriteSection(o.scale, sectionName, scaleText(list)))
	}
	return errors.Join(errs...)
}

// sectionName is that of the marks in the documents.
const sectionName = "cold start"

// conclude says how it went.
func conclude(o *options, results []*result, failed, left int) error {
	if o.json {
		return json.NewEncoder(os.Stdout).Encode(results)
	}
	fmt.Fprintln(os.Stderr)
	for _, r := range results {
		fmt.Fprintln(os.Stderr, r.line())
	}
	if failed+left > 0 {
		return fmt.Errorf("%d rows failed, %d were left out", failed, left)
	}
	return nil
}
