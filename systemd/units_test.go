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

var units = []string{"nixp2p.socket", "nixp2p.service", "nixp2p-retry.timer", "nixp2p-retry.service"}

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
	plain := regexp.MustCompile(`^(Description|Documentation|ExecStart|WantedBy=sockets\.target|After|Type=oneshot|StartLimitBurst|OnActiveSec|AccuracySec|MemoryHigh|StandardOutput|LoadCredential=nixp2p\.(netrc|aws)|SystemCallFilter=~|SystemCallErrorNumber)`)
	for _, name := range units {
		before := ""
		for line := range strings.Lines(read(t, name)) {
			if strings.Contains(line, "=") && line[0] != '#' && line[0] != ' ' && !plain.MatchString(line) && !strings.HasPrefix(before, "#") {
				t.Errorf("%s: no reason above %s", name, strings.TrimSpace(line))
			}
			before = line
		}
	}
}

// TestReleasesSocket: what makes a program that cannot start fail within 30 s, and the socket
// with it, and what starts it again a minute later. docs/faults.md has the times with a real
// systemd.
func TestReleasesSocket(t *testing.T) {
	for _, c := range []struct{ unit, key, want string }{
		{"nixp2p.socket", "TriggerLimitIntervalSec", "0"}, // only the service's failure closes it
		{"nixp2p.service", "StartLimitIntervalSec", "300s"},
		{"nixp2p.service", "StartLimitBurst", "3"},
		{"nixp2p.service", "RestartSec", "250ms"},
		{"nixp2p.service", "TimeoutStartSec", "25s"}, // once, for a program that hangs
		{"nixp2p.service", "TimeoutStartFailureMode", "kill"},
		{"nixp2p.service", "OnFailure", "nixp2p-retry.timer"},
		{"nixp2p.service", "Restart", "always"},
		{"nixp2p.service", "Type", "notify"},
		{"nixp2p.service", "WatchdogSec", "10s"},
		{"nixp2p.service", "Requires", "nixp2p.socket"},
		{"nixp2p-retry.timer", "OnActiveSec", "60s"},
		{"nixp2p.socket", "StartLimitIntervalSec", "0"},
		{"nixp2p-retry.timer", "StartLimitIntervalSec", "0"}, // each failed start starts it anew
		{"nixp2p-retry.timer", "RemainAfterElapse", "no"},
		{"nixp2p-retry.timer", "PartOf", "nixp2p.socket nixp2p.service"}, // stopped with them
		{"nixp2p-retry.service", "OnFailure", "nixp2p-retry.timer"},
		{"nixp2p-retry.service", "ExecStartPre", "/usr/local/bin/nixp2p version"},
	} {
		if got := setting(t, read(t, c.unit), c.key); got != c.want {
			t.Errorf("%s: %s=%s, want %s", c.unit, c.key, got, c.want)
		}
	}
	if strings.Contains(read(t, "nixp2p.service"), "RestartSteps") {
		t.Error("pauses that grow keep the service below its start limit")
	}
	if got := setting(t, read(t, "nixp2p.socket"), "ListenStream"); "`"+got+"`" != config.Rows()[0].Default {
		t.Errorf("the socket is on %s, --listen defaults to %s", got, config.Rows()[0].Default)
	}
}

// TestMemory: the unit, the Kubernetes manifest and docs/tuning.md name the same figures.
func TestMemory(t *testing.T) {
	service, manifest, doc := read(t, "nixp2p.service"), read(t, "../deploy/kubernetes.yaml"), read(t, "../docs/tuning.md")
	if got := setting(t, service, "MemoryHigh"); got != "256M" || !strings.Contains(manifest, "memory: 256Mi") || !strings.Contains(doc, "`MemoryHigh=256M`") {
		t.Errorf("MemoryHigh: %s", got)
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
			if bytes.Contains(line, []byte(name)) {
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
