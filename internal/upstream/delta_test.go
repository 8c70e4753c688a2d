package upstream

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
	"github.com/nixp2p/nixp2p/internal/update"
)

// updates is a mirror that has two versions of a path and sends deltas, and a client that has the
// older one.
type updates struct {
	*bench
	old, now    nixtest.Path
	here, there *sourcetest.Trees

	asked, plain atomic.Int32                                 // requests for the newer NAR: with bases, without
	answer       func(w http.ResponseWriter, d *update.Delta) // if not nil, what is sent as a delta
	offer        string
	compression  nix.Compression // of the mirror's files
}

func newUpdates(t *testing.T, edit func(*updates)) *updates {
	t.Helper()
	u := &updates{old: nixtest.NewPath("app-1.0", 300_000), now: nixtest.NewPath("app-1.1", 1000), offer: "1"}
	u.now.Contents, u.now.NAR = u.old.Contents, bytes.Clone(u.old.NAR)
	for i := 2000; i < len(u.now.NAR); i += 1000 {
		u.now.NAR[i] += byte(i / 1000)
	}
	u.here = &sourcetest.Trees{Fake: sourcetest.NewFake(source.Store).Share(key.Name)}
	u.there = &sourcetest.Trees{Fake: sourcetest.NewFake(source.Store).Share(key.Name)}
	u.here.Add(t, key, u.old)
	u.there.Add(t, key, u.old, u.now)
	if edit != nil {
		edit(u)
	}
	files := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: []nixtest.Path{u.now}, Keys: []nixtest.Key{key}, Compression: cmp.Or(u.compression, nix.None)})
	encoder := update.NewEncoder(u.there, nil, metrics.New(), nil)
	info := u.now.Info(t, key)
	mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/nix-cache-info" {
			w.Header().Set(update.OfferHeader, u.offer)
		}
		if !strings.HasPrefix(r.URL.Path, "/nar/") {
			files.ServeHTTP(w, r)
			return
		}
		bases := update.ParseDictionaries(r.Header[update.DictionaryHeader])
		if len(bases) == 0 {
			u.plain.Add(1)
			files.ServeHTTP(w, r)
			return
		}
		u.asked.Add(1)
		d := encoder.Open(r.Context(), update.Ask{Info: info, Bases: bases})
		if d == nil {
			files.ServeHTTP(w, r)
			return
		}
		defer d.Close()
		w.Header().Set("Content-Encoding", update.Coding)
		w.Header().Set(update.BaseHeader, d.Base.Nix32())
		if u.answer != nil {
			u.answer(w, d)
			return
		}
		if err := d.Send(r.Context(), w, func(int) {}); err != nil {
			panic(http.ErrAbortHandler)
		}
	}))
	t.Cleanup(mirror.Close)
	m := metrics.New()
	u.bench = open(t, func(c *Config) { c.Bases, c.Metrics = update.NewBases(u.here, []string{key.Name}, m), m }, mirror.URL)
	u.bench.metrics = m
	u.run()
	for u.mirrors[0].info.Load() == nil { // Run looks at once
		time.Sleep(time.Millisecond)
	}
	u.slow(1 << 20)
	return u
}

// slow makes the link look as if n bytes a second came over it.
func (u *updates) slow(n int) {
	p := &u.mirrors[0].pace
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bytes, p.seconds, p.at = float64(n), 1, time.Now()
}

// get reads the newer NAR as a delta, if it comes as one.
func (u *updates) get(t *testing.T) (got []byte, isDelta bool) {
	t.Helper()
	n, isDelta, err := u.Update(t.Context(), u.now.Info(t, key), nix.Raw)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Body.Close()
	if n.Size != int64(len(u.now.NAR)) {
		t.Errorf("%d bytes", n.Size)
	}
	if got, err = io.ReadAll(n.Body); err != nil {
		t.Error(err)
	}
	return got, isDelta
}

// TestUpdate: a mirror is told of a base where that is of use, and never otherwise.
func TestUpdate(t *testing.T) {
	for name, tt := range map[string]struct {
		edit   func(*updates)
		after  func(*updates)
		asked  bool
		delta  bool
		counts string
	}{
		"used":             {nil, nil, true, true, "used"},
		"not offered":      {func(u *updates) { u.offer = "" }, nil, false, false, ""},
		"fast link":        {nil, func(u *updates) { u.slow(100 << 20) }, false, false, ""},
		"takes too long":   {nil, func(u *updates) { u.slow(100) }, false, false, ""},
		"no base here":     {func(u *updates) { u.here.Share("other-1") }, nil, false, false, "no_base"},
		"no base there":    {func(u *updates) { u.there.Share("other-1") }, nil, true, false, "declined"},
		"was wrong lately": {nil, func(u *updates) { u.deltas.refused.Add(0, time.Hour) }, false, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpdates(t, tt.edit)
			if tt.after != nil {
				tt.after(u)
			}
			got, isDelta := u.get(t)
			if !bytes.Equal(got, u.now.NAR) || isDelta != tt.delta {
				t.Errorf("%d bytes, delta %v", len(got), isDelta)
			}
			if asked := u.asked.Load() > 0; asked != tt.asked {
				t.Errorf("a base was named: %v", asked)
			}
			if tt.counts != "" && metrics.Value(u.metrics.Delta.WithLabelValues(tt.counts)) != 1 {
				t.Errorf("%s is not counted", tt.counts)
			}
			if came := metrics.Value(u.metrics.UpstreamBytes); tt.delta && came > 20_000 {
				t.Errorf("%d bytes came", came)
			}
			if u.here.Open.Load()+u.there.Open.Load() != 0 {
				t.Error("trees are open")
			}
		})
	}
}

// TestNear: a link whose rate is not known is slow if answers take their time.
func TestNear(t *testing.T) {
	u := newUpdates(t, nil)
	m, info := u.mirrors[0], u.now.Info(t, key)
	m.pace.mu.Lock()
	m.pace.bytes, m.pace.seconds = 0, 0
	m.pace.mu.Unlock()
	for latency, want := range map[time.Duration]bool{0: false, farAway - 1: false, farAway: true, time.Second: true} {
		m.latency.v.Store(int64(latency))
		if _, got := u.givesDeltas(m, info); got != want {
			t.Errorf("latency %v: %v", latency, got)
		}
	}
}

// TestUpdateFails: whatever a mirror sends as a delta, the rest comes without one, and the base is closed.
func TestUpdateFails(t *testing.T) {
	coded := func(d *update.Delta) []byte {
		var b bytes.Buffer
		_ = d.Send(context.Background(), &b, func(int) {})
		return b.Bytes()
	}
	for name, answer := range map[string]func(w http.ResponseWriter, d *update.Delta){
		"cut": func(w http.ResponseWriter, d *update.Delta) {
			b := coded(d)
			_, _ = w.Write(b[:len(b)/2])
			panic(http.ErrAbortHandler)
		},
		"short":    func(w http.ResponseWriter, d *update.Delta) { b := coded(d); _, _ = w.Write(b[:len(b)/2]) },
		"empty":    func(http.ResponseWriter, *update.Delta) {},
		"no delta": func(w http.ResponseWriter, _ *update.Delta) { _, _ = w.Write(bytes.Repeat([]byte("x"), 5000)) },
		"longer": func(w http.ResponseWriter, d *update.Delta) {
			b := coded(d)
			_, _ = w.Write(append(bytes.Clone(b), b...))
		},
		"another base": func(w http.ResponseWriter, d *update.Delta) {
			w.Header().Set(update.BaseHeader, nix.NarHash{1}.Nix32())
			_, _ = w.Write(coded(d))
		},
		"without end": func(w http.ResponseWriter, _ *update.Delta) {
			for b := make([]byte, 1<<16); ; {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpdates(t, func(u *updates) { u.answer = answer })
			got, _ := u.get(t)
			if !bytes.Equal(got, u.now.NAR) {
				t.Errorf("%d bytes, wrong", len(got))
			}
			if u.plain.Load() == 0 && name != "longer" { // its beginning is right
				t.Error("never asked without a base")
			}
			if u.here.Open.Load() != 0 {
				t.Error("a base is open")
			}
		})
	}
}

// TestWrongUpdate: of a wrong NAR that came as a delta, the mirror is not blamed; it sends no other for a while, and
// the base is told to the store if it is damaged.
func TestWrongUpdate(t *testing.T) {
	for _, damaged := range []bool{true, false} {
		u := newUpdates(t, nil)
		b := bytes.Clone(u.old.NAR)
		b[1000] ^= 1
		if damaged {
			u.here.AddBytes(u.old.NarHash(), nix.Raw, b)
		} else {
			u.there.AddBytes(u.old.NarHash(), nix.Raw, b)
		}
		got, isDelta := u.get(t)
		if !isDelta || bytes.Equal(got, u.now.NAR) {
			t.Fatal("right by chance")
		}
		info := u.now.Info(t, key)
		u.Invalid(info, nix.Raw, errOther)
		if u.wasWrong(u.mirrors[0], info, nix.Raw) {
			t.Error("the mirror is blamed")
		}
		if got, isDelta = u.get(t); isDelta || !bytes.Equal(got, u.now.NAR) {
			t.Errorf("the next one: delta %v, %d bytes", isDelta, len(got))
		}
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			until, _ := u.deltas.refused.Until(0)
			if told := len(u.here.Reports()) == 1; told == damaged && (damaged || time.Until(until) > 2*noDeltaFor) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("damaged here: %v; the store was told %v, refused until %v", damaged, u.here.Reports(), until)
			}
		}
		// What comes wrong without a delta is the mirror's fault.
		u.Invalid(info, nix.Raw, errOther)
		if !u.wasWrong(u.mirrors[0], info, nix.Raw) {
			t.Error("the mirror is not blamed")
		}
	}
}

// TestUpdateClosed: a reader that leaves in the middle leaves no base open.
func TestUpdateClosed(t *testing.T) {
	left := make(chan struct{})
	u := newUpdates(t, func(u *updates) {
		u.answer = func(w http.ResponseWriter, d *update.Delta) {
			_ = http.NewResponseController(w).Flush()
			<-left
		}
	})
	var once sync.Once
	t.Cleanup(func() { once.Do(func() { close(left) }) })
	n, isDelta, err := u.Update(t.Context(), u.now.Info(t, key), nix.Raw)
	if err != nil || !isDelta {
		t.Fatal(isDelta, err)
	}
	time.AfterFunc(10*time.Millisecond, func() { _ = n.Body.Close() })
	if _, err := io.ReadAll(n.Body); err == nil {
		t.Error("no error")
	}
	once.Do(func() { close(left) })
	if u.here.Open.Load() != 0 {
		t.Error("a base is open")
	}
}

// TestUpdateOfFile: a mirror that has files sends a delta in place of one, or the file as it is when there is no delta;
// what breaks off is decoded from the file.
func TestUpdateOfFile(t *testing.T) {
	for name, tt := range map[string]struct {
		edit  func(*updates)
		delta bool
		plain int32
	}{
		"used":     {nil, true, 0},
		"declined": {func(u *updates) { u.there.Share("other-1") }, false, 0},
		"cut": {func(u *updates) {
			u.answer = func(w http.ResponseWriter, d *update.Delta) {
				var b bytes.Buffer
				_ = d.Send(context.Background(), &b, func(int) {})
				_, _ = w.Write(b.Bytes()[:b.Len()/2])
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}
		}, true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpdates(t, func(u *updates) {
				u.compression = nix.XZ
				if tt.edit != nil {
					tt.edit(u)
				}
			})
			info, err := u.Info(t.Context(), u.now.Hash())
			if err != nil {
				t.Fatal(err)
			}
			form, ok := info.FileForm()
			if !ok {
				t.Fatal("no file")
			}
			n, isDelta, err := u.Update(t.Context(), info, form)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(n.Body)
			_ = n.Body.Close()
			if err != nil || isDelta != tt.delta || int64(len(got)) != n.Size {
				t.Fatalf("%d bytes of %d, delta %v, %v", len(got), n.Size, isDelta, err)
			}
			if isDelta && !bytes.Equal(got, u.now.NAR) || !isDelta && sha256.Sum256(got) != form.File {
				t.Error("wrong bytes")
			}
			if u.asked.Load() != 1 || u.plain.Load() != tt.plain {
				t.Errorf("%d requests with bases, %d without", u.asked.Load(), u.plain.Load())
			}
			if u.here.Open.Load()+u.there.Open.Load() != 0 {
				t.Error("trees are open")
			}
		})
	}
}
