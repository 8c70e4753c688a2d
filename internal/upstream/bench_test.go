package upstream

import (
	"errors"
	"io"
	"net/http"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
)

// BenchmarkInfo compares a look-up with the bare request; what is more is parsing, one
// signature and this package.
func BenchmarkInfo(b *testing.B) {
	p := nixtest.NewPath("hello", 1000)
	u := nixtest.NewUpstream(b, cache(nix.None, p))
	up, down := open(b, nil, u.URL()), open(b, nil, u.URL())
	two := open(b, nil, u.URL(), nixtest.NewUpstream(b, cache(nix.None, p)).URL())
	b.Run("bare", func(b *testing.B) {
		b.ReportAllocs()
		client := &http.Client{Transport: down.network.pooled}
		for b.Loop() {
			resp, err := client.Get(u.URL() + "/" + p.Hash().String() + ".narinfo") //nolint:noctx // bare
			if err != nil {
				b.Fatal(err)
			}
			_, _ = io.ReadAll(resp.Body)
			_ = resp.Body.Close()
		}
	})
	for name, of := range map[string]*bench{"one": up, "two": two} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := of.Info(b.Context(), p.Hash()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkNAR compares a NAR body with the bare one.
func BenchmarkNAR(b *testing.B) {
	p := nixtest.NewPath("hello", 32<<20)
	u := nixtest.NewUpstream(b, cache(nix.None, p))
	up := open(b, nil, u.URL())
	info := up.mustInfo(p)
	buf := make([]byte, 256<<10)
	b.Run("bare", func(b *testing.B) {
		b.SetBytes(int64(len(p.NAR)))
		client := &http.Client{Transport: up.network.pooled}
		for b.Loop() {
			resp, err := client.Get(u.URL() + "/" + p.NarInfo().URL) //nolint:noctx // bare
			if err != nil {
				b.Fatal(err)
			}
			drain(b, resp.Body, buf)
		}
	})
	b.Run("here", func(b *testing.B) {
		b.SetBytes(int64(len(p.NAR)))
		for b.Loop() {
			claim, err := up.NAR(b.Context(), info, nix.Raw, 0)
			if err != nil {
				b.Fatal(err)
			}
			drain(b, claim.Body, buf)
		}
	})
}

func drain(b *testing.B, body io.ReadCloser, buf []byte) {
	b.Helper()
	for {
		_, err := body.Read(buf)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	_ = body.Close()
}
