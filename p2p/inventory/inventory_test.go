package inventory

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/nixp2p/nixp2p/internal/nix"
)

func keysOf(n int, seed uint64) []Key {
	r := rand.New(rand.NewPCG(seed, 1))
	keys := make([]Key, n)
	for i := range keys {
		keys[i] = Key(r.Uint64())
	}
	return keys
}

func setOf(keys []Key) map[Key]struct{} {
	m := make(map[Key]struct{}, len(keys))
	for _, k := range keys {
		m[k] = struct{}{}
	}
	return m
}

// tell brings v up to date and returns how many bytes that took.
func tell(t *testing.T, o *Own, v *View, m Mark) (Mark, int) {
	t.Helper()
	full, deltas, m := o.Since(m)
	n := len(full)
	if full != nil {
		if err := v.Full(full); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range deltas {
		n += len(d)
		if err := v.Delta(d); err != nil {
			t.Fatal(err)
		}
	}
	return m, n
}

func TestFilterSizes(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 5, 100, 4096, 100_000} {
		keys := keysOf(n, 1)
		o, v := NewOwn(), &View{}
		o.Replace(setOf(keys))
		if _, err := o.Flush(time.Now()); err != nil {
			t.Fatal(err)
		}
		_, size := tell(t, o, v, Mark{})
		for _, k := range keys {
			if !v.Has(k) {
				t.Fatalf("%d keys: one of them is missing", n)
			}
		}
		wrong := 0
		for _, k := range keysOf(100_000, 2) {
			if v.Has(k) {
				wrong++
			}
		}
		if wrong > 12 {
			t.Errorf("%d keys: %d of 100,000 strangers are positive", n, wrong)
		}
		if v.Count() != n {
			t.Errorf("%d keys: counts %d", n, v.Count())
		}
		if n == 100_000 && size > 240_000 {
			t.Errorf("%d keys take %d bytes", n, size)
		}
	}
}

// TestFollow lets a view follow a set that changes at random, told at random moments.
func TestFollow(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	o, v, now := NewOwn(), &View{}, time.Now()
	have := setOf(keysOf(5000, 4))
	o.Replace(have)
	var m Mark
	fulls := 0
	for range 60 {
		for range r.IntN(600) {
			if k := Key(r.Uint64()); r.IntN(2) == 0 {
				o.Add(k)
				have[k] = struct{}{}
			} else {
				for k := range have {
					o.Remove(k)
					delete(have, k)
					break
				}
			}
		}
		now = now.Add(time.Second)
		if _, err := o.Flush(now); err != nil {
			t.Fatal(err)
		}
		if r.IntN(3) > 0 {
			continue
		}
		if full, _, _ := o.Since(m); full != nil {
			fulls++
		}
		m, _ = tell(t, o, v, m)
		for k := range have {
			if !v.Has(k) {
				t.Fatal("a key is missing")
			}
		}
		// A key that comes while the filter takes it for one that is there is not counted.
		if n := len(have) - v.Count(); n < 0 || n > 3 || o.Len() != len(have) {
			t.Fatalf("view counts %d, own %d, want %d", v.Count(), o.Len(), len(have))
		}
	}
	if fulls < 2 {
		t.Errorf("%d filters were sent", fulls)
	}
	m, _ = tell(t, o, v, m)
	if _, n := tell(t, o, v, m); n != 0 {
		t.Errorf("nothing changed and %d bytes were sent", n)
	}
}

func TestNothingBeforeLoaded(t *testing.T) {
	o := NewOwn()
	o.Add(1)
	if news, _ := o.Flush(time.Now()); news {
		t.Error("a set that is not loaded is told")
	}
	full, _, _ := o.Since(Mark{})
	if full != nil {
		t.Error("a set that is not loaded has a filter")
	}
	o.Replace(setOf([]Key{1, 2}))
	if news, _ := o.Flush(time.Now()); !news {
		t.Error("the loaded set is not told")
	}
}

func TestBulkBecomesFilter(t *testing.T) {
	o, now := NewOwn(), time.Now()
	o.Replace(nil)
	_, _ = o.Flush(now)
	_, _, m := o.Since(Mark{})
	for _, k := range keysOf(maxDelta+1, 5) {
		o.Add(k)
	}
	_, _ = o.Flush(now.Add(growGap))
	full, deltas, _ := o.Since(m)
	if full == nil || len(deltas) != 0 {
		t.Errorf("%d changes at once: filter %d bytes, %d lists", maxDelta+1, len(full), len(deltas))
	}
}

// TestGrowth: the filters of a store that is read for the first time do not come faster than a
// receiver takes them, so that the last one does not wait behind the others.
func TestGrowth(t *testing.T) {
	for _, seconds := range []int{3, 10, 60} {
		o, now := NewOwn(), time.Now()
		takes := rate.NewLimiter(rate.Every(FilterEvery), FilterBurst)
		o.Replace(nil)
		var m Mark
		var done int
		for at := 0; done == 0; at++ {
			if at < seconds {
				for _, k := range keysOf(100_000/seconds, uint64(at)) {
					o.Add(k)
				}
			}
			now = now.Add(time.Second)
			if _, err := o.Flush(now); err != nil {
				t.Fatal(err)
			}
			full, _, next := o.Since(m)
			if full != nil && takes.ReserveN(now, 1).DelayFrom(now) > 0 {
				t.Errorf("100,000 paths in %d s: the receiver does not take the filter after %d s yet", seconds, at+1)
			}
			if m = next; at+1 >= seconds && len(o.pending) == 0 {
				done = at + 1
			}
			if at > 2*seconds+10 {
				t.Fatalf("100,000 paths in %d s: not told by then", seconds)
			}
		}
		if late := done - seconds; late > 5 {
			t.Errorf("100,000 paths in %d s are told %d s later", seconds, late)
		}
	}
}

// TestEndlessDeltas has a liar send a million changes.
func TestEndlessDeltas(t *testing.T) {
	v := &View{}
	if err := v.Delta(appendDelta(nil, []Key{1}, nil)); !errors.Is(err, errDelta) {
		t.Errorf("changes before the filter: %v", err)
	}
	if err := v.Full(filter{}.append(nil)); err != nil {
		t.Fatal(err)
	}
	var err error
	for i := 0; i < 1_000_000 && err == nil; i += 10_000 {
		err = v.Delta(appendDelta(nil, keysOf(10_000, uint64(i)), nil))
	}
	if !errors.Is(err, errDrift) {
		t.Errorf("a million changes: %v", err)
	}
	if v.Bytes() > 2<<20 {
		t.Errorf("they take %d bytes", v.Bytes())
	}
}

// TestAllOnes: a filter of ones does not say yes to everything, whoever made it.
func TestAllOnes(t *testing.T) {
	f, err := build([]uint64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10})
	if err != nil {
		t.Fatal(err)
	}
	for i := range f.fuse.Fingerprints {
		f.fuse.Fingerprints[i] = 0xffff
	}
	v := &View{}
	if err := v.Full(f.append(nil)); err != nil {
		t.Fatal(err)
	}
	wrong := 0
	for _, k := range keysOf(100_000, 9) {
		if v.Has(k) {
			wrong++
		}
	}
	if wrong > 20 {
		t.Errorf("it says yes to %d of 100,000", wrong)
	}
}

func TestKeyOf(t *testing.T) {
	q := nix.StoreHash{}.Question()
	if KeyOf(q) != Key(binary.BigEndian.Uint64(q[:])) {
		t.Error("the key is not the first eight bytes")
	}
}

func FuzzFilter(f *testing.F) {
	f.Add(filter{}.append(nil))
	for _, n := range []int{1, 10, 1000} {
		var keys []uint64
		for _, k := range keysOf(n, 7) {
			keys = append(keys, uint64(k))
		}
		fl, _ := build(keys)
		f.Add(fl.append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fl, err := parseFilter(b)
		if err != nil {
			return
		}
		for i := range Key(256) {
			fl.has(i * 0x9e3779b97f4a7c15)
		}
		if !bytes.Equal(fl.append(nil), b) {
			t.Error("does not encode to what was parsed")
		}
	})
}

func FuzzDelta(f *testing.F) {
	f.Add(appendDelta(nil, []Key{1, 2}, []Key{3}))
	f.Add(appendDelta(nil, nil, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		added, removed, err := parseDelta(b)
		if err == nil && !bytes.Equal(appendDelta(nil, added, removed), b) {
			t.Error("does not encode to what was parsed")
		}
	})
}

func BenchmarkMiss64Views(b *testing.B) {
	var views []*View
	for i := range 64 {
		o, v := NewOwn(), &View{}
		o.Replace(setOf(keysOf(100_000, uint64(i))))
		_, _ = o.Flush(time.Now())
		full, _, _ := o.Since(Mark{})
		_ = v.Full(full)
		views = append(views, v)
	}
	keys := keysOf(1<<16, 99)
	b.ResetTimer()
	for i := range b.N {
		for _, v := range views {
			v.Has(keys[i&0xffff])
		}
	}
}
