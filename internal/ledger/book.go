package ledger

import (
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"time"
)

// book is what is kept: all bytes ever, and those of the last hours and days.
type book struct {
	total       Counts
	hours, days series
}

// series has buckets in the order in which they were begun, which a clock that was set may
// make another one than that of time. The bound falls on those begun first: what a wrong clock
// adds pushes out the oldest and nothing else.
type series []entry

// entry is a bucket under its number: hours since 1970, days as year, month and day in decimal
// digits, so that a day stays what it was called where the machine was then.
type entry struct {
	number int64
	Counts
}

func hourOf(t time.Time) int64 {
	s := t.Unix()
	h := s / 3600
	if s%3600 < 0 {
		h--
	}
	return h
}

func dayOf(t time.Time) int64 {
	y, m, d := t.Date()
	return int64(y)*10000 + int64(m)*100 + int64(d)
}

func (b *book) add(now time.Time, c Counts) {
	b.total = b.total.plus(c)
	b.hours.add(hourOf(now), c, keptHours)
	b.days.add(dayOf(now), c, keptDays)
}

func (s *series) add(number int64, c Counts, bound int) {
	for i := len(*s) - 1; i >= 0; i-- {
		if e := &(*s)[i]; e.number == number {
			e.Counts = e.plus(c)
			return
		}
	}
	*s = append(*s, entry{number, c})
	if len(*s) > bound {
		*s = append((*s)[:0], (*s)[len(*s)-bound:]...)
	}
}

func (s series) get(number int64) Counts {
	for _, e := range s {
		if e.number == number {
			return e.Counts
		}
	}
	return Counts{}
}

func (c Counts) fields() []int64 { return []int64{c.Store, c.Cache, c.Peer, c.Upstream, c.Saved} }

func fromFields(f [5]int64) Counts { return Counts{f[0], f[1], f[2], f[3], f[4]} }

// plus adds. Above maxCount it stays there, so that what was written is always read again.
func (c Counts) plus(d Counts) Counts {
	var sum [5]int64
	for i, n := range c.fields() {
		sum[i] = min(n+d.fields()[i], maxCount)
	}
	return fromFields(sum)
}

// less returns what was added since before; a counter that fell is begun anew.
func (c Counts) less(before Counts) Counts {
	var diff [5]int64
	for i, n := range c.fields() {
		diff[i] = min(max(n-before.fields()[i], 0), maxCount)
	}
	return fromFields(diff)
}

const (
	// maxText is several times what a full book takes.
	maxText = 64 << 10
	// maxCount is an exbibyte: two of them added do not overflow.
	maxCount = 1 << 60

	firstLine = "nixp2p-history 1"
)

// text writes the book: a first line, lines of words and numbers, a checksum.
func (b *book) text() []byte {
	var t strings.Builder
	line := func(word string, number string, c Counts) {
		t.WriteString(word + number)
		for _, n := range c.fields() {
			t.WriteByte(' ')
			t.WriteString(strconv.FormatInt(n, 10))
		}
		t.WriteByte('\n')
	}
	t.WriteString(firstLine + "\n")
	line("total", "", b.total)
	for _, e := range b.hours {
		line("hour ", strconv.FormatInt(e.number, 10), e.Counts)
	}
	for _, e := range b.days {
		line("day ", strconv.FormatInt(e.number, 10), e.Counts)
	}
	return fmt.Appendf(nil, "%ssum %08x\n", t.String(), sum([]byte(t.String())))
}

func sum(text []byte) uint32 { return crc32.ChecksumIEEE(text) }

var errDamaged = errors.New("not a whole history")

// parse reads what text wrote, and nothing else.
func parse(raw []byte) (b book, err error) {
	if len(raw) > maxText {
		return book{}, fmt.Errorf("%w: more than %d bytes", errDamaged, maxText)
	}
	body, given, ok := strings.Cut(string(raw), "sum ")
	if !ok || given != fmt.Sprintf("%08x\n", sum([]byte(body))) {
		return book{}, fmt.Errorf("%w: wrong checksum", errDamaged)
	}
	lines := strings.Split(strings.TrimSuffix(body, "\n"), "\n")
	if lines[0] != firstLine || len(lines) < 2 {
		return book{}, fmt.Errorf("%w: first line %q", errDamaged, lines[0])
	}
	for _, l := range lines[1:] {
		if err := b.take(strings.Split(l, " ")); err != nil {
			return book{}, err
		}
	}
	// The one way to write it: also no line twice and none in another order.
	if string(b.text()) != string(raw) {
		return book{}, fmt.Errorf("%w: out of order", errDamaged)
	}
	return b, nil
}

func (b *book) take(words []string) error {
	bad := fmt.Errorf("%w: line %q", errDamaged, strings.Join(words, " "))
	var into *series
	bound := 0
	switch words[0] {
	case "total":
	case "hour":
		into, bound = &b.hours, keptHours
	case "day":
		into, bound = &b.days, keptDays
	default:
		return bad
	}
	var number int64
	counts := words[1:]
	if into != nil && len(counts) > 0 {
		var err error
		if number, err = strconv.ParseInt(counts[0], 10, 64); err != nil || len(*into) == bound || into.has(number) {
			return bad
		}
		counts = counts[1:]
	}
	var f [5]int64
	if len(counts) != len(f) {
		return bad
	}
	for i, w := range counts {
		n, err := strconv.ParseInt(w, 10, 64)
		if err != nil || n < 0 || n > maxCount {
			return bad
		}
		f[i] = n
	}
	if into == nil {
		b.total = fromFields(f)
	} else {
		*into = append(*into, entry{number, fromFields(f)})
	}
	return nil
}

func (s series) has(number int64) bool {
	for _, e := range s {
		if e.number == number {
			return true
		}
	}
	return false
}
