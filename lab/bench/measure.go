package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
)

// wrkResult is one run of wrk.
type wrkResult struct {
	perSecond float64
	p99       time.Duration
	cpu       time.Duration // of the server, per request
}

const wrkTime = 2 * time.Second

var (
	wrkRate = regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`)
	wrkP99  = regexp.MustCompile(`99%\s+([0-9.]+)(us|ms|s)`)
)

// wrk asks for paths in turn, in a closed loop over n connections.
func (b *bench) wrk(s *server, paths []string, n int) (wrkResult, error) {
	script := filepath.Join(b.dir, "paths.lua")
	lua := "local paths = {\n\"" + strings.Join(paths, "\",\n\"") + "\"}\nlocal i = 0\nrequest = function() i = i % #paths + 1; return wrk.format('GET', paths[i]) end\n"
	if err := os.WriteFile(script, []byte(lua), 0o644); err != nil {
		return wrkResult{}, err
	}
	before := s.usage()
	out, err := exec.CommandContext(b.ctx, "wrk", "-t1", "-c"+strconv.Itoa(n), "-d", wrkTime.String(), "--latency", "-s", script, s.url).CombinedOutput()
	if err != nil {
		return wrkResult{}, fmt.Errorf("wrk: %w\n%s", err, out)
	}
	rate, p99 := wrkRate.FindSubmatch(out), wrkP99.FindSubmatch(out)
	if rate == nil || p99 == nil {
		return wrkResult{}, fmt.Errorf("wrk said:\n%s", out)
	}
	var r wrkResult
	r.perSecond, _ = strconv.ParseFloat(string(rate[1]), 64)
	r.p99, _ = time.ParseDuration(string(p99[1]) + string(p99[2]))
	r.cpu = time.Duration((s.usage().cpu - before.cpu) / (r.perSecond * wrkTime.Seconds()) * float64(time.Second))
	return r, nil
}

// narinfoPaths are the URLs of the corpus's narinfos.
func (b *bench) narinfoPaths() []string {
	paths := make([]string, 0, len(b.corpus.Paths))
	for _, p := range b.corpus.Paths {
		paths = append(paths, "/"+strings.TrimPrefix(p.StorePath, "/nix/store/")[:32]+".narinfo")
	}
	return paths
}

// fetchAll gets every path once, one after the other, so that it is remembered.
func fetchAll(s *server, paths []string) error {
	for _, p := range paths {
		res, err := http.Get(s.url + p)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

var narLine = regexp.MustCompile(`(?m)^URL: (.*)$`)

// narPaths are the URLs of the corpus's NARs as s offers them, largest first.
func (b *bench) narPaths(s *server) ([]string, error) {
	order := slices.Clone(b.corpus.Paths)
	slices.SortFunc(order, func(x, y realnix.Path) int { return int(y.NarSize - x.NarSize) })
	var paths []string
	for _, p := range order {
		res, err := http.Get(s.url + "/" + strings.TrimPrefix(p.StorePath, "/nix/store/")[:32] + ".narinfo")
		if err != nil {
			return nil, err
		}
		text, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		m := narLine.FindSubmatch(text)
		if err != nil || m == nil {
			return nil, fmt.Errorf("narinfo of %s: %w, %q", p.StorePath, err, text)
		}
		paths = append(paths, "/"+string(m[1]))
	}
	return paths, nil
}

// curl gets all paths, streams at a time, and returns how long it took.
func (b *bench) curl(s *server, paths []string, streams int) (time.Duration, error) {
	var conf bytes.Buffer
	for _, p := range paths {
		fmt.Fprintf(&conf, "url = \"%s%s\"\noutput = \"/dev/null\"\n", s.url, p)
	}
	args := []string{"--silent", "--show-error", "--fail", "--config", "-"}
	if streams > 1 {
		args = append(args, "--parallel", "--parallel-immediate", "--parallel-max", strconv.Itoa(streams))
	}
	cmd := exec.CommandContext(b.ctx, "curl", args...)
	cmd.Stdin = &conf
	start := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("curl: %w\n%s", err, out)
	}
	return time.Since(start), nil
}

// copyResult is one nix copy of the closure into an empty store.
type copyResult struct {
	wall   time.Duration
	client time.Duration // CPU of Nix
	server time.Duration // CPU of the server
}

// copyClosure lets Nix copy the closure from s into an empty store in memory, and checks that all
// is there.
func (b *bench) copyClosure(s *server) (copyResult, error) {
	parent := "/dev/shm"
	if _, err := os.Stat(parent); err != nil {
		parent = b.dir
	}
	dir, err := os.MkdirTemp(parent, "nixp2p-bench-client-")
	if err != nil {
		return copyResult{}, err
	}
	defer func() { _ = realnix.RemoveAll(dir) }()
	client, err := b.nix.NewClient(filepath.Join(dir, "c"), b.corpus.PublicKey)
	if err != nil {
		return copyResult{}, err
	}
	before := s.usage()
	res, err := client.Copy(b.ctx, s.url, b.corpus.Top)
	if err != nil {
		return copyResult{}, fmt.Errorf("%w\n%s", err, res.Stderr)
	}
	r := copyResult{wall: res.Wall, client: res.CPU, server: time.Duration((s.usage().cpu - before.cpu) * float64(time.Second))}
	paths, err := client.Paths(b.ctx)
	if err == nil && len(paths) != len(b.corpus.Paths) {
		err = fmt.Errorf("%d of %d paths arrived", len(paths), len(b.corpus.Paths))
	}
	return r, err
}
