package localstore

import (
	"testing"

	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
)

// TestConformance runs the suite of all sources on the store.
func TestConformance(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T, f *sourcetest.Fixture) sourcetest.Subject {
		w := newWorld(t)
		for _, p := range f.Paths {
			w.add(p, f.Key)
		}
		w.add(f.Secret, f.Home)
		s := w.open(func(cfg *Config) { cfg.Keys, cfg.ShareKeys = f.Keys, []string{f.Key.Name} })
		(&watcher{s: s}).look(t.Context())
		return sourcetest.Subject{Infos: s, NARs: s, Public: s.Public}
	})
}
