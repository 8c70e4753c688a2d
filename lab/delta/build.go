package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// builder makes NARs of Debian packages.
type builder struct {
	dir     string
	updated bool
}

// suites have the versions in pairs.tsv.
const suites = `deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian-security bookworm-security main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian-security trixie-security main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian forky main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian sid main
`

// pair makes the three NARs of a pair.
func (b *builder) pair(ctx context.Context, v *versions) error {
	out := filepath.Join(b.dir, "nars", v.target)
	v.baseNAR, v.targetNAR, v.rebuilt = filepath.Join(out, "base.nar"), filepath.Join(out, "target.nar"), filepath.Join(out, "rebuilt.nar")
	if exists(v.baseNAR) && exists(v.targetNAR) && exists(v.rebuilt) {
		return nil
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	tree := filepath.Join(b.dir, "tree")
	for _, x := range []struct {
		pkg, version string
		seeds        map[string]string // file by seed of its hashes
	}{
		{v.base, v.baseVersion, map[string]string{"old": v.baseNAR, "new": v.rebuilt}},
		{v.target, v.targetVersion, map[string]string{"new": v.targetNAR}},
	} {
		deb, err := b.fetch(ctx, x.pkg, x.version)
		if err != nil {
			return err
		}
		if err := os.RemoveAll(tree); err != nil {
			return err
		}
		if err := command(ctx, b.dir, "dpkg-deb", "-x", deb, tree); err != nil {
			return err
		}
		for seed, file := range x.seeds {
			p := &layout{tree: tree, name: v.target + "-" + upstreamVersion(x.version), seed: seed}
			if err := p.write(file); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(tree)
}

// fetch returns the file of a package, downloaded with apt-get in a directory of its own.
func (b *builder) fetch(ctx context.Context, pkg, version string) (string, error) {
	debs := filepath.Join(b.dir, "debs")
	pattern := filepath.Join(debs, pkg+"_"+strings.ReplaceAll(version, ":", "%3a")+"_*.deb")
	if found, err := filepath.Glob(pattern); err == nil && len(found) > 0 {
		return filepath.Abs(found[0])
	}
	apt := filepath.Join(b.dir, "apt")
	abs, err := filepath.Abs(apt)
	if err != nil {
		return "", err
	}
	options := []string{"-q", "-o", "Dir::Etc::sourcelist=" + abs + "/sources.list", "-o", "Dir::Etc::sourceparts=/dev/null",
		"-o", "Dir::State=" + abs + "/state", "-o", "Dir::Cache=" + abs + "/cache", "-o", "Dir::State::status=" + abs + "/status",
		"-o", "APT::Sandbox::User=" + os.Getenv("USER")}
	if !b.updated {
		for _, d := range []string{debs, apt + "/state/lists/partial", apt + "/cache/archives/partial"} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return "", err
			}
		}
		for name, text := range map[string]string{"sources.list": suites, "status": ""} {
			if err := os.WriteFile(filepath.Join(apt, name), []byte(text), 0o644); err != nil {
				return "", err
			}
		}
		if err := command(ctx, debs, "apt-get", append(options, "update")...); err != nil {
			return "", err
		}
		b.updated = true
	}
	if err := command(ctx, debs, "apt-get", append(options, "download", pkg+"="+version)...); err != nil {
		return "", err
	}
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) == 0 {
		return "", fmt.Errorf("%s %s: apt-get made no file", pkg, version)
	}
	return filepath.Abs(found[0])
}

func command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}

// upstreamVersion returns what nixpkgs would call the version.
func upstreamVersion(v string) string {
	if _, rest, ok := strings.Cut(v, ":"); ok {
		v = rest
	}
	if i := strings.LastIndexByte(v, '-'); i > 0 {
		v = v[:i]
	}
	return url.PathEscape(strings.ReplaceAll(v, "~", "."))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
