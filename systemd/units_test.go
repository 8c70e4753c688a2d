package systemd

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/nixp2p/nixp2p/internal/config"
)

var units = []string{"nixp2p.socket", "nixp2p.service"}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// setting returns the value of the only line "key=value".
func setting(t *testing.T, text, key string) string {
	t.Helper()
	all := regexp.MustCompile(`(?m)^`+key+`=(.*)$`).FindAllStringSubmatch(text, -1)
	if len(all) != 1 {
		t.Fatalf("%d lines with %s=", len(all), key)
	}
	return all[0][1]
}

// TestReasons: each directive that is a decision has its reason above it.
func TestReasons(t *testing.T) {
	plain := regexp.MustCompile(`^(Description|Documentation|ExecStart|WantedBy=sockets\.target|After|RestartSteps|RestartMaxDelaySec|SystemCallFilter=~|SystemCallErrorNumber)`)
	for _, name := range units {
		before := ""
		for line := range strings.Lines(read(t, name)) {
			if strings.Contains(line, "=") && line[0] != '#' && !plain.MatchString(line) && !strings.HasPrefix(before, "#") {
				t.Errorf("%s: no reason above %s", name, strings.TrimSpace(line))
			}
			before = line
		}
	}
}

// TestNeverGivesUp: what would leave connections unanswered or refused for good.
func TestNeverGivesUp(t *testing.T) {
	socket, service := read(t, "nixp2p.socket"), read(t, "nixp2p.service")
	for _, c := range []struct{ unit, key, want string }{
		{socket, "TriggerLimitIntervalSec", "0"},
		{service, "StartLimitIntervalSec", "0"},
		{service, "Restart", "always"},
		{service, "Type", "notify"},
		{service, "WatchdogSec", "10s"},
		{service, "RestartMaxDelaySec", "2s"},
		{service, "Requires", "nixp2p.socket"},
	} {
		if got := setting(t, c.unit, c.key); got != c.want {
			t.Errorf("%s=%s, want %s", c.key, got, c.want)
		}
	}
	if got := setting(t, socket, "ListenStream"); "`"+got+"`" != config.Rows()[0].Default {
		t.Errorf("the socket is on %s, --listen defaults to %s", got, config.Rows()[0].Default)
	}
}

// installed returns a directory with the units, whose program is one that exists.
func installed(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	dir := t.TempDir()
	for _, name := range units {
		text := strings.ReplaceAll(read(t, name), "/usr/local/bin/nixp2p", "/bin/true")
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestVerify(t *testing.T) {
	dir := installed(t)
	for _, name := range units {
		out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", filepath.Join(dir, name)).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		for line := range bytes.Lines(out) {
			// Known since systemd 254; older ones restart at an even pace.
			if !bytes.Contains(line, []byte("'RestartSteps'")) && !bytes.Contains(line, []byte("'RestartMaxDelaySec'")) && bytes.Contains(line, []byte(name)) {
				t.Errorf("%s", line)
			}
		}
	}
}

// TestExposure: at most 2.0 on the scale of systemd-analyze security, where 10 is a service
// that may do everything.
func TestExposure(t *testing.T) {
	dir := installed(t)
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", filepath.Join(dir, "nixp2p.service")).CombinedOutput()
	if bytes.Contains(out, []byte("unrecognized option")) {
		t.Skip("this systemd judges only what runs")
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if m := regexp.MustCompile(`exposure level for nixp2p\.service: ([0-9.]+)`).FindSubmatch(out); m != nil {
		t.Logf("exposure %s", m[1])
	} else {
		t.Errorf("no figure:\n%s", out)
	}
}
