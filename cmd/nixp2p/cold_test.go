package main

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
)

// site is daemons on loopback that know each other.
type site struct {
	t     testing.TB
	nodes []*process
}

// newSite starts n daemons and waits until all are connected to all.
func newSite(t testing.TB, n int, args ...string) *site {
	t.Helper()
	s := &site{t: t}
	args = append([]string{
		"--store-root", t.TempDir(), "--mdns=false", "--p2p-listen", "/ip4/127.0.0.1/tcp/0",
	}, args...)
	for range n {
		s.add(args...)
	}
	s.meshed()
	return s
}

func (s *site) add(args ...string) *process {
	s.t.Helper()
	if len(s.nodes) > 0 {
		args = append(args, "--bootstrap", s.nodes[0].peerAddr())
	}
	d := startDaemon(s.t, args...)
	s.nodes = append(s.nodes, d)
	return d
}

// meshed waits until all are connected to all.
func (s *site) meshed() {
	s.t.Helper()
	limit := time.Now().Add(2 * time.Minute)
	for _, d := range s.nodes {
		for d.metric("nixp2p_peers") < float64(len(s.nodes)-1) {
			if time.Now().After(limit) {
				s.t.Fatalf("a node has %v peers", d.metric("nixp2p_peers"))
			}
			<-time.After(20 * time.Millisecond)
		}
	}
}

// peerAddr returns where other nodes reach this one.
func (d *process) peerAddr() string {
	d.t.Helper()
	for limit := time.Now().Add(time.Minute); time.Now().Before(limit); <-time.After(10 * time.Millisecond) {
		if _, rest, ok := strings.Cut(d.logText(), "peers can connect"); ok {
			if _, rest, ok = strings.Cut(rest, "addresses=["); ok {
				addr, _, _ := strings.Cut(rest, "]")
				return strings.Fields(addr)[0]
			}
		}
	}
	d.t.Fatalf("a daemon does not listen for peers:\n%s", d.logText())
	return ""
}

// closure is paths of log-normal sizes, the last one large.
func closure(n, median, large int) []nixtest.Path {
	rng := rand.New(rand.NewPCG(1, 2))
	var paths []nixtest.Path
	for i := range n {
		size := int(float64(median) * math.Exp(1.5*rng.NormFloat64()))
		paths = append(paths, nixtest.NewPath(fmt.Sprintf("path-%d", i), min(size, large/2)))
	}
	return append(paths, nixtest.NewPath("large", large))
}

// fetchAll is a cold client: narinfo and NAR of each path, 25 at a time as Nix does.
func (d *process) fetchAll(paths []nixtest.Path) error {
	var all sync.WaitGroup
	free := make(chan struct{}, 25)
	errs := make(chan error, len(paths))
	for _, p := range paths {
		free <- struct{}{}
		all.Go(func() {
			defer func() { <-free }()
			if err := d.fetch(p); err != nil {
				errs <- err
			}
		})
	}
	all.Wait()
	close(errs)
	return <-errs
}

func (d *process) fetch(p nixtest.Path) error {
	text, err := getAll(d.url + "/" + p.Hash().String() + ".narinfo")
	if err != nil {
		return fmt.Errorf("%s: narinfo: %w", p.StorePath.Base(), err)
	}
	info, err := nix.ParseNarInfo(text)
	if err != nil {
		return fmt.Errorf("%s: %w", p.StorePath.Base(), err)
	}
	nar, err := getAll(d.url + "/" + info.URL)
	if err == nil && info.Compression == nix.None && !bytes.Equal(nar, p.NAR) {
		err = fmt.Errorf("%d bytes, not those of the NAR", len(nar))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", p.StorePath.Base(), err)
	}
	return nil
}

func getAll(url string) ([]byte, error) {
	resp, err := http.Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", resp.StatusCode)
	}
	return b, err
}

// TestColdSite: all nodes of a site start with nothing and want the same at once; it crosses
// the uplink once.
func TestColdSite(t *testing.T) {
	key := nixtest.NewKey("share-1")
	paths := closure(60, 100<<10, 24<<20)
	for _, c := range []nix.Compression{nix.None, nix.Zstd} {
		t.Run(string(c), func(t *testing.T) {
			up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: paths, Keys: []nixtest.Key{key}, Compression: c})
			s := newSite(t, 6, "--upstream", up.URL(), "--trusted-public-key", key.Public(), "--share-key", "share-1")
			var unique int64
			for _, p := range paths {
				unique += int64(len(up.File(p)))
			}
			var all sync.WaitGroup
			for _, d := range s.nodes {
				all.Go(func() {
					if err := d.fetchAll(paths); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			ratio := float64(up.Bytes(nixtest.NarFile)) / float64(unique)
			t.Logf("%d bytes, %.3f times from upstream, %d narinfo requests for %d paths", unique, ratio, up.Requests(nixtest.NarInfo), len(paths))
			// 1.00 where the machine has time; on a loaded one some NARs miss their time budget and
			// are fetched again. Without an agreement it would be 3 to 6: lab/cold measures it.
			if ratio > 2 {
				t.Errorf("the closure crossed the uplink %.3f times", ratio)
			}
		})
	}
}

// TestColdZones: three zones start with nothing and want the same at once. It crosses the uplink
// once, and into each zone at most once: what the zone's own nodes give each other does not count.
func TestColdZones(t *testing.T) {
	t.Parallel()
	const zones, nodes = 3, 3
	key := nixtest.NewKey("share-1")
	paths := closure(40, 100<<10, 16<<20)
	up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: paths, Keys: []nixtest.Key{key}, Compression: nix.Zstd})
	var unique int64
	for _, p := range paths {
		unique += int64(len(up.File(p)))
	}
	s := &site{t: t}
	for i := range zones * nodes {
		s.add("--store-root", t.TempDir(), "--mdns=false", "--p2p-listen", "/ip4/127.0.0.1/tcp/0", "--upstream", up.URL(),
			"--trusted-public-key", key.Public(), "--share-key", "share-1", "--zone", fmt.Sprintf("zone-%d", i%zones))
	}
	s.meshed()
	var all sync.WaitGroup
	for _, d := range s.nodes {
		all.Go(func() {
			if err := d.fetchAll(paths); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	var crossed, received float64
	for _, d := range s.nodes {
		crossed += d.metric("nixp2p_peer_other_zone_bytes_total")
		received += d.metric("nixp2p_peer_received_bytes_total")
	}
	copies, between := float64(up.Bytes(nixtest.NarFile))/float64(unique), crossed/float64(unique)/(zones-1)
	t.Logf("%d bytes: %.3f times from upstream, into each other zone %.3f times, %.1f times between nodes", unique, copies, between, received/float64(unique))
	// 1.00 each where the machine has time. Without zones two thirds of what nodes give each other
	// cross: 2.7 times into each.
	if copies > 2 || between > 1.5 {
		t.Error("it crossed too often")
	}
}
