//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
	"github.com/nixp2p/nixp2p/lab/rig"
)

// beMain makes the test binary run as the program: it has to start itself in namespaces.
const beMain = "NIXP2P_TEST_BE_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(beMain) == "1" || os.Getenv(clientEnv) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestSmoke: four hosts that nobody configured start cold at once. With leases the closure
// crosses the uplink once.
func TestSmoke(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped: four hosts with Nix take a quarter of a minute")
	}
	if err := rig.Able(); err != nil {
		t.Skipf("skipped: %v", err)
	}
	realnix.FindCorpus(t, realnix.Params{})
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-small", "-json", "-v", "-rows", "4-plain-discard-standing,4-leases-discard-standing")
	cmd.Env = append(os.Environ(), beMain+"=1")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, errs.String())
	}
	var results []*result
	if err := json.Unmarshal(out.Bytes(), &results); err != nil || len(results) != 2 {
		t.Fatalf("%v, %d results\n%s", err, len(results), errs.String())
	}
	for _, r := range results {
		t.Run(r.name(), func(t *testing.T) {
			if r.Skipped != "" {
				t.Skipf("skipped: %s; one download for a whole site is not asserted", r.Skipped)
			}
			t.Log(r.line())
			switch {
			case !r.good():
				t.Errorf("not each host has the closure\n%s", errs.String())
			case len(r.Finish) != r.Hosts:
				t.Errorf("%d hosts finished", len(r.Finish))
			case r.egress() < 1:
				t.Errorf("the upstream sent less than there is: %.3f", r.egress())
			case r.Arrangement == leases && r.egress() > 1.05:
				t.Errorf("the upstream sent %.3f of one copy, want at most 1.05", r.egress())
			}
		})
	}
}

func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range series() {
		got, err := parseRow(r.name())
		if err != nil || got != r {
			t.Errorf("%s: read as %+v, %v", r.name(), got, err)
		}
		if seen[r.name()] {
			t.Errorf("%s is there twice", r.name())
		}
		seen[r.name()] = true
	}
	for _, bad := range []string{"", "8", "8-leases", "8-lease-discard", "x-leases-discard", "8-leases-discard-lying", "8-leases-discard-standing-rain", "8-direct-discard-liars", "0-direct-nix"} {
		if r, err := parseRow(bad); err == nil {
			t.Errorf("%q is %+v", bad, r)
		}
	}
}

// madeUpResults has three sizes of a site; times and bytes grow with the copies.
func madeUpResults() (list []*result) {
	for _, a := range []string{direct, plain, leases} {
		for _, hosts := range []int{8, 16, 32} {
			copies := map[string]float64{direct: float64(hosts), plain: float64(hosts) / 4, leases: 1.01}[a]
			r := &result{row: row{hosts, a, discard, standing, none}, Paths: 10, FileBytes: 1000, NARBytes: int64(1000 * copies), OneCopy: 7, Uplink: 200, Cores: 2,
				Slowest: 7 * copies, Median: 7 * copies, NodeCPU: 2 * float64(hosts)}
			for range hosts {
				r.Finish = append(r.Finish, r.Slowest)
			}
			list = append(list, r)
		}
	}
	return append(list, &result{row: row{32, leases, discard, standing, killed}, FileBytes: 1, OneCopy: 7, Gone: 3, Paths: 1, Notes: []string{"h1 vanished | so"}})
}

func TestPictures(t *testing.T) {
	for name, svg := range map[string][]byte{"time": timePicture(madeUpResults()), "egress": egressPicture(madeUpResults())} {
		for dec := xml.NewDecoder(bytes.NewReader(svg)); ; {
			if _, err := dec.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		for _, want := range []string{"nodes with leases", "nodes without leases", "no nixp2p", "prefers-color-scheme: dark"} {
			if !strings.Contains(string(svg), want) {
				t.Errorf("%s: no %q", name, want)
			}
		}
		if n := strings.Count(string(svg), "<circle"); n != 9 {
			t.Errorf("%s: %d points, want 9", name, n)
		}
	}
	if labels := apart([]label{{y: 100}, {y: 101}, {y: 99}}); labels[0].y-labels[1].y < labelGap || labels[1].y-labels[2].y < labelGap {
		t.Errorf("labels cover each other: %+v", labels)
	}
}

func TestTables(t *testing.T) {
	text := performanceText(madeUpResults())
	for _, want := range []string{
		"| 32 | direct |  | 32.00 |", "| 32 | leases | standing | 1.01 |", "h1 vanished / so", "29, 3 gone",
		"- 32 hosts, discard, uplink 200 Mbit/s: upstream NAR bytes 1.010 × (aim ≤ 1.05): reached",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for text, want := range map[string]string{scaleText(madeUpResults()): "2.00 s of CPU a host", scaleText(madeUpResults()[:6]): "Not measured with leases"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

// TestClient: it gets each NAR after those of its references, goes on after a cut, and gives up
// on what is not there.
func TestClient(t *testing.T) {
	const a, b, c = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", "cccccccccccccccccccccccccccccccc"
	refs := map[string]string{a: b + "-b " + c + "-c", b: c + "-c " + b + "-b", c: ""}
	body := strings.Repeat("0123456789", 1000)
	var order []string
	cuts := 1
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		name := strings.TrimPrefix(req.URL.Path, "/")
		if hash, ok := strings.CutSuffix(name, ".narinfo"); ok {
			list, known := refs[hash]
			if !known {
				http.NotFound(w, req)
				return
			}
			hex := strings.Repeat("1", 52)
			_, _ = io.WriteString(w, "StorePath: /nix/store/"+hash+"-"+hash[:1]+"\nURL: nar/"+hash[:1]+"\nCompression: none\nNarHash: sha256:"+hex+"\nNarSize: 10000\nReferences: "+list+"\n")
			return
		}
		if name == "nar/b" && cuts > 0 {
			cuts--
			w.Header().Set("Content-Length", "10000")
			_, _ = io.WriteString(w, body[:3000])
			return
		}
		order = append(order, strings.TrimPrefix(name, "nar/")+req.Header.Get("Range"))
		http.ServeContent(w, req, "", time.Time{}, strings.NewReader(body))
	}))
	defer srv.Close()
	cl := &client{base: srv.URL, http: srv.Client()}
	top, err := nix.ParseStoreHash(a)
	if err != nil {
		t.Fatal(err)
	}
	res, err := cl.closure(t.Context(), top)
	if err != nil || res.Paths != 3 || res.Bytes != 30000 || res.Retries != 1 {
		t.Errorf("%+v, %v", res, err)
	}
	if got := strings.Join(order, " "); got != "c bbytes=3000- a" {
		t.Errorf("fetched %s", got)
	}
	delete(refs, c)
	if _, err := cl.closure(t.Context(), top); !errors.Is(err, errFinal) {
		t.Errorf("a narinfo that is not there: %v", err)
	}
}
