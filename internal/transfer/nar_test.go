package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
	"github.com/nixp2p/nixp2p/internal/transfer"
	"github.com/nixp2p/nixp2p/verify"
)

func TestNARFromStore(t *testing.T) {
	for _, size := range []int{0, 1, mib - 200, mib, 3*mib + 7} {
		w := newWorld(t)
		p := nixtest.NewPath(fmt.Sprint("of", size), size)
		w.store.Add(t, key, p)
		w.wantWhole(nameOf(p, nix.Raw), p.NAR)
		if n := w.count("nar_bytes_total", "source", "store"); n != float64(len(p.NAR)) {
			t.Errorf("%d: counted %v bytes", size, n)
		}
		if n := w.count("nar_unpacked_bytes_total", "source", "store"); n != float64(len(p.NAR)) {
			t.Errorf("%d: %v bytes unpacked", size, n)
		}
		if int(w.begun.Load()) != 0 || w.up.AskedAll() != 0 {
			t.Error("afar was asked, or the cache was written")
		}
	}
}

// TestStoreDies: the response goes on from afar where the store left off, unseen.
func TestStoreDies(t *testing.T) {
	p := nixtest.NewPath("hello", 3*mib)
	size := int64(len(p.NAR))
	for _, do := range []sourcetest.Action{sourcetest.Die, sourcetest.End} {
		for _, at := range []int64{0, 1, 100_000, mib, 2 * mib, size - 1} {
			w := newWorld(t)
			w.store.Add(t, key, p)
			w.up.Add(t, key, p)
			w.store.SetFaults(sourcetest.Fault{Do: do, At: at})
			w.wantWhole(nameOf(p, nix.Raw), p.NAR)
			if got := w.up.Offsets(); len(got) != 1 || got[0] != 0 {
				t.Errorf("died at %d: upstream was asked for %v", at, got)
			}
			if n := w.count("failovers_total", "source", "store"); n != 1 {
				t.Errorf("%v failovers", n)
			}
			if len(w.store.Reports()) != 0 {
				t.Error("a source that died was convicted")
			}
		}
	}
	// All bytes are here when it dies.
	for _, store := range []bool{true, false} {
		w := newWorld(t)
		s := w.up
		if store {
			s = w.store
		}
		s.Add(t, key, p)
		s.SetFaults(sourcetest.Fault{Do: sourcetest.Die, At: size})
		w.wantWhole(nameOf(p, nix.Raw), p.NAR)
		if s.Opened(nix.Raw) != 1 {
			t.Error("asked again for what was here")
		}
	}
}

// TestStoreLies: up to 64 MiB nothing of a lie leaves, and the next source answers instead.
func TestStoreLies(t *testing.T) {
	p := nixtest.NewPath("hello", 3*mib)
	size := int64(len(p.NAR))
	for _, c := range []struct {
		name  string
		fault sourcetest.Fault
		raw   []byte // what the store has, nil is the NAR
	}{
		{"first", sourcetest.Fault{Do: sourcetest.Flip, At: 0}, nil},
		{"middle", sourcetest.Fault{Do: sourcetest.Flip, At: size / 2}, nil},
		{"last", sourcetest.Fault{Do: sourcetest.Flip, At: size - 1}, nil},
		{"too long", sourcetest.Fault{Do: sourcetest.Overflow}, nil},
		{"claims more", sourcetest.Fault{}, append(bytes.Clone(p.NAR), 0)},
		{"claims less", sourcetest.Fault{}, p.NAR[:size-1]},
	} {
		for _, forgiving := range []bool{false, true} {
			t.Run(fmt.Sprint(c.name, forgiving), func(t *testing.T) {
				w := newWorld(t)
				w.store.Add(t, key, p)
				w.up.Add(t, key, p)
				w.store.SetFaults(c.fault)
				if c.raw != nil {
					w.store.AddBytes(p.NarHash(), nix.Raw, c.raw)
				}
				if forgiving {
					w.store.SetForgiving()
				}
				w.wantWhole(nameOf(p, nix.Raw), p.NAR)
				if got := w.store.Reports(); len(got) != 1 || got[0].Path != p.StorePath || !got[0].Form.IsRaw() || got[0].Err == nil {
					t.Errorf("store convicted: %v", got)
				}
				if n := w.count("verify_failures_total", "source", "store"); n != 1 {
					t.Errorf("%v lies counted", n)
				}
				if n := w.count("nar_bytes_total", "source", "store"); n != 0 {
					t.Errorf("%v bytes of a lie left", n)
				}
				if len(w.up.Reports()) != 0 {
					t.Error("upstream was convicted")
				}
			})
		}
	}
	w := newWorld(t)
	w.store.Add(t, key, p)
	w.store.SetFaults(sourcetest.Fault{Do: sourcetest.Flip, At: 0})
	if got, err := w.whole(t.Context(), nameOf(p, nix.Raw), transfer.Query{}); err == nil || len(got) != 0 {
		t.Errorf("nobody else has it: %d bytes, error %v", len(got), err)
	}
}

// large is a NAR that is too large to be proven ahead.
var large = sync.OnceValue(func() nixtest.Path { return nixtest.NewPath("large", 65*mib) })

// TestLargeStoreLies: of a large NAR all but the tail may leave, then the response is cut, and a
// client that asks to go on is refused for a while.
func TestLargeStoreLies(t *testing.T) {
	if testing.Short() {
		t.Skip("hashes 65 MiB a few times")
	}
	p := large()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.store.Add(t, key, p)
		w.up.Add(t, key, p)
		w.store.SetFaults(sourcetest.Fault{Do: sourcetest.Flip, At: 1000})
		got, err := w.whole(t.Context(), nameOf(p, nix.Raw), transfer.Query{})
		if err == nil || len(got) > len(p.NAR)-verify.TailSize {
			t.Errorf("%d of %d bytes left, error %v", len(got), len(p.NAR), err)
		}
		if len(w.store.Reports()) != 1 {
			t.Error("the store was not convicted")
		}
		resume := func() error {
			n, err := w.s.NAR(t.Context(), nameOf(p, nix.Raw), transfer.Query{Resume: true})
			if err == nil {
				n.Close()
			}
			return err
		}
		if err := resume(); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("asked to go on: %v", err)
		}
		n, err := w.s.NAR(t.Context(), nameOf(p, nix.Raw), transfer.Query{})
		if err != nil {
			t.Errorf("asked for all of it: %v", err)
		} else {
			n.Close()
		}
		pass(9 * time.Minute)
		if err := resume(); err == nil {
			t.Error("went on after 9 minutes")
		}
		pass(2 * time.Minute)
		if err := resume(); err != nil {
			t.Errorf("after 11 minutes: %v", err)
		}
	})
}

// TestAheadBudget: when many NARs are proven ahead at once, further ones are read twice, and are
// still refused before their first byte.
func TestAheadBudget(t *testing.T) {
	w := newWorld(t)
	p := nixtest.NewPath("big", 63*mib)
	w.store.Add(t, key, p)
	w.store.SetFaults(sourcetest.Fault{Do: sourcetest.Hang})
	ctx, leave := context.WithCancel(t.Context())
	var group sync.WaitGroup
	defer group.Wait()
	defer leave()
	for range 2 {
		group.Go(func() {
			if _, err := w.whole(ctx, nameOf(p, nix.Raw), transfer.Query{}); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	good, bad := nixtest.NewPath("good", 5*mib), nixtest.NewPath("bad", 5*mib)
	w.store.Add(t, key, good, bad)
	w.up.Add(t, key, bad)
	// They hold their share when they are being read.
	until(t, "all are being read", func() bool { return w.store.Reading() == 2 })
	w.store.SetFaults()
	w.wantWhole(nameOf(good, nix.Raw), good.NAR)
	if n := len(w.store.Offsets()); n != 2+2 {
		t.Errorf("opened %d times: it was not read twice", n)
	}
	for _, fault := range []sourcetest.Fault{{Do: sourcetest.Flip, At: 1}, {Do: sourcetest.Die, At: 10}} {
		w.store.SetFaults(fault)
		w.wantWhole(nameOf(bad, nix.Raw), bad.NAR)
		w.store.AddBytes(bad.NarHash(), nix.Raw, bad.NAR)
		w.cache.Invalid(bad.Info(t, key), nix.Raw, errors.New("as the test says"))
	}
}

// TestMisread: a source that cannot decode its own file is guilty alone, and the next goes on.
func TestMisread(t *testing.T) {
	w := newWorld(t)
	p := nixtest.NewPath("hello", 3*mib)
	w.keep(p.Info(t, key), nix.Raw, p.NAR)
	w.store.Add(t, key, p)
	w.up.Add(t, key, p)
	w.store.SetFaults(sourcetest.Fault{Do: sourcetest.Misread, At: mib})
	w.wantWhole(nameOf(p, nix.Raw), p.NAR)
	if len(w.store.Reports()) != 1 || w.count("verify_failures_total") != 1 {
		t.Errorf("convicted %v", w.store.Reports())
	}
	// Nobody goes on.
	w = newWorld(t)
	w.store.Add(t, key, p)
	w.store.SetFaults(sourcetest.Fault{Do: sourcetest.Misread, At: mib})
	if _, err := w.whole(t.Context(), nameOf(p, nix.Raw), transfer.Query{}); err == nil || len(w.store.Reports()) != 1 {
		t.Errorf("alone: error %v, convicted %v", err, w.store.Reports())
	}
}

// TestFileFromUpstream: what upstream has as a file is passed on as it is, and kept.
func TestFileFromUpstream(t *testing.T) {
	for _, c := range []nix.Compression{nix.XZ, nix.Zstd} {
		for _, spool := range []bool{true, false} {
			w := newWorld(t, func(w *world) {
				if !spool {
					noCache(w)
				}
			})
			p := nixtest.NewPath("hello", 400_000)
			info, file := w.up.AddFile(t, key, p, c, nil)
			form := formOf(t, info)
			n, err := w.s.NAR(t.Context(), nameOf(p, form), transfer.Query{})
			if err != nil {
				t.Fatal(err)
			}
			if n.Size() != int64(len(file.Bytes)) || !n.Ranges() {
				t.Errorf("%s: size %d, ranges %v", c, n.Size(), n.Ranges())
			}
			n.Close()
			w.wantWhole(nameOf(p, form), file.Bytes)
			w.wantWhole(nameOf(p, form), file.Bytes)
			want := 2
			if spool {
				want = 1
			}
			if n := w.up.Opened(form); n != want && n != want+1 { // the one that was only looked at
				t.Errorf("%s, spool %v: fetched %d times", c, spool, n)
			}
			if w.up.Opened(nix.Raw) != 0 {
				t.Error("decoded")
			}
		}
	}
}

// TestStoredContainer: a file whose NAR is at hand is answered with the NAR in that container.
func TestStoredContainer(t *testing.T) {
	p := nixtest.NewPath("hello", 300_003)
	for _, c := range []nix.Compression{nix.XZ, nix.Zstd} {
		for _, where := range []string{"store", "cache", "store dies"} {
			t.Run(string(c)+" "+where, func(t *testing.T) {
				w := newWorld(t)
				info, _ := w.up.AddFile(t, key, p, c, nil)
				form := formOf(t, info)
				switch where {
				case "store":
					w.store.Add(t, key, p)
				case "cache":
					w.keep(p.Info(t, key), nix.Raw, p.NAR)
				case "store dies":
					w.store.Add(t, key, p)
					w.store.SetFaults(sourcetest.Fault{Do: sourcetest.Die, At: 100_000})
				}
				n, err := w.s.NAR(t.Context(), nameOf(p, form), transfer.Query{})
				if err != nil {
					t.Fatal(err)
				}
				if n.Ranges() {
					t.Error("ranges of a container")
				}
				size := n.Size()
				n.Close()
				got, err := w.whole(t.Context(), nameOf(p, form), transfer.Query{})
				if err != nil || int64(len(got)) != size || !bytes.Equal(decode(t, c, got), p.NAR) {
					t.Errorf("%d bytes of %d, error %v", len(got), size, err)
				}
				if w.up.Opened(form) != 0 {
					t.Error("the file was fetched")
				}
				// A client with the beginning of the file can go on only with the file.
				before := w.up.Opened(form)
				q, err := w.s.NAR(t.Context(), nameOf(p, form), transfer.Query{Resume: true})
				if err != nil {
					t.Fatal(err)
				}
				if !q.Ranges() || w.up.Opened(form) != before+1 {
					t.Error("went on with something else than the file")
				}
				q.Close()
			})
		}
	}
}

// TestStoredOfUnknownFile: the file is nowhere any more, its NAR is.
func TestStoredOfUnknownFile(t *testing.T) {
	w := newWorld(t)
	p := nixtest.NewPath("hello", 100_000)
	w.up.AddFile(t, key, p, nix.Zstd, nil)
	old := nix.Form{Compression: nix.XZ, File: nix.FileHash{1}}
	got, err := w.whole(t.Context(), nameOf(p, old), transfer.Query{})
	if err != nil || !bytes.Equal(decode(t, nix.XZ, got), p.NAR) {
		t.Errorf("error %v", err)
	}
	if _, err := w.whole(t.Context(), nameOf(p, old), transfer.Query{Resume: true}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("resumed: %v", err)
	}
}

// TestWrongFileHash: nobody signed it. The NAR is right, so the response is completed; the hash
// is not used again.
func TestWrongFileHash(t *testing.T) {
	p := nixtest.NewPath("hello", mib+10)
	wrong := func(n *nix.NarInfo) { n.FileHash = nix.FileHash{9, 9} }
	w := newWorld(t)
	info, file := w.up.AddFile(t, key, p, nix.XZ, wrong)
	form := formOf(t, info)
	a, err := w.r.Info(t.Context(), p.Hash(), source.All)
	if err != nil || a.Form != form {
		t.Fatalf("%v %v", a, err)
	}
	w.wantWhole(nameOf(p, form), file.Bytes)
	if len(w.up.Reports()) != 0 {
		t.Error("upstream was convicted")
	}
	if a, err = w.r.Info(t.Context(), p.Hash(), source.All); err != nil || !a.Form.IsRaw() {
		t.Errorf("the next narinfo offers %s, error %v", a.Form, err)
	}
	until(t, "the file goes from under its wrong name", func() bool {
		return len(w.cache.Forms(p.NarHash())) == 0
	})
	before := w.up.Opened(form)
	got, err := w.whole(t.Context(), nameOf(p, form), transfer.Query{})
	if err != nil || !bytes.Equal(decode(t, nix.XZ, got), p.NAR) {
		t.Errorf("asked for again: error %v", err)
	}
	if _, err := w.whole(t.Context(), nameOf(p, form), transfer.Query{Resume: true}); err == nil {
		t.Error("went on with a file that is not believed")
	}
	if w.up.Opened(form) != before {
		t.Error("the exact file was used again")
	}
}

// TestWrongFileSize: as a wrong hash, but seen before the first byte.
func TestWrongFileSize(t *testing.T) {
	for _, d := range []int64{-1, 1} {
		for _, spool := range []bool{true, false} {
			w := newWorld(t, func(w *world) {
				if !spool {
					noCache(w)
				}
			})
			p := nixtest.NewPath("hello", 2*mib)
			info, _ := w.up.AddFile(t, key, p, nix.Zstd, func(n *nix.NarInfo) { n.FileSize += d })
			got, err := w.whole(t.Context(), nameOf(p, formOf(t, info)), transfer.Query{})
			if err != nil || !bytes.Equal(decode(t, nix.Zstd, got), p.NAR) {
				t.Errorf("%+d: %d bytes, error %v", d, len(got), err)
			}
			if a, err := w.r.Info(t.Context(), p.Hash(), source.All); err != nil || !a.Form.IsRaw() {
				t.Errorf("%+d: the next narinfo offers %s, error %v", d, a.Form, err)
			}
		}
	}
}

// TestWrongFile: neither hash nor NAR is right. It is cut, and the next narinfo is raw.
func TestWrongFile(t *testing.T) {
	for _, size := range []int{1000, 3 * mib} {
		for _, spool := range []bool{true, false} {
			w := newWorld(t, func(w *world) {
				if !spool {
					noCache(w)
				}
			})
			p := nixtest.NewPath("hello", size)
			info, file := w.up.AddFile(t, key, p, nix.Zstd, nil)
			form := formOf(t, info)
			bad := bytes.Clone(file.Bytes)
			bad[len(bad)/2] ^= 1
			w.up.AddBytes(p.NarHash(), form, bad)
			got, err := w.whole(t.Context(), nameOf(p, form), transfer.Query{})
			if err == nil && len(got) > 0 { // the file was wrong before anything had left
				if dec := decode(t, nix.Zstd, got); !bytes.Equal(dec, p.NAR) {
					t.Errorf("%d, spool %v: %d wrong bytes", size, spool, len(dec))
				}
			} else if err == nil || !prefix(got, bad) || len(got) > max(0, len(bad)-verify.TailSize) {
				t.Errorf("%d, spool %v: %d of %d bytes left, error %v", size, spool, len(got), len(bad), err)
			}
			if len(w.up.Reports()) != 1 {
				t.Errorf("convicted: %v", w.up.Reports())
			}
			if a, err := w.r.Info(t.Context(), p.Hash(), source.All); err != nil || !a.Form.IsRaw() {
				t.Errorf("the next narinfo offers %s, error %v", a.Form, err)
			}
			if slices.Contains(w.cache.Forms(p.NarHash()), form) {
				t.Error("it is kept")
			}
		}
	}
}

// TestOneFetch: many who ask at once share one fetch.
func TestOneFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := nixtest.NewPath("hello", 2*mib)
		w.up.Add(t, key, p)
		gate := make(chan struct{})
		w.up.SetFaults(sourcetest.Fault{Do: sourcetest.Wait, At: mib, Until: gate})
		var group sync.WaitGroup
		const clients = 20
		for range clients {
			group.Go(func() { w.wantWhole(nameOf(p, nix.Raw), p.NAR) })
		}
		synctest.Wait()
		close(gate)
		group.Wait()
		w.wantWhole(nameOf(p, nix.Raw), p.NAR)
		if w.up.Opened(nix.Raw) != 1 || int(w.begun.Load()) != 1 {
			t.Errorf("fetched %d times, %d downloads", w.up.Opened(nix.Raw), int(w.begun.Load()))
		}
		all := float64(len(p.NAR))
		if got := w.count("nar_bytes_total", "source", "upstream"); got != all {
			t.Errorf("%v bytes counted as upstream's, one fetch is %v", got, all)
		}
	})
}

// TestClientLeaves: whoever leaves, the others get their bytes; when all have left, the fetch
// goes on for a while for the one who comes back.
func TestClientLeaves(t *testing.T) {
	p := nixtest.NewPath("hello", 3*mib)
	for _, c := range []struct {
		name    string
		comes   time.Duration // somebody else, 0 while the first is there; negative never
		fetches int
	}{
		{"while", 0, 1}, {"soon", 4 * time.Second, 1}, {"late", 6 * time.Second, 2}, {"never", -1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.up.Add(t, key, p)
				gate := make(chan struct{})
				w.up.SetFaults(sourcetest.Fault{Do: sourcetest.Wait, At: mib, Until: gate})
				first, leave := context.WithCancel(t.Context())
				var group sync.WaitGroup
				group.Go(func() {
					if _, err := w.whole(first, nameOf(p, nix.Raw), transfer.Query{}); !errors.Is(err, context.Canceled) {
						t.Errorf("the one who left: %v", err)
					}
				})
				synctest.Wait()
				come := func() { group.Go(func() { w.wantWhole(nameOf(p, nix.Raw), p.NAR) }) }
				if c.comes == 0 {
					come()
					synctest.Wait()
				}
				leave()
				pass(max(c.comes, 0))
				if c.comes > 0 {
					come()
				}
				pass(time.Minute)
				if open := w.up.Open(); (open == 0) != (c.comes < 0) {
					t.Errorf("%d bodies open", open)
				}
				close(gate)
				group.Wait()
				if n := w.up.Opened(nix.Raw); n != c.fetches {
					t.Errorf("fetched %d times, want %d", n, c.fetches)
				}
			})
		})
	}
}

// TestLingerCountsFromTheLast: who leaves first does not shorten the time after the last.
func TestLingerCountsFromTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := nixtest.NewPath("hello", 3*mib)
		w.up.Add(t, key, p)
		gate := make(chan struct{})
		defer close(gate)
		w.up.SetFaults(sourcetest.Fault{Do: sourcetest.Wait, At: mib, Until: gate})
		look := func() {
			n, err := w.s.NAR(t.Context(), nameOf(p, nix.Raw), transfer.Query{})
			if err != nil {
				t.Fatal(err)
			}
			ctx, leave := context.WithTimeout(t.Context(), time.Millisecond)
			defer leave()
			_ = n.Send(ctx, io.Discard, 0, n.Size())
		}
		look()
		pass(3 * time.Second)
		look()
		pass(4 * time.Second) // 7 s after the first, 4 s after the second
		if w.up.Open() != 1 {
			t.Error("ended 4 s after the last had left")
		}
		pass(2 * time.Second)
		if w.up.Open() != 0 {
			t.Error("goes on 6 s after the last had left")
		}
	})
}

// TestDeafDownload: a source that hears nothing keeps only its own download, not those who ask
// later.
func TestDeafDownload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := nixtest.NewPath("hello", 3*mib)
		w.up.Add(t, key, p)
		deaf := make(chan struct{})
		calls := 0
		w.up.OnNAR(func(context.Context, *verify.Info, nix.Form) error {
			if calls++; calls == 1 {
				<-deaf
			}
			return nil
		})
		ctx, leave := context.WithCancel(t.Context())
		var group sync.WaitGroup
		group.Go(func() { _, _ = w.whole(ctx, nameOf(p, nix.Raw), transfer.Query{}) })
		synctest.Wait()
		leave()
		group.Wait()
		pass(time.Minute)
		w.wantWhole(nameOf(p, nix.Raw), p.NAR)
		close(deaf)
	})
}

// TestUpstreamLiesOnce: all who follow a lie begin anew together, after its source was convicted.
func TestUpstreamLiesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := nixtest.NewPath("hello", 500_000)
		w.up.Add(t, key, p)
		w.up.SetForgiving() // another mirror has it
		gate := make(chan struct{})
		w.up.SetFaults(sourcetest.Fault{Do: sourcetest.Flip, At: 10, Times: 1},
			sourcetest.Fault{Do: sourcetest.Wait, At: 100_000, Until: gate, Times: 1})
		w.up.OnNAR(func(context.Context, *verify.Info, nix.Form) error {
			if n := w.up.Opened(nix.Raw); n != len(w.up.Reports()) {
				t.Errorf("opened once more after %d lies and %d convictions", n, len(w.up.Reports()))
			}
			return nil
		})
		var group sync.WaitGroup
		for range 10 {
			group.Go(func() { w.wantWhole(nameOf(p, nix.Raw), p.NAR) })
		}
		synctest.Wait()
		close(gate)
		group.Wait()
		if n := w.up.Opened(nix.Raw); n != 2 {
			t.Errorf("fetched %d times", n)
		}
	})
}

// TestLiesAtTheEnd: what has left was right, so another mirror goes on in the same response. When
// the wrong byte has left, the response is cut and cannot be gone on with.
func TestLiesAtTheEnd(t *testing.T) {
	for _, spool := range []bool{true, false} {
		for _, c := range []nix.Compression{nix.None, nix.Zstd} {
			for _, late := range []bool{true, false} {
				w := newWorld(t, func(w *world) {
					if !spool {
						noCache(w)
					}
				})
				w.up.SetForgiving() // another mirror has it
				p := nixtest.NewPath("hello", 3*mib)
				form, want := nix.Raw, p.NAR
				if c == nix.None {
					w.up.Add(t, key, p)
				} else {
					info, file := w.up.AddFile(t, key, p, c, nil)
					form, want = formOf(t, info), file.Bytes
				}
				at := int64(10)
				if late {
					at = int64(len(want)) - 10
				}
				w.up.SetFaults(sourcetest.Fault{Do: sourcetest.Flip, At: at, Times: 1})
				got, err := w.whole(t.Context(), nameOf(p, form), transfer.Query{})
				if late && (err != nil || !bytes.Equal(got, want)) {
					t.Errorf("spool %v, %s: %d of %d bytes, error %v", spool, c, len(got), len(want), err)
				}
				// A client that came after the wrong bytes had been found gets the right ones.
				unseen := err == nil && bytes.Equal(got, want)
				if !late && !unseen && (err == nil || len(got) == 0 || len(got) > len(want)-verify.TailSize) {
					t.Errorf("spool %v, %s, wrong byte sent: %d of %d bytes, error %v", spool, c, len(got), len(want), err)
				}
				if len(w.up.Reports()) != 1 {
					t.Errorf("convicted: %v", w.up.Reports())
				}
				n, err := w.s.NAR(t.Context(), nameOf(p, form), transfer.Query{Resume: true})
				if err == nil {
					n.Close()
				}
				if !late && !unseen && !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("spool %v, %s: asked to go on: %v", spool, c, err)
				}
			}
		}
	}
}

// TestAlwaysLies: a source that gives the same wrong bytes for ever is not asked for ever.
func TestAlwaysLies(t *testing.T) {
	for _, spool := range []bool{true, false} {
		w := newWorld(t, func(w *world) {
			if !spool {
				noCache(w)
			}
		})
		p := nixtest.NewPath("hello", 1000)
		w.up.Add(t, key, p)
		w.up.SetForgiving()
		w.up.SetFaults(sourcetest.Fault{Do: sourcetest.Flip, At: 10})
		if got, err := w.whole(t.Context(), nameOf(p, nix.Raw), transfer.Query{}); err == nil || len(got) != 0 {
			t.Errorf("%d bytes, error %v", len(got), err)
		}
		if n := w.up.Opened(nix.Raw); n > 4 {
			t.Errorf("asked %d times", n)
		}
	}
}

// TestUpstreamDies: nobody goes on, the response is cut, nobody is convicted, and the client may
// ask for the rest.
func TestUpstreamDies(t *testing.T) {
	for _, spool := range []bool{true, false} {
		w := newWorld(t, func(w *world) {
			if !spool {
				noCache(w)
			}
		})
		p := nixtest.NewPath("hello", 3*mib)
		w.up.Add(t, key, p)
		w.up.SetFaults(sourcetest.Fault{Do: sourcetest.Die, At: 2 * mib})
		got, err := w.whole(t.Context(), nameOf(p, nix.Raw), transfer.Query{})
		if err == nil || !prefix(got, p.NAR) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%d bytes, error %v", len(got), err)
		}
		if len(w.up.Reports()) != 0 {
			t.Error("convicted")
		}
		w.up.SetFaults()
		rest, err := w.part(t.Context(), nameOf(p, nix.Raw), transfer.Query{Resume: true}, int64(len(got)), -1)
		if err != nil || !bytes.Equal(append(got, rest...), p.NAR) {
			t.Errorf("the rest: %d bytes, error %v", len(rest), err)
		}
	}
}

// TestRanges: a part is the same bytes as of the whole, and is completed only if the whole is right.
func TestRanges(t *testing.T) {
	p := nixtest.NewPath("hello", 3*mib/2)
	size := int64(len(p.NAR))
	for _, where := range []string{"store", "upstream", "no spool"} {
		for _, c := range []struct{ from, count int64 }{
			{0, 1}, {0, 100}, {0, size}, {1, size - 1}, {mib, 10}, {1000, mib}, {size - 1, 1}, {100, 0},
		} {
			for _, flip := range []int64{-1, 0, size - 1} {
				w := newWorld(t, func(w *world) {
					if where == "no spool" {
						noCache(w)
					}
				})
				s := w.up
				if where == "store" {
					s = w.store
				}
				s.Add(t, key, p)
				if flip >= 0 {
					s.SetFaults(sourcetest.Fault{Do: sourcetest.Flip, At: flip})
				}
				n, err := w.s.NAR(t.Context(), nameOf(p, nix.Raw), transfer.Query{Resume: c.from > 0})
				if err != nil {
					t.Fatal(err)
				}
				var out bytes.Buffer
				err = n.Send(t.Context(), &out, c.from, c.count)
				n.Close()
				want := p.NAR[c.from : c.from+c.count]
				switch {
				case flip < 0 && (err != nil || !bytes.Equal(out.Bytes(), want)):
					t.Errorf("%s %v: %d bytes, error %v", where, c, out.Len(), err)
				case flip >= 0 && (err == nil || int64(out.Len()) >= max(c.count, 1)):
					t.Errorf("%s %v, byte %d wrong: %d bytes, error %v", where, c, flip, out.Len(), err)
				}
				if n := w.count("nar_bytes_total"); n != float64(out.Len()) {
					t.Errorf("%s %v: counted %v bytes, %d were sent", where, c, n, out.Len())
				}
			}
		}
	}
}

// slowWriter takes what a test lets it take.
type slowWriter struct {
	bytes.Buffer
	err error
}

func (s *slowWriter) Write(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	return s.Buffer.Write(p)
}

// TestClientFails: an error of the client's side ends the response, and blames nobody.
func TestClientFails(t *testing.T) {
	p := nixtest.NewPath("hello", 3*mib)
	for _, s := range []string{"store", "upstream"} {
		w := newWorld(t)
		from := w.up
		if s == "store" {
			from = w.store
		}
		from.Add(t, key, p)
		n, err := w.s.NAR(t.Context(), nameOf(p, nix.Raw), transfer.Query{})
		if err != nil {
			t.Fatal(err)
		}
		gone := errors.New("broken pipe")
		if err := n.Send(t.Context(), &slowWriter{err: gone}, 0, n.Size()); !errors.Is(err, gone) {
			t.Errorf("%s: %v", s, err)
		}
		n.Close()
		if len(from.Reports()) != 0 || w.count("failovers_total") != 0 || from.Opened(nix.Raw) != 1 {
			t.Errorf("%s: blamed or asked again", s)
		}
	}
}

// TestCancelStalled: a client that leaves while the source gives nothing ends its response.
func TestCancelStalled(t *testing.T) {
	p := nixtest.NewPath("hello", 3*mib)
	for _, where := range []string{"store", "upstream", "no spool"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, func(w *world) {
				if where == "no spool" {
					noCache(w)
				}
			})
			s := w.up
			if where == "store" {
				s = w.store
			}
			s.Add(t, key, p)
			s.SetFaults(sourcetest.Fault{Do: sourcetest.Hang, At: 2 * mib})
			ctx, leave := context.WithTimeout(t.Context(), time.Second)
			defer leave()
			start := time.Now()
			if _, err := w.whole(ctx, nameOf(p, nix.Raw), transfer.Query{}); err == nil || time.Since(start) != time.Second {
				t.Errorf("%s: error %v after %v", where, err, time.Since(start))
			}
			if len(s.Reports()) != 0 {
				t.Error("convicted")
			}
		})
	}
}

// TestOnlyAsked: who wants no bytes leaves no download behind: none begins for HEAD, and one that
// nobody asked anything of does not linger.
func TestOnlyAsked(t *testing.T) {
	p := nixtest.NewPath("hello", 3*mib)
	for _, head := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.up.Add(t, key, p)
			w.up.SetFaults(sourcetest.Fault{Do: sourcetest.Hang, At: 2 * mib})
			n, err := w.s.NAR(t.Context(), nameOf(p, nix.Raw), transfer.Query{Head: head})
			if err != nil {
				t.Fatal(err)
			}
			if n.Size() != int64(len(p.NAR)) || int(w.begun.Load()) != 0 == head {
				t.Errorf("head %v: %d of %d bytes, %d downloads", head, n.Size(), len(p.NAR), int(w.begun.Load()))
			}
			n.Close()
			synctest.Wait()
			if on := w.s.Transfers(); len(on) != 0 || w.up.Open() != 0 {
				t.Errorf("head %v: %d downloads go on, %d open", head, len(on), w.up.Open())
			}
			if _, err := w.s.NAR(t.Context(), nameOf(nixtest.NewPath("absent", 1), nix.Raw), transfer.Query{Head: head}); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("head %v: absent: %v", head, err)
			}
		})
	}
}

// TestSlowClients: what waits for clients that take nothing is bounded for all of them together.
func TestSlowClients(t *testing.T) {
	w := newWorld(t, noCache)
	p := nixtest.NewPath("hello", 5*mib)
	w.up.Add(t, key, p)
	ctx, leave := context.WithCancel(t.Context())
	var group sync.WaitGroup
	defer group.Wait()
	defer leave()
	const slow = 80 // at 2 MiB each they would hold more than may be held
	for range slow {
		group.Go(func() {
			n, err := w.s.NAR(ctx, nameOf(p, nix.Raw), transfer.Query{})
			if err != nil {
				t.Error(err)
				return
			}
			defer n.Close()
			_ = n.Send(ctx, untaken{ctx}, 0, n.Size())
		})
	}
	until(t, "all are read from", func() bool { return w.up.Reading() >= slow })
	w.wantWhole(nameOf(p, nix.Raw), p.NAR) // and nobody else has to wait for them
}

// untaken is a client that takes nothing until it leaves.
type untaken struct{ ctx context.Context }

func (w untaken) Write([]byte) (int, error) {
	<-w.ctx.Done()
	return 0, w.ctx.Err()
}

// TestDecodedFromCache: the cache has only the file, raw is asked for.
func TestDecodedFromCache(t *testing.T) {
	w := newWorld(t)
	p := nixtest.NewPath("hello", 3*mib)
	info, file := w.up.AddFile(t, key, p, nix.Zstd, nil)
	w.keep(info, formOf(t, info), file.Bytes)
	w.wantWhole(nameOf(p, nix.Raw), p.NAR)
	got, err := w.whole(t.Context(), nameOf(p, nix.Form{Compression: nix.XZ, File: nix.FileHash{1}}), transfer.Query{})
	if err != nil || !bytes.Equal(decode(t, nix.XZ, got), p.NAR) {
		t.Errorf("in another container: %v", err)
	}
	if w.up.Gave() != 0 {
		t.Error("upstream gave bytes")
	}
	// Without a store it is the same.
	w = newWorld(t, noStore)
	info, file = w.up.AddFile(t, key, p, nix.Zstd, nil)
	w.keep(info, formOf(t, info), file.Bytes)
	w.wantWhole(nameOf(p, formOf(t, info)), file.Bytes)
	w.wantWhole(nameOf(p, nix.Raw), p.NAR)
	got, err = w.whole(t.Context(), nameOf(p, formOf(t, info)), transfer.Query{})
	if err != nil || !bytes.Equal(decode(t, nix.Zstd, got), p.NAR) {
		t.Errorf("of both forms: %v", err)
	}
	if w.up.Gave() != 0 {
		t.Error("upstream gave bytes")
	}
	if n := int(w.begun.Load()); n != 0 {
		t.Errorf("%d downloads", n)
	}
}

func TestNowhere(t *testing.T) {
	w := newWorld(t)
	p := nixtest.NewPath("hello", 1000)
	w.up.AddInfo(p.Info(t, key)) // the narinfo, but no NAR
	for _, form := range []nix.Form{nix.Raw, {Compression: nix.XZ, File: nix.FileHash{1}}} {
		_, err := w.whole(t.Context(), nameOf(p, form), transfer.Query{})
		if !errors.Is(err, fs.ErrNotExist) || errors.Is(err, resolve.ErrUnavailable) {
			t.Errorf("%s: %v", form, err)
		}
	}
	w.up.OnNAR(func(context.Context, *verify.Info, nix.Form) error { return errors.New("input/output error") })
	_, err := w.whole(t.Context(), nameOf(p, nix.Raw), transfer.Query{})
	if errors.Is(err, fs.ErrNotExist) || !errors.Is(err, resolve.ErrUnavailable) {
		t.Errorf("nobody could say: %v", err)
	}
}

// TestGoneEverywhere: a narinfo is remembered as long as there is a NAR for it, and then another build of
// the path is found. As long as somebody may have it, or when only a part is asked for, it stays.
func TestGoneEverywhere(t *testing.T) {
	p, rebuilt := nixtest.NewPath("hello", 1000), nixtest.NewPath("rebuilt", 1000)
	rebuilt.StorePath = p.StorePath
	for name, c := range map[string]struct {
		q      transfer.Query
		failed error // what the upstream says of the NAR
		again  bool  // the narinfo is looked for again
	}{
		"nobody has it":           {transfer.Query{}, nil, true},
		"the upstream cannot say": {transfer.Query{}, errors.New("input/output error"), false},
		"only the size":           {transfer.Query{Head: true}, nil, false},
		"for another machine":     {transfer.Query{Scope: source.PublicOnly}, nil, false},
		"on this machine only":    {transfer.Query{Scope: source.LocalOnly}, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.up.AddInfo(p.Info(t, key))
			if _, err := w.r.Info(t.Context(), p.Hash(), source.All); err != nil {
				t.Fatal(err)
			}
			if c.failed != nil {
				w.up.OnNAR(func(context.Context, *verify.Info, nix.Form) error { return c.failed })
			}
			if n, err := w.s.NAR(t.Context(), nameOf(p, nix.Raw), c.q); err == nil {
				n.Close()
			}
			w.up.AddInfo(rebuilt.Info(t, key))
			a, err := w.r.Info(t.Context(), p.Hash(), source.All)
			if err != nil {
				t.Fatal(err)
			}
			if again := a.Info.NarHash() == rebuilt.NarHash(); again != c.again {
				t.Errorf("looked for again: %v", again)
			}
			if forgot := slices.Contains(w.disk.Forgotten(), p.Hash()); forgot != c.again {
				t.Errorf("forgotten on disk: %v", forgot)
			}
		})
	}
}

// TestViaGoesAlong: the shared work carries the chain of its first asker.
func TestViaGoesAlong(t *testing.T) {
	w := newWorld(t)
	p := nixtest.NewPath("hello", 1000)
	w.up.Add(t, key, p)
	var vias []string
	w.up.OnInfo(func(ctx context.Context, _ nix.StoreHash) (*verify.Info, error) {
		vias = append(vias, nix.Via(ctx))
		return nil, nil
	})
	w.up.OnNAR(func(ctx context.Context, _ *verify.Info, _ nix.Form) error {
		vias = append(vias, nix.Via(ctx))
		return nil
	})
	if _, err := w.whole(nix.ContextWithVia(t.Context(), "nixp2p/other"), nameOf(p, nix.Raw), transfer.Query{}); err != nil {
		t.Error(err)
	}
	if fmt.Sprint(vias) != "[nixp2p/other nixp2p/other]" {
		t.Errorf("%q", vias)
	}
}
