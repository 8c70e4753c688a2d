package main

import (
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/nixtest/objectstore"
)

var bucketEnv = []string{"AWS_ACCESS_KEY_ID=" + objectstore.AccessKey, "AWS_SECRET_ACCESS_KEY=" + objectstore.SecretKey}

// fleet is fresh machines that come and go, with an upstream and a bucket.
type fleet struct {
	t     *testing.T
	up    *nixtest.Upstream
	store *objectstore.Store
	paths []nixtest.Path
	args  []string
}

func newFleet(t *testing.T) *fleet {
	key := nixtest.NewKey("share-1")
	f := &fleet{t: t, store: objectstore.Start(t, "nix"), paths: closure(30, 50<<10, 4<<20)}
	f.up = nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: f.paths, Keys: []nixtest.Key{key}, Compression: nix.Zstd})
	f.args = []string{
		"--store-root", t.TempDir(), "--mdns=false", "--p2p-listen", "/ip4/127.0.0.1/tcp/0", "--upstream", f.up.URL(),
		"--trusted-public-key", key.Public(), "--share-key", key.Name, "--bucket", f.store.URL("nix", "site"),
	}
	return f
}

// wave starts n machines that want all paths at once, and ends them.
func (f *fleet) wave(n int, during func()) {
	s := &site{t: f.t}
	for range n {
		args := f.args
		if len(s.nodes) > 0 {
			args = append(args[:len(args):len(args)], "--bootstrap", s.nodes[0].peerAddr())
		}
		s.nodes = append(s.nodes, startDaemonWith(f.t, bucketEnv, args...))
	}
	s.meshed()
	var all sync.WaitGroup
	for _, d := range s.nodes {
		all.Go(func() {
			if err := d.fetchAll(f.paths); err != nil {
				f.t.Error(err)
			}
		})
	}
	during()
	all.Wait()
	for _, d := range s.nodes {
		d.stop()
	}
}

// TestBucket: what the first wave fetched, the next ones have from the bucket; and when the bucket
// fails in the middle, nobody notices.
func TestBucket(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts many daemons")
	}
	f := newFleet(t)
	f.wave(3, func() {})
	first := f.up.Bytes(nixtest.NarFile)
	f.wave(3, func() {})
	f.wave(3, func() {})
	var unique int64
	for _, p := range f.paths {
		unique += int64(len(f.up.File(p)))
	}
	all := f.up.Bytes(nixtest.NarFile)
	t.Logf("%d bytes, %.3f times from upstream in the first wave, %.3f in all three", unique, float64(first)/float64(unique), float64(all)/float64(unique))
	if all > first+unique/2 {
		t.Error("the bucket was not used")
	}
	for _, fault := range []objectstore.Fault{objectstore.Gone, objectstore.Silent, objectstore.Slow, objectstore.Cut} {
		f.store.Set(objectstore.None)
		began := time.Now()
		f.wave(2, func() { f.store.Set(fault) })
		t.Logf("fault %d: %v", fault, time.Since(began).Round(time.Second))
	}
}

// TestBucketShown: the status says how it stands with the bucket.
func TestBucketShown(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	d := startDaemonWith(t, bucketEnv, append(f.args, "--p2p=false")...)
	if err := d.fetchAll(f.paths); err != nil {
		t.Fatal(err)
	}
	for limit := time.Now().Add(time.Minute); d.metric("nixp2p_bucket_writes_total", `"written"`) < float64(len(f.paths)); <-time.After(20 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("not written in a minute")
		}
	}
	var s admin.Status
	_, text := d.get(d.admin + "/api/v1/status")
	if err := json.Unmarshal([]byte(text), &s); err != nil || s.Bucket == nil || s.Bucket.URL != "s3://nix/site" || s.Bucket.Sent == 0 || s.Bucket.LastError != "" {
		t.Errorf("%+v, %v", s.Bucket, err)
	}
	if len(s.Upstreams) != 2 || s.Upstreams[0].URL != "s3://nix/site" || !s.Upstreams[0].Up {
		t.Errorf("%+v", s.Upstreams)
	}
}

// TestBucketPoisoned: a file that is not the NAR, although it has the FileHash that its cache names,
// does not come into the bucket, from which a whole fleet would have it.
func TestBucketPoisoned(t *testing.T) {
	t.Parallel()
	key := nixtest.NewKey("share-1")
	p := nixtest.NewPath("poisoned", 20_000)
	bad := nixtest.Compress(t, nix.XZ, nixtest.NewPath("other", 20_000).NAR)
	up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{
		Paths: []nixtest.Path{p}, Keys: []nixtest.Key{key}, Compression: nix.XZ,
		Edit: func(n *nix.NarInfo) {
			is := bad.NarInfo(p, key)
			n.URL, n.FileHash, n.FileSize = "nar/bad.nar.xz", is.FileHash, is.FileSize
		},
	})
	up.Serve("/nar/bad.nar.xz", bad.Bytes)
	store := objectstore.Start(t, "nix")
	d := startDaemonWith(t, bucketEnv, "--store-root", t.TempDir(), "--p2p=false", "--upstream", up.URL(),
		"--trusted-public-key", key.Public(), "--share-key", key.Name, "--bucket", store.URL("nix", "site"))
	_, text := d.get(d.url + "/" + p.Hash().String() + ".narinfo")
	n, err := nix.ParseNarInfo([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = d.get(d.url + "/" + n.URL) // Nix finds out what it is
	for limit := time.Now().Add(time.Minute); d.metric("nixp2p_bucket_writes_total", `"failed"`) == 0; <-time.After(20 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("not refused in a minute")
		}
		if d.metric("nixp2p_bucket_writes_total", `"written"`) > 0 {
			t.Fatal("it was written")
		}
	}
}
