package source_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/internal/source"
)

// TestConditions: one holds under its key until it is cleared or its time is over, and is news
// once.
func TestConditions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source.Conditions
		a, b := source.Condition{Part: source.PartMDNS, Text: "a"}, source.Condition{Text: "b", Note: true}
		if !s.Set("2", a) || s.Set("2", a) || !s.SetFor("1", b, time.Minute) || s.SetFor("1", b, time.Minute) {
			t.Error("news")
		}
		if got := s.List(); fmt.Sprint(got) != fmt.Sprint([]source.Condition{b, a}) {
			t.Errorf("%+v", got)
		}
		time.Sleep(2 * time.Minute)
		if got := s.List(); len(got) != 1 || got[0] != a {
			t.Errorf("%+v", got)
		}
		if !s.Clear("2") || s.Clear("2") || s.List() != nil {
			t.Errorf("%+v", s.List())
		}
		for i := range 1000 {
			s.Set(fmt.Sprint(i), a)
		}
		if n := len(s.List()); n > 100 {
			t.Errorf("%d kept", n)
		}
		var none *source.Conditions
		if none.Set("", a) || none.Clear("") || none.List() != nil {
			t.Error("nil keeps something")
		}
	})
}
