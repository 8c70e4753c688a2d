package standing

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

func TestLiarOverRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "standing.json")
	synctest.Test(t, func(t *testing.T) {
		b, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Convict("eve", "wrong hash "+strings.Repeat("x", 1000)); err != nil {
			t.Fatal(err)
		}
		<-time.After(23 * time.Hour)
		b, err = Open(path)
		if err != nil {
			t.Fatal(err)
		}
		l, ok := b.Lied("eve")
		if !ok || !strings.HasPrefix(l.Reason, "wrong hash") || len(l.Reason) > maxReason+len("…") {
			t.Errorf("%+v, %v", l, ok)
		}
		if !b.Avoided("eve", nix.NarHash{1}) {
			t.Error("a liar is asked for a NAR")
		}
		if _, ok := b.Lied("bob"); ok {
			t.Error("bob lied")
		}
		<-time.After(2 * time.Hour)
		if _, ok := b.Lied("eve"); ok {
			t.Error("not forgiven after a day")
		}
		if n := len(b.Liars()); n != 0 {
			t.Errorf("%d liars", n)
		}
	})
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
}

func TestAvoid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := Open("")
		one, two := nix.NarHash{1}, nix.NarHash{2}
		b.Avoid("bob", one)
		if !b.Avoided("bob", one) || b.Avoided("bob", two) || b.Avoided("eve", one) {
			t.Error("avoided wrongly")
		}
		b.Avoid("eve", one)
		b.Clear("eve", one)
		if b.Avoided("eve", one) {
			t.Error("not cleared")
		}
		<-time.After(AvoidFor + time.Second)
		if b.Avoided("bob", one) {
			t.Error("avoided for ever")
		}
	})
}

func TestBounds(t *testing.T) {
	b, _ := Open("")
	for i := range maxLiars + 10 {
		_ = b.Convict(fmt.Sprint(i), "x")
	}
	if n := len(b.Liars()); n > maxLiars || n < maxLiars*9/10 {
		t.Errorf("%d liars", n)
	}
	for i := range maxAvoided + 10 {
		b.Avoid(fmt.Sprint(i), nix.NarHash{})
	}
	if n := len(b.avoided); n > maxAvoided+20 {
		t.Errorf("%d avoided", n)
	}
}

func TestBadFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "standing.json")
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := Open(path)
	if err == nil || b == nil {
		t.Fatalf("%v, %v", b, err)
	}
	if err := b.Convict("eve", "x"); err != nil {
		t.Error(err)
	}
	if b, err = Open(path); err != nil || len(b.Liars()) != 1 {
		t.Errorf("not replaced: %v", err)
	}
}

func TestTrails(t *testing.T) {
	var trails Trails
	s := Stream{Nar: nix.NarHash{1}}
	if p, alone := trails.Guilty(s); p != nil || alone {
		t.Errorf("%q, %v", p, alone)
	}
	guilty := func(want string, wantAlone bool) {
		t.Helper()
		p, alone := trails.Guilty(s)
		if strings.Join(p, " ") != want || alone != wantAlone {
			t.Errorf("%q, alone: %v", p, alone)
		}
	}
	trails.Began(s, 0)
	trails.Contributed(s, "a")
	trails.Contributed(s, "a")
	trails.Ended(s)
	guilty("a", true)

	trails.Began(s, 0) // the one before was right
	trails.Contributed(s, "b")
	if p := trails.Giving(s); p != "b" {
		t.Errorf("%q is giving", p)
	}
	guilty("b", true)
	trails.Began(s, 0) // beside it: nobody can tell whose bytes went where
	trails.Contributed(s, "c")
	trails.Ended(s)
	trails.Ended(s)
	guilty("b c", false)

	trails.Began(s, 0)
	trails.Contributed(s, "x")
	trails.Gave(s, Given{Peer: "x", From: 0, To: 10})
	trails.Ended(s)
	trails.Began(s, 10) // it goes on where the one before ended
	trails.Contributed(s, "y")
	trails.Gave(s, Given{Peer: "y", From: 10, To: 20})
	trails.Ended(s)
	guilty("x y", false)
	trails.Began(s, 20)
	trails.Contributed(s, "x")
	trails.Ended(s)
	guilty("x y", false)

	last := func(want string) {
		t.Helper()
		if p := trails.Last(s); strings.Join(p, " ") != want {
			t.Errorf("last: %q, want %q", p, want)
		}
	}
	last("x y")
	trails.Began(s, 90) // others gave what is between: who was there before is not forgotten
	trails.Contributed(s, "z")
	trails.Ended(s)
	guilty("x y z", false)
	last("z")
	trails.Began(s, 0)
	trails.Contributed(s, "b")
	trails.Began(s, 0)
	trails.Contributed(s, "c")
	last("")
	trails.Ended(s)
	trails.Ended(s)

	s.Form.File[0]++
	trails.Began(s, 10) // somebody else sent the beginning
	trails.Contributed(s, "d")
	trails.Ended(s)
	guilty("d", false)
	if p := trails.Giving(s); p != "" {
		t.Errorf("%q is giving, after the end", p)
	}

	for i := range 2 * maxTrails {
		k := Stream{Nar: nix.NarHash{byte(i), byte(i >> 8), 1}}
		trails.Began(k, 0)
		trails.Ended(k)
	}
	if len(trails.trails) > maxTrails {
		t.Errorf("%d trails", len(trails.trails))
	}
}
