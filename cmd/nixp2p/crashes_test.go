package main

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/nixtest/supervise"
)

// TestCrashLoop: a daemon that ended twice in a row soon after its start answers 404 from its third
// start on, and the socket stays. After that rest it works again if it can.
func TestCrashLoop(t *testing.T) {
	t.Parallel()
	key := nixtest.NewKey("trusted-1")
	p := nixtest.NewPath("hello", 1000)
	up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: []nixtest.Path{p}, Keys: []nixtest.Key{key}})
	u := newUnit(t)
	u.run(supervise.Config{Burst: 3}, "--p2p=false", "--store-root", t.TempDir(), "--upstream", up.URL(), "--trusted-public-key", key.Public())
	narinfo := u.URL() + "/" + p.Hash().String() + ".narinfo"
	status := func() int {
		resp, err := http.Get(narinfo) // waits in the socket where nothing runs
		if err != nil {
			return 0 // it ended in the middle
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	count := func() int { n, _ := u.Starts(); return n }
	await := func(what string, ok func() bool) {
		t.Helper()
		for limit := time.Now().Add(3 * time.Minute); !ok(); <-time.After(20 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatalf("never: %s\n%s", what, u.text())
			}
		}
	}
	for i := range startsMost {
		<-u.Ready()
		if got := status(); got != 200 {
			t.Errorf("start %d: %d", i, got)
		}
		if err := u.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		await("the next start", func() bool { return count() == i+2 })
	}
	<-u.Ready()
	if got := status(); got != 404 || !strings.Contains(u.text(), "several times in a row") {
		t.Errorf("after %d crashes: %d\n%s", startsMost, got, u.text())
	}
	await("it works again", func() bool { return status() == 200 })
	if n := count(); n != startsMost+2 {
		t.Errorf("%d starts", n)
	}
}

// TestCountStart: which starts rest, and which are forgotten.
func TestCountStart(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, startsFile)
	start := func(text string, ago time.Duration) *starts {
		t.Helper()
		now := time.Now()
		_ = os.Remove(file)
		if text != "" {
			if err := errors.Join(os.WriteFile(file, []byte(text), 0o600), os.Chtimes(file, now, now.Add(-ago))); err != nil {
				t.Fatal(err)
			}
		}
		return countStart(dir, now)
	}
	for _, c := range []struct {
		text  string
		ago   time.Duration
		rests bool
	}{
		{"", 0, false}, {"1\n", time.Second, false}, {"2\n", time.Second, true}, {"7\n", 80 * time.Second, true},
		{"2\n", 2 * time.Minute, false}, {"2\n", -time.Hour, false}, {"junk", time.Second, false}, {"-9\n", time.Second, false},
	} {
		if s := start(c.text, c.ago); (s.err() != nil) != c.rests {
			t.Errorf("%q %v ago: %v", c.text, c.ago, s.err())
		}
	}
	if s := countStart(filepath.Join(file, "below-a-file"), time.Now()); s.err() != nil {
		t.Error("rests where nothing can be counted")
	}
	if (*starts)(nil).err() != nil {
		t.Error("rests without systemd")
	}
}

// TestStartsWatch: what becomes of the count.
func TestStartsWatch(t *testing.T) {
	for name, c := range map[string]struct {
		ends  time.Duration // when it is told to end; 0: never
		fails bool          // a part of it does, at that time
		kept  bool
	}{
		"works":         {0, false, false},
		"told to end":   {time.Second, false, false},
		"a part failed": {time.Second, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := countStart(t.TempDir(), time.Now())
				ctx, serving := t.Context(), t.Context()
				if c.ends > 0 {
					ended, stop := context.WithTimeout(ctx, c.ends)
					defer stop()
					serving = ended
					if !c.fails {
						ctx = ended
					}
				}
				ready := make(chan struct{})
				close(ready)
				if err := s.watch(ctx, serving, ready); err != nil {
					t.Error(err)
				}
				if _, err := os.Stat(s.file); (err == nil) != c.kept {
					t.Errorf("the count: %v", err)
				}
			})
		})
	}
}
