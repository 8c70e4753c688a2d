package narcache

import (
	"crypto/sha256"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
)

// TestConformance runs the suite of all sources on the cache.
func TestConformance(t *testing.T) {
	t.Run("raw", func(t *testing.T) {
		sourcetest.Run(t, func(t *testing.T, f *sourcetest.Fixture) sourcetest.Subject {
			c := open(t, Config{Dir: t.TempDir()})
			for _, p := range f.Paths {
				put(t, c, nar{p.Info(t, f.Key), nix.Raw, p.NAR, p.NAR})
			}
			return sourcetest.Subject{NARs: c, Forms: c.Forms}
		})
	})
	t.Run("delta", func(t *testing.T) {
		sourcetest.Run(t, func(t *testing.T, f *sourcetest.Fixture) sourcetest.Subject {
			c := open(t, Config{Dir: t.TempDir()})
			for _, p := range f.Paths {
				n := nar{p.Info(t, f.Key), nix.Raw, p.NAR, p.NAR}
				put(t, c, n)
				if len(p.NAR) < 4096 { // too small for a delta
					continue
				}
				newer := p
				newer.Contents = append([]byte("newer"), p.Contents...)
				newer.NAR = nixtest.FileNAR(newer.Contents)
				base := nar{newer.Info(t, f.Key), nix.Raw, newer.NAR, newer.NAR}
				put(t, c, base)
				pack(t, c, n, base)
			}
			return sourcetest.Subject{NARs: c, Forms: c.Forms}
		})
	})
	t.Run("file", func(t *testing.T) {
		sourcetest.Run(t, func(t *testing.T, f *sourcetest.Fixture) sourcetest.Subject {
			c := open(t, Config{Dir: t.TempDir()})
			files := map[nix.StorePath][]byte{}
			file := func(p nixtest.Path) (nix.Form, []byte) {
				b := files[p.StorePath]
				return nix.Form{Compression: nix.Zstd, File: sha256.Sum256(b)}, b
			}
			for _, p := range f.Paths {
				files[p.StorePath] = nixtest.Compress(t, nix.Zstd, p.NAR).Bytes
				form, b := file(p)
				put(t, c, nar{p.Info(t, f.Key), form, b, p.NAR})
			}
			return sourcetest.Subject{NARs: c, Forms: c.Forms, File: file}
		})
	})
}
