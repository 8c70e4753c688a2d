package sourcetest_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/resolve/sourcetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestFake: the fakes that other tests rely on keep to the contract themselves.
func TestFake(t *testing.T) {
	t.Run("raw", func(t *testing.T) {
		sourcetest.Run(t, func(t *testing.T, f *sourcetest.Fixture) sourcetest.Subject {
			s := sourcetest.NewFake("store")
			s.Add(t, f.Key, f.Paths...)
			return sourcetest.Of(s)
		})
	})
	t.Run("files", func(t *testing.T) {
		sourcetest.Run(t, func(t *testing.T, f *sourcetest.Fixture) sourcetest.Subject {
			s := sourcetest.NewFake("upstream")
			files := map[nix.StorePath][]byte{}
			for _, p := range f.Paths {
				_, file := s.AddFile(t, f.Key, p, nix.Zstd, nil)
				files[p.StorePath] = file.Bytes
			}
			subject := sourcetest.Of(s)
			subject.File = func(p nixtest.Path) (nix.Form, []byte) {
				info, err := s.Info(t.Context(), p.Hash())
				if err != nil {
					t.Fatal(err)
				}
				form, _ := info.FileForm()
				return form, files[p.StorePath]
			}
			return subject
		})
	})
	t.Run("cache", func(t *testing.T) {
		sourcetest.Run(t, func(t *testing.T, f *sourcetest.Fixture) sourcetest.Subject {
			c := sourcetest.NewCache()
			for _, p := range f.Paths {
				c.AddBytes(p.NarHash(), nix.Raw, p.NAR)
			}
			return sourcetest.Subject{NARs: c}
		})
	})
}

func TestCache(t *testing.T) {
	sourcetest.RunDownloads(t, func(*testing.T) sourcetest.Downloads {
		c := sourcetest.NewCache()
		return sourcetest.Downloads{Create: c.Create, Held: c.Held}
	})
}
