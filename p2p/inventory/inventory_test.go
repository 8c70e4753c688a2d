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

// shared is a set together with what is told of it.
type shared struct {
	*Local
	keys Keys
}

func sharedOf(keys []Key) *shared {
	s := &shared{NewLocal(), Keys{}}
	for _, k := range keys {
		s.add(k)
	}
	return s
}

func (s *shared) add(k Key) {
	s.keys[k] = struct{}{}
	s.Changed(k, true)
}

func (s *shared) remove(k Key) {
	delete(s.keys, k)
	s.Changed(k, false)
}

func (s *shared) flush(t testing.TB, now time.Time) bool {
	t.Helper()
	news, err := s.Flush(now, s.keys)
	if err != nil {
		t.Fatal(err)
	}
	return news
}

// tell brings v up to date and returns how many bytes that took.
func tell(t *testing.T, o *shared, v *Remote, m Mark) (Mark, int) {
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
		o, v := sharedOf(keys), &Remote{}
		o.flush(t, time.Now())
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
			t.Errorf("%d keys: %d of 100,000 others are positive", n, wrong)
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
	o, v, now := sharedOf(keysOf(5000, 4)), &Remote{}, time.Now()
	have := o.keys
	var m Mark
	fulls := 0
	for range 60 {
		for range r.IntN(600) {
			if k := Key(r.Uint64()); r.IntN(2) == 0 {
				o.add(k)
			} else {
				for k := range have {
					o.remove(k)
					break
				}
			}
		}
		now = now.Add(time.Second)
		o.flush(t, now)
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
		if n := len(have) - v.Count(); n < 0 || n > 3 {
			t.Fatalf("counts %d, want %d", v.Count(), len(have))
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
	o := sharedOf([]Key{1})
	if full, deltas, _ := o.Since(Mark{}); full != nil || deltas != nil {
		t.Error("a set that is not loaded is told")
	}
	o.add(2)
	if !o.flush(t, time.Now()) {
		t.Error("the loaded set is not told")
	}
}

func TestBulkBecomesFilter(t *testing.T) {
	o, now := sharedOf(nil), time.Now()
	o.flush(t, now)
	_, _, m := o.Since(Mark{})
	for _, k := range keysOf(maxDelta+1, 5) {
		o.add(k)
	}
	o.flush(t, now.Add(growGap))
	full, deltas, _ := o.Since(m)
	if full == nil || len(deltas) != 0 {
		t.Errorf("%d changes at once: filter %d bytes, %d lists", maxDelta+1, len(full), len(deltas))
	}
}

// TestGrowth: the filters of a store that is read for the first time do not come faster than a
// receiver takes them, so that the last one does not wait behind the others.
func TestGrowth(t *testing.T) {
	for _, seconds := range []int{3, 10, 60} {
		o, now := sharedOf(nil), time.Now()
		takes := rate.NewLimiter(rate.Every(FilterEvery), FilterBurst)
		o.flush(t, now)
		var m Mark
		var done int
		for at := 0; done == 0; at++ {
			if at < seconds {
				for _, k := range keysOf(100_000/seconds, uint64(at)) {
					o.add(k)
				}
			}
			now = now.Add(time.Second)
			o.flush(t, now)
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

// TestEndlessDeltas has a hostile peer send a million changes.
func TestEndlessDeltas(t *testing.T) {
	v := &Remote{}
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
	if !errors.Is(err, errTooMany) {
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
	v := &Remote{}
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

func BenchmarkMiss64(b *testing.B) {
	var views []*Remote
	for i := range 64 {
		o, v := sharedOf(keysOf(100_000, uint64(i))), &Remote{}
		o.flush(b, time.Now())
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
