package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// checkDatabase asks the node, which may read less or more than this user may, how it reads the
// database of Nix.
func checkDatabase(_ context.Context, p *facts) []Finding {
	name := filepath.Join(p.StoreRoot, "nix/var/nix/db/db.sqlite")
	_, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return warn("is --store-root right? a machine without Nix can only receive", "there is no Nix database at %s: nothing can be shared", name)
	}
	s, up := p.store()
	switch {
	case !up:
		return unknown("the daemon is not running, or not ready")
	case s.Database == "live":
		return ok("read as Nix writes it (%s)", name)
	case s.Database == "snapshot":
		return ok("read from disk, again after each change (%s)", name)
	}
	return fail(readHint(name), "%s cannot be read: nothing of this machine's store is used or shared", name)
}

// readHint says why a database cannot be read.
func readHint(name string) string {
	const magic = "SQLite format 3\x00"
	f, err := os.Open(name)
	if err != nil {
		return fmt.Sprintf("%v: it and its directories have to be readable for the user of the daemon", err)
	}
	defer f.Close()
	head := make([]byte, len(magic))
	if _, err := f.Read(head); err != nil || string(head) != magic {
		return "it is damaged: it is not an SQLite database; does Nix itself work? `nix-store --verify`"
	}
	return "it and its directories have to be readable for the user of the daemon; `journalctl -u nixp2p` says what is wrong"
}

// checkShared reports how much can be shared, and why not the rest.
func checkShared(_ context.Context, p *facts) []Finding {
	s, up := p.store()
	if !up {
		return unknown("the daemon is not running, or not ready")
	}
	if s.Database == "none" {
		return unknown("there is no database to count in")
	}
	text := fmt.Sprintf("%d of %s can be shared", s.Shared, count(s.Paths, "path"))
	if rest := s.NotShared(); rest != "" {
		text += "; not " + rest
	}
	if !s.Complete {
		text += "; still counting"
	}
	found := ok("%s", text)
	if s.Shared == 0 && s.Paths > 0 && s.Complete {
		found = warn("only what a key named in --share-key has signed is shared: is that the key of the cache that these paths came from?", "%s", text)
	}
	if s.Quarantined > 0 {
		found = append(found, warn("`nix-store --verify --check-contents --repair` repairs them",
			"%s not as the hash says, and not served", count(s.Quarantined, "path"))...)
	}
	return found
}

// Room that is needed, in bytes: below least files cannot even be begun, with less than scant
// a few large NARs fill it.
const (
	least = 64 << 20
	scant = 1 << 30
)

// checkDisk measures the room where the node writes, and where Nix does.
func checkDisk(_ context.Context, p *facts) []Finding {
	cache, state, used := p.CacheDir, p.StateDir, int64(0)
	if p.status != nil { // it may run as another user, with other directories
		cache, state, used = cmp.Or(p.status.Cache.Dir, cache), cmp.Or(p.status.StateDir, state), p.status.Cache.Bytes
	}
	var found []Finding
	for _, d := range []struct {
		dir, what string
		grows     int64
	}{
		{cache, "the NAR cache", max(0, p.CacheSize-used)},
		{state, "narinfos and identity", 0},
		{filepath.Join(p.StoreRoot, "nix/store"), "the Nix store", 0},
	} {
		free, nodes, err := room(d.dir)
		switch {
		case err != nil:
			found = append(found, unknown("%s: %v", d.dir, err)...)
		case nodes == 0:
			found = append(found, fail("remove files there", "no file can be created in %s, for %s: its file system has no inodes left", d.dir, d.what)...)
		case free < least:
			found = append(found, fail("make room: `nixp2p gc --max-size 1GiB` trims the NAR cache, `nix-collect-garbage` the store; or move it with --cache-dir or --state-dir",
				"%s is full, for %s: %d MiB free", d.dir, d.what, free>>20)...)
		case free < d.grows:
			found = append(found, warn("make --cache-size smaller, or make room",
				"the NAR cache in %s may grow by %d MiB, and %d are free", d.dir, d.grows>>20, free>>20)...)
		case free < scant:
			found = append(found, warn("make room", "%d MiB free in %s, for %s", free>>20, d.dir, d.what)...)
		default:
			found = append(found, ok("%d GiB free in %s, for %s", free>>30, d.dir, d.what)...)
		}
	}
	return found
}

// room returns the bytes and inodes that are free in a directory, or where it would be made.
// File systems without inodes have enough of them.
func room(dir string) (bytes, nodes int64, err error) {
	var st unix.Statfs_t
	for {
		err = unix.Statfs(dir, &st)
		up := filepath.Dir(dir)
		if !errors.Is(err, fs.ErrNotExist) || up == dir {
			break
		}
		dir = up
	}
	if err != nil {
		return 0, 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	nodes = int64(st.Ffree)
	if st.Files == 0 {
		nodes = 1
	}
	return int64(st.Bavail) * int64(st.Bsize), nodes, nil
}
