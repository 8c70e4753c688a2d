package infocache

import (
	"testing"

	"github.com/nixp2p/nixp2p/internal/resolve/sourcetest"
)

// TestConformance holds the memory against what the resolver expects of every source.
func TestConformance(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T, f *sourcetest.Fixture) sourcetest.Subject {
		c := open(t, Config{Dir: t.TempDir(), Keys: f.Keys})
		for _, p := range f.Paths {
			c.Put(p.Info(t, f.Key))
		}
		return sourcetest.Subject{Infos: c}
	})
}
