package localstore

import (
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// rows makes a database of n signed rows with five references each.
func (w *world) rows(n int) []nix.StoreHash {
	w.t.Helper()
	w.openDB()
	w.exec("BEGIN")
	hashes := make([]nix.StoreHash, n)
	paths := make([]nix.StorePath, n)
	for i := range n {
		seed := sha256.Sum256([]byte(strconv.Itoa(i)))
		hashes[i] = nix.StoreHash(seed[:20])
		path, err := nix.ParseBaseName(hashes[i].String() + "-package-with-a-usual-name-1.2." + strconv.Itoa(i))
		must(w.t, err)
		paths[i] = path
		row := &nix.NarInfo{StorePath: path, URL: "x", Compression: nix.None, NarHash: sha256.Sum256(seed[:]), NarSize: int64(1000 + i)}
		for k := 1; k <= 5 && i-k*k*k >= 0; k++ {
			row.References = append(row.References, paths[i-k*k*k])
		}
		row.References = nix.SortPaths(row.References)
		shareKey.Sign(row)
		w.register(row)
	}
	w.exec("COMMIT")
	return hashes
}

// BenchmarkLargeStore measures a store of 100,000 paths: start until the first answer, the time
// until all are judged, the memory they take, and then questions.
func BenchmarkLargeStore(b *testing.B) {
	const n = 100_000
	w := newWorld(b)
	hashes := w.rows(n)
	w.exec(`PRAGMA wal_checkpoint(TRUNCATE)`)
	quiet := func(c *Config) { c.Log = slog.New(slog.DiscardHandler) }

	start := time.Now()
	s := w.watched(quiet)
	if _, err := s.Info(b.Context(), hashes[n/2]); err != nil {
		b.Fatal(err)
	}
	first := time.Since(start)
	before := heap()
	start = time.Now()
	busy := cpu(b)
	s.look(b.Context())
	load, loadCPU := time.Since(start), cpu(b)-busy
	if s.SharedCount() != n {
		b.Fatal(s.SharedCount())
	}
	memory := heap() - before

	report := func(b *testing.B) {
		b.ReportMetric(float64(first.Milliseconds()), "ms-first-answer")
		b.ReportMetric(load.Seconds(), "s-load")
		b.ReportMetric(loadCPU.Seconds(), "cpu-s-load")
		b.ReportMetric(float64(memory)/n, "B/path")
	}
	b.Run("Info", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, err := s.Info(b.Context(), hashes[i*7919%n]); err != nil {
				b.Fatal(err)
			}
		}
		report(b)
	})
	b.Run("Miss", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, err := s.Info(b.Context(), nix.StoreHash{byte(i), byte(i >> 8)}); err == nil {
				b.Fatal("found")
			}
		}
	})
	b.Run("SharedMiss", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, err := s.Public(b.Context(), nix.StoreHash{byte(i), byte(i >> 8)}); err == nil {
				b.Fatal("found")
			}
		}
	})
	b.Run("IdlePoll", func(b *testing.B) {
		for b.Loop() {
			s.look(b.Context())
		}
	})
	b.Run("PollAfterCommit", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			w.exec(`UPDATE ValidPaths SET registrationTime = ? WHERE id = 1`, i)
			s.look(b.Context())
		}
	})
	b.Run("PollAfterGC", func(b *testing.B) { // reads all ids
		w.exec(`PRAGMA foreign_keys = 0`)
		for i := 1; b.Loop(); i++ {
			w.exec(`DELETE FROM ValidPaths WHERE id = ?`, i)
			s.w.noScan = time.Time{}
			s.look(b.Context())
		}
	})
}

// cpu returns the processor time that this process has used: on a busy machine wall time says
// nothing.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkNAR measures NARs out of the page cache, beside the programs that copy the same bytes.
func BenchmarkNAR(b *testing.B) {
	w := newWorld(b)
	s := w.open(func(c *Config) { c.Log = slog.New(slog.DiscardHandler) })
	for _, c := range []struct {
		name  string
		build func(path string)
		tool  []string
	}{
		{"file-200MB", func(path string) { write(b, path, 200<<20, 0o444) }, []string{"cat"}},
		{"tree-10k", func(path string) {
			for d := range 100 {
				must(b, os.MkdirAll(fmt.Sprintf("%s/%d/lib", path, d), 0o755))
				for i := range 100 {
					write(b, fmt.Sprintf("%s/%d/lib/file%d", path, d, i), 100+i*80, 0o444)
				}
			}
		}, []string{"tar", "--sort=name", "-cf", "-"}},
	} {
		n, _ := w.tree(c.name, c.build)
		s.db.refresh(time.Now())
		info := prove(b, n, w.keys())
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(info.NarSize())
			b.ReportAllocs()
			buf := make([]byte, 256<<10)
			for b.Loop() {
				claim, err := s.NAR(b.Context(), info, nix.Raw, 0)
				must(b, err)
				drain(b, claim, buf)
			}
		})
		b.Run(c.name+"-layout", func(b *testing.B) {
			for b.Loop() {
				claim, err := s.NAR(b.Context(), info, nix.Raw, 0)
				must(b, err)
				must(b, claim.Body.Close())
			}
		})
		b.Run(c.name+"-"+c.tool[0], func(b *testing.B) {
			b.SetBytes(info.NarSize())
			for b.Loop() {
				cmd := exec.Command(lookTool(b, c.tool[0]), append(c.tool[1:], w.physical(n.StorePath))...)
				out, err := cmd.StdoutPipe()
				must(b, err)
				must(b, cmd.Start())
				_, err = io.Copy(io.Discard, out)
				must(b, err)
				must(b, cmd.Wait())
			}
		})
	}
}

func drain(b *testing.B, claim *verify.Unverified, buf []byte) {
	for {
		_, err := claim.Body.Read(buf)
		if err == io.EOF {
			break
		}
		must(b, err)
	}
	must(b, claim.Body.Close())
}
