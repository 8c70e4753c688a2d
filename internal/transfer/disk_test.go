package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"testing"
	"testing/synctest"

	"github.com/nixp2p/nixp2p/internal/narcache"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
	"github.com/nixp2p/nixp2p/internal/transfer"
	"github.com/nixp2p/nixp2p/verify"
)

// tiny makes a cache in which nothing has room.
func tiny(w *world) {
	_ = w.cache.Close()
	var err error
	if w.cache, err = narcache.Open(narcache.Config{Dir: w.dir, Size: 0}); err != nil {
		w.t.Fatal(err)
	}
	w.rc.Cache, w.tc.Cache = w.cache, w.cache
}

// TestNoRoom: what does not fit streams through, for each client by itself.
func TestNoRoom(t *testing.T) {
	w := newWorld(t, tiny)
	p := nixtest.NewPath("hello", 3*mib)
	w.up.Add(t, key, p)
	for range 2 {
		w.wantWhole(nameOf(p, nix.Raw), p.NAR)
	}
	if w.up.Opened(nix.Raw) != 2 || w.begun.Load() != 0 {
		t.Errorf("fetched %d times, %d downloads", w.up.Opened(nix.Raw), w.begun.Load())
	}
	w.up.SetFaults(sourcetest.Fault{Do: sourcetest.Flip, At: int64(len(p.NAR)) - 1})
	got, err := w.whole(t.Context(), nameOf(p, nix.Raw), transfer.Query{})
	if err == nil || len(got) > len(p.NAR)-verify.TailSize {
		t.Errorf("%d bytes of a wrong NAR, error %v", len(got), err)
	}
}

// TestDiskFails: the client of a download whose disk fails does not notice.
func TestDiskFails(t *testing.T) {
	p := nixtest.NewPath("hello", 4*mib)
	for _, c := range []nix.Compression{nix.None, nix.Zstd} {
		for _, at := range []int64{0, 1, mib, 3 * mib, 4 * mib} {
			w := newWorld(t)
			form := nix.Raw
			if w.up.Add(t, key, p); c != nix.None { // only raw is there, and a container is wanted
				form = nix.Form{Compression: c, File: nix.FileHash{1}}
			}
			fail := make(chan struct{})
			w.up.SetFaults(sourcetest.Fault{Do: sourcetest.Wait, At: at, Until: fail, Times: 1})
			opened := 0
			w.up.OnNAR(func(context.Context, *verify.Info, nix.Form) error {
				if opened++; opened == 1 {
					go func() { // as if the disk had gone
						until(t, "bytes come", func() bool { return w.up.Gave() >= at })
						_ = w.cache.Close()
						close(fail)
					}()
				}
				return nil
			})
			got, err := w.whole(t.Context(), nameOf(p, form), transfer.Query{})
			if c != nix.None && err == nil {
				got = decode(t, c, got)
			}
			if err != nil || !bytes.Equal(got, p.NAR) {
				t.Errorf("%s at %d: %d bytes, error %v", c, at, len(got), err)
			}
			if len(w.up.Reports()) != 0 || w.count("failovers_total") != 0 {
				t.Error("the source was blamed for the disk")
			}
		}
	}
}

// TestDiverged: what comes the second time is not what the client has the beginning of.
func TestDiverged(t *testing.T) {
	w := newWorld(t)
	p := nixtest.NewPath("hello", 4*mib)
	w.up.Add(t, key, p)
	fail := make(chan struct{})
	w.up.SetFaults(sourcetest.Fault{Do: sourcetest.Flip, At: 10, Times: 1},
		sourcetest.Fault{Do: sourcetest.Wait, At: 3 * mib, Until: fail, Times: 1})
	opened := 0
	w.up.OnNAR(func(context.Context, *verify.Info, nix.Form) error {
		if opened++; opened == 1 {
			go func() {
				until(t, "the client has a beginning", func() bool { return w.count("nar_bytes_total") >= mib })
				_ = w.cache.Close()
				close(fail)
			}()
		}
		return nil
	})
	got, err := w.whole(t.Context(), nameOf(p, nix.Raw), transfer.Query{})
	if err == nil || len(got) == 0 || len(got) > 3*mib {
		t.Errorf("%d bytes, error %v", len(got), err)
	}
	if _, err := w.s.NAR(t.Context(), nameOf(p, nix.Raw), transfer.Query{Resume: true}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("asked to go on: %v", err)
	}
	w.wantWhole(nameOf(p, nix.Raw), p.NAR)
}

// TestComesIntoCache: what came into the cache between the look and the fetch is not fetched again.
func TestComesIntoCache(t *testing.T) {
	w := newWorld(t)
	p := nixtest.NewPath("hello", 1000)
	w.up.Add(t, key, p)
	first := true
	w.store.OnNAR(func(context.Context, *verify.Info, nix.Form) error {
		if first {
			first = false
			w.keep(p.Info(t, key), nix.Raw, p.NAR)
		}
		return fs.ErrNotExist
	})
	w.wantWhole(nameOf(p, nix.Raw), p.NAR)
	if w.up.Opened(nix.Raw) != 0 {
		t.Error("it was fetched")
	}
}

// TestChangedInCache: bytes that came into the cache right and changed there do not leave.
func TestChangedInCache(t *testing.T) {
	p := nixtest.NewPath("hello", 3*mib)
	for _, at := range []int64{0, mib, 3*mib - 1} {
		w := newWorld(t, noStore)
		w.up.Add(t, key, p)
		w.wantWhole(nameOf(p, nix.Raw), p.NAR)
		gave := w.up.Gave()
		w.wantWhole(nameOf(p, nix.Raw), p.NAR)
		if w.up.Gave() != gave {
			t.Fatal("it was fetched again")
		}
		until(t, "it has its name", func() bool { return w.damage(p.NarHash(), at) })
		got, err := w.whole(t.Context(), nameOf(p, nix.Raw), transfer.Query{})
		if err == nil && !bytes.Equal(got, p.NAR) || len(got) > int(at) && got[at] != p.NAR[at] {
			t.Errorf("byte %d: %d bytes, %v", at, len(got), err)
		}
	}
}

// TestWrongFileInside: a file has its FileHash, and does not hold the signed NAR. The first
// client gets it as it comes; nobody gets it a second time, and the narinfo that named it is
// forgotten.
func TestWrongFileInside(t *testing.T) {
	for _, how := range []string{"asked again", "while idle", "asked for raw"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				p, other := nixtest.NewPath("hello", 300_000), nixtest.NewPath("other", 300_000)
				file := nixtest.Compress(t, nix.XZ, other.NAR)
				info, _ := w.up.AddFile(t, key, p, nix.XZ, func(n *nix.NarInfo) {
					wrong := file.NarInfo(p, key)
					n.FileHash, n.FileSize = wrong.FileHash, wrong.FileSize
				})
				form := formOf(t, info)
				w.up.AddBytes(p.NarHash(), form, file.Bytes)
				w.wantWhole(nameOf(p, form), file.Bytes) // as an honest cache could have it
				switch how {
				case "while idle":
					pass(2 * 3e9)
					synctest.Wait()
				case "asked again":
					got, err := w.whole(t.Context(), nameOf(p, form), transfer.Query{})
					if err != nil || !bytes.Equal(decode(t, nix.XZ, got), p.NAR) {
						t.Errorf("%d bytes, error %v", len(got), err)
					}
				default:
					w.wantWhole(nameOf(p, nix.Raw), p.NAR)
				}
				for _, f := range w.cache.Forms(p.NarHash()) {
					if f == form {
						t.Error("it is kept")
					}
				}
				if how != "asked for raw" && (len(w.up.Reports()) != 1 || len(w.disk.Forgotten()) != 1) {
					t.Errorf("reports %v, %d forgotten", w.up.Reports(), len(w.disk.Forgotten()))
				}
			})
		})
	}
}

// TestProvenInBackground: a file that came is decoded once while nothing is sent.
func TestProvenInBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := nixtest.NewPath("hello", 300_000)
		info, file := w.up.AddFile(t, key, p, nix.XZ, nil)
		form := formOf(t, info)
		w.wantWhole(nameOf(p, form), file.Bytes)
		if w.cache.Proven(p.NarHash(), form) {
			t.Error("proven at once")
		}
		pass(10 * 1e9)
		synctest.Wait()
		if !w.cache.Proven(p.NarHash(), form) {
			t.Error("not proven when idle")
		}
	})
}
