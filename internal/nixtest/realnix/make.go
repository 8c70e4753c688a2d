package realnix

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// MakeCorpus makes a corpus in dir, which must not exist yet: the directory
// gets its name when all is complete. The Nix must be the machine's own, and
// able to build in a sandbox: a store of one's own cannot do without. A line is
// written to progress (nil = nowhere) after each step.
func MakeCorpus(ctx context.Context, nix *Nix, dir string, p Params, progress io.Writer) (*Corpus, error) {
	if progress == nil {
		progress = io.Discard
	}
	p, err := p.withDefaults()
	if err != nil {
		return nil, err
	}
	if nix.Chroot != "" {
		return nil, fmt.Errorf("realnix: corpora are made by the machine's own Nix, not by the one in %s", nix.Chroot)
	}
	if _, err := os.Lstat(dir); err == nil {
		return nil, fmt.Errorf("realnix: make corpus: %s exists", dir)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("realnix: %w", err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), filepath.Base(dir)+".tmp")
	if err != nil {
		return nil, fmt.Errorf("realnix: %w", err)
	}
	defer RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return nil, fmt.Errorf("realnix: %w", err)
	}

	m := maker{
		corpus:   &Corpus{Dir: tmp, Compressions: p.Compressions},
		params:   p,
		staging:  filepath.Join(tmp, "staging"),
		work:     filepath.Join(tmp, "work"),
		progress: progress,
		last:     time.Now(),
	}
	m.corpus.place()
	if m.client, err = nix.NewClient(m.work); err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{m.fill, m.build, m.sign, m.describe, m.copyToCaches, m.finish} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	if err := os.Rename(tmp, dir); err != nil {
		return nil, fmt.Errorf("realnix: %w", err)
	}
	return OpenCorpus(dir)
}

// maker holds what the steps of making a corpus share.
type maker struct {
	corpus   *Corpus
	params   Params
	plan     []node
	client   *Client // with the corpus's store
	staging  string  // contents of the paths, where the builders find them
	work     string
	progress io.Writer
	last     time.Time
}

func (m *maker) done(format string, args ...any) {
	now := time.Now()
	fmt.Fprintf(m.progress, "%6.1f s  %s\n", now.Sub(m.last).Seconds(), fmt.Sprintf(format, args...))
	m.last = now
}

func (m *maker) fill(ctx context.Context) error {
	m.plan = planCorpus(m.params)
	if err := writeContents(ctx, m.staging, m.params, m.plan); err != nil {
		return err
	}
	m.done("%d contents written", len(m.plan))
	return nil
}

// build has Nix build the top. Several paths are outputs of one derivation,
// since starting a builder costs more than a small path does.
func (m *maker) build(ctx context.Context) error {
	group := 20
	if m.params.Bytes > 0 {
		group = 4
	}
	expr := filepath.Join(m.work, "corpus.nix")
	if err := os.WriteFile(expr, []byte(expression(m.params, m.plan, group)), 0o644); err != nil {
		return fmt.Errorf("realnix: %w", err)
	}
	// A store with a root of its own always builds in a sandbox; there the
	// builder finds the machine's shell and cp, and the contents.
	visible := []string{"/corpus=" + m.staging}
	for _, dir := range []string{"/bin", "/usr", "/lib", "/lib64"} {
		if _, err := os.Stat(dir); err == nil {
			visible = append(visible, dir)
		}
	}
	m.client.Root = m.corpus.StoreRoot
	m.client.Settings = map[string]string{
		"sandbox":          "true",
		"sandbox-fallback": "false", // better no namespaces as the error than what follows
		"sandbox-paths":    strings.Join(visible, " "),
		"max-jobs":         "2",
		"fsync-metadata":   "false", // thrown away if the machine dies before the rename
	}
	res, err := m.client.Run(ctx, "nix-build", "--no-out-link", expr)
	if err != nil {
		return err
	}
	lines := res.Lines()
	if len(lines) != 1 {
		return fmt.Errorf("realnix: nix-build printed %d paths, want the top alone", len(lines))
	}
	m.corpus.Top = lines[0]
	m.done("built %s", m.corpus.Top)
	return nil
}

func (m *maker) sign(ctx context.Context) error {
	public := filepath.Join(m.work, "public-key")
	if _, err := m.client.Run(ctx, "nix-store", "--generate-binary-cache-key", keyName, m.corpus.SecretKey, public); err != nil {
		return err
	}
	text, err := os.ReadFile(public)
	if err != nil {
		return fmt.Errorf("realnix: %w", err)
	}
	m.corpus.PublicKey = strings.TrimSpace(string(text))
	if _, err := m.client.Run(ctx, "nix", "store", "sign", "-k", m.corpus.SecretKey, "-r", m.corpus.Top); err != nil {
		return err
	}
	m.done("signed with %s", m.corpus.PublicKey)
	return nil
}

func (m *maker) describe(ctx context.Context) error {
	paths, err := m.client.Closure(ctx, m.corpus.Top)
	if err != nil {
		return err
	}
	if len(paths) != m.params.Paths {
		return fmt.Errorf("realnix: the closure has %d paths, want %d", len(paths), m.params.Paths)
	}
	seen := make(map[string]bool, len(paths))
	references := 0
	for _, p := range paths {
		m.corpus.NARBytes += p.NarSize
		if !seen[p.NarHash] {
			m.corpus.UniqueNARBytes += p.NarSize
		}
		seen[p.NarHash] = true
		references += len(p.References)
	}
	m.corpus.Paths = paths
	m.done("%d paths, %d references, %.1f MB of NARs (%.1f MB unique)", len(paths), references,
		float64(m.corpus.NARBytes)/1e6, float64(m.corpus.UniqueNARBytes)/1e6)
	return nil
}

// copyToCaches makes all caches at the same time: most of it is xz compressing
// the largest path, on one core.
func (m *maker) copyToCaches(ctx context.Context) error {
	var wg sync.WaitGroup
	errs := make([]error, len(m.params.Compressions))
	results := make([]Result, len(errs))
	for i, name := range m.params.Compressions {
		wg.Go(func() {
			to := "file://" + m.corpus.Caches[name] + "?compression=" + name
			results[i], errs[i] = m.client.Run(ctx, "nix", "copy", "--to", to, m.corpus.Top)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for i, name := range m.params.Compressions {
		files, size, err := sizeOfNARs(m.corpus.Caches[name])
		if err != nil {
			return err
		}
		m.done("copied as %s: %d files, %.1f MB, CPU %.1f s", name, files, float64(size)/1e6, results[i].CPU.Seconds())
	}
	return nil
}

func sizeOfNARs(cache string) (files int, size int64, err error) {
	entries, err := os.ReadDir(filepath.Join(cache, "nar"))
	if err != nil {
		return 0, 0, fmt.Errorf("realnix: %w", err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return 0, 0, fmt.Errorf("realnix: %w", err)
		}
		size += info.Size()
	}
	return len(entries), size, nil
}

func (m *maker) finish(context.Context) error {
	for _, dir := range []string{m.staging, m.work} {
		if err := RemoveAll(dir); err != nil {
			return err
		}
	}
	text, err := json.MarshalIndent(m.corpus, "", "\t")
	if err != nil {
		return fmt.Errorf("realnix: %w", err)
	}
	if err := os.WriteFile(filepath.Join(m.corpus.Dir, manifestFile), append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("realnix: %w", err)
	}
	return nil
}
