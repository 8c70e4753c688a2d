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
		Use: "status", Short: "say how the daemon is",
		Long: `Says how the running daemon is: what it shares, where the bytes came from and what did not
have to cross the uplink, what is on its way now, how the upstreams are, and what went wrong.
With --watch it goes on saying so, in place on a terminal, and through a restart of the daemon.`,
	}
	flags := config.RegisterClient(c.Flags())
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON; with --watch an object a line")
	c.Flags().BoolVarP(&watch, "watch", "w", false, "say it again and again, until Ctrl-C")
	c.Flags().DurationVar(&every, "every", time.Second, "how often --watch looks")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if every < leastEvery {
			return &usageError{fmt.Errorf("--every: %s is too short, %s is the least", every, leastEvery)}
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
			return u.json(s)
		}
		u.printf("%s\n", strings.Join(u.paper().status(s, time.Now()), "\n"))
		return nil
	}
	return c
}

// leastEvery keeps a slip of the finger from keeping the daemon busy.
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
			if err := v.show(u.paper(), s); err != nil {
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

// view shows one thing after the other: in the same place on a terminal, else one below the
// other.
type view struct {
	ui    *ui
	drawn int // lines on the terminal; 0 before the first
	ill   bool
}

func (v *view) show(p paper, s admin.Status) error {
	v.ill = false
	return v.draw(p, p.status(s, time.Now()))
}

// trouble says once that the daemon is not there.
func (v *view) trouble(err error) {
	if !v.ill {
		fmt.Fprintf(v.ui.err, "nixp2p: %s\n", clean(err.Error()))
		v.drawn = 0
	}
	v.ill = true
}

func (v *view) draw(p paper, lines []string) error {
	var b strings.Builder
	if !p.terminal {
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

// status says s for a person, as lines.
func (p paper) status(s admin.Status, now time.Time) []string {
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

func (p paper) headline(s admin.Status, now time.Time) string {
	up := admin.FormatDuration(s.UptimeSeconds)
	return p.paint(bold, cut(fmt.Sprintf("nixp2p %s, up %s, since %s", clean(s.Version), up, clock(s.Since, now)), p.width))
}

// sentence is a text over as many lines as it takes.
func (p paper) sentence(st style, text string) (lines []string) {
	for _, l := range wrap(clean(text), p.width) {
		lines = append(lines, p.paint(st, l))
	}
	return lines
}

// facts has one line for each thing to know first.
func (p paper) facts(s admin.Status) []string {
	peers := "no peers"
	switch {
	case s.Peers == 1:
		peers = "1 peer"
	case s.Peers > 1:
		peers = fmt.Sprintf("%d peers", s.Peers)
	}
	rows := [][]cell{
		{{"saved", bold}, {text: fmt.Sprintf("today %s, in 7 days %s, in all %s", humanSize(s.Saved.Today), humanSize(s.Saved.Week), humanSize(s.Saved.Total)), style: green}},
		{{"shared", bold}, {text: fmt.Sprintf("%d store paths, with %s", s.StorePathsShared, peers)}},
		{{"peers", bold}, {text: fmt.Sprintf("received %s, sent %s", humanSize(s.PeerReceivedBytes), humanSize(s.PeerSentBytes))}},
		{{"upstreams", bold}, {text: "received " + humanSize(s.UpstreamBytes)}},
	}
	if s.Cache.Limit > 0 {
		rows = append(rows, []cell{{"NAR cache", bold}, {text: fmt.Sprintf("%s of %s in %d files", humanSize(s.Cache.Bytes), humanSize(s.Cache.Limit), s.Cache.Entries)}})
	}
	return p.table([]column{{}, {bend: true}}, rows)
}

// sources says who answered Nix since the start.
func (p paper) sources(s admin.Status) []string {
	nars := map[string]int64{"store": s.Bytes.Store, "cache": s.Bytes.Cache, "peer": s.Bytes.Peer, "upstream": s.Bytes.Upstream}
	columns := []column{
		{head: "SENT TO NIX"}, {head: "NARS", right: true}, {head: "NARINFOS", right: true},
		{head: "ABSENT", right: true, drop: 1}, {head: "TOO LATE", right: true, drop: 2},
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

// dash writes a number; nothing is a dash, so that what there is is seen.
func dash(n int64, write func(int64) string) cell {
	if n == 0 {
		return cell{"–", dim}
	}
	return cell{text: write(n)}
}

func (p paper) upstreams(list []admin.Upstream, now time.Time) []string {
	if len(list) == 0 {
		return nil
	}
	columns := []column{
		{head: "UPSTREAM", bend: true}, {head: "STATE"}, {head: "SINCE", drop: 1}, {head: "NARINFO", right: true, drop: 2}, {head: "REQUESTS", right: true, drop: 3},
	}
	var rows [][]cell
	var reasons []string
	for _, up := range list {
		state := cell{"up", green}
		switch {
		case !up.Up:
			state = cell{"down", red}
		case up.Why != "":
			state = cell{"ill", yellow}
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
	maxOnPaper   = 10 // transfers and failures that a person takes in
	progressMark = "█"
	progressRest = "░"
)

func (p paper) transfers(s admin.Status) []string {
	if len(s.Transfers) == 0 {
		return nil
	}
	columns := []column{
		{head: "NOW"}, {head: "", drop: 2}, {head: "DONE", right: true}, {head: "OF", right: true}, {head: "RATE", right: true, drop: 1}, {head: "PATH", bend: true},
	}
	var rows [][]cell
	for _, t := range s.Transfers[:min(len(s.Transfers), maxOnPaper)] {
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

// wayOf says from where to where.
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
	// The name says more than the hash.
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

func (p paper) failures(list []admin.Failure, now time.Time) []string {
	if len(list) == 0 {
		return nil
	}
	lines := []string{p.paint(bold, "WHAT WENT WRONG")}
	for _, f := range list[:min(len(list), maxOnPaper)] {
		when := clock(f.At, now)
		text := f.Source + ": " + f.What
		if f.Source == "upstream" && strings.Contains(f.What, "://") {
			text = f.What // which names it
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

// clock writes when something was: the time of day, with the date when that was another day.
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
