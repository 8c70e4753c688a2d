package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

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
		d, err := dialDaemon(flags)
		if err != nil {
			return err
		}
		if watch {
			return u.watch(c.Context(), d, every, asJSON)
		}
		var s admin.Status
		if err := d.get(c.Context(), "/api/v1/status", &s); err != nil {
			return err
		}
		if asJSON {
			if err := u.json(s); err != nil {
				return err
			}
		} else {
			u.printf("%s\n", strings.Join(u.terminal().status(s, time.Now()), "\n"))
		}
		if !s.Ready {
			return errSilent
		}
		return nil
	}
	return c
}

// leastEvery keeps a typing mistake from loading the daemon.
const leastEvery = 100 * time.Millisecond

// watch shows the status until ctx ends. A daemon that is not there at the start is an error; one
// that goes away meanwhile may come back.
func (u *ui) watch(ctx context.Context, d *daemonClient, every time.Duration, asJSON bool) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	v := &view{ui: u}
	defer v.end()
	for seen := false; ; {
		var s admin.Status
		err := d.get(ctx, "/api/v1/status", &s)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !seen:
			return err
		case err != nil:
			v.trouble(err)
		case asJSON:
			if err := json.NewEncoder(u.out).Encode(s); err != nil {
				return err
			}
		default:
			if err := v.show(u.terminal(), s); err != nil {
				return err
			}
		}
		seen = true
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

func (v *view) show(p terminal, s admin.Status) error {
	v.down = false
	return v.draw(p, p.status(s, time.Now()))
}

// trouble prints once that the daemon does not answer.
func (v *view) trouble(err error) {
	if !v.down {
		fmt.Fprintf(v.ui.err, "nixp2p: %s\n", clean(err.Error()))
		v.drawn = 0
	}
	v.down = true
}

func (v *view) draw(p terminal, lines []string) error {
	var b strings.Builder
	if !p.interactive {
		_, err := fmt.Fprintf(v.ui.out, "%s\n\n", strings.Join(lines, "\n"))
		return err
	}
	// What is higher than the terminal would scroll away and not be drawn over.
	if p.height > 1 && len(lines) > p.height-1 {
		lines = lines[:p.height-1]
	}
	if v.drawn == 0 {
		b.WriteString("\x1b[?25l") // no cursor
	} else {
		fmt.Fprintf(&b, "\x1b[%dF", v.drawn)
	}
	for _, l := range lines {
		b.WriteString(l + "\x1b[K\n")
	}
	b.WriteString("\x1b[J")
	v.drawn = len(lines)
	_, err := v.ui.out.Write([]byte(b.String()))
	return err
}

func (v *view) end() {
	if v.drawn > 0 {
		v.ui.printf("\x1b[?25h")
	}
}

// status formats s for a person, as lines.
func (p terminal) status(s admin.Status, now time.Time) []string {
	lines := []string{p.headline(s, now)}
	if !s.Ready {
		lines = append(lines, p.sentence(red, "not ready: "+s.NotReady)...)
	}
	for _, d := range s.Degraded {
		lines = append(lines, p.sentence(yellow, "degraded: "+d)...)
	}
	lines = append(lines, "")
	lines = append(lines, p.facts(s)...)
	for _, part := range [][]string{p.sources(s), p.upstreams(s.Upstreams, now), p.transfers(s), p.failures(s.Failures, now)} {
		if len(part) > 0 {
			lines = append(append(lines, ""), part...)
		}
	}
	return lines
}

func (p terminal) headline(s admin.Status, now time.Time) string {
	up := admin.FormatDuration(s.UptimeSeconds)
	return p.paint(bold, cut(fmt.Sprintf("nixp2p %s, up %s, since %s", clean(s.Version), up, clock(s.Since, now)), p.width))
}

// sentence wraps a text into lines.
func (p terminal) sentence(st style, text string) (lines []string) {
	for _, l := range wrap(clean(text), p.width) {
		lines = append(lines, p.paint(st, l))
	}
	return lines
}

// facts has one line for each thing to know first.
func (p terminal) facts(s admin.Status) []string {
	peers := "no peers"
	if s.Peers > 0 {
		peers = count(s.Peers, "peer")
	}
	rows := [][]cell{
		{{"saved", bold}, {text: fmt.Sprintf("today %s, in 7 days %s, in all %s", humanSize(s.Saved.Today), humanSize(s.Saved.Week), humanSize(s.Saved.Total)), style: green}},
		{{"shared", bold}, {text: count(s.StorePathsShared, "store path") + ", with " + peers}},
		{{"peers", bold}, {text: fmt.Sprintf("received %s, sent %s", humanSize(s.PeerReceivedBytes), humanSize(s.PeerSentBytes))}},
		{{"upstreams", bold}, {text: "received " + humanSize(s.UpstreamBytes)}},
	}
	if s.Cache.Limit > 0 {
		rows = append(rows, []cell{{"NAR cache", bold}, {text: fmt.Sprintf("%s of %s in %s", humanSize(s.Cache.Bytes), humanSize(s.Cache.Limit), count(s.Cache.Entries, "file"))}})
	}
	return p.table([]column{{}, {shrink: true}}, rows)
}

// sources shows which source answered Nix since the start.
func (p terminal) sources(s admin.Status) []string {
	nars := map[string]int64{"store": s.Bytes.Store, "cache": s.Bytes.Cache, "peer": s.Bytes.Peer, "upstream": s.Bytes.Upstream}
	columns := []column{
		{head: "SENT TO NIX"}, {head: "NARS", right: true}, {head: "NARINFOS", right: true},
		{head: "MISSES", right: true, drop: 1}, {head: "TIMED OUT", right: true, drop: 2},
	}
	var rows [][]cell
	for _, source := range []string{"memory", "disk", "store", "cache", "peer", "upstream", "none"} {
		r, asked := s.Requests[source]
		row := []cell{{text: source}, dash(nars[source], humanSize), dash(r.Hit, decimal), dash(r.Miss, decimal), dash(r.Timeout, decimal)}
		if r.Timeout > 0 {
			row[4].style = yellow
		}
		if _, gives := nars[source]; gives || asked {
			rows = append(rows, row)
		}
	}
	return p.table(columns, rows)
}

func decimal(n int64) string { return fmt.Sprint(n) }

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
	columns := []column{
		{head: "UPSTREAM", shrink: true}, {head: "STATE"}, {head: "SINCE", drop: 1}, {head: "NARINFO", right: true, drop: 2}, {head: "REQUESTS", right: true, drop: 3},
	}
	var rows [][]cell
	var reasons []string
	for _, up := range list {
		state := cell{"up", green}
		switch {
		case !up.Up:
			state = cell{"down", red}
		case up.Why != "":
			state = cell{"degraded", yellow}
		}
		latency := cell{"–", dim}
		if up.LatencyMS > 0 {
			latency = cell{text: fmt.Sprintf("%.1f ms", up.LatencyMS)}
		}
		rows = append(rows, []cell{{text: clean(up.URL)}, state, {text: clock(up.Since, now)}, latency, {text: decimal(up.Requests)}})
		if up.Why != "" {
			reasons = append(reasons, p.sentence(state.style, up.URL+": "+up.Why)...)
		}
	}
	return append(p.table(columns, rows), reasons...)
}

const (
	barLetters   = 12
	maxListed    = 10 // transfers and errors
	progressMark = "█"
	progressRest = "░"
)

func (p terminal) transfers(s admin.Status) []string {
	if len(s.Transfers) == 0 {
		return nil
	}
	columns := []column{
		{head: "NOW"}, {head: "", drop: 2}, {head: "DONE", right: true}, {head: "OF", right: true}, {head: "RATE", right: true, drop: 1}, {head: "PATH", shrink: true},
	}
	var rows [][]cell
	for _, t := range s.Transfers[:min(len(s.Transfers), maxListed)] {
		rows = append(rows, []cell{
			{text: wayOf(t)}, {progress(t.Bytes, t.Size), green}, {text: percent(t.Bytes, t.Size)}, {text: humanSize(t.Size)},
			{text: rate(t.BytesPerSecond)}, {text: pathOf(t)},
		})
	}
	lines := p.table(columns, rows)
	if more := s.TransfersTotal - len(rows); more > 0 {
		lines = append(lines, p.paint(dim, fmt.Sprintf("and %d more", more)))
	}
	return lines
}

// wayOf shows source and destination.
func wayOf(t admin.Transfer) string {
	from := clean(t.Source)
	if from == "" {
		from = "…"
	}
	switch t.Direction {
	case admin.In:
		return from + " → cache"
	case admin.Out:
		return from + " → peer"
	}
	return from + " → Nix"
}

func pathOf(t admin.Transfer) string {
	path := strings.TrimPrefix(t.StorePath, "/nix/store/")
	// The name means more than the hash.
	if _, name, ok := strings.Cut(path, "-"); ok {
		return clean(name)
	}
	return clean(t.NarHash)
}

func progress(done, size int64) string {
	filled := 0
	if size > 0 {
		filled = int(min(max(float64(done)/float64(size), 0), 1) * barLetters)
	}
	return strings.Repeat(progressMark, filled) + strings.Repeat(progressRest, barLetters-filled)
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
		when := clock(f.At, now)
		text := f.Source + ": " + f.What
		if f.Source == "upstream" && strings.Contains(f.What, "://") {
			text = f.What // it contains the URL
		}
		if f.StorePath != "" {
			text += ", " + f.StorePath
		}
		if f.Times > 1 {
			text += fmt.Sprintf(" (%d times)", f.Times)
		}
		if f.Error != "" {
			text += ": " + f.Error
		}
		indent := utf8.RuneCountInString(when) + gap
		for i, l := range wrap(clean(text), max(p.width-indent, 0)) {
			if i > 0 {
				when = strings.Repeat(" ", indent-gap)
			}
			lines = append(lines, p.paint(dim, when)+strings.Repeat(" ", gap)+l)
		}
	}
	return lines
}

// clock writes a time of day, with the date if that is not today.
func clock(t, now time.Time) string {
	if t.IsZero() {
		return "–"
	}
	t, now = t.Local(), now.Local()
	if t.Format(time.DateOnly) == now.Format(time.DateOnly) {
		return t.Format(time.TimeOnly)
	}
	return t.Format(time.DateTime)
}
