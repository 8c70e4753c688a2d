package narcache

import (
	"crypto/sha256"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/resolve/sourcetest"
)

// keep brings bytes into the cache.
func keep(t *testing.T, c *Cache, nar nix.NarHash, form nix.Form, b []byte) {
	t.Helper()
	d, err := c.Create(nar, form, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := d.Commit(); err != nil {
		t.Fatal(err)
	}
	nameAll(c)
}

// TestConformance holds the cache against what the resolver expects of every source.
func TestConformance(t *testing.T) {
	t.Run("raw", func(t *testing.T) {
		sourcetest.Run(t, func(t *testing.T, f *sourcetest.Fixture) sourcetest.Subject {
			c := open(t, Config{Dir: t.TempDir()})
			for _, p := range f.Paths {
				keep(t, c, p.NarHash(), nix.Raw, p.NAR)
			}
			return sourcetest.Subject{NARs: c}
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
				keep(t, c, p.NarHash(), form, b)
			}
			return sourcetest.Subject{NARs: c, File: file}
		})
	})
}

// joined gives downloads the types of the resolver.
type joined struct{ *Download }

func (j joined) Reader(off int64) sourcetest.Reader { return j.Download.Reader(off) }
func (j joined) ReadBack() sourcetest.Reader          { return j.Download.ReadBack() }

func TestDownloadConformance(t *testing.T) {
	sourcetest.RunDownloads(t, func(t *testing.T) sourcetest.Downloads {
		c := open(t, Config{Dir: t.TempDir()})
		return sourcetest.Downloads{
			Create: func(nar nix.NarHash, form nix.Form, size int64) (sourcetest.Download, error) {
				d, err := c.Create(nar, form, size)
				if err != nil {
					return nil, err
				}
				return joined{d}, nil
			},
			HeldForms: c.HeldForms,
		}
	})
}
