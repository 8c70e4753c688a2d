package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"syscall"

	"github.com/nixp2p/nixp2p/internal/config"
)

// ui writes what a person reads. An error is one line "nixp2p: error: …" without capital or full
// stop. If the mistake is a known one, a line "nixp2p: hint: …" says what to do. Results go to
// out, everything else to err.
type ui struct {
	out, err io.Writer
	outErr   error // the first error of out
}

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2
)

// usageError marks wrong usage or configuration.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// hintError carries a hint for the user.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }

// errSilent fails without a message: the reason has been printed.
var errSilent = errors.New("failed")

func (u *ui) exitCode(err error) int {
	if errors.Is(u.outErr, syscall.EPIPE) {
		u.outErr = nil // the reader has seen enough
	}
	if err == nil && u.outErr != nil {
		err = fmt.Errorf("write the result: %w", u.outErr)
	}
	if err == nil {
		return 0
	}
	if !errors.Is(err, errSilent) {
		fmt.Fprintf(u.err, "nixp2p: error: %v\n", err)
		if hint := hintFor(err); hint != "" {
			fmt.Fprintf(u.err, "nixp2p: hint: %s\n", hint)
		}
	}
	var usage *usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailed
}

// hintFor returns the hint for a known mistake.
func hintFor(err error) string {
	var given *hintError
	var value *config.Problem
	var dial *net.OpError
	switch {
	case errors.As(err, &given):
		return given.hint
	case errors.As(err, &value):
		return value.Help
	case errors.Is(err, syscall.EADDRINUSE):
		return "is another nixp2p running? `nixp2p status` asks it; --listen and --admin-listen choose other addresses"
	case errors.As(err, &dial) && dial.Op == "dial":
		return "is the daemon running? " + startHint() + ", or name its address with --admin-listen"
	case errors.Is(err, fs.ErrPermission):
		return "run it as the user of the daemon, or name other directories with --state-dir and --cache-dir"
	}
	return ""
}

// startHint says how to start the daemon on this machine.
func startHint() string {
	if systemdHas("nixp2p.service") {
		return "start it with `systemctl start nixp2p.socket nixp2p.service`"
	}
	return "start it with `nixp2p serve`"
}

// problems prints each mistake of a configuration with its hint.
func (u *ui) problems(err error) error {
	list := config.Problems(err)
	if len(list) == 0 {
		return &usageError{err}
	}
	for _, p := range list {
		fmt.Fprintf(u.err, "nixp2p: error: %v\n", p)
		if p.Help != "" {
			fmt.Fprintf(u.err, "nixp2p: hint: %s\n", p.Help)
		}
	}
	return &usageError{errSilent}
}

// warnings prints what is allowed but probably a mistake.
func (u *ui) warnings(c *config.Config) {
	for _, w := range c.Warnings {
		fmt.Fprintf(u.err, "nixp2p: warning: %s\n", w)
	}
}

// printf writes a part of the result.
func (u *ui) printf(format string, args ...any) {
	if _, err := fmt.Fprintf(u.out, format, args...); err != nil && u.outErr == nil {
		u.outErr = err
	}
}

// lines writes lines of the result.
func (u *ui) lines(all []string) { u.printf("%s\n", strings.Join(all, "\n")) }

// json writes v as indented JSON.
func (u *ui) json(v any) error {
	enc := json.NewEncoder(u.out)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); !errors.Is(err, syscall.EPIPE) {
		return err
	}
	return nil
}

// count writes a number with its noun: "1 path", "2 paths".
func count[N int | int64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
