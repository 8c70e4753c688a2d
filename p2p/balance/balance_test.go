package balance

import (
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func self(m *Meter) *Meter { return m }

func TestOrderSpreads(t *testing.T) {
	first := map[*Meter]int{}
	var all []*Meter
	for i := range 4 {
		m := &Meter{}
		m.Answered(time.Duration(i+1) * time.Millisecond)
		all = append(all, m)
	}
	for range 4000 {
		list := append([]*Meter(nil), all...)
		Order(list, self)
		first[list[0]]++
		seen := map[*Meter]bool{}
		for _, m := range list {
			seen[m] = true
		}
		if len(seen) != len(all) {
			t.Fatal("one is lost")
		}
	}
	if first[all[0]] < 1500 || first[all[1]] < 800 {
		t.Errorf("the best is first %d times, the second %d", first[all[0]], first[all[1]])
	}
	if first[all[3]] != 0 {
		t.Errorf("the worst is first %d times", first[all[3]])
	}
	Order([]*Meter{}, self)
	Order(all[:1], self)
}

func TestOutstandingBytes(t *testing.T) {
	busy, idle := &Meter{}, &Meter{}
	busy.Answered(time.Millisecond)
	idle.Answered(5 * time.Millisecond)
	busy.Asked(100 << 20)
	list := []*Meter{busy, idle}
	Order(list, self)
	if list[0] != idle {
		t.Error("the busy one is asked first")
	}
	busy.Asked(-100 << 20)
	Order(list, self)
	if list[0] != busy {
		t.Error("the nearer one is asked last")
	}
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &Meter{}
		if m.Compress() {
			t.Error("compressed before anything was measured")
		}
		get := func(bytes int, d time.Duration) {
			m.Waiting()
			<-time.After(d)
			m.Got(bytes)
		}
		for range 30 { // 10 MB/s
			get(1<<20, 100*time.Millisecond)
			<-time.After(time.Hour) // the reader's own time
		}
		if r := m.Rate(); r < 9e6 || r > 12e6 {
			t.Errorf("rate is %.0f", r)
		}
		plain := 0
		for range 10 * plainEvery {
			if !m.Compress() {
				plain++
			}
		}
		if plain != 10 {
			t.Errorf("%d of %d are plain", plain, 10*plainEvery)
		}
		for range 30 { // 100 MB/s
			get(1<<20, 10*time.Millisecond)
		}
		if m.Compress() {
			t.Errorf("compressed at %.0f bytes a second", m.Rate())
		}
	})
}

// TestRateOfMany: transfers at the same time share the link, and together they measure it.
func TestRateOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &Meter{}
		for range 40 {
			for range 4 {
				m.Waiting()
			}
			<-time.After(10 * time.Millisecond)
			for range 4 {
				m.Got(256 << 10)
			}
		}
		if r := m.Rate(); r < 90e6 || r > 110e6 {
			t.Errorf("rate is %.0f", r)
		}
	})
}
