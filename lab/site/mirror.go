//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
	"github.com/nixp2p/nixp2p/lab/rig"
)

const (
	waves    = 3
	waveSize = 8
)

// mirrors are scenarios with something that stays when hosts leave.
func mirrors() []*scenario {
	return []*scenario{
		{name: "mirror", hosts: 7, fixed: true, limit: 4 * time.Minute, run: mirror,
			what: "an office of six, one of which replicates; the others leave, the uplink is cut, and a new host comes"},
		{name: "bucket", hosts: waveSize + 1, fixed: true, limit: 8 * time.Minute, run: withBucket,
			what: "three waves of eight fresh hosts, each gone before the next, with a bucket on the LAN; in a fourth the bucket is killed"},
	}
}

// mirror: what five fetched is had from the sixth, which alone is left.
func mirror(ctx context.Context, st *stage) error {
	always, others, late := st.hosts[0], st.hosts[1:6], st.hosts[6]
	if err := st.startAll(ctx, []*host{always}, "--replicate"); err != nil {
		return err
	}
	if err := st.startAll(ctx, others); err != nil {
		return err
	}
	if _, ok := st.mesh(ctx, 20*time.Second, st.hosts[:6], 5); !ok {
		return errors.New("no mesh")
	}
	st.realiseAll(ctx, others)
	all := int64(len(st.corpus.Paths))
	took, ok := st.know(ctx, 2*time.Minute, others[0], always, all)
	st.check(ok, "the mirror shares all paths", "%d of %d, %s after the last build", others[0].pathsOf(ctx, always), all, rig.Seconds(took))
	for _, h := range others {
		h.Stop()
	}
	if _, err := st.lan.Do(ctx, "wan", "cut"); err != nil {
		return err
	}
	if err := st.startAll(ctx, []*host{late}); err != nil {
		return err
	}
	if _, ok := st.know(ctx, 20*time.Second, late, always, all); !st.check(ok, "the new host has the inventory of the mirror", "%d paths", late.pathsOf(ctx, always)) {
		return nil
	}
	return st.substituted(ctx, late, time.Minute)
}

// realiseAll has hosts get the corpus at once, and checks that all succeed.
func (st *stage) realiseAll(ctx context.Context, hosts []*host) {
	var all sync.WaitGroup
	errs := make([]error, len(hosts))
	begun := time.Now()
	for i, h := range hosts {
		all.Go(func() { _, errs[i] = h.Realise(ctx, 4*time.Minute, st.corpus.Top) })
	}
	all.Wait()
	failed := slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	seen := "all in " + rig.Seconds(time.Since(begun))
	if len(failed) > 0 {
		seen = fmt.Sprintf("%d failed: %s", len(failed), rig.CommandError(failed[0]))
	}
	st.check(len(failed) == 0, fmt.Sprintf("nix-store -r of %d paths succeeds on %d hosts at once", len(st.corpus.Paths), len(hosts)), "%s", seen)
}

// withBucket: what the first wave fetched, the next ones have from the bucket.
func withBucket(ctx context.Context, st *stage) error {
	store := st.hosts[waveSize]
	gate, err := st.startBucket(store)
	if err != nil {
		return err
	}
	defer func() { gate.Kill() }()
	unique, err := st.uniqueBytes()
	if err != nil {
		return err
	}
	url := "s3://nix/site?endpoint=http://" + st.lan.IP(store.K) + ":9000&region=us-east-1"
	wave := func(w int, during func()) error {
		hosts := st.hosts[:waveSize]
		for _, h := range hosts {
			h.Env = []string{"AWS_ACCESS_KEY_ID=lab", "AWS_SECRET_ACCESS_KEY=lab-secret"}
		}
		if err := st.startAll(ctx, hosts, "--bucket", url); err != nil {
			return err
		}
		if _, ok := st.mesh(ctx, 20*time.Second, hosts, waveSize-1); !ok {
			return errors.New("no mesh")
		}
		before, done := st.cache.NARBytes.Load(), make(chan struct{})
		go func() { defer close(done); during() }()
		st.realiseAll(ctx, hosts)
		<-done
		st.check(slices.IndexFunc(hosts, func(h *host) bool { return h.Verify(ctx, len(st.corpus.Paths)) != nil }) < 0, fmt.Sprintf("wave %d: nix-store --verify --check-contents is clean", w+1), "on %d hosts", len(hosts))
		var ends sync.WaitGroup
		for _, h := range hosts {
			ends.Go(func() { h.Node.Stop(time.Minute) }) // it writes what it fetched
		}
		ends.Wait()
		st.figure(fmt.Sprintf("wave %d: NAR bytes from upstream", w+1), float64(st.cache.NARBytes.Load()-before)/float64(unique), "%.3f of the unique bytes")
		for _, h := range hosts {
			if err := errors.Join(realnix.RemoveAll(h.Dir), h.NewClient("client")); err != nil { // a fresh one
				return err
			}
		}
		return nil
	}
	for w := range waves {
		if err := wave(w, func() {}); err != nil {
			return err
		}
	}
	times := float64(st.cache.NARBytes.Load()) / float64(unique)
	st.check(times <= 1.02, "NAR bytes from upstream over all waves are at most 1.02 times the unique bytes", "%.3f", times)
	return wave(waves, func() {
		took, ok := rig.Until(ctx, time.Minute, func() bool {
			s, err := st.hosts[0].Status(ctx)
			return err == nil && s.Bytes.Peer+s.Bytes.Upstream > 1<<20
		})
		gate.Kill()
		st.check(ok, "the bucket is killed in the middle of wave 4", "after %s", rig.Seconds(took))
	})
}

// uniqueBytes returns the bytes of the upstream's files, each counted once.
func (st *stage) uniqueBytes() (sum int64, err error) {
	seen := map[string]bool{}
	for _, p := range st.corpus.Paths {
		n, err := rig.NarInfoIn(st.cache.Dir, p.StorePath)
		if err != nil {
			return 0, err
		}
		if !seen[n.URL] {
			seen[n.URL] = true
			sum += n.FileSize
		}
	}
	return sum, nil
}

// startBucket starts an S3 server on a host.
func (st *stage) startBucket(h *host) (*rig.Process, error) {
	program, err := exec.LookPath("versitygw")
	if home, e := os.UserHomeDir(); err != nil && e == nil {
		program, err = exec.LookPath(filepath.Join(home, "go", "bin", "versitygw"))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: make deps installs versitygw", err)
	}
	files := filepath.Join(h.Dir, "s3")
	if err := os.MkdirAll(filepath.Join(files, "nix"), 0o755); err != nil {
		return nil, err
	}
	return rig.StartIn(h.NS, filepath.Join(h.Dir, "s3.log"), "env", "ROOT_ACCESS_KEY_ID=lab", "ROOT_SECRET_ACCESS_KEY=lab-secret",
		program, "--port", st.lan.IP(h.K)+":9000", "--quiet", "posix", "--nometa", files)
}
