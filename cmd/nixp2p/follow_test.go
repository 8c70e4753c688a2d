package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
)

// followEnv says how many paths the channel of TestFollow has; 100000 takes some minutes.
const followEnv = "NIXP2P_TEST_FOLLOW_PATHS"

// channel is a channel as it is published, a cache that has its paths, and a daemon that follows it.
type channel struct {
	t        *testing.T
	up       *nixtest.Upstream
	releases [][]nixtest.Path
	d        *process

	mu   sync.Mutex
	name string // of the release to which it redirects
	list string
}

// newChannel makes three releases of n paths. A fifth of the paths of each is new in the next. Nothing
// is published yet.
func newChannel(t *testing.T, n, size int, flags ...string) *channel {
	key := nixtest.NewKey("share-1")
	var all []nixtest.Path
	for i := range n + 2*(n/5) {
		all = append(all, nixtest.NewPath(fmt.Sprintf("path-%d", i), size/2+rand.N(size)))
	}
	c := &channel{t: t}
	for r := range 3 {
		c.releases = append(c.releases, all[r*(n/5):r*(n/5)+n])
	}
	compression := nix.Zstd
	if n > 10_000 { // an encoder for each takes minutes
		compression = nix.None
	}
	c.up = nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: all, Keys: []nixtest.Key{key}, Compression: compression})
	s := httptest.NewServer(c)
	t.Cleanup(s.Close)
	c.d = &process{t: t, dir: t.TempDir(), args: append([]string{
		"--store-root", t.TempDir(), "--p2p=false", "--upstream", c.up.URL(), "--trusted-public-key", key.Public(),
		"--share-key", key.Name, "--follow", s.URL + "/channel", "--log-level", "info",
	}, flags...)}
	return c
}

// ServeHTTP redirects as channels do.
func (c *channel) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.URL.Path == "/channel" {
		http.Redirect(w, r, "/releases/"+c.name, http.StatusFound)
		return
	}
	w.Header().Set("ETag", `"`+c.name+`"`)
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(c.list))
}

func (c *channel) publish(name string, paths []nixtest.Path) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.name, c.list = name, strings.Join(storePaths(paths), "\n")
}

// look has the daemon look at the channel now.
func (c *channel) look() {
	c.t.Helper()
	if _, text, code := command(c.t, "follow", "--now", "--admin-listen", strings.TrimPrefix(c.d.admin, "http://")); code != 0 {
		c.t.Fatal(text)
	}
}

func (c *channel) status() admin.Followed {
	c.t.Helper()
	var s admin.Status
	_, text := c.d.get(c.d.admin + "/api/v1/status")
	if err := json.Unmarshal([]byte(text), &s); err != nil || len(s.Follow) != 1 {
		c.t.Fatal(text, err)
	}
	return s.Follow[0]
}

// whole reports whether all of a release is here.
func (c *channel) whole(name string) bool {
	s := c.status()
	return len(s.Generations) > 0 && strings.HasSuffix(s.Generations[0].From, "/"+name) && s.Generations[0].Complete && s.MissingPaths == 0
}

// await waits until all of a release is here, and has the list looked at first.
func (c *channel) await(name string) {
	c.t.Helper()
	c.look()
	for limit := time.Now().Add(20 * time.Minute); !c.whole(name); <-time.After(100 * time.Millisecond) {
		if time.Now().After(limit) {
			c.t.Fatalf("%s: %+v\n%s", name, c.status(), c.d.logText())
		}
	}
}

// untilFetched waits until so many bytes more have come from the cache, or all of the release is here.
func (c *channel) untilFetched(bytes int64, name string) {
	c.t.Helper()
	for until := c.up.Bytes(nixtest.NarFile) + bytes; c.up.Bytes(nixtest.NarFile) < until && !c.whole(name); {
		wait(c.t.Context(), 5*time.Millisecond)
	}
}

// bytes returns what files of paths take that are in none of the other list.
func (c *channel) bytes(paths, without []nixtest.Path) (sum int64) {
	there := map[nix.StoreHash]bool{}
	for _, p := range without {
		there[p.Hash()] = true
	}
	for _, p := range paths {
		if !there[p.Hash()] {
			sum += int64(len(c.up.File(p)))
		}
	}
	return sum
}

// has reports whether the daemon gives the NAR without its upstream.
func (c *channel) has(p nixtest.Path) bool {
	status, _ := c.d.get(c.d.url + "/nar/" + nix.NARName{Store: p.Hash(), Nar: p.NarHash()}.String())
	return status == http.StatusOK
}

// wantHere looks whether exactly some paths are here.
func (c *channel) wantHere(here, gone []nixtest.Path) {
	c.t.Helper()
	c.up.Stop()
	defer c.up.Start()
	step := max(1, len(here)/200)
	for i := 0; i < len(here); i += step {
		if !c.has(here[i]) {
			c.t.Errorf("path %d of %d is lost", i, len(here))
		}
	}
	// It goes in the background, and not if it is asked for meanwhile: what is read is of use.
	kept := func(p nixtest.Path) bool {
		files, err := filepath.Glob(filepath.Join(c.d.dir, "cache", cacheSubdir, "?", p.NarHash().Nix32()+"-*"))
		return err != nil || len(files) > 0
	}
	for i := 0; i < len(gone); i += step {
		for limit := time.Now().Add(time.Minute); kept(gone[i]); wait(c.t.Context(), 100*time.Millisecond) {
			if time.Now().After(limit) {
				c.t.Errorf("path %d of %d is still here", i, len(gone))
				return
			}
		}
		if c.has(gone[i]) {
			c.t.Errorf("path %d of %d is given all the same", i, len(gone))
		}
	}
}

// TestFollow: a channel with three releases. Of each, what is new is fetched and nothing else; what only
// the first had goes after the third; a list that becomes empty and a channel that goes back cost nothing.
func TestFollow(t *testing.T) {
	t.Parallel()
	n := int(number(t, followEnv, 2000))
	if testing.Short() {
		n = 200
	}
	c := newChannel(t, n, min(20_000, 40_000_000/n), "--cache-size", "1GiB")
	c.publish("0", c.releases[0])
	c.d.start()
	defer c.d.stop()
	var last []nixtest.Path
	for r, release := range c.releases {
		name, before, began := strconv.Itoa(r), c.up.Bytes(nixtest.NarFile), time.Now()
		c.publish(name, release)
		c.await(name)
		got, want := c.up.Bytes(nixtest.NarFile)-before, c.bytes(release, last)
		t.Logf("release %s: %d bytes new, %d fetched, in %v; memory %d MB", name, want, got, time.Since(began).Round(time.Second/10), c.d.memory()>>20)
		if got != want {
			t.Errorf("release %s: %d bytes fetched, %d are new", name, got, want)
		}
		last = release
	}
	fetched, kept := c.up.Bytes(nixtest.NarFile), append(c.releases[1][:n/5:n/5], c.releases[2]...)
	c.wantHere(kept, c.releases[0][:n/5])
	c.publish("empty", nil)
	c.look()
	if s := c.status(); !strings.Contains(s.Error, "empty") {
		t.Errorf("an empty list is not reported: %+v", s)
	}
	if text, _, _ := command(t, "follow", "--admin-listen", strings.TrimPrefix(c.d.admin, "http://")); !strings.Contains(text, "empty") {
		t.Errorf("nixp2p follow does not say it: %s", text)
	}
	c.publish("back", c.releases[1])
	c.await("back")
	c.wantHere(kept, nil)
	if more := c.up.Bytes(nixtest.NarFile) - fetched; more != 0 {
		t.Errorf("%d bytes fetched again", more)
	}
	if m := c.d.memory(); m > 200<<20 {
		t.Errorf("%d MB of memory", m>>20)
	}
}

// TestFollowKilled: a daemon that is killed at any moment goes on where it was, and its cache is never
// larger than it may be.
func TestFollowKilled(t *testing.T) {
	t.Parallel()
	const bound = 48 << 20
	n, kills := 2000, int(number(t, killsEnv, 20))
	if testing.Short() {
		n, kills = 300, 5
	}
	c := newChannel(t, n, bound*7/10/n, "--cache-size", strconv.Itoa(bound)) // two releases fit just so
	c.publish("0", c.releases[0])
	release, most, needed := 0, int64(0), c.bytes(c.releases[0], nil)
	for i := range kills {
		c.d.start()
		if i%4 == 0 {
			wait(t.Context(), rand.N(time.Second))
		} else { // how fast it is does not matter: at any part of the bytes
			c.untilFetched(rand.Int64N(c.bytes(c.releases[0], nil)/5), strconv.Itoa(release))
		}
		if release < 2 && c.whole(strconv.Itoa(release)) {
			release++
			needed += c.bytes(c.releases[release], c.releases[release-1])
			c.publish(strconv.Itoa(release), c.releases[release])
			c.look()
			c.untilFetched(rand.Int64N(c.bytes(c.releases[0], nil)/5), strconv.Itoa(release))
		}
		_ = c.d.cmd.Process.Signal(syscall.SIGSTOP) // so that all files are of one moment
		most = max(most, onDisk(t, c.d.dir+"/cache"))
		c.d.kill()
	}
	c.d.start()
	defer c.d.stop()
	c.await(strconv.Itoa(release))
	fetched := c.up.Bytes(nixtest.NarFile)
	t.Logf("%d kills, release %d: %d bytes needed, %d fetched; %d bytes on disk at most, %d allowed", kills, release, needed, fetched, most, bound)
	if most > bound {
		t.Errorf("the cache took %d bytes, it may take %d", most, bound)
	}
	if fetched > needed+needed/2 {
		t.Errorf("%d bytes fetched, %d are needed: it began again and again", fetched, needed)
	}
	c.wantHere(c.releases[release], nil)
}
