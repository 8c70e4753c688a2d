//go:build linux

package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"slices"
	"strconv"
)

// line is one arrangement in a picture.
type line struct {
	label  string
	class  string
	points [][2]float64
}

// picture is a plain diagram: lines with their names beside them.
type picture struct {
	title, unit string
	lines       []line
	mark        float64 // a dashed line at this height, with its name
	markLabel   string
	format      string // of values
}

func timePicture(list []*result) []byte {
	p := picture{title: "Finish of the slowest host", unit: "seconds", format: "%.0f s", mark: common(list).OneCopy, markLabel: "one copy over the uplink"}
	p.fill(list, func(r *result) float64 { return r.Slowest })
	return p.svg()
}

func egressPicture(list []*result) []byte {
	p := picture{title: "NAR bytes from upstream, in copies of the closure", unit: "copies", format: "%.2f ×", mark: 1, markLabel: "each byte once"}
	p.fill(list, (*result).egress)
	return p.svg()
}

func (p *picture) fill(list []*result, value func(*result) float64) {
	for _, l := range []struct{ arrangement, label string }{{direct, "no nixp2p"}, {plain, "nodes without leases"}, {leases, "nodes with leases"}} {
		one := line{label: l.label, class: l.arrangement}
		for _, r := range pick(list, l.arrangement, standing) {
			one.points = append(one.points, [2]float64{float64(r.Hosts), value(r)})
		}
		if len(one.points) > 0 {
			p.lines = append(p.lines, one)
		}
	}
}

// Measures of a picture, in its own units.
const (
	width, height            = 760.0, 380.0
	left, right, top, bottom = 56.0, 240.0, 56.0, 52.0
	labelGap                 = 17.0
)

// The colours differ in lightness too, for those who see no hues, and for both backgrounds.
const style = `
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #24292f }
.title { font-size: 15px; font-weight: 600 }
.small { fill: #57606a }
.grid { stroke: #d0d7de; stroke-width: 1 }
.mark { stroke: #57606a; stroke-width: 1; stroke-dasharray: 5 4 }
.line { fill: none; stroke-width: 2.5; stroke-linejoin: round }
.direct { stroke: #cf222e } .plain { stroke: #9a6700 } .leases { stroke: #0969da }
circle.direct { fill: #cf222e } circle.plain { fill: #9a6700 } circle.leases { fill: #0969da }
text.direct, text.plain, text.leases { stroke: none; font-weight: 600 }
text.direct { fill: #cf222e } text.plain { fill: #9a6700 } text.leases { fill: #0969da }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .small { fill: #9198a1 } .grid { stroke: #3d444d } .mark { stroke: #9198a1 }
.direct { stroke: #ff7b72 } .plain { stroke: #d29922 } .leases { stroke: #58a6ff }
circle.direct { fill: #ff7b72 } circle.plain { fill: #d29922 } circle.leases { fill: #58a6ff }
text.direct { fill: #ff7b72 } text.plain { fill: #d29922 } text.leases { fill: #58a6ff }
}
`

// svg draws it. Both axes begin at nothing, so that heights and distances can be compared.
func (p *picture) svg() []byte {
	var xs []float64
	most, far := p.mark, 1.0
	for _, l := range p.lines {
		for _, pt := range l.points {
			if !slices.Contains(xs, pt[0]) {
				xs = append(xs, pt[0])
			}
			far, most = math.Max(far, pt[0]), math.Max(most, pt[1])
		}
	}
	slices.Sort(xs)
	step := tick(most)
	most = math.Ceil(most/step) * step
	x := func(v float64) float64 { return left + v/far*(width-left-right) }
	y := func(v float64) float64 { return height - bottom - v/most*(height-top-bottom) }

	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" role="img" aria-label="%s">`+"\n<style>%s</style>\n", width, height, html.EscapeString(p.title), style)
	text(&b, left, 24, "title", "start", p.title)
	text(&b, left, 43, "small", "start", p.unit)
	for v := 0.0; v <= most+step/2; v += step {
		fmt.Fprintf(&b, `<line class="grid" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>`+"\n", left, y(v), width-right, y(v))
		text(&b, left-8, y(v)+4.5, "small", "end", strconv.FormatFloat(v, 'f', -1, 64))
	}
	for _, v := range xs {
		text(&b, x(v), height-bottom+20, "small", "middle", strconv.FormatFloat(v, 'f', -1, 64))
	}
	text(&b, (left+width-right)/2, height-bottom+40, "small", "middle", "hosts that start at once")
	fmt.Fprintf(&b, `<line class="mark" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>`+"\n", left, y(p.mark), width-right, y(p.mark))
	labels := []label{{y(p.mark) + 4.5, "small", p.markLabel}}
	for _, l := range p.lines {
		fmt.Fprintf(&b, `<polyline class="line %s" points="`, l.class)
		for _, pt := range l.points {
			fmt.Fprintf(&b, "%.1f,%.1f ", x(pt[0]), y(pt[1]))
		}
		b.WriteString("\"/>\n")
		for _, pt := range l.points {
			fmt.Fprintf(&b, `<circle class="%s" cx="%.1f" cy="%.1f" r="3.5"><title>%.0f hosts: `+p.format+"</title></circle>\n", l.class, x(pt[0]), y(pt[1]), pt[0], pt[1])
		}
		end := l.points[len(l.points)-1]
		labels = append(labels, label{y(end[1]) + 4.5, l.class, l.label + ": " + fmt.Sprintf(p.format, end[1])})
	}
	for _, l := range apart(labels) {
		text(&b, width-right+10, l.y, l.class, "start", l.text)
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

type label struct {
	y           float64
	class, text string
}

// apart moves labels up until none covers another; the lowest stays above the axis.
func apart(list []label) []label {
	slices.SortStableFunc(list, func(a, b label) int { return int(math.Copysign(1, b.y-a.y)) })
	low := height - bottom + 4.5
	for i := range list {
		list[i].y = math.Min(list[i].y, low)
		low = list[i].y - labelGap
	}
	return list
}

// tick returns a round distance of lines of which there are four to eight.
func tick(most float64) float64 {
	step := math.Pow(10, math.Floor(math.Log10(math.Max(most, 1e-9))))
	for _, f := range []float64{0.1, 0.2, 0.25, 0.5, 1, 2} {
		if most/(step*f) <= 7 {
			return step * f
		}
	}
	return step
}

func text(b *bytes.Buffer, x, y float64, class, anchor, s string) {
	fmt.Fprintf(b, `<text class="%s" x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", class, x, y, anchor, html.EscapeString(s))
}
