package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
)

func parseFloat(s string) float64 {
	f, _ := strconv.ParseFloat(strings.TrimSpace(s), 64)
	return f
}

// keyName returns the name of a public key.
func keyName(public string) string {
	name, _, _ := strings.Cut(public, ":")
	return name
}

// corpusArgs are the flags of a daemon whose upstream has the corpus.
func corpusArgs(c *realnix.Corpus, upstream, root string) []string {
	return []string{
		"--p2p=false", "--upstream", upstream, "--store-root", root,
		"--trusted-public-key", c.PublicKey, "--share-key", keyName(c.PublicKey),
	}
}

// serveFiles is a plain HTTP server over a directory.
func serveFiles(t testing.TB, dir string) *httptest.Server {
	s := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(s.Close)
	return s
}

// newServer serves a handler and returns its URL.
func newServer(t testing.TB, h http.HandlerFunc) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// eachNix runs a test with the machine's Nix, and with those in trees where they are.
func eachNix(t *testing.T, test func(t *testing.T, nix *realnix.Nix)) {
	t.Run("machine", func(t *testing.T) { test(t, realnix.Find(t)) })
	for _, v := range realnix.Variants() {
		t.Run(v.Name, func(t *testing.T) { test(t, realnix.FindVariant(t, v)) })
	}
}

// check compares a client's store with the corpus: all contents right, all signatures there.
func check(t *testing.T, client *realnix.Client, c *realnix.Corpus) {
	t.Helper()
	if res, err := client.VerifyAll(t.Context()); err != nil {
		t.Fatalf("verify: %v\n%s", err, res.Stderr)
	}
	got, err := client.Sigs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{}
	for _, p := range c.Paths {
		want[p.StorePath] = p.Sigs
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%d paths with their signatures, want %d; they differ", len(got), len(want))
	}
}

func TestClosureFromUpstream(t *testing.T) {
	t.Parallel()
	c := realnix.FindCorpus(t, realnix.Params{})
	for compression, dir := range c.Caches {
		t.Run(compression, func(t *testing.T) {
			t.Parallel()
			d := startDaemon(t, corpusArgs(c, serveFiles(t, dir).URL, t.TempDir())...)
			if compression != "xz" { // other Nixes and other commands see the difference in one of them
				realise(t, realnix.Find(t), c, d)
				return
			}
			eachNix(t, func(t *testing.T, nix *realnix.Nix) {
				useCommands(t, nix, c, d)
			})
		})
	}
}

// The same without any upstream: everything comes from the store, raw.
func TestClosureFromStore(t *testing.T) {
	t.Parallel()
	c := realnix.FindCorpus(t, realnix.Params{})
	d := startDaemon(t, corpusArgs(c, "http://127.0.0.1:1", c.StoreRoot)...)
	eachNix(t, func(t *testing.T, nix *realnix.Nix) {
		before := d.metric("nixp2p_nar_bytes_total", `source="store"`)
		useCommands(t, nix, c, d)
		if sent := d.metric("nixp2p_nar_bytes_total", `source="store"`) - before; sent < float64(2*c.NARBytes) {
			t.Errorf("%.0f bytes from the store, want two times %d: all raw", sent, c.NARBytes)
		}
	})
	if n := d.metric("nixp2p_upstream_bytes_total"); n != 0 {
		t.Errorf("%.0f bytes from an upstream that is off", n)
	}
}

// useCommands does what users do, each into an empty store.
func useCommands(t *testing.T, nix *realnix.Nix, c *realnix.Corpus, d *process) {
	t.Helper()
	client := nix.TempClient(t, c.PublicKey)
	if res, err := client.Copy(t.Context(), d.url, c.Top); err != nil {
		t.Fatalf("nix copy: %v\n%s", err, res.Stderr)
	}
	check(t, client, c)

	realise(t, nix, c, d)

	client = nix.TempClient(t, c.PublicKey)
	paths, res, err := client.PathInfoR(t.Context(), d.url, c.Top)
	if err != nil || len(paths) != len(c.Paths) {
		t.Errorf("nix path-info -r: %d paths, want %d; %v\n%s", len(paths), len(c.Paths), err, res.Stderr)
	}
}

func realise(t *testing.T, nix *realnix.Nix, c *realnix.Corpus, d *process) {
	t.Helper()
	client := nix.TempClient(t, c.PublicKey)
	client.Substituters = []string{d.url}
	if res, err := client.Realise(t.Context(), c.Top); err != nil {
		t.Fatalf("nix-store -r: %v\n%s", err, res.Stderr)
	}
	check(t, client, c)
}

// What Nix remembers of us for 30 days has to work when everything has changed meanwhile.
func TestRememberedURLs(t *testing.T) {
	t.Parallel()
	c := realnix.FindCorpus(t, realnix.Params{})
	up := serveFiles(t, c.Caches["xz"])
	empty := t.TempDir()
	d := startDaemon(t, corpusArgs(c, up.URL, empty)...)
	client := realnix.Find(t).TempClient(t, c.PublicKey)
	client.Substituters = []string{d.url}
	if _, _, err := client.PathInfoR(t.Context(), d.url, c.Top); err != nil {
		t.Fatal(err)
	}
	xz := narURL(t, d, c.Top)
	if !strings.HasSuffix(xz, ".nar.xz") {
		t.Fatalf("the NAR is offered as %s, want the upstream's file", xz)
	}
	// The upstream goes away; the store has the paths by now. Nothing is in the NAR cache.
	up.Close()
	d.restart(corpusArgs(c, "http://127.0.0.1:1", c.StoreRoot)...)
	if res, err := client.Realise(t.Context(), c.Top); err != nil {
		t.Fatalf("nix-store -r with remembered .nar.xz URLs: %v\n%s", err, res.Stderr)
	}
	check(t, client, c)
	if n := d.metric("nixp2p_narinfo_requests_total"); n > float64(2*len(c.Paths)) {
		t.Errorf("%.0f narinfo answers: the client was to remember them", n)
	}

	// A raw URL after a restart, with no narinfo request before it.
	raw := narURL(t, d, c.Top)
	if !strings.HasSuffix(raw, ".nar") {
		t.Fatalf("the NAR is offered as %s, want raw", raw)
	}
	d.restart(d.args...)
	if status, body := d.get(d.url + "/" + raw); status != http.StatusOK || len(body) == 0 || strings.HasPrefix(body, "cut") {
		t.Errorf("raw URL after a restart: %d, %d bytes", status, len(body))
	}

	// A narinfo on disk from before its key was removed.
	d.restart("--p2p=false", "--upstream", "http://127.0.0.1:1", "--store-root", empty)
	for _, p := range c.Paths[:20] {
		if status, _ := d.get(d.url + "/" + hashOf(p.StorePath) + ".narinfo"); status != http.StatusNotFound {
			t.Fatalf("%s: %d although its key is trusted no more", p.StorePath, status)
		}
	}
	if status, _ := d.get(d.url + "/" + raw); status != http.StatusNotFound {
		t.Errorf("NAR of a path whose key is trusted no more: %d", status)
	}
}

func hashOf(storePath string) string { return storePath[len("/nix/store/"):][:32] }

// narURL returns the URL line of a path's narinfo.
func narURL(t *testing.T, d *process, storePath string) string {
	t.Helper()
	status, body := d.get(d.url + "/" + hashOf(storePath) + ".narinfo")
	for line := range strings.Lines(body) {
		if url, ok := strings.CutPrefix(line, "URL: "); ok {
			return strings.TrimSpace(url)
		}
	}
	t.Fatalf("narinfo of %s: %d %s", storePath, status, fmt.Sprintf("%.200q", body))
	return ""
}
