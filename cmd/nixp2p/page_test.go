package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/nixtest/browser"
	"github.com/nixp2p/nixp2p/internal/nixtest/objectstore"
)

// TestPageOfSite takes pictures of the pages of real nodes, for people: a closed site whose mirror
// follows a list and writes a bucket, in the middle of transfers. The log has what `status` prints
// of each, and the upstream's own count of bytes.
func TestPageOfSite(t *testing.T) {
	dir := os.Getenv("NIXP2P_SCREENSHOTS")
	if dir == "" {
		t.Skip("skipped: NIXP2P_SCREENSHOTS names no directory")
	}
	b := browser.Start(t)
	key := nixtest.NewKey("cache.example.org-1")
	var paths, large []nixtest.Path
	for i, name := range []string{"glibc-2.40", "bash-5.3", "openssl-3.4.1", "firefox-unwrapped-142.0", "linux-6.12.9", "python3-3.13.2", "coreutils-9.6", "systemd-257.3"} {
		paths = append(paths, nixtest.NewPath(name, 200_000+150_000*i))
	}
	for i, name := range []string{"texlive-2025", "chromium-unwrapped-139.0", "libreoffice-25.2"} {
		large = append(large, nixtest.NewPath(name, 6<<20+i<<20))
	}
	store := objectstore.Start(t, "nix")
	up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: append(paths[:len(paths):len(paths)], large...), Keys: []nixtest.Key{key}, Compression: nix.Zstd})
	list := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, strings.Join(storePaths(paths[:5]), "\n"))
	}))
	t.Cleanup(list.Close)
	secret := filepath.Join(t.TempDir(), "swarm-key")
	text, _, _ := command(t, "swarm-key")
	if err := os.WriteFile(secret, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &site{t: t}
	for _, own := range [][]string{
		{"--peer-name", "mirror", "--follow", list.URL + "/nixos-unstable", "--bucket", store.URL("nix", "site")},
		{"--peer-name", "desk"},
		{"--peer-name", "laptop"},
	} {
		args := append([]string{
			"--store-root", t.TempDir(), "--mdns=false", "--p2p-listen", "/ip4/127.0.0.1/tcp/0", "--upstream", up.URL(),
			"--trusted-public-key", key.Public(), "--share-key", key.Name, "--swarm-key-file", secret,
		}, own...)
		if len(s.nodes) > 0 {
			args = append(args, "--bootstrap", s.nodes[0].peerAddr())
		}
		s.nodes = append(s.nodes, startDaemonWith(t, bucketEnv, args...))
	}
	s.meshed()
	for _, d := range s.nodes[1:] {
		if err := d.fetchAll(paths); err != nil {
			t.Fatal(err)
		}
	}
	up.Set(nixtest.NarFile, nixtest.Fault{Rate: 300_000})
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	defer clients.Wait()
	defer stop()
	for _, d := range s.nodes {
		for _, p := range large {
			clients.Go(func() { abandon(ctx, d, p) })
		}
	}
	<-time.After(8 * time.Second) // some of it has come
	for i, name := range []string{"mirror", "desk", "laptop"} {
		for width, height := range map[int64]int64{1280: 900, 390: 844} {
			tab := b.Open(t, width, height)
			tab.Load(s.nodes[i].admin + "/")
			tab.Screenshot(filepath.Join(dir, fmt.Sprintf("%s-%d.png", name, width)))
		}
		out, _, _ := command(t, "status", "--config", os.DevNull, "--admin-listen", strings.TrimPrefix(s.nodes[i].admin, "http://"))
		t.Logf("%s\n%s", name, out)
	}
	t.Logf("the upstream sent %d bytes of NARs, %d of narinfos, %d of nix-cache-info", up.Bytes(nixtest.NarFile), up.Bytes(nixtest.NarInfo), up.Bytes(nixtest.CacheInfo))
}

// abandon requests a NAR, and reads it until ctx ends.
func abandon(ctx context.Context, d *process, p nixtest.Path) {
	_, text := d.get(d.url + "/" + p.Hash().String() + ".narinfo")
	n, err := nix.ParseNarInfo([]byte(text))
	if err != nil {
		return
	}
	r, _ := http.NewRequestWithContext(ctx, http.MethodGet, d.url+"/"+n.URL, nil)
	if resp, err := http.DefaultClient.Do(r); err == nil {
		buf := make([]byte, 64<<10)
		for err == nil {
			_, err = resp.Body.Read(buf)
		}
		_ = resp.Body.Close()
	}
}
