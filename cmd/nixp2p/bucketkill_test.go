package main

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nixtest"
)

// TestBucketKilled: a machine that is killed at any moment while it writes goes on after its next start. All that it
// fetched comes into the bucket, and nothing is fetched twice for that.
func TestBucketKilled(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	d := startDaemonWith(t, bucketEnv, append(f.args, "--p2p=false")...)
	kills := int(number(t, killsEnv, 20))
	if testing.Short() {
		kills = 5
	}
	left := f.paths
	for i := range kills {
		n := min(len(left), 1+i%3)
		if err := d.fetchAll(left[:n]); err != nil {
			t.Fatal(err)
		}
		left = left[n:]
		wait(t.Context(), rand.N(300*time.Millisecond))
		d.kill()
		d.start()
	}
	if err := d.fetchAll(left); err != nil {
		t.Fatal(err)
	}
	// What came less than a second before a kill may not be noted anywhere but in the cache: it is written when
	// it is asked for again.
	fetched := f.up.Bytes(nixtest.NarFile)
	if err := d.fetchAll(f.paths); err != nil {
		t.Fatal(err)
	}
	again := f.up.Bytes(nixtest.NarFile) - fetched
	in := func(name string) bool {
		_, err := os.Stat(filepath.Join(f.store.Dir, "nix", "site", name))
		return err == nil
	}
	for _, p := range f.paths {
		for limit := time.Now().Add(2 * time.Minute); !in(p.Hash().String() + ".narinfo"); wait(t.Context(), 20*time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatalf("%s is not written\n%s", p.StorePath, d.logText())
			}
		}
	}
	nars, err := filepath.Glob(filepath.Join(f.store.Dir, "nix", "site", "nar", "*"))
	if err != nil || len(nars) < len(f.paths) {
		t.Errorf("%d NARs of %d paths, %v", len(nars), len(f.paths), err)
	}
	t.Logf("%d kills: all %d paths are in the bucket; %d bytes were fetched a second time", kills, len(f.paths), again)
}
