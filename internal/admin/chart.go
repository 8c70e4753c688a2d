package admin

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// sources are the places that bytes come from, as the page names and draws them: those that
// save the uplink at the bottom, the uplink itself on top.
var sources = []struct {
	Class, Name string
	of          func(Bytes) int64
}{
	{"store", "own store", func(b Bytes) int64 { return b.Store }},
	{"cache", "NAR cache", func(b Bytes) int64 { return b.Cache }},
	{"peer", "peers", func(b Bytes) int64 { return b.Peer }},
	{"upstream", "upstream", func(b Bytes) int64 { return b.Upstream }},
}

func (b Bytes) sum() int64 { return b.Store + b.Cache + b.Peer + b.Upstream }

// chart is a picture of bytes over time by source, ready to be written as SVG. Positions are
// per cent of the drawing, so that it fits every width and its letters keep their size.
type chart struct {
	ID, Title, Summary string
	Most               int64 // bytes of the tallest bar
	Top, Half          int64 // bytes at the upper line and at the one in the middle
	Bars               []bar
	Marks              []mark
	Rows               []row // the same as a table, the newest first
}

type bar struct {
	Text         string // what stands at the pointer
	At           string // where it begins
	Left, Width  string
	PitchPercent string // width of the bar with the gap behind it
	Parts        []part
}

type part struct{ Class, Y, Height string }

type mark struct{ X, Text string }

type row struct {
	Name string
	Bucket
}

// Shares of the drawing.
const (
	gapShare  = .22 // of the room of a bar: what is left empty
	leastPart = 1.2 // per cent of the height: less would not be seen
	markEvery = 6   // bars; both charts have a multiple of it
)

// newChart draws buckets. Each is named by one of the two functions: the long name stands
// alone, the short one below the axis.
func newChart(id, title string, buckets []Bucket, long, short func(time.Time) string) chart {
	c := chart{ID: id, Title: title}
	var total Bytes
	for _, b := range buckets {
		c.Most = max(c.Most, b.sum())
		total = Bytes{total.Store + b.Store, total.Cache + b.Cache, total.Peer + b.Peer, total.Upstream + b.Upstream}
	}
	c.Summary, c.Top = summary(total), roundUp(c.Most)
	c.Half = c.Top / 2
	pitch := 100 / float64(max(len(buckets), 1))
	for i, b := range buckets {
		start := b.Start.Local()
		left := float64(i) * pitch
		c.Bars = append(c.Bars, bar{
			Text: long(start) + ": " + summary(b.Bytes), At: percent(left), PitchPercent: percent(pitch),
			Left: percent(left + pitch*gapShare/2), Width: percent(pitch * (1 - gapShare)), Parts: stack(b.Bytes, c.Top),
		})
		if i%markEvery == 0 {
			c.Marks = append(c.Marks, mark{percent(left), short(start)})
		}
		c.Rows = append([]row{{long(start), b}}, c.Rows...)
	}
	return c
}

// stack puts the sources of a bar upon one another.
func stack(b Bytes, top int64) (parts []part) {
	y := 100.0
	for _, s := range sources {
		n := s.of(b)
		if n <= 0 {
			continue
		}
		height := min(max(float64(n)/float64(top)*100, leastPart), y)
		y -= height
		parts = append(parts, part{s.Class, percent(y), percent(height)})
	}
	return parts
}

// summary says the same as a bar.
func summary(b Bytes) string {
	if b.sum() == 0 {
		return "nothing"
	}
	var of []string
	for _, s := range sources {
		if n := s.of(b); n > 0 {
			of = append(of, fmt.Sprintf("%s from %s", FormatBytes(n), s.Name))
		}
	}
	return FormatBytes(b.sum()) + ", of which " + strings.Join(of, ", ")
}

// roundUp returns the next number of bytes that is short to write, and whose half is, too.
func roundUp(n int64) int64 {
	for unit := int64(1 << 10); unit < 1<<60; unit <<= 10 {
		for _, step := range []int64{1, 2, 3, 4, 6, 8, 10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300, 400, 600, 800} {
			if n <= step*unit {
				return step * unit
			}
		}
	}
	return math.MaxInt64
}

// percent writes x for SVG.
func percent(x float64) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.2f", x), "0"), ".") + "%"
}

// charts are the two of the page.
func charts(h History) []chart {
	return []chart{
		newChart("hours", "The last 24 hours", h.Hours,
			func(t time.Time) string { return t.Format("2 Jan 15:04") + " to " + t.Add(time.Hour).Format("15:04") },
			func(t time.Time) string { return t.Format("15:04") }),
		newChart("days", "The last 30 days", h.Days,
			func(t time.Time) string { return t.Format("Mon 2 Jan") },
			func(t time.Time) string { return t.Format("2 Jan") }),
	}
}
