package upstream

import (
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
)

var _ source.Upstreams = (*Upstreams)(nil)

// TestConformance holds the upstreams against the contract of every source.
func TestConformance(t *testing.T) {
	for _, c := range []struct {
		compression nix.Compression
		noFile      bool // in the narinfo
	}{{nix.None, false}, {nix.XZ, false}, {nix.Zstd, false}, {nix.Gzip, false}, {nix.Zstd, true}} {
		name := string(c.compression)
		if c.noFile {
			name += " without FileHash"
		}
		t.Run(name, func(t *testing.T) {
			sourcetest.Run(t, func(t *testing.T, f *sourcetest.Fixture) sourcetest.Subject {
				served := nixtest.NewUpstream(t, nixtest.UpstreamConfig{
					Paths: f.Paths, Keys: []nixtest.Key{f.Key}, Compression: c.compression, NoFile: c.noFile,
				})
				u := open(t, func(cfg *Config) { cfg.Keys = f.Keys }, served.URL())
				subject := sourcetest.Subject{Infos: u, NARs: u}
				if !c.noFile && (c.compression == nix.XZ || c.compression == nix.Zstd) {
					subject.File = func(p nixtest.Path) (nix.Form, []byte) {
						info, err := f.Keys.Open(served.NarInfo(p), p.Hash())
						if err != nil {
							t.Fatal(err)
						}
						form, _ := info.FileForm()
						return form, served.File(p)
					}
				}
				return subject
			})
		})
	}
}
