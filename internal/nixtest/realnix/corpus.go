package realnix

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// CorpusDirEnv names the variable that says where finished corpora are kept for
// the next run; otherwise nixp2p-test in the user's cache directory.
const CorpusDirEnv = "NIXP2P_CORPUS_DIR"

// generator is part of a kept corpus's name: raise it with every change of what
// is made, or old corpora go on being used.
const generator = 1

// minPaths leaves room for the special paths and for some ordinary ones.
const minPaths = 24

// Params says what corpus to make. The same parameters give the same store
// paths with the same contents (with Bytes: on the same machine), but another key.
type Params struct {
	Paths        int      // in the closure, the top included; 0 = 220, at least 24
	Bytes        int64    // NAR bytes to aim at, see below; 0 = small files
	Largest      int64    // with Bytes, and part of them: bytes of the largest NAR to aim at; 0 = what is drawn
	Seed         uint64   // 0 = 1
	Compressions []string // of the caches: none, xz, zstd, bzip2; nil = xz, zstd, none, bzip2

	// With Bytes, sizes are log-normal as in real closures and the contents
	// are files of this machine, so that they compress as software does.
	// Without, most paths hold a few small files; six NARs are between 1 and
	// 4 MiB and one is about 70 MiB, two paths have the same NAR, some are
	// single files, and one has what a NAR can have in it at its edges.
}

func (p Params) withDefaults() (Params, error) {
	if p.Paths == 0 {
		p.Paths = 220
	}
	if p.Seed == 0 {
		p.Seed = 1
	}
	if p.Compressions == nil {
		p.Compressions = []string{"xz", "zstd", "none", "bzip2"}
	}
	if p.Paths < minPaths {
		return p, fmt.Errorf("realnix: corpus of %d paths: at least %d are needed", p.Paths, minPaths)
	}
	if p.Largest < 0 || p.Largest > 0 && p.Largest >= p.Bytes {
		return p, fmt.Errorf("realnix: corpus of %d bytes with a NAR of %d: it has to be a part", p.Bytes, p.Largest)
	}
	for _, c := range p.Compressions {
		if !slices.Contains([]string{"none", "xz", "zstd", "bzip2"}, c) {
			return p, fmt.Errorf("realnix: corpus with compression %q: want none, xz, zstd or bzip2", c)
		}
	}
	return p, nil
}

// key names a kept corpus; p has its defaults.
func (p Params) key() string {
	size := strconv.FormatInt(p.Bytes, 10)
	if p.Largest > 0 {
		size += "+" + strconv.FormatInt(p.Largest, 10)
	}
	return fmt.Sprintf("v%d-%d-%s-%d-%s", generator, p.Paths, size, p.Seed, strings.Join(p.Compressions, "-"))
}

// Corpus is a closure in a store and in binary caches, all signed by one key.
// It may be in use by several test processes at once: do not change it.
type Corpus struct {
	Dir       string            `json:"-"`
	Caches    map[string]string `json:"-"`         // compression -> directory of the cache
	StoreRoot string            `json:"-"`         // store that built it, signatures in its database; it also has the derivations, unsigned
	SecretKey string            `json:"-"`         // file with the secret key, to sign more
	PublicKey string            `json:"publicKey"` // name:base64
	Top       string            `json:"top"`       // store path; its closure is Paths
	Paths     []Path            `json:"paths"`     // sorted

	NARBytes       int64 `json:"narBytes"`       // sum over all paths
	UniqueNARBytes int64 `json:"uniqueNarBytes"` // every NAR counted once

	Compressions []string `json:"compressions"`
}

const (
	manifestFile  = "corpus.json"
	secretKeyFile = "secret-key"
	storeDir      = "store"
	keyName       = "nixp2p-corpus-1"
)

// Largest returns the path with the largest NAR.
func (c *Corpus) Largest() Path {
	return slices.MaxFunc(c.Paths, func(a, b Path) int { return int(a.NarSize - b.NarSize) })
}

// OpenCorpus returns the corpus that MakeCorpus made in dir.
func OpenCorpus(dir string) (*Corpus, error) {
	text, err := os.ReadFile(filepath.Join(dir, manifestFile))
	if err != nil {
		return nil, fmt.Errorf("realnix: no corpus: %w", err)
	}
	c := &Corpus{Dir: dir}
	if err := json.Unmarshal(text, c); err != nil {
		return nil, fmt.Errorf("realnix: corpus in %s: %w", dir, err)
	}
	c.place()
	return c, nil
}

// place fills in the locations, which are not in the manifest so that a corpus
// may be moved.
func (c *Corpus) place() {
	c.StoreRoot = filepath.Join(c.Dir, storeDir)
	c.SecretKey = filepath.Join(c.Dir, secretKeyFile)
	c.Caches = make(map[string]string, len(c.Compressions))
	for _, name := range c.Compressions {
		c.Caches[name] = filepath.Join(c.Dir, "cache-"+name)
	}
}

// FindCorpus returns the kept corpus with these parameters; the first caller
// makes it, in about ten seconds for the default. Like Find it skips the test
// where there is no Nix, and also where Nix may not make the namespaces that
// building in a store of one's own needs.
func FindCorpus(tb testing.TB, p Params) *Corpus {
	tb.Helper()
	nix := Find(tb)
	c, err := KeptCorpus(tb.Context(), nix, p)
	if noNamespaces(err) {
		skip(tb, os.Getenv(RequireEnv) == "1", err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// noNamespaces tells whether Nix could not make a sandbox: in a container
// without privileges, or in a chroot, where the kernel forbids it.
func noNamespaces(err error) bool {
	var cmdErr *CommandError
	return errors.As(err, &cmdErr) &&
		(strings.Contains(cmdErr.Stderr, "Operation not permitted") || strings.Contains(cmdErr.Stderr, "does not support the kernel namespaces") ||
			strings.Contains(cmdErr.Stderr, "user namespaces are not enabled"))
}

// KeptCorpus returns the kept corpus with these parameters and makes it if need
// be. Processes that want the same one at the same time wait for the first.
func KeptCorpus(ctx context.Context, nix *Nix, p Params) (*Corpus, error) {
	p, err := p.withDefaults()
	if err != nil {
		return nil, err
	}
	base := os.Getenv(CorpusDirEnv)
	if base == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("realnix: place for corpora: %w (set %s)", err, CorpusDirEnv)
		}
		base = filepath.Join(cache, "nixp2p-test")
	}
	dir := filepath.Join(base, p.key())
	if c, err := OpenCorpus(dir); !errors.Is(err, fs.ErrNotExist) {
		return c, err
	}
	if err := os.MkdirAll(base, 0o755); err != nil {
		return nil, fmt.Errorf("realnix: %w", err)
	}
	unlock, err := lock(dir + ".lock")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if c, err := OpenCorpus(dir); !errors.Is(err, fs.ErrNotExist) {
		return c, err
	}
	return MakeCorpus(ctx, nix, dir, p, nil)
}

// lock waits for an exclusive lock that ends with the process at the latest.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("realnix: %w", err)
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("realnix: lock %s: %w", path, err)
		}
	}
}
