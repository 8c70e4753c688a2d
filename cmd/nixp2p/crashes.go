package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	// startsFile, in the state directory, counts the starts in a row of which none worked yet.
	startsFile = "starts"
	// startsMost is after how many of them the next start rests. The unit gives up after one more.
	startsMost = 2
	// worksAfter is how long a daemon that was started well works at least, as in the unit.
	worksAfter = 10 * time.Second
	// restTime is how long after the last such start the daemon is tried again: later than
	// nixp2p-retry.timer would, which leaves a daemon alone that rests.
	restTime = 90 * time.Second
)

// errTryAgain ends a process that rested: systemd starts the next one, which works as usual.
var errTryAgain = errors.New("started again after a rest")

// starts counts the starts of a daemon that systemd starts again whenever it ends. One that crashes soon
// after each start would keep Nix waiting in between, and then be refused: for a while it does
// nothing but answer 404 instead, so that Nix goes on with its next cache at once. If the file
// cannot be written, nothing is counted: the start limit of the unit remains.
type starts struct {
	file string
	rest time.Time // until then the daemon does not work; zero if it does
}

// countStart notes that the daemon starts now.
func countStart(stateDir string, now time.Time) *starts {
	s := &starts{file: filepath.Join(stateDir, startsFile)}
	text, _ := os.ReadFile(s.file)
	n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	if info, err := os.Stat(s.file); err == nil && n >= startsMost {
		if until := info.ModTime().Add(restTime); now.Before(until) && until.Sub(now) <= restTime {
			s.rest = until
			return s
		}
	}
	_ = os.MkdirAll(stateDir, 0o700) // as whoever keeps state there makes it
	_ = os.WriteFile(s.file, fmt.Appendln(nil, max(n, 0)+1), 0o600)
	return s
}

// err says why the daemon rests, nil if it does not.
func (s *starts) err() error {
	if s == nil || s.rest.IsZero() {
		return nil
	}
	return fmt.Errorf("it ended several times in a row within %v of its start; the next attempt is at %s, or with `systemctl restart nixp2p`; `journalctl -u nixp2p` says how it ended", worksAfter, s.rest.Format("15:04:05"))
}

// worked notes that the daemon has been started well.
func (s *starts) worked() { _ = os.Remove(s.file) }

// watch notes it once the daemon has worked for long enough since it was ready, or ends because ctx does:
// serving, which is of ctx, ends also if a part fails. One that rests is ended when it has rested; whoever
// restarts it before that wants an attempt.
func (s *starts) watch(ctx, serving context.Context, ready <-chan struct{}) error {
	if s == nil {
		return nil
	}
	select {
	case <-ready:
	case <-serving.Done():
	}
	wait := worksAfter
	if !s.rest.IsZero() {
		wait = time.Until(s.rest)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		if !s.rest.IsZero() {
			return errTryAgain
		}
		s.worked()
	case <-serving.Done():
		if ctx.Err() != nil {
			s.worked()
		}
	}
	return nil
}
