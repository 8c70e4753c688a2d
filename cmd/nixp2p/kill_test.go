package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/nixtest/supervise"
)

// killsEnv says how often TestKill9 kills the daemon; the default is for every day.
const killsEnv = "NIXP2P_TEST_KILLS"

// number reads a number from the environment.
func number(t *testing.T, env string, otherwise int64) int64 {
	t.Helper()
	text := os.Getenv(env)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", env, err)
	}
	return n
}

// A daemon that is killed at any moment under load never gives a client wrong or too few
// bytes as the whole, before or after, and its cache is never larger than it may be.
func TestKill9(t *testing.T) {
	t.Parallel()
	const bound = 24 << 20
	kills := int(number(t, killsEnv, 20))
	key := nixtest.NewKey("trusted-1")
	var paths []nixtest.Path
	for i := range 40 {
		// 1 kB to 5 MB, 50 MB in all: twice of what the cache may hold.
		paths = append(paths, nixtest.NewPath(fmt.Sprintf("p-%d", i), 1000+i*i*3200))
	}
	up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: paths[:20], Keys: []nixtest.Key{key}})
	packed := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: paths[20:], Keys: []nixtest.Key{key}, Compression: nix.Zstd})
	u := newUnit(t)
	u.run(supervise.Config{Restart: 10 * time.Millisecond},
		"--p2p=false", "--upstream", up.URL(), "--upstream", packed.URL(), "--trusted-public-key", key.Public(),
		"--store-root", u.dir, "--cache-size", strconv.Itoa(bound), "--log-level", "error")

	load := &load{url: u.URL(), paths: paths}
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() { load.run(ctx, t) })
	}
	var most int64
	for i := range kills {
		<-u.Ready()
		d := rand.N(400 * time.Millisecond)
		if i%5 == 0 {
			d += 700 * time.Millisecond // narinfos are written every half second
		}
		wait(ctx, d)
		// Stopped, so that all files are of one moment.
		_ = u.Signal(syscall.SIGSTOP)
		size := onDisk(t, u.dir+"/cache")
		most = max(most, size)
		if size > bound {
			t.Errorf("the cache takes %d bytes, it may take %d", size, bound)
		}
		starts, _ := u.Starts()
		_ = os.Remove(filepath.Join(u.dir, "state", startsFile)) // else it would rest
		_ = u.Signal(syscall.SIGKILL)
		eventually(t, func() bool { n, _ := u.Starts(); return n > starts })
	}
	stop()
	clients.Wait()
	t.Logf("%d kills: %d NARs whole, %d cut, %d bytes on disk at most", kills, load.whole.Load(), load.cut.Load(), most)
	if load.whole.Load() < int64(kills) || load.cut.Load() == 0 {
		t.Errorf("%d whole and %d cut transfers: that was no load", load.whole.Load(), load.cut.Load())
	}

	// What is on disk now is offered by a daemon that has nothing else.
	up.Stop()
	packed.Stop()
	load.whole.Store(0)
	for _, p := range paths {
		load.get(t.Context(), t, p, 0)
	}
	t.Logf("%d NARs from what the killed ones left", load.whole.Load())
	if load.whole.Load() == 0 {
		t.Error("nothing was left: nothing was proven either")
	}
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// onDisk returns the bytes that files below dir take.
func onDisk(t *testing.T, dir string) (sum int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		var st syscall.Stat_t
		if err == nil && d.Type().IsRegular() {
			err = syscall.Stat(path, &st)
			sum += st.Blocks * 512
		}
		if errors.Is(err, fs.ErrNotExist) { // it went meanwhile
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// load is what clients do.
type load struct {
	url        string
	paths      []nixtest.Path
	whole, cut atomic.Int64
}

func (l *load) run(ctx context.Context, t *testing.T) {
	for ctx.Err() == nil {
		p := l.paths[rand.N(len(l.paths))]
		var from int64
		if rand.N(4) == 0 {
			from = rand.Int64N(int64(len(p.NAR)))
		}
		l.get(ctx, t, p, from)
	}
}

// get fetches a NAR as Nix does, raw ones from byte from on, and judges what came as a whole.
func (l *load) get(ctx context.Context, t *testing.T, p nixtest.Path, from int64) {
	text, err := l.fetch(ctx, "/"+p.Hash().String()+".narinfo", 0)
	if err != nil {
		return
	}
	info, err := nix.ParseNarInfo(text)
	if err != nil || info.NarHash != p.NarHash() {
		t.Errorf("%s: narinfo %q: %v", p.StorePath, text, err)
		return
	}
	if info.Compression != nix.None {
		from = 0
	}
	body, err := l.fetch(ctx, "/"+info.URL, from)
	if err != nil {
		if ctx.Err() == nil {
			l.cut.Add(1)
		}
		return
	}
	l.whole.Add(1)
	if info.Compression != nix.None {
		r, err := compress.NewReader(info.Compression, bytes.NewReader(body))
		if err == nil {
			body, err = io.ReadAll(r)
		}
		if err != nil {
			t.Errorf("%s: %v", info.URL, err)
			return
		}
	}
	if !bytes.Equal(body, p.NAR[from:]) {
		t.Errorf("%s from %d: %d bytes came as the whole and are wrong", info.URL, from, len(body))
	}
}

var errNotOK = errors.New("not 200 or 206")

func (l *load) fetch(ctx context.Context, path string, from int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.url+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	want := http.StatusOK
	if from > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
		want = http.StatusPartialContent
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != want {
		return nil, errNotOK
	}
	body, err := io.ReadAll(res.Body)
	if err == nil && strings.HasPrefix(path, "/nar/") && res.ContentLength != int64(len(body)) {
		err = fmt.Errorf("%d bytes without a length", len(body))
	}
	return body, err
}
