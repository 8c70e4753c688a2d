package wire

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
)

func TestFrames(t *testing.T) {
	var b []byte
	big := bytes.Repeat([]byte("x"), 300<<10)
	b = AppendFrame(b, Ping, []byte("12345678"))
	b = AppendFrame(b, Filter, big)
	b = AppendFrame(b, 200, []byte("from the future"))
	r := bytes.NewReader(b)
	for _, want := range []struct {
		kind Kind
		body []byte
	}{{Ping, []byte("12345678")}, {Filter, big}, {200, []byte("from the future")}} {
		k, body, err := ReadFrame(r, 0)
		if err != nil || k != want.kind || !bytes.Equal(body, want.body) {
			t.Errorf("kind %d, %d bytes, %v", k, len(body), err)
		}
	}
	if _, _, err := ReadFrame(r, 0); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

func TestFrameRefused(t *testing.T) {
	for name, c := range map[string]struct {
		bytes []byte
		most  Kind
		want  error
	}{
		"ping too long":       {[]byte{byte(Ping), 0, 0, 0, 9}, 0, ErrFrame},
		"filter too long":     {[]byte{byte(Filter), 0xff, 0xff, 0xff, 0xff}, 0, ErrFrame},
		"unknown too long":    {[]byte{99, 0, 2, 0, 0}, 0, ErrFrame},
		"filter too early":    {[]byte{byte(Filter), 0, 0, 0, 1, 0}, Welcome, ErrFrame},
		"cut in the head":     {[]byte{byte(Ping), 0}, 0, io.ErrUnexpectedEOF},
		"cut behind the head": {[]byte{byte(Ping), 0, 0, 0, 8}, 0, io.ErrUnexpectedEOF},
		"cut in the body":     {[]byte{byte(Ping), 0, 0, 0, 8, 1}, 0, io.ErrUnexpectedEOF},
	} {
		if _, _, err := ReadFrame(bytes.NewReader(c.bytes), c.most); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestClaimedLength: a length without its bytes takes no memory.
func TestClaimedLength(t *testing.T) {
	var before, after runtime.MemStats
	head := []byte{byte(Filter), 0, 0x7f, 0xff, 0xff} // 8 MiB
	runtime.ReadMemStats(&before)
	if _, _, err := ReadFrame(bytes.NewReader(head), 0); err == nil {
		t.Error("no error")
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("took %d bytes", n)
	}
}

func TestRequests(t *testing.T) {
	q := nix.StoreHash{1}.Question()
	for _, r := range []Request{
		{IsInfo: true, Question: q},
		{Nar: nix.NarHash{2}},
		{Nar: nix.NarHash{2}, Form: nix.Form{Compression: nix.XZ, File: nix.FileHash{3}}},
		{Nar: nix.NarHash{2}, Form: nix.Form{Compression: nix.Zstd, File: nix.FileHash{3}}},
	} {
		back, err := ParseRequest(r.Path())
		if err != nil || back != r {
			t.Errorf("%s reads back as %+v, %v", r.Path(), back, err)
		}
	}
	hash := nix.NarHash{2}.Nix32()
	for _, bad := range []string{
		"", "/", "/q/", "/nar/", "/nar/x", "/q/" + hash, "/nar/" + hash + "/", "/nar/" + hash + "/xz", "/nar/" + hash + "/none/" + hash,
		"/nar/" + hash + "/xz/" + hash + "/x", "/nar/../q/" + q.String(), "/nar/" + hash + "/br/" + hash, "//nar/" + hash,
	} {
		if r, err := ParseRequest(bad); !errors.Is(err, ErrRequest) {
			t.Errorf("%q is %+v, %v", bad, r, err)
		}
	}
}

func TestPeers(t *testing.T) {
	want := []string{"/ip4/10.0.0.1/tcp/1/p2p/a", "/ip6/::1/tcp/1/p2p/b"}
	got, err := ParsePeers(AppendPeers(nil, want))
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	many := AppendPeers(nil, slices.Repeat([]string{strings.Repeat("a", 200), "two\nlines", ""}, 500))
	if got, err := ParsePeers(many); err != nil || len(got) == 0 || len(many) > maxPeers {
		t.Errorf("%d bytes, %d lines, %v", len(many), len(got), err)
	}
	for _, bad := range []string{"x", "\n", "a\r\n", strings.Repeat("a", maxPeerLine+1) + "\n", strings.Repeat("a\n", maxPeerLines+1)} {
		if _, err := ParsePeers([]byte(bad)); err == nil {
			t.Errorf("%.20q is a list", bad)
		}
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(AppendFrame(nil, Ping, []byte("12345678")), byte(0))
	f.Add(AppendFrame(nil, Challenge, make([]byte, 32)), byte(Welcome))
	f.Fuzz(func(t *testing.T, b []byte, most byte) {
		k, body, err := ReadFrame(bytes.NewReader(b), Kind(most))
		if err == nil && !bytes.HasPrefix(b, AppendFrame(nil, k, body)) {
			t.Error("does not encode to what was read")
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add("/q/" + nix.Question{}.String())
	f.Add(Request{Nar: nix.NarHash{2}, Form: nix.Form{Compression: nix.XZ, File: nix.FileHash{3}}}.Path())
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := ParseRequest(s); err == nil && r.Path() != s {
			t.Errorf("%q writes back as %q", s, r.Path())
		}
		if list, err := ParsePeers([]byte(s)); err == nil && string(AppendPeers(nil, list)) != s {
			t.Errorf("list %q", s)
		}
	})
}

func FuzzPeers(f *testing.F) {
	f.Add([]byte("/ip4/10.0.0.1/tcp/1/p2p/a\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if list, err := ParsePeers(b); err == nil && !bytes.Equal(AppendPeers(nil, list), b) {
			t.Errorf("list %q", b)
		}
	})
}

func TestName(t *testing.T) {
	for text, want := range map[string]string{
		"ada": "ada", "grace-hopper.example.org": "grace-hopper.example.org", "a_1": "a_1", "": "",
		"two words": "", "a\x1b[2J": "", "ä": "", "<b>": "", strings.Repeat("a", 256): "",
	} {
		if got := ParseName([]byte(text)); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func FuzzName(f *testing.F) {
	f.Add([]byte("ada.example.org"))
	f.Add([]byte("a\x00b"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if name := ParseName(b); name != "" && name != string(b) {
			t.Errorf("%q: %q", b, name)
		}
	})
}

func TestBases(t *testing.T) {
	var a, b nix.NarHash
	a[0], b[5] = 1, 2
	list := []nix.NarHash{a, b}
	if got := ParseBases(FormatBases(list)); !slices.Equal(got, list) {
		t.Errorf("got %v", got)
	}
	if got := ParseBases("x, " + a.Nix32() + ",, ../ ," + b.Nix32() + "," + a.Nix32() + "," + b.Nix32()); !slices.Equal(got, []nix.NarHash{a, b, a}) {
		t.Errorf("got %v", got)
	}
	if got := ParseBases(""); got != nil {
		t.Errorf("got %v", got)
	}
}
