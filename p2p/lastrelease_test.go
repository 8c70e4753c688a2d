package p2p

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
)

// lastRelease is the commit of the last release.
const lastRelease = "93018b5"

// buildLastRelease builds a node of the last release.
func buildLastRelease(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("builds the last release")
	}
	if err := exec.CommandContext(t.Context(), "git", "cat-file", "-e", lastRelease+"^{commit}").Run(); err != nil {
		t.Skipf("no git history with the last release, %s: %v", lastRelease, err)
	}
	dir := t.TempDir()
	archive := exec.CommandContext(t.Context(), "sh", "-c", `git -C "$(git rev-parse --show-toplevel)" archive "$0" | tar -x -C "$1"`, lastRelease, dir)
	if out, err := archive.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	program, err := os.ReadFile(filepath.Join("testdata", "lastrelease.go.txt"))
	if err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(dir, "cmd", "lastrelease")
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(at, "main.go"), program, 0o644); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", filepath.Join(dir, "node"), "./cmd/lastrelease")
	build.Dir = dir
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod")
	if out, err := build.CombinedOutput(); err != nil {
		t.Skipf("the last release does not build here: %v\n%s", err, out)
	}
	return filepath.Join(dir, "node")
}

// TestLastRelease: this build and the last release give each other what they have.
func TestLastRelease(t *testing.T) {
	old := exec.CommandContext(t.Context(), buildLastRelease(t))
	stdin, err := old.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := old.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	old.Stderr = &stderr
	if err := old.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = stdin.Close()
		if err := old.Wait(); err != nil {
			t.Errorf("%v\n%s", err, &stderr)
		}
	}()
	lines := bufio.NewReader(stdout)
	line := func() string {
		s, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("%v\n%s", err, &stderr)
		}
		return strings.TrimSpace(s)
	}
	addr := line()
	theirs, ours := nixtest.NewPath("old", 3<<20), nixtest.NewPath("new", 3<<20)
	n := start(t, holderOf(newStore(key.Name).add(t, key, ours), key.Name), func(c *Config) { c.Bootstrap = []string{addr} })
	await(t, "the inventory", func() bool { return n.MayHave(theirs.Hash()) })
	if _, err := n.Page(t.Context(), n.Sharers()[0].ID, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the list of a version that has none: %v", err)
	}
	info, err := n.Info(t.Context(), theirs.Hash())
	if err != nil {
		t.Fatal(err)
	}
	got, session, err := pull(t.Context(), n, source.Want{Info: info, Forms: raw(info), Coordinate: true})
	if err != nil || !bytes.Equal(got, theirs.NAR) {
		t.Errorf("from the last release: %d bytes, %v", len(got), err)
	}
	session.End(t.Context(), source.Correct)
	// The old node understands the session, the narinfo and the NAR of this one, and is asked
	// as coordinator for what neither has.
	if _, err := io.WriteString(stdin, "new\n"); err != nil {
		t.Fatal(err)
	}
	if got := line(); got != "ok" {
		t.Errorf("to the last release: %s", got)
	}
	cold := nixtest.NewPath("cold", 3<<20).Info(t, key)
	_, session, err = pull(t.Context(), n, source.Want{Info: cold, Forms: raw(cold), Coordinate: true})
	if err == nil || source.Absent(err) {
		t.Errorf("what neither has: %v", err)
	}
	session.End(t.Context(), source.GaveUp)
}
