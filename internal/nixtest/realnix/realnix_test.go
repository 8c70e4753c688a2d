package realnix

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// installed calls f for the machine's Nix and those in trees, as subtests.
func installed(t *testing.T, f func(t *testing.T, nix *Nix)) {
	t.Run("machine", func(t *testing.T) { f(t, Find(t)) })
	for _, v := range Variants() {
		t.Run(v.Name, func(t *testing.T) {
			if testing.Short() {
				t.Skip("short: the machine's Nix alone")
			}
			f(t, FindVariant(t, v))
		})
	}
}

// serve serves a cache of the corpus on loopback.
func serve(t *testing.T, dir string) string {
	t.Helper()
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(server.Close)
	return server.URL
}

func sigsOf(c *Corpus) map[string][]string {
	sigs := map[string][]string{}
	for _, p := range c.Paths {
		sigs[p.StorePath] = p.Sigs
	}
	return sigs
}

func TestCorpusShape(t *testing.T) {
	c := FindCorpus(t, Params{})
	if len(c.Paths) != 220 {
		t.Errorf("%d paths, want 220", len(c.Paths))
	}
	over1MiB, over64MiB, withReferences := 0, 0, 0
	hashes := map[string]int{}
	for _, p := range c.Paths {
		if p.NarSize > 1<<20 {
			over1MiB++
		}
		if p.NarSize > 64<<20 {
			over64MiB++
		}
		if len(p.References) > 0 {
			withReferences++
		}
		hashes[p.NarHash]++
		if len(p.Sigs) != 1 || !strings.HasPrefix(p.Sigs[0], keyName+":") {
			t.Errorf("%s: signatures %q, want one by %s", p.StorePath, p.Sigs, keyName)
		}
	}
	if over1MiB < 7 || over64MiB != 1 || withReferences < 150 || len(hashes) != 219 {
		t.Errorf("%d NARs over 1 MiB, %d over 64 MiB, %d paths with references, %d different NARs; want >= 7, 1, >= 150, 219",
			over1MiB, over64MiB, withReferences, len(hashes))
	}
	if c.Largest().NarSize < largeSize || c.UniqueNARBytes >= c.NARBytes {
		t.Errorf("largest NAR %d, all %d, unique %d bytes", c.Largest().NarSize, c.NARBytes, c.UniqueNARBytes)
	}
	suffixes := map[string]string{"none": ".nar", "xz": ".nar.xz", "zstd": ".nar.zst", "bzip2": ".nar.bz2"}
	for name, dir := range c.Caches {
		narinfos, _ := filepath.Glob(filepath.Join(dir, "*.narinfo"))
		nars, _ := filepath.Glob(filepath.Join(dir, "nar", "*"+suffixes[name]))
		if len(narinfos) != 220 || len(nars) < 219 {
			t.Errorf("cache %s: %d narinfos, %d NARs, want 220 and 219", name, len(narinfos), len(nars))
		}
	}
	if len(c.Caches) != len(suffixes) {
		t.Errorf("caches %v, want 4", c.Caches)
	}
}

// TestClient substitutes the corpus in both ways that Nix has, with each
// installed version.
func TestClient(t *testing.T) {
	corpus := FindCorpus(t, Params{})
	want := sigsOf(corpus)
	url := serve(t, corpus.Caches["xz"])

	installed(t, func(t *testing.T, nix *Nix) {
		ctx := t.Context()
		check := func(t *testing.T, client *Client) {
			t.Helper()
			if res, err := client.VerifyAll(ctx); err != nil || strings.Contains(res.Stderr, "was modified") {
				t.Errorf("verify: %v: %s", err, res.Stderr)
			}
			sigs, err := client.Sigs(ctx)
			if err != nil || !reflect.DeepEqual(sigs, want) {
				t.Errorf("signatures of %d paths, want those of the corpus' %d (%v)", len(sigs), len(want), err)
			}
		}
		t.Run("copy", func(t *testing.T) {
			client := nix.TempClient(t, corpus.PublicKey)
			res, err := client.Copy(ctx, url, corpus.Top)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("Nix %s: copy %v, CPU %v", nix.Version, res.Wall, res.CPU)
			check(t, client)
		})
		t.Run("realise", func(t *testing.T) {
			client := nix.TempClient(t, corpus.PublicKey)
			client.Substituters = []string{url}
			res, err := client.Realise(ctx, corpus.Top)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("Nix %s: realise %v, CPU %v", nix.Version, res.Wall, res.CPU)
			check(t, client)
			if nix.Chroot == "" { // one version is enough for a helper that costs seconds
				repair(t, client, corpus.Largest().StorePath)
			}
		})
	})
}

// repair damages a path that is a single file and has Nix fetch it again.
func repair(t *testing.T, client *Client, path string) {
	t.Helper()
	ctx := t.Context()
	file := client.Real(path)
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	bad := slices.Clone(good)
	bad[len(bad)/2] ^= 1
	if err := errors.Join(os.Chmod(file, 0o644), os.WriteFile(file, bad, 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, err := client.VerifyAll(ctx); err == nil {
		t.Error("verify did not see the damage")
	}
	if _, err := client.RepairPath(ctx, path); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != string(good) {
		t.Errorf("the path is not what it was (%v)", err)
	}
}

func TestPathInfoR(t *testing.T) {
	corpus := FindCorpus(t, Params{})
	url := serve(t, corpus.Caches["none"])
	installed(t, func(t *testing.T, nix *Nix) {
		got, res, err := nix.TempClient(t).PathInfoR(t.Context(), url, corpus.Top)
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, p := range corpus.Paths {
			want = append(want, p.StorePath)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%d paths, want the corpus' %d: %s", len(got), len(want), res.Stderr)
		}
	})
}

// TestUntrusted: what TestClient shows of signatures means nothing if the
// client takes any.
func TestUntrusted(t *testing.T) {
	corpus := FindCorpus(t, Params{})
	url := serve(t, corpus.Caches["zstd"])
	installed(t, func(t *testing.T, nix *Nix) {
		client := nix.TempClient(t)
		var cmdErr *CommandError
		if _, err := client.Copy(t.Context(), url, corpus.Top); !errors.As(err, &cmdErr) {
			t.Fatalf("copy without the key: %v, want a CommandError", err)
		}
		paths, err := client.Paths(t.Context())
		if err != nil || len(paths) != 0 {
			t.Errorf("%d paths in the store, want none (%v)", len(paths), err)
		}
	})
}

func TestMakeCorpus(t *testing.T) {
	nix := Find(t)
	ctx := t.Context()
	dir := filepath.Join(t.TempDir(), "corpus")
	p := Params{Paths: 30, Bytes: 3 << 20, Seed: 7, Compressions: []string{"none"}}
	c, err := MakeCorpus(ctx, nix, dir, p, nil)
	if noNamespaces(err) {
		skip(t, os.Getenv(RequireEnv) == "1", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = RemoveAll(dir) })
	if len(c.Paths) != 30 || c.NARBytes < 2<<20 || c.NARBytes > 6<<20 {
		t.Errorf("%d paths, %d bytes, want 30 and about %d", len(c.Paths), c.NARBytes, p.Bytes)
	}
	if _, err := MakeCorpus(ctx, nix, dir, p, nil); err == nil {
		t.Error("made over an existing one")
	}

	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := MakeCorpus(cancelled, nix, dir+"2", p, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("with a cancelled context: %v", err)
	}
	if left, _ := filepath.Glob(dir + "2*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestKeptCorpusParams(t *testing.T) {
	t.Setenv(CorpusDirEnv, t.TempDir())
	for _, p := range []Params{{Paths: 5}, {Compressions: []string{"rar"}}} {
		if _, err := KeptCorpus(t.Context(), &Nix{}, p); err == nil {
			t.Errorf("%+v: no error", p)
		}
	}
}

func TestPlan(t *testing.T) {
	for _, p := range []Params{{Paths: 24}, {}, {Paths: 800, Bytes: 1 << 30}} {
		p, err := p.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		plan := planCorpus(p)
		if !reflect.DeepEqual(plan, planCorpus(p)) {
			t.Error("the same parameters gave another plan")
		}
		var size int64
		references, depth := 0, make([]int, len(plan))
		reached := map[int]bool{len(plan) - 1: true}
		for i, nd := range plan {
			size += nd.size
			references += len(nd.refs)
			for _, to := range nd.refs {
				if to >= i {
					t.Errorf("%d refers to %d: not lower", i, to)
				}
				depth[i] = max(depth[i], depth[to]+1)
				reached[to] = true
			}
		}
		if len(reached) != len(plan) {
			t.Errorf("%d of %d nodes are referred to", len(reached), len(plan))
		}
		if top := len(plan) - 1; depth[top] > levels+1 {
			t.Errorf("%d steps below the top, want at most %d", depth[top], levels+1)
		}
		if p.Bytes > 0 && (size > p.Bytes || size < p.Bytes*99/100) {
			t.Errorf("%d bytes, want %d", size, p.Bytes)
		}
		t.Logf("%d paths, %d references, %d of the top, %d bytes", len(plan), references, len(plan[len(plan)-1].refs), size)
	}
}

func TestParsePathInfo(t *testing.T) {
	want := []Path{
		{StorePath: "/nix/store/a-1", NarHash: "sha256-x", NarSize: 8, References: []string{"/nix/store/a-1", "/nix/store/b-2"}, Sigs: []string{"k:1", "l:2"}},
		{StorePath: "/nix/store/b-2", NarHash: "sha256-y", NarSize: 16, References: []string{}},
	}
	for name, text := range map[string]string{
		"list": `[{"path":"/nix/store/b-2","narHash":"sha256-y","narSize":16,"references":[]},
			{"path":"/nix/store/a-1","narHash":"sha256-x","narSize":8,"references":["/nix/store/b-2","/nix/store/a-1"],"signatures":["l:2","k:1"]}]`,
		"object": `{"/nix/store/b-2":{"narHash":"sha256-y","narSize":16,"references":[]},
			"/nix/store/a-1":{"narHash":"sha256-x","narSize":8,"references":["/nix/store/b-2","/nix/store/a-1"],"signatures":["l:2","k:1"]}}`,
	} {
		got, err := parsePathInfo([]byte(text))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v (%v)", name, got, err)
		}
	}
	if _, err := parsePathInfo([]byte("warning")); err == nil {
		t.Error("no error for what is not JSON")
	}
}

func TestLookAbsent(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := LookPath(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without Nix on PATH: %v", err)
	}
	v := Variant{Name: "2.26", Env: "NIXP2P_NIX_CHROOT_NONE", Dir: t.TempDir()}
	if _, err := LookChroot(t.Context(), v); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a tree: %v", err)
	}
}

func TestAtLeast(t *testing.T) {
	for _, test := range []struct {
		version      string
		major, minor int
		want         bool
	}{
		{"2.8.0", 2, 8, true}, {"2.8.0", 2, 9, false}, {"2.34.8", 2, 9, true}, {"2.36pre2026", 2, 36, true}, {"3.0", 2, 99, true}, {"2.3", 3, 0, false},
	} {
		if got := (&Nix{Version: test.version}).AtLeast(test.major, test.minor); got != test.want {
			t.Errorf("%s at least %v: %v", test.version, []int{test.major, test.minor}, got)
		}
	}
}
