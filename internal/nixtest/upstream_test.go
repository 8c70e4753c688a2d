package nixtest

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

func get(t *testing.T, c *http.Client, url string) (int, []byte, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

func TestUpstreamServes(t *testing.T) {
	p := NewPath("hello", 100_000)
	for _, c := range []nix.Compression{nix.None, nix.Zstd, nix.Gzip, nix.Brotli, nix.XZ, nix.Bzip2} {
		u := NewUpstream(t, UpstreamConfig{Paths: []Path{p}, Keys: []Key{NewKey("k")}, Compression: c, BasePath: "/b"})
		_, text, err := get(t, http.DefaultClient, u.URL()+"/"+p.Hash().String()+".narinfo")
		if err != nil {
			t.Fatal(err)
		}
		info, err := Keys(t, NewKey("k")).Open(text, p.Hash())
		if err != nil {
			t.Fatal(err)
		}
		status, file, err := get(t, http.DefaultClient, u.URL()+"/"+info.Hints().URL)
		if err != nil || status != http.StatusOK || !bytes.Equal(file, u.File(p)) || info.Hints().Compression != c {
			t.Errorf("%s: status %d, %d bytes, %v", c, status, len(file), err)
		}
		if u.Requests(NarInfo) != 1 || u.Requests(NarFile) != 1 || u.Bytes(NarFile) != int64(len(file)) {
			t.Errorf("%s: wrong counts", c)
		}
	}
}

func TestUpstreamFaults(t *testing.T) {
	p := NewPath("hello", 100_000)
	u := NewUpstream(t, UpstreamConfig{Paths: []Path{p}, Keys: []Key{NewKey("k")}})
	nar := u.URL() + "/" + p.NarInfo().URL
	client := &http.Client{Timeout: 200 * time.Millisecond, Transport: &http.Transport{DisableKeepAlives: true}}
	for name, test := range map[string]struct {
		fault Fault
		check func(status int, b []byte, err error) bool
	}{
		"status":              {Fault{Status: 502}, func(s int, _ []byte, err error) bool { return err == nil && s == 502 }},
		"hang before headers": {Fault{Do: Hang, At: BeforeHeaders}, func(s int, _ []byte, err error) bool { return err != nil && s == 0 }},
		"hang":                {Fault{Do: Hang, At: 100}, func(_ int, b []byte, err error) bool { return err != nil && len(b) == 100 }},
		"cut":                 {Fault{Do: Cut, At: 100}, func(_ int, b []byte, err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) && len(b) == 100 }},
		"cut chunked":         {Fault{Do: Cut, At: 100, Chunked: true}, func(_ int, b []byte, err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) && len(b) == 100 }},
		"quiet":               {Fault{Do: QuietEnd, At: 100}, func(_ int, b []byte, err error) bool { return err == nil && len(b) == 100 }},
		"reset":               {Fault{Do: Reset, At: 100}, func(_ int, b []byte, err error) bool { return errors.Is(err, syscall.ECONNRESET) }},
		"reset at once":       {Fault{Do: Reset, At: BeforeHeaders}, func(s int, b []byte, err error) bool { return err != nil && s == 0 }},
		"flip": {Fault{Do: Flip, At: 100}, func(_ int, b []byte, err error) bool {
			return err == nil && len(b) == len(p.NAR) && b[100] != p.NAR[100]
		}},
		"extra":        {Fault{Do: Extra, At: 1}, func(_ int, b []byte, err error) bool { return err == nil && len(b) == len(p.NAR)+1 }},
		"wrong length": {Fault{Length: 1 << 20}, func(_ int, b []byte, err error) bool { return err != nil && len(b) == len(p.NAR) }},
		"slow":         {Fault{Rate: 10_000}, func(_ int, b []byte, err error) bool { return err != nil && len(b) > 100 && len(b) < 10_000 }},
		"redirect":     {Fault{Redirect: "/nowhere", Times: 1}, func(s int, _ []byte, err error) bool { return err == nil && s == 404 }},
	} {
		t.Run(name, func(t *testing.T) {
			u.Set(NarFile, test.fault)
			if status, b, err := get(t, client, nar); !test.check(status, b, err) {
				t.Errorf("status %d, %d bytes, %v", status, len(b), err)
			}
		})
	}
	u.Set(NarFile, Fault{Status: 500, Times: 2})
	for _, want := range []int{500, 500, 200} {
		if status, _, err := get(t, http.DefaultClient, nar); status != want {
			t.Errorf("status %d, %v, want %d", status, err, want)
		}
	}
	u.Stop()
	if _, _, err := get(t, client, nar); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("stopped: %v", err)
	}
	u.Start()
	if status, _, err := get(t, client, nar); status != 200 {
		t.Errorf("started again: %d, %v", status, err)
	}
}
