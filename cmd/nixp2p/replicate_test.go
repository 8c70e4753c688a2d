package main

import (
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
)

// awaitCopied waits until a mirror has copied so many paths.
func (d *process) awaitCopied(paths int) {
	d.t.Helper()
	for limit := time.Now().Add(3 * time.Minute); d.metric("nixp2p_replicated_total", `"copied"`) < float64(paths); <-time.After(50 * time.Millisecond) {
		if time.Now().After(limit) {
			d.t.Fatalf("%v of %d paths copied:\n%s", d.metric("nixp2p_replicated_total"), paths, d.logText())
		}
	}
}

// TestReplicate: an office of six, one of which is always on. What the others fetched is there when they
// have left and the uplink is cut; what only their own keys sign is not.
func TestReplicate(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts many daemons")
	}
	key, own := nixtest.NewKey("share-1"), nixtest.NewKey("own-1")
	paths, private := closure(40, 50<<10, 4<<20), []nixtest.Path{nixtest.NewPath("own-a", 70_000), nixtest.NewPath("own-b", 2_000_000)}
	up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: paths, Keys: []nixtest.Key{key}, Compression: nix.Zstd})
	secret := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: private, Keys: []nixtest.Key{own}, Compression: nix.Zstd})
	trust := []string{
		"--store-root", t.TempDir(), "--mdns=false", "--p2p-listen", "/ip4/127.0.0.1/tcp/0",
		"--trusted-public-key", key.Public(), "--trusted-public-key", own.Public(), "--share-key", key.Name,
	}
	s := &site{t: t}
	mirror := s.add(append(trust, "--replicate", "--upstream", "http://127.0.0.1:1")...)
	for range 5 {
		s.add(append(trust, "--upstream", up.URL(), "--upstream", secret.URL())...)
	}
	s.meshed()
	var all sync.WaitGroup
	for i, d := range s.nodes[1:] {
		all.Go(func() { // the last one has nothing that others have
			some := paths[:len(paths)/2]
			if i == 4 {
				some = append(paths[len(paths)/2:len(paths):len(paths)], private...)
			}
			if err := d.fetchAll(some); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	mirror.awaitCopied(len(paths))
	var st admin.Status
	if _, text := mirror.get(mirror.admin + "/api/v1/status"); json.Unmarshal([]byte(text), &st) != nil || st.Replicate == nil || st.Replicate.Copied != len(paths) || st.Replicate.Full {
		t.Errorf("the status says %+v", st.Replicate)
	}
	for _, d := range s.nodes[1:] {
		d.stop()
	}
	up.Stop()
	secret.Stop()
	guest := startDaemon(t, append(trust, "--upstream", "http://127.0.0.1:1", "--bootstrap", mirror.peerAddr())...)
	(&site{t: t, nodes: []*process{guest, mirror}}).meshed()
	for limit := time.Now().Add(time.Minute); ; <-time.After(100 * time.Millisecond) {
		err := guest.fetchAll(paths)
		if err == nil {
			break
		}
		if time.Now().After(limit) { // its inventory may not have come yet
			t.Fatal(err)
		}
	}
	for _, p := range private {
		if status, _ := mirror.get(mirror.url + "/" + p.Hash().String() + ".narinfo"); status != 404 {
			t.Errorf("the mirror has %s, which no share key signed: %d", p.StorePath.Base(), status)
		}
	}
	if n := mirror.metric("nixp2p_upstream_bytes_total"); n != 0 {
		t.Errorf("the mirror got %v bytes from an upstream", n)
	}
}
