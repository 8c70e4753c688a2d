package upstream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/verify"
)

var compressions = cheapest

// fileForm returns the form of p's file at u.
func fileForm(t testing.TB, u *nixtest.Upstream, p nixtest.Path) nix.Form {
	t.Helper()
	info, err := nixtest.Keys(t, key).Open(u.NarInfo(p), p.Hash())
	if err != nil {
		t.Fatal(err)
	}
	form, _ := info.FileForm()
	return form
}

// TestNARForms: every compression that Nix reads gives raw from every offset, xz and zstd the file too, and
// what the client asked before makes no difference.
func TestNARForms(t *testing.T) {
	t.Parallel()
	p := nixtest.NewPath("hello", 60_000)
	size := int64(len(p.NAR))
	for _, c := range compressions {
		for _, noFile := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%v", c, noFile), func(t *testing.T) {
				cfg := cache(c, p)
				cfg.NoFile, cfg.BasePath = noFile, "/b"
				u := nixtest.NewUpstream(t, cfg)
				b := open(t, nil, u.URL())
				info := p.Info(t, key) // from elsewhere: with other hints
				for _, off := range []int64{0, 1, size / 2, size - 1, size} {
					got, err := b.read(info, nix.Raw, off)
					if err != nil || !bytes.Equal(got, p.NAR[off:]) {
						t.Errorf("raw from %d: %d bytes, %v", off, len(got), err)
					}
				}
				if _, err := b.NAR(t.Context(), info, nix.Raw, size+1); err == nil {
					t.Error("from behind the end")
				}
				form := fileForm(t, u, p)
				if form.IsRaw() {
					return
				}
				file := u.File(p)
				for _, off := range []int64{0, 1000, int64(len(file)) - 1, int64(len(file))} {
					got, err := b.read(info, form, off)
					if err != nil || !bytes.Equal(got, file[off:]) {
						t.Errorf("file from %d: %d bytes, %v", off, len(got), err)
					}
				}
				form.File[0]++
				if _, err := b.NAR(t.Context(), info, form, 0); kindOf(err) != "absent" {
					t.Errorf("another file: %v", err)
				}
				if n := u.Requests(nixtest.NarInfo); n != 1 {
					t.Errorf("%d narinfo requests", n)
				}
			})
		}
	}
}

// TestNARFaults: one cache that is faulty in every way; what can be mended is.
func TestNARFaults(t *testing.T) {
	p := nixtest.NewPath("hello", 200_000)
	hang, cut, reset := nixtest.Hang, nixtest.Cut, nixtest.Reset
	const early = nixtest.BeforeHeaders
	resumed := func(r *http.Request) bool { return r.Header.Get("Range") != "" }
	for name, c := range map[string]struct {
		faults []nixtest.Fault
		want   string // of raw from none and of files; "ok" is the whole
		decode string // of raw by decoding, where that is something else
	}{
		"none":                {nil, "ok", ""},
		"404":                 {[]nixtest.Fault{{Status: 404}}, "absent", ""},
		"403":                 {[]nixtest.Fault{{Status: 403}}, "absent", ""},
		"401":                 {[]nixtest.Fault{{Status: 401}}, "unavailable", ""},
		"500":                 {[]nixtest.Fault{{Status: 500}}, "unavailable", ""},
		"500 once":            {[]nixtest.Fault{{Status: 500, Times: 1}}, "ok", ""},
		"429":                 {[]nixtest.Fault{{Status: 429}}, "unavailable", ""},
		"503, come later":     {[]nixtest.Fault{{Status: 503, RetryAfter: "1"}}, "unavailable", ""},
		"204":                 {[]nixtest.Fault{{Status: 204}}, "unavailable", ""},
		"hang":                {[]nixtest.Fault{{Do: hang, At: early}}, "unavailable", ""},
		"hang in the body":    {[]nixtest.Fault{{Do: hang, At: 70_000}}, "unavailable", ""},
		"once":                {[]nixtest.Fault{{Do: hang, At: 70_000, Times: 1}}, "ok", ""},
		"hang at once":        {[]nixtest.Fault{{Do: hang, At: 0, Times: 1}}, "ok", ""},
		"cut":                 {[]nixtest.Fault{{Do: cut, At: 70_000, Times: 2}}, "ok", ""},
		"cut for ever":        {[]nixtest.Fault{{Do: cut, At: 10}}, "unavailable", ""},
		"cut, chunked":        {[]nixtest.Fault{{Do: cut, At: 70_000, Chunked: true, Times: 1}}, "ok", ""},
		"reset":               {[]nixtest.Fault{{Do: reset, At: 70_000, Times: 1}}, "ok", ""},
		"reset before":        {[]nixtest.Fault{{Do: reset, At: early, Times: 1}}, "ok", ""},
		"quiet end":           {[]nixtest.Fault{{Do: nixtest.QuietEnd, At: 70_000, Times: 1}}, "ok", ""},
		"too short":           {[]nixtest.Fault{{Length: 1}}, "unavailable", ""},
		"too long":            {[]nixtest.Fault{{Do: nixtest.Extra, At: 1}}, "invalid size", "ok"},
		"too long, chunked":   {[]nixtest.Fault{{Do: nixtest.Extra, At: 1, Chunked: true}}, "invalid size", "ok"},
		"promises more":       {[]nixtest.Fault{{Length: 1 << 20}}, "invalid size", "ok"},
		"no range":            {[]nixtest.Fault{{Do: cut, At: 70_000, Times: 1}, {NoRange: true}}, "ok", ""},
		"wrong range":         {[]nixtest.Fault{{Do: cut, At: 70_000, Times: 1}, {WrongRange: true, Times: 1}}, "ok", ""},
		"range not satisfied": {[]nixtest.Fault{{Do: cut, At: 70_000, Times: 1}, {Status: 416, Only: resumed}}, "ok", ""},
		"ill when resumed":    {[]nixtest.Fault{{Do: cut, At: 70_000, Times: 1}, {Status: 502, Times: 2}}, "ok", ""},
		"gone when resumed":   {[]nixtest.Fault{{Do: cut, At: 70_000, Times: 1}, {Status: 404}}, "unavailable", ""},
		"redirected":          {[]nixtest.Fault{{Redirect: "/elsewhere"}}, "ok", ""},
		"slow":                {[]nixtest.Fault{{Rate: 1 << 20}}, "ok", ""},
	} {
		for _, form := range []string{"raw", "file", "decoded"} {
			t.Run(name+"/"+form, func(t *testing.T) {
				t.Parallel()
				compression, want := nix.Zstd, c.want
				switch {
				case form == "raw":
					compression = nix.None
				case form == "decoded" && c.decode != "":
					want = c.decode
				}
				u := nixtest.NewUpstream(t, cache(compression, p))
				all := u.File(p)
				u.Serve("/elsewhere", all)
				b := open(t, hastyFor(c.faults...), u.URL())
				ask := nix.Raw
				if form == "file" {
					ask = fileForm(t, u, p)
				} else {
					all = p.NAR
				}
				info := b.mustInfo(p)
				faults := slices.Clone(c.faults)
				if len(faults) > 0 && faults[0].Redirect != "" {
					faults[0].Only = func(r *http.Request) bool { return r.URL.Path != "/elsewhere" }
				}
				u.Set(nixtest.NarFile, faults...)
				for _, off := range []int64{0} {
					got, err := b.read(info, ask, off)
					if kindOf(err) != want {
						t.Errorf("%v, want %s", err, want)
					}
					if err == nil && !bytes.Equal(got, all[off:]) || !bytes.HasPrefix(all[off:], got) {
						t.Errorf("wrong bytes, %d", len(got))
					}
				}
			})
		}
	}
}

// TestNARGoesOn: where one cache stops, another that has the same goes on at that byte.
func TestNARGoesOn(t *testing.T) {
	p := nixtest.NewPath("hello", 400_000)
	for name, c := range map[string]struct {
		first, second nix.Compression
		form          string
		fault         nixtest.Fault
		most          int64 // bytes that the second may send
	}{
		"raw to raw, stall":       {nix.None, nix.None, "raw", nixtest.Fault{Do: nixtest.Hang, At: 150_000}, 260_000},
		"raw to raw, cut":         {nix.None, nix.None, "raw", nixtest.Fault{Do: nixtest.Cut, At: 150_000}, 260_000},
		"raw to raw, no headers":  {nix.None, nix.None, "raw", nixtest.Fault{Do: nixtest.Hang, At: nixtest.BeforeHeaders}, 410_000},
		"raw to raw, gone":        {nix.None, nix.None, "raw", nixtest.Fault{Status: 404}, 410_000},
		"raw to zstd":             {nix.None, nix.Zstd, "raw", nixtest.Fault{Do: nixtest.Hang, At: 150_000}, 410_000},
		"zstd to xz":              {nix.Zstd, nix.XZ, "raw", nixtest.Fault{Do: nixtest.Hang, At: 150_000}, 410_000},
		"zstd to raw":             {nix.Zstd, nix.None, "raw", nixtest.Fault{Do: nixtest.Hang, At: 150_000}, 410_000},
		"corrupt zstd to raw":     {nix.Zstd, nix.None, "raw", nixtest.Fault{Do: nixtest.Flip, At: 1}, 410_000},
		"corrupt zstd to xz":      {nix.Zstd, nix.XZ, "raw", nixtest.Fault{Do: nixtest.Flip, At: 399_000}, 410_000},
		"file to file, stall":     {nix.Zstd, nix.Zstd, "file", nixtest.Fault{Do: nixtest.Hang, At: 150_000}, 260_000},
		"file to file, reset":     {nix.XZ, nix.XZ, "file", nixtest.Fault{Do: nixtest.Reset, At: 150_000}, 260_000},
		"file to file, too long":  {nix.Zstd, nix.Zstd, "file", nixtest.Fault{Do: nixtest.Extra, At: 5}, 410_000},
		"file to file, too short": {nix.Zstd, nix.Zstd, "file", nixtest.Fault{Length: 10}, 410_000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first, second := nixtest.NewUpstream(t, cache(c.first, p)), nixtest.NewUpstream(t, cache(c.second, p))
			first.Set(nixtest.NarFile, c.fault)
			b := open(t, hastyFor(c.fault), first.URL(), second.URL())
			info, form, all := b.mustInfo(p), nix.Raw, p.NAR
			if c.form == "file" {
				form, all = fileForm(t, first, p), first.File(p)
			}
			got, err := b.read(info, form, 0)
			if err != nil || !bytes.Equal(got, all) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if n := second.Bytes(nixtest.NarFile); n == 0 || n > c.most {
				t.Errorf("the second sent %d bytes", n)
			}
		})
	}
}

// TestNARCrawls: where a cache gives next to nothing, another goes on; alone it may crawl.
func TestNARCrawls(t *testing.T) {
	t.Parallel()
	p := nixtest.NewPath("hello", 400_000)
	for _, c := range []nix.Compression{nix.None, nix.Zstd} {
		first, second := nixtest.NewUpstream(t, cache(c, p)), nixtest.NewUpstream(t, cache(c, p))
		first.Set(nixtest.NarFile, nixtest.Fault{Rate: 5000})
		b := open(t, func(c *Config) { c.timeouts.crawl, c.timeouts.hedge = 200*time.Millisecond, time.Minute }, first.URL(), second.URL())
		info := b.mustInfo(p)
		if got, err := b.read(info, nix.Raw, 0); err != nil || !bytes.Equal(got, p.NAR) {
			t.Errorf("%s: %d bytes, %v", c, len(got), err)
		}
		if n := first.Bytes(nixtest.NarFile); first.Requests(nixtest.NarFile) == 0 || n > 100_000 {
			t.Errorf("%s: the first sent %d bytes", c, n)
		}
		// The second has it no more: better to crawl than to stop.
		second.SetAll(nixtest.Fault{Status: 404})
		first.Set(nixtest.NarFile, nixtest.Fault{Rate: 15_000})
		small := nixtest.NewPath("small", 10_000)
		first.Add(small)
		if got, err := b.read(b.mustInfo(small), nix.Raw, 0); err != nil || !bytes.Equal(got, small.NAR) {
			t.Errorf("%s, alone: %d bytes, %v", c, len(got), err)
		}
	}
}

// TestNAROther: a cache that has another build of the path, or another file of the NAR, does
// not have what is asked for.
func TestNAROther(t *testing.T) {
	p := nixtest.NewPath("hello", 1000)
	q := p
	q.Contents = []byte("another build")
	q.NAR = nixtest.FileNAR(q.Contents)
	a, b := nixtest.NewUpstream(t, cache(nix.None, q)), nixtest.NewUpstream(t, cache(nix.None, p))
	one := open(t, nil, a.URL())
	if _, err := one.NAR(t.Context(), p.Info(t, key), nix.Raw, 0); kindOf(err) != "absent" {
		t.Error(err)
	}
	two := open(t, nil, a.URL(), b.URL())
	if got, err := two.read(p.Info(t, key), nix.Raw, 0); err != nil || !bytes.Equal(got, p.NAR) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if a.Requests(nixtest.NarFile) != 0 {
		t.Error("asked for another NAR")
	}
}

// TestNARMoved: a place that is out of date is looked up once more.
func TestNARMoved(t *testing.T) {
	p := nixtest.NewPath("hello", 100_000)
	u := nixtest.NewUpstream(t, cache(nix.None, p))
	b := open(t, nil, u.URL())
	info := b.mustInfo(p)
	n := p.Signed(key)
	n.URL = "nar/moved"
	u.Serve("/nar/moved", p.NAR)
	u.Set(nixtest.NarInfo, nixtest.Fault{Body: n.AppendText(nil)})
	u.Set(nixtest.NarFile, nixtest.Fault{Status: 404, Times: 1})
	if got, err := b.read(info, nix.Raw, 0); err != nil || !bytes.Equal(got, p.NAR) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestNARContentEncoding: a NAR that was encoded on the way, which nobody asked for, is refused.
func TestNARContentEncoding(t *testing.T) {
	p := nixtest.NewPath("hello", 300_000)
	for _, coding := range []nix.Compression{nix.Gzip, nix.Zstd, nix.Brotli} {
		u, good := nixtest.NewUpstream(t, cache(nix.None, p)), nixtest.NewUpstream(t, cache(nix.None, p))
		u.Set(nixtest.NarFile, nixtest.Fault{
			Body: nixtest.Compress(t, coding, p.NAR).Bytes, Header: map[string]string{"Content-Encoding": string(coding)},
		})
		one := open(t, nil, u.URL())
		if _, err := one.read(one.mustInfo(p), nix.Raw, 0); kindOf(err) != "unavailable" || !errors.Is(err, errEncoding) {
			t.Errorf("%s: %v", coding, err)
		}
		both := open(t, nil, u.URL(), good.URL())
		if got, err := both.read(both.mustInfo(p), nix.Raw, 0); err != nil || !bytes.Equal(got, p.NAR) {
			t.Errorf("%s: %d bytes, %v", coding, len(got), err)
		}
	}
}

// TestNARLies: what decodes to something else than a NAR of this size.
func TestNARLies(t *testing.T) {
	p := nixtest.NewPath("hello", 100_000)
	zstd := func(b []byte) []byte { return nixtest.Compress(t, nix.Zstd, b).Bytes }
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 32, 0}, make([]byte, 2<<20)...)
	for name, c := range map[string]struct {
		file []byte
		want string
	}{
		"not zstd":         {p.NAR, "invalid encoding"},
		"too much":         {zstd(append(bytes.Clone(p.NAR), 0)), "invalid size"},
		"bomb":             {zstd(make([]byte, 1<<23)), "invalid size"},
		"too little":       {zstd(p.NAR[:50_000]), "invalid size"},
		"cut short":        {zstd(p.NAR)[:50_000], "invalid encoding"},
		"large and hollow": {bytes.Repeat(skippable, 3), "invalid size"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, chunked := range []bool{false, true} {
				cfg := cache(nix.Zstd, p)
				cfg.NoFile = chunked // nothing is known of its length
				u := nixtest.NewUpstream(t, cfg)
				b := open(t, nil, u.URL())
				info := b.mustInfo(p)
				u.Set(nixtest.NarFile, nixtest.Fault{Body: c.file, Chunked: chunked})
				if got, err := b.read(info, nix.Raw, 0); kindOf(err) != c.want || len(got) > len(p.NAR) {
					t.Errorf("chunked %v: %d bytes, %v, want %s", chunked, len(got), err, c.want)
				}
			}
		})
	}
}

// TestInvalid: who sent a NAR wrong is not asked for it for some time; the others are.
func TestInvalid(t *testing.T) {
	p := nixtest.NewPath("hello", 100_000)
	wrong := &verify.InvalidError{Reason: verify.ReasonHash, Err: errors.New("wrong")}
	bad, good := nixtest.NewUpstream(t, cache(nix.Zstd, p)), nixtest.NewUpstream(t, cache(nix.Zstd, p))
	b := open(t, func(c *Config) { c.timeouts.wrong = time.Hour }, bad.URL()+"?priority=1", good.URL()+"?priority=2")
	info, form := b.mustInfo(p), fileForm(t, bad, p)
	if _, err := b.read(info, form, 0); err != nil {
		t.Fatal(err)
	}
	b.Invalid(info, form, wrong)
	for range 3 {
		if _, err := b.read(info, form, 0); err != nil {
			t.Fatal(err)
		}
	}
	if n := bad.Requests(nixtest.NarFile); n != 1 {
		t.Errorf("convicted file was asked for %d times", n)
	}
	b.Invalid(info, form, wrong)
	if _, err := b.read(info, form, 0); kindOf(err) != "absent" {
		t.Errorf("both convicted: %v", err)
	}
	if got, err := b.read(info, nix.Raw, 0); err != nil || !bytes.Equal(got, p.NAR) {
		t.Errorf("raw after a wrong file: %v", err)
	}
	b.Invalid(info, nix.Raw, wrong)
	b.Invalid(info, nix.Raw, wrong)
	other := nixtest.NewPath("other", 10)
	bad.Add(other)
	if _, err := b.read(b.mustInfo(other), nix.Raw, 0); err != nil {
		t.Errorf("another NAR: %v", err)
	}
	for _, m := range b.all {
		b.wrong.Remove(sentBy(m, info, nix.Raw))
	}
	if _, err := b.read(info, nix.Raw, 0); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestHealed: a cache that named a wrong file, and alone has the NAR, is asked for a narinfo and
// the NAR again; but not while another one has it.
func TestHealed(t *testing.T) {
	p, other := nixtest.NewPath("hello", 100_000), nixtest.NewPath("other", 100_000)
	u, empty := nixtest.NewUpstream(t, cache(nix.Zstd, p)), nixtest.NewUpstream(t, cache(nix.Zstd))
	wrong := nixtest.Compress(t, nix.XZ, other.NAR)
	n := wrong.NarInfo(p, key)
	n.URL = "nar/wrong.nar.xz"
	u.Serve("/"+n.URL, wrong.Bytes)
	poison := nixtest.Fault{Body: n.AppendText(nil)}
	for _, urls := range [][]string{{u.URL()}, {u.URL(), empty.URL()}, {empty.URL(), u.URL()}} {
		u.Set(nixtest.NarInfo, poison)
		b := open(t, nil, urls...)
		info := b.mustInfo(p)
		got, err := b.read(info, nix.Raw, 0)
		if err != nil || bytes.Equal(got, p.NAR) {
			t.Fatalf("poisoned: %v", err)
		}
		b.Invalid(info, nix.Raw, &verify.InvalidError{Reason: verify.ReasonHash, Err: errors.New("wrong")})
		u.SetAll()
		if got, err := b.read(info, nix.Raw, 0); err != nil || !bytes.Equal(got, p.NAR) {
			t.Errorf("%d caches: it is right again: %v", len(urls), err)
		}
	}
	good := nixtest.NewUpstream(t, cache(nix.XZ, p))
	b := open(t, nil, u.URL()+"?priority=1", good.URL()+"?priority=2")
	info := b.mustInfo(p)
	if _, err := b.read(info, nix.Raw, 0); err != nil {
		t.Fatal(err)
	}
	b.Invalid(info, nix.Raw, &verify.InvalidError{Reason: verify.ReasonHash, Err: errors.New("wrong")})
	before := u.Requests(nixtest.NarFile)
	if got, err := b.read(info, nix.Raw, 0); err != nil || !bytes.Equal(got, p.NAR) || u.Requests(nixtest.NarFile) != before {
		t.Errorf("another one has it: %v, asked %d times", err, u.Requests(nixtest.NarFile)-before)
	}
}

// TestClose: a body may be closed while it is read, and leaves nothing behind.
func TestClose(t *testing.T) {
	p := nixtest.NewPath("hello", 100_000)
	for _, c := range []nix.Compression{nix.None, nix.Zstd, nix.XZ} {
		u := nixtest.NewUpstream(t, cache(c, p))
		b := open(t, nil, u.URL())
		info := b.mustInfo(p)
		u.Set(nixtest.NarFile, nixtest.Fault{Do: nixtest.Hang, At: 30_000})
		nar, err := b.NAR(t.Context(), info, nix.Raw, 0)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() {
			_, err := io.Copy(io.Discard, nar.Body)
			ended <- err
		}()
		until(t, "bytes", func() bool { return u.Bytes(nixtest.NarFile) == 30_000 })
		if err := nar.Body.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err == nil {
			t.Error("read to the end")
		}
		if n, err := nar.Body.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Error("reads on after Close")
		}
		if err := nar.Body.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestRestart: a cache that restarts in the middle does not cut the transfer.
func TestRestart(t *testing.T) {
	p := nixtest.NewPath("hello", 1_000_000)
	u := nixtest.NewUpstream(t, cache(nix.None, p))
	b := open(t, func(c *Config) { c.timeouts.retry = 30 * time.Millisecond }, u.URL())
	info := b.mustInfo(p)
	u.Set(nixtest.NarFile, nixtest.Fault{Do: nixtest.Hang, At: 500_000, Times: 1})
	nar, err := b.NAR(t.Context(), info, nix.Raw, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer nar.Body.Close()
	got := make([]byte, 500_000)
	if _, err := io.ReadFull(nar.Body, got); err != nil {
		t.Fatal(err)
	}
	u.Stop()
	started := make(chan struct{})
	time.AfterFunc(40*time.Millisecond, func() { u.Start(); close(started) })
	rest, err := io.ReadAll(nar.Body)
	<-started
	if err != nil || !bytes.Equal(append(got, rest...), p.NAR) {
		t.Errorf("%d more bytes, %v", len(rest), err)
	}
}

// TestUpstreamBytes: all bytes of bodies count, those of errors and compressed ones too.
func TestUpstreamBytes(t *testing.T) {
	p := nixtest.NewPath("hello", 100_000)
	u := nixtest.NewUpstream(t, cache(nix.Zstd, p))
	b := open(t, nil, u.URL())
	_, _ = b.Info(t.Context(), nixtest.NewPath("none", 1).Hash())
	if _, err := b.read(b.mustInfo(p), nix.Raw, 0); err != nil {
		t.Fatal(err)
	}
	want := int64(len("404\n") + len(u.NarInfo(p)) + len(u.File(p)))
	if got := int64(b.count("upstream_bytes_total")); got != want {
		t.Errorf("counted %d, sent %d", got, want)
	}
}

// TestConnectionsServeAgain: answers of all sizes leave their connection to the next request.
func TestConnectionsServeAgain(t *testing.T) {
	p := nixtest.NewPath("hello", 100_000)
	for _, c := range []nix.Compression{nix.None, nix.Zstd} {
		u := nixtest.NewUpstream(t, cache(c, p))
		dials := 0
		b := open(t, func(c *Config) { c.dialer = countDials(&dials) }, u.URL())
		info := b.mustInfo(p)
		for range 5 {
			_, _ = b.Info(t.Context(), nixtest.NewPath("none", 1).Hash())
			b.mustInfo(p)
			if _, err := b.read(info, nix.Raw, 0); err != nil {
				t.Fatal(err)
			}
		}
		if dials != 1 {
			t.Errorf("%s: %d connections", c, dials)
		}
	}
}

// TestManyAtOnce: whatever several caches do wrong at the same time, what comes is right as
// far as it goes, and what comes whole is right.
func TestManyAtOnce(t *testing.T) {
	var paths []nixtest.Path
	for i := range 12 {
		paths = append(paths, nixtest.NewPath(fmt.Sprint("p", i), 1000<<i/10))
	}
	cfg := cache(nix.None, paths...)
	cfg.TLS = true
	ups := []*nixtest.Upstream{
		nixtest.NewUpstream(t, cache(nix.Zstd, paths...)), nixtest.NewUpstream(t, cfg), nixtest.NewUpstream(t, cache(nix.Gzip, paths...)),
	}
	b := open(t, func(c *Config) { c.roots = ups[1].CertPool() }, ups[0].URL(), ups[1].URL(), ups[2].URL())
	b.run()
	faults := []nixtest.Fault{
		{Status: 502, Times: 2}, {Do: nixtest.Cut, At: 900, Times: 3}, {Do: nixtest.Reset, At: nixtest.BeforeHeaders, Times: 2},
		{Status: 404, Times: 2}, {Delay: 10 * time.Millisecond, Times: 3}, {Do: nixtest.Cut, At: 0, Times: 2},
	}
	ups[0].SetAll(faults...)
	ups[1].SetAll(faults[2:]...)
	ups[2].Set(nixtest.NarFile, faults[:2]...)
	var wg sync.WaitGroup
	whole := atomic.Int64{}
	for i := range 48 {
		wg.Go(func() {
			p := paths[i%len(paths)]
			off := int64(i * 17 % len(p.NAR))
			got, err := b.read(p.Info(t, key), nix.Raw, off)
			switch {
			case err == nil && !bytes.Equal(got, p.NAR[off:]), !bytes.HasPrefix(p.NAR[off:], got):
				t.Errorf("%s from %d: wrong bytes, %d, %v", p.StorePath, off, len(got), err)
			case err == nil:
				whole.Add(1)
			default:
				t.Log(err)
			}
		})
	}
	wg.Wait()
	if whole.Load() < 40 {
		t.Errorf("only %d of 48 came whole", whole.Load())
	}
}

// TestHTTP2Faults: what a stream suffers inside a connection is mended as well.
func TestHTTP2Faults(t *testing.T) {
	p := nixtest.NewPath("hello", 300_000)
	cfg := cache(nix.None, p)
	cfg.TLS = true
	for _, do := range []nixtest.Action{nixtest.Cut, nixtest.Hang, nixtest.Reset, nixtest.QuietEnd} {
		for _, at := range []int64{nixtest.BeforeHeaders, 0, 100_000} {
			if do == nixtest.QuietEnd && at < 0 || do == nixtest.Hang && at < 0 {
				continue
			}
			u := nixtest.NewUpstream(t, cfg)
			fault := nixtest.Fault{Do: do, At: at, Times: 1}
			b := open(t, func(c *Config) {
				if do == nixtest.Hang {
					hasty(c)
				}
				c.roots = u.CertPool()
			}, u.URL())
			info := b.mustInfo(p)
			u.Set(nixtest.NarFile, fault)
			if got, err := b.read(info, nix.Raw, 0); err != nil || !bytes.Equal(got, p.NAR) {
				t.Errorf("%d at %d: %d bytes, %v", do, at, len(got), err)
			}
			if n := u.Requests(nixtest.NarFile); n != 2 {
				t.Errorf("%d at %d: %d requests", do, at, n)
			}
		}
	}
}

func TestErrorsNameTheOperation(t *testing.T) {
	p := nixtest.NewPath("hello", 10)
	u := nixtest.NewUpstream(t, nixtest.UpstreamConfig{})
	b := open(t, nil, u.URL())
	_, err := b.Info(t.Context(), p.Hash())
	if want := "upstream: get narinfo " + p.Hash().String() + ": " + u.URL(); !strings.HasPrefix(fmt.Sprint(err), want) {
		t.Errorf("%q, want %q", err, want)
	}
	_, err = b.NAR(t.Context(), p.Info(t, key), nix.Raw, 0)
	if want := "upstream: get raw NAR of " + p.StorePath.String() + ": "; !strings.HasPrefix(fmt.Sprint(err), want) {
		t.Errorf("%q, want %q", err, want)
	}
}
