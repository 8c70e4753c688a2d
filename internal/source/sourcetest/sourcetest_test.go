package sourcetest_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestFake: the fakes that other tests rely on keep to the contract themselves.
func TestFake(t *testing.T) {
	t.Run("raw", func(t *testing.T) {
		sourcetest.Run(t, func(t *testing.T, f *sourcetest.Fixture) sourcetest.Subject {
			s := sourcetest.NewFake(source.Store).Share(f.Key.Name)
			s.Add(t, f.Key, f.Paths...)
			s.Add(t, f.Home, f.Secret)
			return sourcetest.Subject{Infos: s, NARs: s, Public: s.Public}
		})
	})
	t.Run("files", func(t *testing.T) {
		sourcetest.Run(t, func(t *testing.T, f *sourcetest.Fixture) sourcetest.Subject {
			s := sourcetest.NewFake(source.Upstream)
			files := map[nix.StorePath][]byte{}
			for _, p := range f.Paths {
				_, file := s.AddFile(t, f.Key, p, nix.Zstd, nil)
				files[p.StorePath] = file.Bytes
			}
			return sourcetest.Subject{Infos: s, NARs: s, File: func(p nixtest.Path) (nix.Form, []byte) {
				info, err := s.Info(t.Context(), p.Hash())
				if err != nil {
					t.Fatal(err)
				}
				form, _ := info.FileForm()
				return form, files[p.StorePath]
			}}
		})
	})
	t.Run("peers", func(t *testing.T) {
		sourcetest.Run(t, func(t *testing.T, f *sourcetest.Fixture) sourcetest.Subject {
			a, b := sourcetest.NewPeer("a"), sourcetest.NewPeer("b")
			for _, p := range []*sourcetest.Peer{a, b} {
				p.Add(t, f.Key, f.Paths...)
				p.Add(t, f.Home, f.Secret)
			}
			a.SetFaults(sourcetest.Fault{Do: sourcetest.Die, At: 60_000})
			s := &sourcetest.Peers{List: []*sourcetest.Peer{a, b}, Share: []string{f.Key.Name}}
			return sourcetest.Subject{Infos: s, Peers: s}
		})
	})
}
