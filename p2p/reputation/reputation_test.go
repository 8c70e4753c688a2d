package reputation

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a Saved.
type memory struct{ list []Blamed }

func (m *memory) Load() []Blamed     { return m.list }
func (m *memory) Save(list []Blamed) { m.list = list }

func TestBlame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &memory{}
		b := New(disk)
		b.Trust("a")
		b.Blame("a", strings.Repeat("ä", maxReason), BlameFor)
		b.Blame("a", "shorter does not shorten", time.Second)
		b.Blame("b", "briefly", time.Minute)
		b.Trust("a") // bytes that were on their way
		if b.Trusted("a") {
			t.Error("a blamed peer is trusted")
		}
		if reason, ok := b.Blamed("a"); !ok || len(reason) > maxReason+len("…") {
			t.Errorf("%q, %v", reason, ok)
		}
		if _, ok := b.Blamed("c"); ok {
			t.Error("c is blamed")
		}
		time.Sleep(time.Minute + time.Second)
		if _, ok := b.Blamed("b"); ok {
			t.Error("b is still blamed")
		}
		again := New(disk) // after a restart
		if all := again.All(); len(all) != 1 || all[0].Peer != "a" {
			t.Errorf("%v", all)
		}
		time.Sleep(BlameFor)
		if _, ok := b.Blamed("a"); ok {
			t.Error("a is still blamed")
		}
		if all := New(disk).All(); len(all) != 0 {
			t.Errorf("%v", all)
		}
	})
}

func TestTrust(t *testing.T) {
	b := New(nil)
	if b.Trusted("a") {
		t.Error("trusted from the start")
	}
	b.Trust("a")
	if !b.Trusted("a") || b.Trusted("b") {
		t.Error("a is not trusted, or b is")
	}
	b.Distrust("a")
	if b.Trusted("a") {
		t.Error("a is still trusted")
	}
}

// TestBounds: identities cost nothing.
func TestBounds(t *testing.T) {
	b := New(nil)
	for i := range 2 * maxBlamed {
		b.Blame(fmt.Sprint(i), "x", BlameFor)
		b.Trust(fmt.Sprint("t", i))
	}
	if n := len(b.All()); n > maxBlamed {
		t.Errorf("%d blamed", n)
	}
	if n := b.trusted.Len(); n > maxTrusted {
		t.Errorf("%d trusted", n)
	}
	if _, ok := b.Blamed(fmt.Sprint(2*maxBlamed - 1)); !ok {
		t.Error("the last one is not blamed")
	}
}

// TestWrongClock: a date far ahead is not taken from disk.
func TestWrongClock(t *testing.T) {
	b := New(&memory{[]Blamed{{Peer: "a", Until: time.Now().Add(1000 * time.Hour)}}})
	if _, ok := b.Blamed("a"); ok {
		t.Error("blamed for years")
	}
}
