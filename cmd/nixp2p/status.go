package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/config"
)

func statusCommand(u *ui) *cobra.Command {
	var asJSON, watch bool
	var every time.Duration
	c := &cobra.Command{
		Use: "status", Short: "show the daemon's state",
		Long: `Shows the state of the running daemon: what it shares, where the bytes came from, how much did
not have to cross the uplink, transfers in progress, the upstreams, and recent errors. With
--watch it refreshes, in place on a terminal, and continues through a restart of the daemon.

The exit code is 1 if the daemon is not running or not ready.`,
	}
	flags := config.RegisterClient(c.Flags())
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON; with --watch an object a line")
	c.Flags().BoolVarP(&watch, "watch", "w", false, "refresh until Ctrl-C")
	c.Flags().DurationVar(&every, "every", time.Second, "how often --watch refreshes")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if every < leastEvery {
			return &usageError{fmt.Errorf("--every: %s is too short, the least is %s", every, leastEvery)}
		}
		if watch {
			return u.watch(c.Context(), flags, every, asJSON)
		}
		var s admin.Status
		err := ask(c.Context(), flags, statusPath, &s)
		switch {
		case err != nil:
			return err
		case asJSON:
			err = u.json(s)
		default:
			u.lines(u.terminal().status(s, time.Now()))
		}
		if err == nil && !s.Ready {
			return errSilent
		}
		return err
	}
	return c
}

const (
	statusPath = "/api/v1/status"
	leastEvery = 100 * time.Millisecond // keeps a typing mistake from loading the daemon
)

// watch shows the status until ctx ends. A daemon that is not there at the start is an error; one
// that goes away meanwhile may come back.
func (u *ui) watch(ctx context.Context, flags *config.Flags, every time.Duration, asJSON bool) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	v := &view{ui: u}
	defer v.end()
	for seen := false; ; seen = true {
		var s admin.Status
		err := ask(ctx, flags, statusPath, &s)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !seen:
			return err
		case err != nil:
			v.trouble(err)
		case asJSON:
			err = json.NewEncoder(u.out).Encode(s)
		default:
			err = v.show(u.terminal(), s)
		}
		if err != nil && !v.down {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// view shows one status after the other: in the same place on a terminal, else one below the
// other.
type view struct {
	ui    *ui
	drawn int  // lines on the terminal; 0 before the first
	down  bool // the daemon did not answer
}

// trouble prints once that the daemon does not answer.
func (v *view) trouble(err error) {
	if !v.down {
		fmt.Fprintf(v.ui.err, "nixp2p: %s\n", clean(err.Error()))
	}
	v.drawn, v.down = 0, true
}

func (v *view) show(p terminal, s admin.Status) error {
	v.down = false
	lines := p.status(s, time.Now())
	if p.height == 0 {
		_, err := fmt.Fprintf(v.ui.out, "%s\n\n", strings.Join(lines, "\n"))
		return err
	}
	// What is higher than the terminal would scroll away and not be drawn over.
	lines = p.cut(lines[:max(min(len(lines), p.height-1), 1)])
	to := "\x1b[?25l" // no cursor
	if v.drawn > 0 {
		to = fmt.Sprintf("\x1b[%dF", v.drawn)
	}
	v.drawn = len(lines)
	_, err := fmt.Fprintf(v.ui.out, "%s%s\x1b[K\n\x1b[J", to, strings.Join(lines, "\x1b[K\n"))
	return err
}

func (v *view) end() {
	if v.drawn > 0 {
		v.ui.printf("\x1b[?25h")
	}
}

// status formats s for a person, as lines.
func (p terminal) status(s admin.Status, now time.Time) []string {
	lines := []string{p.paint(bold, clean(fmt.Sprintf("%s: nixp2p %s, up %s, since %s", cmp.Or(s.Machine, "this machine"), s.Version, admin.FormatDuration(s.UptimeSeconds), admin.FormatClock(s.Since, now))))}
	if !s.Ready {
		lines = append(lines, p.paint(red, clean("not ready: "+s.NotReady)))
	}
	for _, c := range s.Conditions {
		if c.Note {
			lines = append(lines, p.paint(dim, clean("note: "+c.Text)))
			continue
		}
		lines = append(lines, p.paint(yellow, clean("degraded: "+c.Text)))
		if c.Hint != "" {
			lines = append(lines, p.paint(dim, clean("          "+c.Hint)))
		}
	}
	for _, part := range [][]string{p.facts(s, now), p.sources(s), p.upstreams(s.Upstreams, now), p.followed(s.Follow), p.transfers(s), p.failures(s.Failures, now)} {
		if len(part) > 0 {
			lines = append(append(lines, ""), part...)
		}
	}
	return lines
}

// facts has one line for each thing to know first.
func (p terminal) facts(s admin.Status, now time.Time) []string {
	peers := "no peers"
	if s.Peers > 0 {
		peers = count(s.Peers, "peer")
	}
	use := cell{s.Nix.Text(now), plain}
	if s.Ready && !s.Nix.Used() {
		use.style = yellow
	}
	rows := [][]cell{
		{{"Nix", bold}, use},
		{{"saved", bold}, {savedText(s.Saved), green}},
		{{"shared", bold}, {text: count(s.StorePathsShared, "store path") + ", with " + peers}},
		{{"peers", bold}, {text: fmt.Sprintf("received %s, sent %s", humanSize(s.PeerReceivedBytes), humanSize(s.PeerSentBytes))}},
		{{"upstreams", bold}, {text: "received " + humanSize(s.UpstreamBytes)}},
	}
	if s.Deltas.NARs > 0 {
		rows = append(rows, []cell{{"deltas", bold}, {text: fmt.Sprintf("%s, with %s less than the whole NARs", count(s.Deltas.NARs, "NAR"), humanSize(s.Deltas.SavedBytes))}})
	}
	if s.Bucket != nil {
		rows = append(rows, []cell{{"bucket", bold}, {text: clean(s.Bucket.String())}})
	}
	if s.Replicate != nil {
		rows = append(rows, []cell{{"replicate", bold}, {text: s.Replicate.String()}})
	}
	if s.Cache.Limit > 0 {
		rows = append(rows, []cell{{"NAR cache", bold}, {text: fmt.Sprintf("%s of %s in %s", humanSize(s.Cache.Bytes), humanSize(s.Cache.Limit), count(s.Cache.Entries, "file"))}})
	}
	return p.table(nil, rows)
}

// savedText writes what was saved. What is partly an estimate has a sign in front.
func savedText(s admin.Saved) string {
	about := func(n, estimated int64) string {
		if estimated > 0 {
			return "≈ " + humanSize(n)
		}
		return humanSize(n)
	}
	return fmt.Sprintf("today %s, in 7 days %s, in all %s", about(s.Today, s.Estimated.Today), about(s.Week, s.Estimated.Week), about(s.Total, s.Estimated.Total))
}

// sources shows which source answered Nix since the start.
func (p terminal) sources(s admin.Status) []string {
	nars := map[string]int64{"store": s.Unpacked.Store, "cache": s.Unpacked.Cache, "peer": s.Unpacked.Peer, "upstream": s.Unpacked.Upstream}
	decimal := func(n int64) string { return fmt.Sprint(n) }
	var rows [][]cell
	for _, source := range []string{"memory", "disk", "store", "cache", "peer", "upstream", "none"} {
		r, asked := s.Requests[source]
		if _, gives := nars[source]; gives || asked {
			rows = append(rows, []cell{{text: source}, dash(nars[source], humanSize), dash(r.Hit, decimal), dash(r.Miss, decimal), dash(r.Timeout, decimal)})
		}
	}
	return p.table([]string{"GIVEN TO NIX", "NARS, UNPACKED", "NARINFOS", "MISSES", "TIMED OUT"}, rows)
}

// dash writes a number; zero is a dash, so that the others stand out.
func dash(n int64, write func(int64) string) cell {
	if n == 0 {
		return cell{"–", dim}
	}
	return cell{text: write(n)}
}

func (p terminal) upstreams(list []admin.Upstream, now time.Time) []string {
	if len(list) == 0 {
		return nil
	}
	var rows [][]cell
	for _, up := range list {
		state := cell{"up", green}
		switch {
		case !up.Up:
			state = cell{"down", red}
		case up.Why != "":
			state = cell{"degraded", yellow}
		}
		rows = append(rows, []cell{{text: up.URL}, state, {text: admin.FormatClock(up.Since, now)}, {text: admin.FormatMS(up.LatencyMS)}, {text: fmt.Sprint(up.Requests)}, {up.Why, state.style}})
	}
	return p.table([]string{"UPSTREAM", "STATE", "SINCE", "NARINFO", "REQUESTS", ""}, rows)
}

// followed has a line for each list, and one for what is wrong with it.
func (p terminal) followed(list []admin.Followed) []string {
	var rows [][]cell
	for _, l := range list {
		newest := cell{"–", dim}
		if len(l.Generations) > 0 {
			newest = cell{text: l.Generations[0].String()}
		}
		rows = append(rows, []cell{{text: clean(l.List)}, {text: l.State()}, newest, {clean(strings.Join(l.Problems(), "; ")), yellow}})
	}
	if len(rows) == 0 {
		return nil
	}
	return p.table([]string{"FOLLOWED", "STATE", "NEWEST", ""}, rows)
}

const (
	barLetters = 12
	maxListed  = 10 // transfers and errors
)

func (p terminal) transfers(s admin.Status) []string {
	if len(s.Transfers) == 0 {
		return nil
	}
	var rows [][]cell
	for _, t := range s.Transfers[:min(len(s.Transfers), maxListed)] {
		to := map[string]string{admin.In: "cache", admin.Out: "peer", admin.Nix: "Nix"}[t.Direction]
		if t.ToNix {
			to = "Nix"
		}
		what := t.NarHash
		if _, name, ok := strings.Cut(t.StorePath, "-"); ok {
			what = name // it means more than the hash
		}
		rows = append(rows, []cell{
			{text: cmp.Or(t.Source, "…") + " → " + to}, {progress(t.Bytes, t.Size), green}, {text: percent(t.Bytes, t.Size)}, {text: humanSize(t.Size)},
			{text: rate(t.BytesPerSecond)}, {text: what},
		})
	}
	lines := p.table([]string{"NOW", "", "DONE", "OF", "RATE", "PATH"}, rows)
	if more := s.TransfersTotal - len(rows); more > 0 {
		lines = append(lines, p.paint(dim, fmt.Sprintf("and %d more", more)))
	}
	return lines
}

func progress(done, size int64) string {
	filled := 0
	if size > 0 {
		filled = int(min(max(float64(done)/float64(size), 0), 1) * barLetters)
	}
	return strings.Repeat("█", filled) + strings.Repeat("░", barLetters-filled)
}

func percent(done, size int64) string {
	if size <= 0 {
		return "–"
	}
	return fmt.Sprintf("%d%%", min(max(done, 0)*100/size, 100))
}

func (p terminal) failures(list []admin.Failure, now time.Time) []string {
	if len(list) == 0 {
		return nil
	}
	lines := []string{p.paint(bold, "RECENT ERRORS")}
	for _, f := range list[:min(len(list), maxListed)] {
		lines = append(lines, p.paint(dim, admin.FormatClock(f.At, now))+"  "+clean(f.String()))
	}
	return lines
}
