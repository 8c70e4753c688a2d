//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
	"github.com/nixp2p/nixp2p/lab/rig"
)

// beMain makes the test binary run as the program: it has to start itself in namespaces.
const beMain = "NIXP2P_TEST_BE_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(beMain) == "1" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestSmoke: three hosts that nobody configured find each other, and a closure crosses the
// uplink not once, also when a holder is killed in the middle.
func TestSmoke(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped: three hosts with Nix take half a minute")
	}
	if err := rig.Able("sqlite3"); err != nil {
		t.Skipf("skipped: %v", err)
	}
	realnix.FindCorpus(t, realnix.Params{})
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-scenario", "smoke", "-json", "-v")
	cmd.Env = append(os.Environ(), beMain+"=1")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, errs.String())
	}
	var results []*result
	if err := json.Unmarshal(out.Bytes(), &results); err != nil || len(results) != 1 {
		t.Fatalf("%v, %d results\n%s", err, len(results), errs.String())
	}
	r := results[0]
	if len(r.Checks) < 9 {
		t.Errorf("only %d checks were made", len(r.Checks))
	}
	for _, c := range r.Checks {
		if !c.OK {
			t.Errorf("%s: %s", c.What, c.Seen)
		}
	}
	if r.Err != "" {
		t.Error(r.Err)
	}
	if t.Failed() {
		t.Log(errs.String())
	}
	for _, f := range r.Figures {
		t.Logf("%s: %s", f.What, f.Value)
	}
}
