package localstore

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// Closure returns the paths that a path of this machine needs, signed or not, with itself. It may
// be a link to a store path, such as a profile, or a file in one. Those that the database does not
// know are left out; if it does not know the path itself, the error wraps fs.ErrNotExist.
func (s *Store) Closure(ctx context.Context, path string) ([]nix.StoreHash, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("localstore: %w", err)
	}
	for filepath.Dir(real) != nix.StoreDir && len(real) > len(nix.StoreDir) {
		real = filepath.Dir(real)
	}
	root, err := nix.ParseStorePath(real)
	if err != nil {
		return nil, fmt.Errorf("localstore: %s: %w", path, err)
	}
	seen := map[nix.StoreHash]bool{root.Hash(): true}
	var found []nix.StoreHash
	for queue := []nix.StoreHash{root.Hash()}; len(queue) > 0; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h := queue[0]
		queue = queue[1:]
		var r *row
		err := s.db.read(ctx, func(c *conn) (err error) {
			r, err = c.byHash(h)
			return err
		})
		switch {
		case err != nil && !errors.Is(err, errNone):
			return nil, unavailable("closure", h, err)
		case r == nil || err != nil:
			continue
		}
		found = append(found, h)
		for _, ref := range r.refs {
			if h := ref.Hash(); !seen[h] {
				seen[h] = true
				queue = append(queue, h)
			}
		}
	}
	if len(found) == 0 {
		return nil, absent("closure", root.Hash())
	}
	return found, nil
}
