package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
)

const (
	// parts is how many store paths are made of a package. Each has a share of its files that is partShare
	// of that of the one before, so sizes are spread as in real closures.
	parts     = 100
	partShare = 0.94
	// closureKey signs the closure.
	closureKey = "nixp2p-update-1"
)

// closure is a closure of packages in two versions, "old" and "new": corpora of realnix, each with a cache and a
// store. The store of the new one has both versions.
type closure struct {
	dir     string
	private ed25519.PrivateKey
	nix     *realnix.Nix
	half    [2]int64 // bytes of new NARs: only hashes changed, contents as well
}

// madePath is a store path that was written to a cache.
type madePath struct {
	nix.NarInfo
	info realnix.Path
}

// closureBytes of NARs and more are in each version.
const closureBytes = 500e6

// make makes the closure of pairs, without those of another compiler: half of its bytes are hash-only rebuilds, half are
// of point releases. What is in the directory already is kept.
func (c *closure) make(ctx context.Context, b *builder) (err error) {
	if c.nix, err = realnix.LookPath(ctx); err != nil {
		return err
	}
	seed := sha256.Sum256([]byte(closureKey))
	c.private = ed25519.NewKeyFromSeed(seed[:])
	var made [2][]madePath
	for line := range strings.Lines(pairsTSV) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		onlyHashes := f[0] == "rebuilt with patches" || c.half[0] < c.half[1]
		if f[0] == "another compiler" || c.half[0]+c.half[1] > closureBytes && onlyHashes {
			continue
		}
		if err := c.addPair(ctx, b, &made, f[1:], onlyHashes); err != nil {
			return err
		}
		fmt.Fprintln(os.Stderr, f[3], len(made[1]), "paths; MB with other hashes, with other contents:", c.half[0]/1e6, c.half[1]/1e6)
	}
	for i, name := range []string{"old", "new"} {
		if err := c.finish(name, made[i]); err != nil {
			return err
		}
	}
	return c.fill(ctx)
}

// addPair adds the parts of a package in two versions: its name and version, both twice. If onlyHashes, the new one is
// the old one with other hashes.
func (c *closure) addPair(ctx context.Context, b *builder, made *[2][]madePath, f []string, onlyHashes bool) error {
	oldVersion, newVersion := f[1], f[3]
	newPackage := f[2]
	if onlyHashes {
		newPackage, newVersion = f[0], oldVersion
	}
	for i, x := range []struct{ pkg, version, seed string }{{f[0], oldVersion, "old"}, {newPackage, newVersion, "new"}} {
		deb, err := b.fetch(ctx, x.pkg, x.version)
		if err != nil {
			return err
		}
		tree := filepath.Join(b.dir, "tree")
		if err := os.RemoveAll(tree); err != nil {
			return err
		}
		if err := command(ctx, b.dir, "dpkg-deb", "-x", deb, tree); err != nil {
			return err
		}
		l := &layout{tree: tree, name: f[2] + "-" + upstreamVersion(x.version), seed: x.seed}
		root, err := l.load()
		if err != nil {
			return err
		}
		for part, root := range divide(root) {
			p, err := c.write([]string{"old", "new"}[i], l, root, part, made[i])
			if err != nil {
				return err
			}
			made[i] = append(made[i], p)
			if i == 1 && onlyHashes {
				c.half[0] += p.NarSize
			} else if i == 1 {
				c.half[1] += p.NarSize
			}
		}
	}
	return os.RemoveAll(filepath.Join(b.dir, "tree"))
}

var versionLike = regexp.MustCompile(`[0-9a-f]{6,}|[0-9.]+`)

// divide divides the files of a package among parts, by their path without versions. Parts are named by letters: a
// number would be taken for a version.
func divide(root *entry) map[string]*entry {
	out := map[string]*entry{}
	var walk func(e *entry, path []string)
	walk = func(e *entry, path []string) {
		for name, below := range e.below {
			at := append(slices.Clone(path), name)
			if below.mode.IsDir() {
				walk(below, at)
				continue
			}
			part := partOf(versionLike.ReplaceAllString(strings.Join(at, "/"), "#"))
			if out[part] == nil {
				out[part] = &entry{mode: os.ModeDir, below: map[string]*entry{}}
			}
			to := out[part]
			for _, dir := range path {
				if to.below[dir] == nil {
					to.below[dir] = &entry{mode: os.ModeDir, below: map[string]*entry{}}
				}
				to = to.below[dir]
			}
			to.below[name] = below
		}
	}
	walk(root, nil)
	return out
}

func partOf(path string) string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(path))
	x := float64(h.Sum64()*0x9e3779b97f4a7c15>>11) / (1 << 53)
	i, share := 0, 1-partShare
	for x > share && i < parts-1 {
		x, i = x-share, i+1
		share *= partShare
	}
	return string(rune('g'+i%20)) + string(rune('g'+i/20))
}

// write writes one store path to the cache of a version, raw and signed. It refers to some that were made before.
func (c *closure) write(version string, l *layout, root *entry, part string, before []madePath) (p madePath, err error) {
	cache := filepath.Join(c.dir, version, "cache-none")
	if err := os.MkdirAll(filepath.Join(cache, "nar"), 0o755); err != nil {
		return p, err
	}
	tmp := filepath.Join(cache, "tmp")
	f, err := os.Create(tmp)
	if err != nil {
		return p, err
	}
	defer f.Close()
	sum, w := sha256.New(), bufio.NewWriterSize(f, 1<<20)
	both := io.MultiWriter(w, sum)
	words(both, nix.NARMagic)
	if err := l.dump(both, root); err != nil {
		return p, err
	}
	if err := w.Flush(); err != nil {
		return p, err
	}
	fi, err := f.Stat()
	if err != nil {
		return p, err
	}
	if p.StorePath, err = nix.ParseStorePath(l.store(part + "|" + l.name)[:len(nix.StoreDir)+33] + "-" + l.name + "-" + part); err != nil {
		return p, err
	}
	p.NarHash, p.NarSize, p.Compression = nix.NarHash(sum.Sum(nil)), fi.Size(), nix.None
	p.FileHash, p.FileSize = nix.FileHash(p.NarHash), p.NarSize
	p.URL = "nar/" + p.NarHash.Nix32() + ".nar"
	for i := len(before) - 1; i >= 0 && len(p.References) < 3; i -= 7 {
		p.References = append(p.References, before[i].StorePath)
	}
	if err := os.Rename(tmp, filepath.Join(cache, p.URL)); err != nil {
		return p, err
	}
	return c.sign(version, p)
}

// sign signs a path and writes its narinfo.
func (c *closure) sign(version string, p madePath) (madePath, error) {
	p.References = nix.SortPaths(p.References)
	sig := ed25519.Sign(c.private, p.Fingerprint())
	p.Sigs = []nix.Signature{{KeyName: closureKey, Data: [ed25519.SignatureSize]byte(sig)}}
	p.info = realnix.Path{
		StorePath: p.StorePath.String(), NarSize: p.NarSize,
		NarHash: "sha256-" + base64.StdEncoding.EncodeToString(p.NarHash[:]),
	}
	for _, r := range p.References {
		p.info.References = append(p.info.References, r.String())
	}
	return p, c.narinfo(version, "none", p.NarInfo)
}

func (c *closure) narinfo(version, compression string, n nix.NarInfo) error {
	file := filepath.Join(c.dir, version, "cache-"+compression, n.StorePath.Hash().String()+".narinfo")
	return os.WriteFile(file, n.AppendText(nil), 0o644)
}

// finish adds the top, which refers to all, and the manifest; the new version also as .nar.xz.
func (c *closure) finish(version string, made []madePath) error {
	l := &layout{name: "system-1.0", seed: version}
	top, err := c.write(version, l, &entry{mode: os.ModeDir}, "top", nil)
	if err != nil {
		return err
	}
	for _, p := range made {
		top.References = append(top.References, p.StorePath)
	}
	if top, err = c.sign(version, top); err != nil {
		return err
	}
	corpus := realnix.Corpus{
		PublicKey: nix.PublicKey{Name: closureKey, Key: [32]byte(c.private.Public().(ed25519.PublicKey))}.String(),
		Top:       top.StorePath.String(), Compressions: []string{"none", "xz"},
	}
	made = append(made, top)
	seen := map[nix.NarHash]bool{}
	for _, p := range made {
		corpus.Paths = append(corpus.Paths, p.info)
		corpus.NARBytes += p.NarSize
		if !seen[p.NarHash] {
			corpus.UniqueNARBytes += p.NarSize
		}
		seen[p.NarHash] = true
		if version == "new" {
			if err := c.compress(version, p.NarInfo); err != nil {
				return err
			}
		}
	}
	text, err := json.MarshalIndent(corpus, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.dir, version, "corpus.json"), text, 0o644)
}

// compress adds a path to the cache of .nar.xz files.
func (c *closure) compress(version string, n nix.NarInfo) error {
	raw, packed := filepath.Join(c.dir, version, "cache-none", n.URL), filepath.Join(c.dir, version, "cache-xz", n.URL+".xz")
	if err := os.MkdirAll(filepath.Dir(packed), 0o755); err != nil {
		return err
	}
	if !exists(packed) {
		out, err := os.Create(packed + ".tmp")
		if err != nil {
			return err
		}
		defer out.Close()
		cmd := exec.Command("xz", "-6", "-T2", "-c", raw)
		cmd.Stdout, cmd.Stderr = out, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("xz: %w", err)
		}
		if err := os.Rename(packed+".tmp", packed); err != nil {
			return err
		}
	}
	b, err := os.ReadFile(packed)
	if err != nil {
		return err
	}
	n.URL, n.Compression, n.FileHash, n.FileSize = n.URL+".xz", nix.XZ, sha256.Sum256(b), int64(len(b))
	return c.narinfo(version, "xz", n)
}

// fill makes the stores.
func (c *closure) fill(ctx context.Context) error {
	for _, version := range []string{"old", "new"} {
		corpus, err := realnix.OpenCorpus(filepath.Join(c.dir, version))
		if err != nil || exists(corpus.StoreRoot) {
			return err
		}
		client, err := c.nix.NewClient(filepath.Join(c.dir, version, "client"), corpus.PublicKey)
		if err != nil {
			return err
		}
		if client.Root = corpus.StoreRoot; version == "new" {
			if err := command(ctx, c.dir, "cp", "-a", filepath.Join(c.dir, "old", "store"), corpus.StoreRoot); err != nil {
				return err
			}
		}
		if res, err := client.Copy(ctx, "file://"+corpus.Caches["none"], corpus.Top); err != nil {
			return fmt.Errorf("fill the store: %w: %s", err, res.Stderr)
		}
		if err := realnix.RemoveAll(client.Dir); err != nil {
			return err
		}
	}
	return nil
}
