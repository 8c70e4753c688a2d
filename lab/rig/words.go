//go:build linux

package rig

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
)

// Until looks every 20 ms until f is true, and returns how long that took.
func Until(ctx context.Context, limit time.Duration, f func() bool) (time.Duration, bool) {
	start := time.Now()
	for {
		if f() {
			return time.Since(start), true
		}
		if time.Since(start) > limit || !Pause(ctx, 20*time.Millisecond) {
			return time.Since(start), false
		}
	}
}

// Pause waits, or returns false when ctx ends first.
func Pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// CommandError returns the end of what Nix said.
func CommandError(err error) string {
	var ce *realnix.CommandError
	if !errors.As(err, &ce) {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(ce.Stderr), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], " / ")
}

// Load returns how many processes of the machine want to run.
func Load() (f float64) {
	_, _ = fmt.Sscan(ReadText("/proc/loadavg"), &f)
	return f
}

// Seconds and Megabytes print.
func Seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

// Megabytes prints bytes.
func Megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

// HashOf returns the store hash of a path.
func HashOf(storePath string) string {
	name := strings.TrimPrefix(storePath, "/nix/store/")
	return name[:min(32, len(name))]
}

// NarInfoIn reads the narinfo of a path in the directory of a cache.
func NarInfoIn(dir, storePath string) (*nix.NarInfo, error) {
	text, err := os.ReadFile(filepath.Join(dir, HashOf(storePath)+".narinfo"))
	if err != nil {
		return nil, err
	}
	return nix.ParseNarInfo(text)
}

// CPUName tells what the machine has.
func CPUName() string {
	for line := range strings.Lines(ReadText("/proc/cpuinfo")) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			extra := ", no SHA instructions"
			if strings.Contains(ReadText("/proc/cpuinfo"), " sha_ni") {
				extra = ", SHA instructions"
			}
			return strings.TrimSpace(value) + extra
		}
	}
	return runtime.GOARCH
}

// Memory tells how much of it the machine has.
func Memory() string {
	var kb int64
	_, _ = fmt.Sscanf(ReadText("/proc/meminfo"), "MemTotal: %d kB", &kb)
	return fmt.Sprintf("%d GiB", (kb+1<<19)>>20)
}

// ReadText returns what a file says, or nothing.
func ReadText(name string) string {
	text, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	return string(text)
}

func removeAll(dir string) { _ = realnix.RemoveAll(dir) }

// HashRate is what SHA-256 makes on one core, in bytes a second.
func HashRate() (best float64) {
	block := make([]byte, 64<<20)
	for range 8 {
		start := time.Now()
		sha256.Sum256(block)
		best = max(best, float64(len(block))/time.Since(start).Seconds())
	}
	return best
}
