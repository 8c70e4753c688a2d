package demo

import (
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/atomicfile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newUpstream(t *testing.T, paths int, size, rate int64, lie bool) *upstream {
	t.Helper()
	u, err := startUpstream(t.Context(), paths, size, rate, lie)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.stop)
	return u
}

// The client gets everything from a correct upstream, in files of about half the size, and no
// path whose bytes or signature are wrong.
func TestFetch(t *testing.T) {
	u := newUpstream(t, 20, 200e3, 1e9, false)
	got, err := (&node{url: u.url}).fetch(t.Context(), u)
	if err != nil || got != 20 || u.sent.Load() != u.fileBytes || u.narRequests.Load() != 20 {
		t.Errorf("%d paths, %d of %d bytes: %v", got, u.sent.Load(), u.fileBytes, err)
	}
	if u.narBytes < 200e3 || u.narBytes > 240e3 || u.fileBytes < u.narBytes*2/5 || u.fileBytes > u.narBytes*3/5 {
		t.Errorf("%d bytes of NARs in files of %d", u.narBytes, u.fileBytes)
	}
	lies := newUpstream(t, 20, 200e3, 1e9, true)
	if got, err := (&node{url: lies.url}).fetch(t.Context(), lies); err == nil || got == 20 || lies.narRequests.Load() > 20+narTries {
		t.Errorf("wrong bytes: %d paths, %v", got, err)
	}
	if got, err := (&node{url: u.url}).fetch(t.Context(), lies); err == nil || got != 0 {
		t.Errorf("another key: %d paths, %v", got, err)
	}
	if err := get(t.Context(), http.DefaultClient, u.url+"/nar/x", func(io.Reader) error { return nil }); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a file that is not there: %v", err)
	}
}

// The upstream keeps its rate, over all responses together.
func TestPace(t *testing.T) {
	u := newUpstream(t, 4, 400e3, 500e3, false)
	began := time.Now()
	if _, err := (&node{url: u.url}).fetch(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began).Seconds()
	if least := float64(u.fileBytes-uplinkBurst) / 500e3; took < least*0.9 {
		t.Errorf("%d bytes took %.2f s, at least %.2f are due", u.fileBytes, took, least)
	}
}

// The directory of a run that was killed is removed. One in use, a new one, and one that is not
// of a run stay.
func TestRemoveOld(t *testing.T) {
	parent := t.TempDir()
	mk := func(name string, age time.Duration) string {
		d := filepath.Join(parent, name)
		at := time.Now().Add(-age)
		if err := errors.Join(os.MkdirAll(filepath.Join(d, "A", "root"), 0o700), os.Chtimes(d, at, at)); err != nil {
			t.Fatal(err)
		}
		return d
	}
	killed, fresh, other, used := mk(dirPrefix+"1", time.Hour), mk(dirPrefix+"2", 0), mk("nixp2p-1", time.Hour), mk(dirPrefix+"3", 0)
	lock, err := atomicfile.Lock(used)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(used, old, old); err != nil {
		t.Fatal(err)
	}
	removeOld(parent)
	for dir, want := range map[string]bool{killed: false, fresh: true, other: true, used: true} {
		if _, err := os.Lstat(dir); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", filepath.Base(dir), err, want)
		}
	}
}

// A machine that cannot run it is told why before anything is begun, and if a node does not
// start, its reason is the error.
func TestRunFails(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  Config
		is   error
		want string
	}{
		{"space", Config{Node: []string{"/bin/false"}, Size: 1 << 50}, ErrNoSpace, "not enough space in "},
		{"node", Config{Node: []string{"/bin/sh", "-c", "echo the reason >&2; exit 3"}, Size: 1e5}, nil, "node A ended by itself (exit status 3): the reason"},
		{"command", Config{Node: []string{"/no/such/program"}, Size: 1e5}, os.ErrNotExist, "node A: "},
		{"directory", Config{Node: []string{"/bin/false"}, Size: 1e5, Dir: "/no/such/dir"}, os.ErrNotExist, "/no/such/dir"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.cfg.Dir == "" {
				c.cfg.Dir = t.TempDir()
			}
			c.cfg.Paths, c.cfg.Uplink, c.cfg.LAN, c.cfg.Tell = 8, 1e7, 1e7, func(string) {}
			res, err := Run(t.Context(), c.cfg)
			if err == nil || res.OK || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%+v: %v, want %q", res, err, c.want)
			}
			if left, _ := filepath.Glob(filepath.Join(c.cfg.Dir, "*")); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}
