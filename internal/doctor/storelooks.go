package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/localstore"
	"github.com/nixp2p/nixp2p/verify"
)

// lookDatabase asks the node, which may read less or more than this user may, how it reads the
// database of Nix.
func lookDatabase(_ context.Context, p *patient) []Finding {
	name := filepath.Join(p.StoreRoot, "nix/var/nix/db/db.sqlite")
	_, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return warn("is --store-root right? without Nix this machine can only take", "there is no Nix database at %s: nothing can be shared", name)
	}
	mode := ""
	if s, up := p.store(); up {
		mode = s.Database
	} else if st, err := p.open(); err == nil {
		mode = st.Census().Mode
		_ = st.Close() // nothing was written
	}
	switch mode {
	case "":
		return unknown("nobody says how %s is read", name)
	case "live":
		return ok("read as Nix writes it (%s)", name)
	case "snapshot":
		return ok("read as it is on disk, anew after each change (%s)", name)
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
		return "it is damaged, no SQLite database: does Nix itself work? `nix-store --verify`"
	}
	return "it and its directories have to be readable for the user of the daemon; `journalctl -u nixp2p` says what is wrong"
}

// open opens the store as the node would, for when there is none.
func (p *patient) open() (*localstore.Store, error) {
	keys, err := verify.ParseKeys(p.TrustedKeys)
	if err != nil {
		return nil, err
	}
	return localstore.Open(localstore.Config{Root: p.StoreRoot, Keys: keys, ShareKeys: p.ShareKeys})
}

// lookShared says how much can be shared, and why not the rest.
func lookShared(ctx context.Context, p *patient) []Finding {
	s, up := p.store()
	if !up {
		var err error
		if s, err = p.census(ctx); err != nil {
			return unknown("%v", err)
		}
	}
	if s.Database == "none" {
		return unknown("there is no database to count in")
	}
	var rest []string
	add := func(n int, why string) {
		if n > 0 {
			rest = append(rest, fmt.Sprintf("%d %s", n, why))
		}
	}
	add(s.Unsigned, "built here and signed by nobody")
	add(s.Addressed, "sources and fixed outputs that nobody signed")
	add(s.Trusted, "signed by a trusted key that is no share key")
	add(s.Untrusted, "signed by keys that are not trusted")
	add(s.Unreadable, "that make no sense")
	text := fmt.Sprintf("%d of %s can be shared", s.Shared, count(s.Paths, "path"))
	if len(rest) > 0 {
		text += "; not " + strings.Join(rest, ", ")
	}
	if !s.Complete {
		text += "; still counting"
	}
	found := ok("%s", text)
	if s.Shared == 0 && s.Paths > 0 && s.Complete {
		found = warn("only what a key named in --share-key has signed is shared: is that the key of the cache that these paths came from?", "%s", text)
	}
	if s.Quarantined > 0 {
		found = append(found, warn("`nix-store --verify --check-contents --repair` puts them right",
			"%s not what its hash says, and is held back", are(s.Quarantined, "path"))...)
	}
	return found
}

func are(n int, what string) string {
	if n == 1 {
		return "1 " + what + " is"
	}
	return count(n, what) + " are"
}

// countTime bounds the counting without a node: each path costs a signature.
const countTime = 2 * time.Second

// census counts, as far as it comes in countTime.
func (p *patient) census(ctx context.Context) (admin.Store, error) {
	st, err := p.open()
	if err != nil {
		return admin.Store{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, countTime)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = st.Run(ctx) // it ends with the context alone
	}()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for c := st.Census(); !c.Complete && c.Mode != "none" && ctx.Err() == nil; c = st.Census() {
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	c := st.Census()
	cancel()
	<-ended
	_ = st.Close() // nothing was written
	return admin.Store{
		Database: c.Mode, Complete: c.Complete, Paths: c.Rows, Shared: c.Shared, Trusted: c.Trusted, Unsigned: c.Unsigned,
		Untrusted: c.Untrusted, Addressed: c.Addressed, Unreadable: c.NoSize + c.Invalid, Quarantined: c.Quarantined,
	}, nil
}

// Room that is needed, in bytes: below least files cannot even be begun, with less than scant
// a few large NARs fill it.
const (
	least = 64 << 20
	scant = 1 << 30
)

// lookDisk measures the room where the node writes, and where Nix does.
func lookDisk(_ context.Context, p *patient) []Finding {
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
			found = append(found, fail("remove files there", "no file can be made in %s, for %s: its file system is out of inodes", d.dir, d.what)...)
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
