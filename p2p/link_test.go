package p2p

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
)

// TestLink finds others by multicast, with nothing configured. It needs a link of its own,
// so it runs only when told how many there are on it:
// ip netns exec h1 env NIXP2P_TEST_LINK=2 ./p2p.test -test.run TestLink -test.v.
func TestLink(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("NIXP2P_TEST_LINK"))
	if err != nil {
		t.Skip("no link to test on")
	}
	path := nixtest.NewPath(strconv.Itoa(os.Getpid()), 100)
	began := time.Now()
	a := start(t, newHolder(t, path), func(c *Config) {
		c.Listen, c.MDNS = nil, true
	})
	wait(t, "the others", func() bool { return a.table.members() >= n-1 })
	t.Logf("%d others after %v: %+v", n-1, time.Since(began), a.Peers())
	<-time.After(5 * time.Second) // the others may need us still
}

// BenchmarkMiss is what a narinfo costs that nobody near has, with 64 inventories of 100,000.
func BenchmarkMiss(b *testing.B) {
	n, err := New(Config{Keys: nixtest.Keys(b, shareKey), Metrics: metrics.New()})
	if err != nil {
		b.Fatal(err)
	}
	fill(b, n, 64, 100_000)
	hashes := make([]nix.StoreHash, 4096)
	for i := range hashes {
		binary.BigEndian.PutUint64(hashes[i][:], rand.Uint64())
	}
	var times []time.Duration
	hits := 0
	for b.Loop() {
		at := time.Now()
		_, err := n.Info(b.Context(), hashes[len(times)&4095])
		times = append(times, time.Since(at))
		if err != nil && err != errNobody {
			hits++
		}
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)*99/100].Nanoseconds()), "p99-ns")
	b.ReportMetric(float64(hits)/float64(len(times)), "false-positives")
}

// BenchmarkNAR is one large NAR from one node to another over loopback.
func BenchmarkNAR(b *testing.B) {
	path := nixtest.NewPath("large", 256<<20)
	src := start(b, newHolder(b, path), nil)
	dst := join(b, nil, nil, src)
	wait(b, "the inventory", func() bool { return dst.Positive(path.Hash()) })
	info := path.Info(b, shareKey)
	buf := make([]byte, 256<<10)
	b.SetBytes(int64(len(path.NAR)))
	for b.Loop() {
		claim, err := dst.NAR(b.Context(), info, nix.Raw, 0)
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{claim.Body}, buf)
		if err != nil || n != int64(len(path.NAR)) {
			b.Fatal(n, err)
		}
		_ = claim.Body.Close()
	}
}

// BenchmarkSmall is narinfo and NAR of small paths, one after the other.
func BenchmarkSmall(b *testing.B) {
	path := nixtest.NewPath("small", 4<<10)
	src := start(b, newHolder(b, path), nil)
	dst := join(b, nil, nil, src)
	wait(b, "the inventory", func() bool { return dst.Positive(path.Hash()) })
	for b.Loop() {
		info, err := dst.Info(b.Context(), path.Hash())
		if err != nil {
			b.Fatal(err)
		}
		claim, err := dst.NAR(b.Context(), info, nix.Raw, 0)
		if err != nil {
			b.Fatal(err)
		}
		got, err := io.ReadAll(claim.Body)
		if err != nil || !bytes.Equal(got, path.NAR) {
			b.Fatal(err)
		}
		_ = claim.Body.Close()
	}
}
