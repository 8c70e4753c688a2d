package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
)

// farLink is a way to a mirror that counts what comes over it, at 20 Mbit/s and with a delay.
func farLink(t *testing.T, to string) (at string, came *atomic.Int64) {
	t.Helper()
	target, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	came = &atomic.Int64{}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.FlushInterval = -1
	return newServer(t, func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(40 * time.Millisecond)
		proxy.ServeHTTP(slowWriter{w, came}, r)
	}), came
}

type slowWriter struct {
	http.ResponseWriter
	came *atomic.Int64
}

func (s slowWriter) Unwrap() http.ResponseWriter { return s.ResponseWriter }

func (s slowWriter) Write(b []byte) (int, error) {
	const rate = 20e6 / 8
	time.Sleep(time.Duration(float64(len(b)) / rate * float64(time.Second)))
	s.came.Add(int64(len(b)))
	return s.ResponseWriter.Write(b)
}

// TestDeltaFromMirror: a mirror that has two versions of some paths, in its store or as files in its cache, sends what
// differs over a slow link, the real Nix gets the newer ones without noticing, and they verify.
func TestDeltaFromMirror(t *testing.T) {
	t.Parallel()
	for _, place := range []string{"store", "cache"} {
		t.Run(place, func(t *testing.T) {
			t.Parallel()
			deltaFromMirror(t, place)
		})
	}
}

func deltaFromMirror(t *testing.T, place string) {
	key := nixtest.NewKey("cache.example.org-1")
	var olds, news []nixtest.Path
	for _, name := range []string{"app", "lib", "tool"} {
		old, now := nixtest.NewPath(name+"-1.0", 700_000), nixtest.NewPath(name+"-1.1", 1000)
		contents := bytes.Clone(old.Contents)
		for i := 1000; i < len(contents); i += 50_000 {
			copy(contents[i:], "a hash that is another one in each build")
		}
		now.Contents, now.NAR = contents, nixtest.FileNAR(contents)
		olds, news = append(olds, old), append(news, now)
	}
	cache := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: append(olds, news...), Keys: []nixtest.Key{key}, Compression: nix.XZ})
	machine := realnix.Find(t)
	args := func(root, upstream string, more ...string) []string {
		return append([]string{
			"--p2p=false", "--upstream", upstream, "--store-root", root, "--trusted-public-key", key.Public(), "--share-key", key.Name,
		}, more...)
	}
	client := func(paths ...nixtest.Path) *realnix.Client {
		c := machine.TempClient(t, key.Public())
		if len(paths) == 0 {
			return c
		}
		if res, err := c.Copy(t.Context(), cache.URL(), storePaths(paths)...); err != nil {
			t.Fatalf("%v\n%s", err, res.Stderr)
		}
		return c
	}
	var mirror *process
	if place == "store" {
		mirror = startDaemon(t, args(client(append(olds, news...)...).Root, cache.URL())...)
	} else {
		mirror = startDaemon(t, args(client().Root, cache.URL())...)
		reader := machine.TempClient(t, key.Public())
		if res, err := reader.Copy(t.Context(), mirror.url, storePaths(append(olds, news...))...); err != nil {
			t.Fatalf("%v\n%s", err, res.Stderr)
		}
	}
	var over [2]int64
	for i, on := range []string{"--delta=true", "--delta=false"} {
		link, came := farLink(t, mirror.url)
		taker := client(olds...)
		d := startDaemon(t, args(taker.Root, link, on)...)
		var why string
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
			why = whyOf(t, d, news[0])
			if on == "--delta=false" || why != "" {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("no base is known\n%s", d.logText())
			}
		}
		if want := map[bool]string{true: olds[0].StorePath.String()}[i == 0]; why != want {
			t.Errorf("%s: why names %q", on, why)
		}
		before := came.Load()
		if res, err := taker.Copy(t.Context(), d.url, storePaths(news)...); err != nil {
			t.Fatalf("%s: %v\n%s\n%s", on, err, res.Stderr, d.logText())
		}
		over[i] = came.Load() - before
		var s admin.Status
		if _, text := d.get(d.admin + "/api/v1/status"); json.Unmarshal([]byte(text), &s) != nil || (s.Deltas.NARs > 0) != (i == 0) || (s.Deltas.SavedBytes > 1e6) != (i == 0) {
			t.Errorf("%s: status says %+v", on, s.Deltas)
		}
		for _, p := range news {
			if res, err := taker.Run(t.Context(), "nix-store", "--verify-path", p.StorePath.String()); err != nil {
				t.Errorf("verify: %v\n%s", err, res.Stderr)
			}
		}
	}
	t.Logf("%d bytes came as deltas, %d without", over[0], over[1])
	if over[0]*20 > over[1] {
		t.Errorf("%d bytes came as deltas, %d without", over[0], over[1])
	}
}

func storePaths(paths []nixtest.Path) (list []string) {
	for _, p := range paths {
		list = append(list, p.StorePath.String())
	}
	return list
}

// whyOf returns the base that an upstream would be told of.
func whyOf(t *testing.T, d *process, p nixtest.Path) string {
	t.Helper()
	var w admin.Why
	_, text := d.get(d.admin + "/api/v1/why/" + p.Hash().String())
	if err := json.Unmarshal([]byte(text), &w); err != nil {
		t.Fatal(err, text)
	}
	for _, a := range w.Answers {
		if len(a.DeltaBases) > 0 {
			return strings.Join(a.DeltaBases, " ")
		}
	}
	return ""
}
