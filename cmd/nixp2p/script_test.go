package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// The stories of the command line, one file each.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv(beMain, "1")
			e.Setenv("NIXP2P", os.Args[0])
			e.Setenv("HOME", e.WorkDir)
			return nil
		},
	})
}
