package localstore

import (
	"testing"

	"github.com/nixp2p/nixp2p/internal/resolve/sourcetest"
)

// TestConformance holds the store against what the resolver expects of every source.
func TestConformance(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T, f *sourcetest.Fixture) sourcetest.Subject {
		w := newWorld(t)
		for _, p := range f.Paths {
			w.add(p, f.Key)
		}
		return sourcetest.Of(w.open(func(cfg *Config) { cfg.Keys = f.Keys }))
	})
}
