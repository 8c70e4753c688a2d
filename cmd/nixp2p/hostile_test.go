package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
	"github.com/nixp2p/nixp2p/verify"
)

// What an upstream can write into a narinfo must neither reach Nix nor hurt anybody.
func TestHostileNarinfos(t *testing.T) {
	t.Parallel()
	trusted, stranger := nixtest.NewKey("trusted-1"), nixtest.NewKey("stranger-1")
	victim, other := nixtest.NewPath("victim", 5000), nixtest.NewPath("other", 3000)
	text := func(change func(n *nix.NarInfo)) string {
		n := victim.Signed(trusted)
		change(n)
		return string(n.AppendText(nil))
	}
	good := text(func(*nix.NarInfo) {})
	forged := nix.Signature{KeyName: "trusted-1"}
	tests := []struct {
		name, body, reason string
		ok                 bool
	}{
		{name: "good", body: good, ok: true},
		{name: "valid narinfo of another path", body: string(other.Signed(trusted).AppendText(nil)), reason: "wrong_path"},
		{name: "signed by an untrusted key", body: string(victim.Signed(stranger).AppendText(nil)), reason: "unsigned"},
		{name: "trusted name with junk", body: text(func(n *nix.NarInfo) { n.Sigs = []nix.Signature{forged} }), reason: "bad_signature"},
		{name: "junk beside a good signature", body: text(func(n *nix.NarInfo) { n.Sigs = append([]nix.Signature{forged}, n.Sigs...) }) + "Sig: junk\nSig: x:!!\n", ok: true},
		{name: "10,000 signatures", body: good + strings.Repeat("Sig: a-1:"+strings.Repeat("A", 86)+"==\n", 10000), ok: true},
		{name: "unknown compression", body: strings.Replace(good, "Compression: none", "Compression: foo", 1)},
		{name: "carriage returns", body: strings.ReplaceAll(good, "\n", "\r\n"), reason: "corrupt"},
		{name: "NUL", body: strings.Replace(good, "Deriver", "De\x00river", 1) + "X: \x00\n", ok: true},
		{name: "HTML: a network's login page is no answer of the cache", body: "<html><body>log in to the hotel's Wi-Fi</body></html>\n"},
		{name: "size changed", body: text(func(n *nix.NarInfo) { n.NarSize++ }), reason: "bad_signature"},
	}
	var body string
	up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: []nixtest.Path{victim, other}, Keys: []nixtest.Key{trusted}})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			body = tt.body
			up.Set(nixtest.NarInfo, nixtest.Fault{Body: []byte(body)})
			d := startDaemon(t, "--p2p=false", "--upstream", up.URL(), "--trusted-public-key", trusted.Public(), "--store-root", t.TempDir())
			status, got := d.get(d.url + "/" + victim.Hash().String() + ".narinfo")
			if tt.ok {
				if status != http.StatusOK || strings.Contains(got, "junk") || strings.Contains(got, "!!") {
					t.Errorf("%d %q", status, got)
				}
				return
			}
			if status != http.StatusNotFound {
				t.Errorf("%d %q", status, got)
			}
			if n := d.metric("nixp2p_verify_failures_total", `source="upstream"`, `reason="`+tt.reason+`"`); tt.reason != "" && n < 1 {
				t.Errorf("not counted as %s:\n%s", tt.reason, d.logText())
			}
		})
	}
}

// A narinfo may say where its NAR is; that is no leave to read files or to follow it anywhere.
func TestHostileURLs(t *testing.T) {
	t.Parallel()
	trusted := nixtest.NewKey("trusted-1")
	p := nixtest.NewPath("elsewhere", 5000)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, p.NAR, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{"file://" + secret, "file:///etc/passwd", "../../../etc/passwd", "ftp://127.0.0.1/x", "http://127.0.0.1:1/x"} {
		n := p.Signed(trusted)
		n.URL = url
		up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: []nixtest.Path{p}, Keys: []nixtest.Key{trusted}})
		up.Set(nixtest.NarInfo, nixtest.Fault{Body: n.AppendText(nil)})
		d := startDaemon(t, "--p2p=false", "--upstream", up.URL(), "--trusted-public-key", trusted.Public(), "--store-root", t.TempDir())
		if status, body := d.get(d.url + "/nar/" + (nix.NARName{Store: p.Hash(), Nar: p.NarHash()}).String()); status != http.StatusNotFound {
			t.Errorf("URL %s: %d, %d bytes", url, status, len(body))
		}
	}
}

// One of two mirrors sends a wrong byte: the client gets the right bytes in the same response,
// unless the wrong one has left already.
func TestLyingMirror(t *testing.T) {
	t.Parallel()
	key := nixtest.NewKey("trusted-1")
	small, large := nixtest.NewPath("small", 100_000), nixtest.NewPath("large", 3<<20)
	paths := []nixtest.Path{small, large}
	for _, c := range []nix.Compression{nix.None, nix.XZ} {
		good := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: paths, Keys: []nixtest.Key{key}, Compression: c})
		bad := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: paths, Keys: []nixtest.Key{key}, Compression: c, Priority: 1})
		for _, p := range paths {
			for _, at := range []int64{500, int64(len(bad.File(p))) - 500} {
				bad.Set(nixtest.NarFile, nixtest.Fault{Do: nixtest.Flip, At: at})
				d := startDaemon(t, "--p2p=false", "--upstream", bad.URL(), "--upstream", good.URL(),
					"--trusted-public-key", key.Public(), "--store-root", t.TempDir())
				l := &load{url: d.url, paths: paths}
				l.get(t.Context(), t, p, 0)
				if sent := at < 1000 && len(p.NAR) > verify.TailSize; (l.whole.Load() == 1) == sent {
					t.Errorf("%s as %s, byte %d is wrong: %d whole\n%s", p.StorePath.Base(), c, at, l.whole.Load(), d.logText())
				}
				// The liar is known now.
				l.get(t.Context(), t, p, 0)
				if l.cut.Load() > 1 {
					t.Errorf("%s as %s: cut again", p.StorePath.Base(), c)
				}
			}
		}
	}
}

// A narinfo without end is read no further than the limit.
func TestEndlessNarinfo(t *testing.T) {
	t.Parallel()
	trusted := nixtest.NewKey("trusted-1")
	p := nixtest.NewPath("endless", 10)
	const gigabyte = 1 << 30
	sent := make(chan int64, 1)
	up := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, ".narinfo") {
			http.NotFound(w, r)
			return
		}
		line := []byte(strings.Repeat("Junk: "+strings.Repeat("x", 1000)+"\n", 1000))
		var n int64
		for n < gigabyte {
			k, err := w.Write(line)
			n += int64(k)
			if err != nil {
				break
			}
		}
		select {
		case sent <- n:
		default:
		}
	})
	d := startDaemon(t, "--p2p=false", "--upstream", up, "--trusted-public-key", trusted.Public(), "--store-root", t.TempDir())
	if status, _ := d.get(d.url + "/" + p.Hash().String() + ".narinfo"); status != http.StatusNotFound {
		t.Errorf("status %d", status)
	}
	if n := <-sent; n > 100<<20 {
		t.Errorf("%d bytes were taken of a narinfo", n)
	}
}

// nix-store --repair-path gets right bytes although the store that nixp2p serves is the broken
// one itself.
func TestRepair(t *testing.T) {
	t.Parallel()
	c := realnix.FindCorpus(t, realnix.Params{})
	up := serveFiles(t, c.Caches["xz"])
	n := realnix.Find(t)
	small := c.Paths[slices.IndexFunc(c.Paths, func(p realnix.Path) bool { return p.NarSize > 2000 && p.NarSize < 100000 })]
	for name, p := range map[string]realnix.Path{"small": small, "large": c.Largest()} {
		t.Run(name, func(t *testing.T) {
			client := n.TempClient(t, c.PublicKey)
			client.Substituters = []string{"file://" + c.Caches["none"]}
			if res, err := client.Realise(t.Context(), p.StorePath); err != nil {
				t.Fatalf("%v\n%s", err, res.Stderr)
			}
			flip(t, client.Real(p.StorePath))
			if _, err := client.VerifyAll(t.Context()); err == nil {
				t.Fatal("the damage is not seen: nothing to repair")
			}
			d := startDaemon(t, corpusArgs(c, up.URL, client.Root)...)
			askForDamaged(t, d, p)
			client.Substituters = []string{d.url, "file://" + c.Caches["none"]}
			if name == "small" {
				client.Substituters = client.Substituters[:1]
			}
			if res, err := client.RepairPath(t.Context(), p.StorePath); err != nil {
				t.Fatalf("repair: %v\n%s\n%s", err, res.Stderr, d.logText())
			}
			if res, err := client.VerifyAll(t.Context()); err != nil {
				t.Errorf("after the repair: %v\n%s", err, res.Stderr)
			}
		})
	}
}

// askForDamaged gets the NAR of a damaged path: at first it may be cut, since a large one is not
// held back whole, but it is never wrong, and then it comes from the upstream.
func askForDamaged(t *testing.T, d *process, p realnix.Path) {
	t.Helper()
	url := d.url + "/" + narURL(t, d, p.StorePath)
	if _, body := d.get(url); !strings.HasPrefix(body, "cut: ") {
		sameNAR(t, p, []byte(body))
	} else if p.NarSize <= 64<<20 {
		t.Errorf("the response was begun and cut: %s", body)
	}
	_, body := d.get(url)
	sameNAR(t, p, []byte(body))
	if d.metric("nixp2p_verify_failures_total", `source="store"`) < 1 {
		t.Errorf("the wrong bytes of the store are not counted:\n%s", d.logText())
	}
}

// flip changes one byte in the middle of the largest file below path.
func flip(t *testing.T, path string) {
	t.Helper()
	var largest string
	var size int64 = -1
	err := filepath.Walk(path, func(p string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() && info.Size() > size {
			largest, size = p, info.Size()
		}
		return err
	})
	if err != nil || size < 1 {
		t.Fatalf("no file to damage below %s: %v", path, err)
	}
	info, _ := os.Stat(largest)
	f, err := os.OpenFile(largest, os.O_RDWR, 0)
	if os.IsPermission(err) {
		_ = os.Chmod(largest, 0o644)
		f, err = os.OpenFile(largest, os.O_RDWR, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], size/2); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], size/2); err != nil {
		t.Fatal(err)
	}
	_ = os.Chmod(largest, info.Mode())
	_ = os.Chtimes(largest, time.Unix(1, 0), time.Unix(1, 0))
}

// A path is collected while it is being sent, or just before.
func TestCollectedWhileServed(t *testing.T) {
	t.Parallel()
	c := realnix.FindCorpus(t, realnix.Params{})
	p := c.Largest()
	client := realnix.Find(t).TempClient(t, c.PublicKey)
	client.Substituters = []string{"file://" + c.Caches["none"]}
	if res, err := client.Realise(t.Context(), p.StorePath); err != nil {
		t.Fatalf("%v\n%s", err, res.Stderr)
	}
	up := serveFiles(t, c.Caches["xz"])
	d := startDaemon(t, corpusArgs(c, up.URL, client.Root)...)
	url := d.url + "/" + narURL(t, d, p.StorePath)

	// A slow reader holds the response open while the path goes.
	res := open(t, url)
	defer res.Body.Close()
	first := make([]byte, 1<<20)
	if _, err := io.ReadFull(res.Body, first); err != nil {
		t.Fatal(err)
	}
	if res, err := client.Run(t.Context(), "nix-store", "--delete", p.StorePath); err != nil {
		t.Logf("deletion while it is served: %v\n%s", err, res.Stderr) // an open descriptor is a root
		if err := realnix.RemoveAll(client.Real(p.StorePath)); err != nil {
			t.Fatal(err)
		}
	}
	rest, err := io.ReadAll(res.Body)
	if err == nil {
		sameNAR(t, p, append(first, rest...))
	}
	// Afterwards, with the URL that was raw: from the upstream.
	if status, body := d.get(url); status != http.StatusOK {
		t.Errorf("after the collection: %d\n%s", status, d.logText())
	} else {
		sameNAR(t, p, []byte(body))
	}
}

func sameNAR(t *testing.T, p realnix.Path, nar []byte) {
	t.Helper()
	sum := sha256.Sum256(nar)
	if got := "sha256-" + base64.StdEncoding.EncodeToString(sum[:]); got != p.NarHash {
		t.Errorf("%d bytes with hash %s, want %s", len(nar), got, p.NarHash)
	}
}

// An unsigned path and one that a stranger signed look like one that does not exist.
func TestPrivatePathsLookAbsent(t *testing.T) {
	t.Parallel()
	c := realnix.FindCorpus(t, realnix.Params{})
	all, err := realnix.Find(t).NewClient(t.TempDir(), c.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	all.Root = c.StoreRoot
	paths, err := all.Paths(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var unsigned []string
	for _, p := range paths {
		if len(p.Sigs) == 0 {
			unsigned = append(unsigned, hashOf(p.StorePath))
		}
	}
	if len(unsigned) == 0 {
		t.Fatal("the corpus has no unsigned path")
	}
	// To this daemon the whole corpus is signed by a stranger.
	stranger := startDaemon(t, "--p2p=false", "--upstream", "http://127.0.0.1:1", "--store-root", c.StoreRoot,
		"--trusted-public-key", nixtest.NewKey("mine-1").Public())
	friend := startDaemon(t, corpusArgs(c, "http://127.0.0.1:1", c.StoreRoot)...)
	var foreign []string
	for _, p := range c.Paths {
		foreign = append(foreign, hashOf(p.StorePath))
	}
	absent := make([]string, 1000)
	for i := range absent {
		absent[i] = nixtest.NewPath(fmt.Sprintf("absent-%d", i), 0).Hash().String()
	}
	for _, tt := range []struct {
		name   string
		d      *process
		hashes []string
	}{{"unsigned", friend, unsigned}, {"signed by a stranger", stranger, foreign}} {
		probe(t, tt.d, absent[:100], absent[:100]) // a process that has just started is slower
		many := slices.Repeat(tt.hashes, len(absent)/len(tt.hashes)+1)[:len(absent)]
		hidden, none := probe(t, tt.d, many, absent)
		t.Logf("%s: %v, absent: %v (medians of %d each)", tt.name, hidden, none, 2*len(absent))
		if hidden > 2*none+time.Millisecond || none > 2*hidden+time.Millisecond {
			t.Errorf("%s paths take %v, absent ones %v", tt.name, hidden, none)
		}
	}
}

// probe asks for narinfos, all of which must be 404, and returns the median time of each list. It
// takes turns, so that what else the machine does makes both slower.
func probe(t *testing.T, d *process, a, b []string) (ofA, ofB time.Duration) {
	t.Helper()
	lists := [2][]string{a, b}
	var took [2][]time.Duration
	for range 2 {
		for i := range a {
			for k, list := range lists {
				start := time.Now()
				status, body := d.get(d.url + "/" + list[i] + ".narinfo")
				took[k] = append(took[k], time.Since(start))
				if status != http.StatusNotFound || body != "" {
					t.Fatalf("%s: %d %q", list[i], status, body)
				}
			}
		}
	}
	for _, all := range took {
		slices.Sort(all)
	}
	return took[0][len(took[0])/2], took[1][len(took[1])/2]
}

func open(t *testing.T, url string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", url, res.Status)
	}
	return res
}
