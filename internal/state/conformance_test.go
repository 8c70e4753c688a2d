package state

import (
	"testing"

	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
)

// TestConformance runs the suite of all sources on the narinfos, before and after they are
// written.
func TestConformance(t *testing.T) {
	for _, written := range []bool{false, true} {
		sourcetest.Run(t, func(t *testing.T, f *sourcetest.Fixture) sourcetest.Subject {
			db, err := Open(t.TempDir(), nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = db.Close() })
			infos := db.Infos(f.Keys, []string{f.Key.Name}, nil)
			for _, p := range f.Paths {
				infos.Put(p.Info(t, f.Key))
			}
			infos.Put(f.Secret.Info(t, f.Home))
			if written {
				db.flush()
			}
			return sourcetest.Subject{Infos: infos, Public: infos.Public}
		})
	}
}
