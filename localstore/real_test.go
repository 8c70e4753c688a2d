package localstore

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
	"github.com/nixp2p/nixp2p/verify"
)

const (
	// longEnv turns on what takes longer than ten seconds.
	longEnv = "NIXP2P_LONG_TESTS"
	// collectEnv makes the test binary the child of TestGarbageCollection.
	collectEnv = "LOCALSTORE_TEST_COLLECT"
)

// realStore is a store that the real Nix makes.
type realStore struct {
	*world
	c      *realnix.Client
	public string
}

func newRealStore(t *testing.T, n *realnix.Nix) *realStore {
	t.Helper()
	c := n.TempClient(t)
	seed := sha256.Sum256([]byte("a key for tests"))
	key := ed25519.NewKeyFromSeed(seed[:])
	b64 := base64.StdEncoding.EncodeToString
	must(t, os.WriteFile(filepath.Join(c.Dir, "secret"), []byte("real-1:"+b64(key)), 0o600))
	return &realStore{&world{t: t, root: c.Root}, c, "real-1:" + b64(key.Public().(ed25519.PublicKey))}
}

// visible returns the name under which this Nix sees a file in the client's directory.
func (r *realStore) visible(name string) string {
	if r.c.Nix.Chroot != "" {
		return "/mnt/" + name
	}
	return filepath.Join(r.c.Dir, name)
}

func (r *realStore) run(argv ...string) string {
	r.t.Helper()
	res, err := r.c.Run(r.t.(*testing.T).Context(), argv...)
	must(r.t, err)
	return strings.TrimSpace(res.Stdout)
}

// add copies what lies in the client's directory into the store, and signs it.
func (r *realStore) add(name string) nix.StoreHash {
	r.t.Helper()
	path := r.run("nix-store", "--add", r.visible(name))
	r.run("nix", "store", "sign", "--key-file", r.visible("secret"), path)
	p, err := nix.ParseStorePath(path)
	must(r.t, err)
	return p.Hash()
}

func (r *realStore) file(name, contents string) nix.StoreHash {
	r.t.Helper()
	must(r.t, os.WriteFile(filepath.Join(r.c.Dir, name), []byte(contents), 0o644))
	return r.add(name)
}

func (r *realStore) open() *Store {
	r.t.Helper()
	keys, err := verify.ParseKeys([]string{r.public})
	must(r.t, err)
	s, err := Open(Config{Root: r.root, Keys: keys, ShareKeys: keys.Names()})
	must(r.t, err)
	r.t.Cleanup(func() { must(r.t, s.Close()) })
	return s
}

// The same bytes as nix-store --dump, and the hash and signature that Nix registered.
func TestRealIdentity(t *testing.T) {
	r := newRealStore(t, realnix.Find(t))
	for _, c := range shapes() {
		t.Run(c.name, func(t *testing.T) {
			c.build(t, filepath.Join(r.c.Dir, c.name))
			h := r.add(c.name)
			s := r.open()
			info, err := s.Info(t.Context(), h)
			must(t, err)
			got, err := readAll(s, info, 0)
			must(t, err)
			if nix.NarHash(sha256.Sum256(got)) != info.NarHash() {
				t.Error("the NAR has not the hash that Nix registered")
			}
			want, err := r.c.Run(t.Context(), "nix-store", "--dump", s.physical(info.StorePath()))
			must(t, err)
			if string(got) != want.Stdout {
				t.Errorf("%d bytes, nix-store --dump gives %d others", len(got), len(want.Stdout))
			}
		})
	}
}

// What several versions of Nix leave beside the database, read by nobody.
func TestRealStates(t *testing.T) {
	versions := map[string]func(testing.TB) *realnix.Nix{"installed": realnix.Find}
	for _, v := range realnix.Variants() {
		versions[v.Name] = func(tb testing.TB) *realnix.Nix { return realnix.FindVariant(tb, v) }
	}
	for name, find := range versions {
		t.Run(name, func(t *testing.T) {
			r := newRealStore(t, find(t))
			must(t, os.MkdirAll(r.root, 0o755))
			must(t, os.Chmod(r.c.Dir, 0o755))
			reader := r.read(nobody, r.public)
			expect := func(what string, names ...string) {
				t.Helper()
				before := r.besidesOrNothing()
				got := reader.look()
				if _, list, _ := strings.Cut(got, ": "); list != strings.Join(names, " ") {
					t.Errorf("%s: %q, want %q", what, got, names)
				}
				if after := r.besidesOrNothing(); after != before {
					t.Errorf("%s: the reader changed files:\n%swere\n%s", what, after, before)
				}
				t.Logf("%s: %s; %s", what, got, strings.Join(strings.Fields(r.names()), " "))
			}
			expect("no store")
			r.file("a", "1")
			expect("one path", "a")
			r.file("b", "2")
			expect("two", "a", "b")
			r.openExisting() // a Nix that is at work
			r.exec("BEGIN IMMEDIATE")
			r.exec("COMMIT")
			expect("a writer is there", "a", "b")
			r.file("c", "3")
			expect("and another came and went", "a", "b", "c")
			r.closeDB()
			expect("all are gone", "a", "b", "c")
			r.file("d", "4")
			r.run("nix-store", "--delete", r.run("nix-store", "--add", r.visible("b")))
			expect("one came, one went", "a", "c", "d")
			reader.stop()
		})
	}
}

func (r *realStore) names() string {
	entries, _ := os.ReadDir(filepath.Dir(r.dbPath()))
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "db.sqlite") {
			names = append(names, e.Name())
		}
	}
	return strings.Join(names, " ")
}

func (r *realStore) besidesOrNothing() string {
	if _, err := os.Stat(filepath.Dir(r.dbPath())); err != nil {
		return ""
	}
	return r.besides()
}

// openExisting opens the database of Nix for writing.
func (w *world) openExisting() {
	var err error
	w.db, err = openPlain(w.dbPath())
	must(w.t, err)
}

// A flipped byte is found by whoever hashes, kept from everybody until Nix has repaired the
// path, and served again then.
func TestRealRepair(t *testing.T) {
	r := newRealStore(t, realnix.Find(t))
	must(t, os.MkdirAll(filepath.Join(r.c.Dir, "tree"), 0o755))
	must(t, os.WriteFile(filepath.Join(r.c.Dir, "tree/file"), bytes.Repeat([]byte("good"), 1000), 0o644))
	h := r.add("tree")
	s := r.open()
	info, err := s.Info(t.Context(), h)
	must(t, err)
	cache := "file://" + filepath.Join(r.c.Dir, "binary-cache")
	r.run("nix", "copy", "--to", cache, info.StorePath().String())
	r.c.Substituters, r.c.TrustedKeys = []string{cache}, []string{r.public}

	file := filepath.Join(s.physical(info.StorePath()), "file")
	must(t, os.Chmod(file, 0o644))
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("x"), 2000)
	must(t, err)
	must(t, f.Close())
	must(t, os.Chmod(file, 0o444))

	lie := serve(t, s, info)
	if lie == nil {
		t.Fatal("the flipped byte went unnoticed")
	}
	s.Invalid(info, nix.Raw, lie)
	_, err = s.Info(t.Context(), h)
	wantAbsent(t, err)
	_, err = r.c.RepairPath(t.Context(), info.StorePath().String())
	must(t, err)
	info, err = s.Info(t.Context(), h)
	must(t, err)
	if lie := serve(t, s, info); lie != nil {
		t.Error(lie)
	}
}

// Nix's garbage collector leaves a path alone that is being read, and takes it afterwards. For
// that it must see the path under /nix/store, in a mount namespace of its own here.
func TestGarbageCollection(t *testing.T) {
	r := newRealStore(t, realnix.Find(t))
	if _, err := os.Stat("/nix"); err != nil || os.Getuid() != 0 {
		t.Skip("skipped without root or a directory /nix to mount over")
	}
	for _, name := range []string{"read", "unread"} {
		must(t, os.MkdirAll(filepath.Join(r.c.Dir, name, "dir"), 0o755))
		must(t, os.WriteFile(filepath.Join(r.c.Dir, name, "dir/file"), bytes.Repeat([]byte(name), 500_000), 0o644))
	}
	read, unread := r.add("read"), r.add("unread")
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(lookTool(t, "unshare"), "--mount", exe)
	cmd.Env = []string{
		childEnv + "=" + r.root, collectEnv + "=" + read.String() + " " + unread.String(), keyEnv + "=" + r.public,
		"PATH=" + os.Getenv("PATH"), "HOME=" + r.c.Dir, "NIX_CONF_DIR=" + r.c.Dir,
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("all as it should be")) {
		t.Errorf("%v\n%s", err, out)
	}
}

func collect() int {
	if err := collectErr(); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("all as it should be")
	return 0
}

func collectErr() error {
	if out, err := exec.Command("mount", "--bind", filepath.Join(os.Getenv(childEnv), "nix"), "/nix").CombinedOutput(); err != nil {
		return fmt.Errorf("mount: %w: %s", err, out)
	}
	ctx := context.Background()
	keys, err := verify.ParseKeys([]string{os.Getenv(keyEnv)})
	if err != nil {
		return err
	}
	s, err := Open(Config{Keys: keys, Log: slog.New(slog.NewTextHandler(os.Stdout, nil))})
	if err != nil {
		return err
	}
	defer s.Close()
	var infos []*verify.Info
	for text := range strings.FieldsSeq(os.Getenv(collectEnv)) {
		h, err := nix.ParseStoreHash(text)
		if err != nil {
			return err
		}
		info, err := s.Info(ctx, h)
		if err != nil {
			return err
		}
		infos = append(infos, info)
	}
	claim, err := s.NAR(ctx, infos[0], nix.Raw, 0)
	if err != nil {
		return err
	}
	proof := verify.NewProof(infos[0].Digest(nix.Raw, 0))
	if _, err := io.CopyN(proof, claim.Body, 100); err != nil {
		return err
	}
	gc := func() error {
		out, err := exec.Command("nix-store", "--gc").CombinedOutput()
		if err != nil {
			return fmt.Errorf("gc: %w: %s", err, out)
		}
		return nil
	}
	if err := gc(); err != nil {
		return err
	}
	if _, err := s.Info(ctx, infos[1].StorePath().Hash()); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the path that nobody reads was not collected: %v", err)
	}
	if _, err := io.Copy(proof, claim.Body); err != nil {
		return fmt.Errorf("the path that is read was collected: %w", err)
	}
	if err := proof.Check(); err != nil {
		return err
	}
	if err := claim.Body.Close(); err != nil {
		return err
	}
	if err := gc(); err != nil {
		return err
	}
	if _, err := s.NAR(ctx, infos[0], nix.Raw, 0); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the path stayed after it was read: %v", err)
	}
	return nil
}

// sparse makes a tree with a file larger than 4 GiB, nearly all of it a hole.
func sparse(t *testing.T, path string) (size int64) {
	t.Helper()
	must(t, os.Mkdir(path, 0o755))
	write(t, path+"/a", 5, 0o444)
	write(t, path+"/z", 5, 0o444)
	f, err := os.Create(path + "/large")
	must(t, err)
	size = 4<<30 + 50
	must(t, f.Truncate(size))
	for _, at := range []int64{0, 1 << 31, 1<<32 - 3, size - 5} {
		_, err = f.WriteAt([]byte("mark!"), at)
		must(t, err)
	}
	must(t, f.Close())
	return size
}

// A file larger than 4 GiB: the parts around what does not fit into 32 bits.
func TestLargeFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sparse")
	size := sparse(t, path)
	top, err := openRootEntry(path)
	must(t, err)
	lay, err := walk(t.Context(), top, 5<<30, false)
	must(t, err)
	at := lay.nodes[2].start + int64(len(lay.head(nil, 2)))
	for off, want := range map[int64]string{0: "mark!", 1<<31 - 2: "\x00\x00mark!\x00", 1<<32 - 4: "\x00mark!\x00", size - 6: "\x00mark!\x00\x00\x00\x00\x00\x00\x01"} {
		again, err := openRootEntry(path)
		must(t, err)
		b := newBody(nix.StorePath{}, again, lay, at+off)
		got := make([]byte, len(want))
		_, err = io.ReadFull(b, got)
		must(t, err)
		if string(got) != want {
			t.Errorf("at %d: %q, want %q", off, got, want)
		}
		must(t, b.Close())
	}
	top.close()
}

func TestRealLargeFile(t *testing.T) {
	if os.Getenv(longEnv) != "1" {
		t.Skipf("skipped unless %s=1", longEnv)
	}
	lookTool(t, "nix-store")
	path := filepath.Join(t.TempDir(), "sparse")
	sparse(t, path)
	want, err := exec.Command("sh", "-c", `nix-store --dump "$1" | sha256sum | cut -d' ' -f1`, "sh", path).Output()
	must(t, err)
	top, err := openRootEntry(path)
	must(t, err)
	lay, err := walk(t.Context(), top, 5<<30, false)
	must(t, err)
	b := newBody(nix.StorePath{}, top, lay, 0)
	h := sha256.New()
	n, err := io.CopyBuffer(h, onlyReader{b}, make([]byte, 256<<10))
	must(t, err)
	must(t, b.Close())
	if got := hex.EncodeToString(h.Sum(nil)); got != strings.TrimSpace(string(want)) || n != lay.size {
		t.Errorf("%d bytes with hash %s, want %s", n, got, want)
	}
	t.Logf("%d bytes, sha256 %s", n, bytes.TrimSpace(want))
}
