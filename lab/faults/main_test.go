package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
)

// beMain makes the test binary run as the program: it has to start itself in a namespace.
const beMain = "NIXP2P_TEST_BE_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(beMain) == "1" {
		main()
		return
	}
	os.Exit(m.Run())
}

// narinfoDeadline is what the front promises, and what a loaded machine adds.
const narinfoDeadline = 10*time.Second + 2*time.Second

// TestNeverBreaksABuild: with nixp2p in between the command succeeds whatever is wrong with a
// cache or a peer, as long as a cache is good, and narinfos are answered 200 or 404 in time.
func TestNeverBreaksABuild(t *testing.T) {
	realnix.Find(t)
	seen := quick(t).Nixes[0]
	for _, p := range seen.Peers {
		if !p.Outcome.OK || !p.Verified {
			t.Errorf("a peer lies: %s: %s: %s, verified: %v", p.Name, p.Outcome, p.Outcome.Said, p.Verified)
		}
		if honest := p.Name == lies()[0].name; (p.Standing == "liar") == honest {
			t.Errorf("a peer lies: %s: it is %q", p.Name, p.Standing)
		}
	}
	if len(seen.Peers) < 3 {
		t.Errorf("%d lying peers", len(seen.Peers))
	}
	for _, r := range seen.Ways {
		if r.Worse() == "worse" && r.Known == "" {
			t.Errorf("the way to a cache: %s: Nix alone %s, through nixp2p %s: %s", r.Name, r.Direct, r.Through, r.Through.Said)
		}
	}
	for _, r := range seen.Rows {
		for _, how := range []setup{before, alone} {
			c := r.Cells[how]
			if !c.OK && !(how == alone && r.MayFail) || c.Wrong {
				t.Errorf("%s (%s): %s: %s", r.Name, [...]string{before: "and the good cache", alone: "over both"}[how], c, c.Said)
			}
			for status := range c.Seen.Narinfo {
				if status != 200 && status != 404 {
					t.Errorf("%s: a narinfo was answered %d", r.Name, status)
				}
			}
			if c.Seen.Worst > narinfoDeadline {
				t.Errorf("%s: a narinfo took %v", r.Name, c.Seen.Worst)
			}
		}
	}
}

// quick runs the program as a test of everything does.
func quick(t *testing.T) *report {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-quick", "-json")
	cmd.Env = append(os.Environ(), beMain+"=1")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, errs.String())
	}
	var r report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("%v\n%s", err, errs.String())
	}
	if rows := len(r.Nixes[0].Rows); rows < 20 {
		t.Fatalf("%d rows:\n%s", rows, errs.String())
	}
	if !r.Network {
		t.Log("no network namespace: three rows are left out")
	}
	return &r
}
