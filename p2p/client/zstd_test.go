package client

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

// TestZstdWindow: a window beyond what this program sends is refused before its memory is
// taken, and decoders are counted.
func TestZstdWindow(t *testing.T) {
	p := nixtest.NewPath("x", 3<<20)
	c, s, _ := newSite(t)
	for _, test := range []struct {
		window int
		ok     bool
	}{{1 << 20, true}, {64 << 20, false}} {
		var coded bytes.Buffer
		z, err := zstd.NewWriter(&coded, zstd.WithWindowSize(test.window), zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = z.Write(p.NAR)
		_ = z.Close()
		f := s.add(p)
		f.nar = func(x nixtest.Path, _ int64) (*http.Response, error) {
			r := respond(200, coded.Bytes())
			r.Header.Set("Content-Encoding", "zstd")
			r.Header.Set(wire.SizeHeader, fmt.Sprint(len(x.NAR)))
			return r, nil
		}
		// A slow link is asked for zstd.
		for range 3 {
			measure(t, f.Meter(), 5<<20)
		}
		session := c.Begin(t.Context(), source.Want{Info: p.Info(t, key), Forms: rawOf(p)})
		got, err := pull(t.Context(), session)
		if ok := err == nil && bytes.Equal(got, p.NAR); ok != test.ok {
			t.Errorf("window %d: %d bytes, %v", test.window, len(got), err)
		}
		session.End(t.Context(), source.GaveUp)
		if !c.decoders.TryAcquire(maxDecoders) {
			t.Error("a decoder is still counted")
		}
		c.decoders.Release(maxDecoders)
		s.peers = nil
	}
}

// TestEndlessFrames: zstd frames without content, one after the other, do not keep a NAR from the next peer.
func TestEndlessFrames(t *testing.T) {
	p := nixtest.NewPath("x", 3<<20)
	c, s, _ := newSite(t)
	bad, good := s.add(p), s.add()
	bad.nar = func(x nixtest.Path, _ int64) (*http.Response, error) {
		r := respond(200, nil)
		r.Header.Set("Content-Encoding", "zstd")
		r.Header.Set(wire.SizeHeader, fmt.Sprint(len(x.NAR)))
		r.Body = io.NopCloser(skippable{})
		return r, nil
	}
	for range 3 {
		measure(t, bad.Meter(), 5<<20)
	}
	session := c.Begin(t.Context(), source.Want{Info: p.Info(t, key), Forms: rawOf(p)})
	turn, err := session.Next(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	good.paths, good.forms = bad.paths, bad.forms // now there is another one
	if n, err := io.Copy(io.Discard, turn.Stream.Body); !errors.Is(err, errTooLarge) || n > 0 {
		t.Errorf("%d bytes, %v", n, err)
	}
	_ = turn.Stream.Body.Close()
	if got, err := pull(t.Context(), session); err != nil || !bytes.Equal(got, p.NAR) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	session.End(t.Context(), source.Correct)
}

// skippable is zstd frames to be skipped, of 8 bytes each, without end.
type skippable struct{}

func (skippable) Read(p []byte) (int, error) {
	n := len(p) &^ 15
	for i := 0; i < n; i += 16 {
		copy(p[i:], "\x50\x2a\x4d\x18\x08\x00\x00\x00skipskip")
	}
	return n, nil
}
