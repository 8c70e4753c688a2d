package main

import (
	"crypto/md5"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
)

// odd is a path in a cache that is unusual in one way. What Nix takes from the cache itself, it has to
// get through a node.
type odd struct {
	what        string
	compression nix.Compression
	edit        func(narinfo string) string // nil: as it is
}

// line replaces a line of a narinfo.
func line(key, value string) func(string) string {
	return func(text string) string {
		before, rest, _ := strings.Cut(text, "\n"+key+": ")
		_, after, _ := strings.Cut(rest, "\n")
		return before + "\n" + key + ": " + value + "\n" + after
	}
}

// omit removes a line.
func omit(key string) func(string) string {
	return func(text string) string {
		before, rest, _ := strings.Cut(text, "\n"+key+": ")
		_, after, _ := strings.Cut(rest, "\n")
		return before + "\n" + after
	}
}

func behind(more string) func(string) string {
	return func(text string) string { return text + more }
}

func before(key, more string) func(string) string {
	return func(text string) string { return strings.Replace(text, "\n"+key+": ", "\n"+more+key+": ", 1) }
}

// lines writes a line as several, or in another form, with VALUE for its value.
func lines(key string, as ...string) func(string) string {
	return func(text string) string {
		before, rest, _ := strings.Cut("\n"+text, "\n"+key+": ")
		value, after, _ := strings.Cut(rest, "\n")
		return strings.TrimPrefix(before+"\n"+strings.ReplaceAll(strings.Join(as, "\n"), "VALUE", value)+"\n"+after, "\n")
	}
}

// recode writes the NarHash in another form.
func recode(form func(hash []byte) string) func(string) string {
	return func(text string) string {
		_, rest, _ := strings.Cut(text, "\nNarHash: ")
		value, _, _ := strings.Cut(rest, "\n")
		h, err := nix.ParseNarHash(value)
		if err != nil {
			panic(err)
		}
		return line("NarHash", form(h[:]))(text)
	}
}

func backwards(text string) string {
	all := strings.SplitAfter(text, "\n")
	slices.Reverse(all)
	return strings.Join(all, "")
}

// oddNarInfos have what Nix takes, or does not need: no signature covers it.
func oddNarInfos() []odd {
	sha512Of, md5Of := sha512.Sum512([]byte("x")), md5.Sum([]byte("x"))
	all := []odd{
		{what: "FileHash of sha512", edit: line("FileHash", fmt.Sprintf("sha512:%x", sha512Of))},
		{what: "FileHash of md5", edit: line("FileHash", fmt.Sprintf("md5:%x", md5Of))},
		{what: "FileHash wrong", edit: line("FileHash", "sha256:"+strings.Repeat("0", 52))},
		{what: "no FileHash", edit: omit("FileHash")},
		{what: "FileSize too large", edit: line("FileSize", "18446744073709551615")},
		{what: "FileSize zero", edit: line("FileSize", "0")},
		{what: "no FileSize", edit: omit("FileSize")},
		{what: "a key without a space", edit: behind("Foo:bar\n")},
		{what: "a key with a tab", edit: behind("Foo:\tbar\n")},
		{what: "a key in Latin-1", edit: behind("X-\xe4: \xf6\n")},
		{what: "a system", edit: behind("System: x86_64-linux\n")},
		{what: "a long line", edit: behind("X-Long: " + strings.Repeat("a", 100_000) + "\n")},
		{what: "an unknown deriver", edit: behind("Deriver: unknown-deriver\n")},
		{what: "a hundred strangers' signatures", edit: before("Sig", strings.Repeat("Sig: other-1:"+strings.Repeat("A", 86)+"==\n", 100))},
		{what: "a malformed signature", edit: before("Sig", "Sig: nonsense\n")},
		{what: "a space behind the signature", edit: func(s string) string { return strings.TrimSuffix(s, "\n") + " \n" }},
		{what: "a word behind the signature", edit: func(s string) string { return strings.TrimSuffix(s, "\n") + " other-1:AAAA\n" }},
		{what: "a signature without padding", edit: func(s string) string { return strings.TrimSuffix(s, "==\n") + "\n" }},
		{what: "the URL with a query", edit: func(s string) string { return strings.Replace(s, ".nar\n", ".nar?a=b\n", 1) }},
		{what: "FileHash as SRI", edit: line("FileHash", "sha256-"+base64.StdEncoding.EncodeToString(sha512Of[:32]))},
		{what: "FileHash in base 16", edit: line("FileHash", fmt.Sprintf("sha256:%x", sha512Of[:32]))},
		{what: "FileHash in capitals", edit: line("FileHash", fmt.Sprintf("sha256:%X", sha512Of[:32]))},
		{what: "FileHash of sha1", edit: line("FileHash", fmt.Sprintf("sha1:%x", sha512Of[:20]))},
		{what: "FileSize with a sign", edit: line("FileSize", "+5000")},
		{what: "FileSize with zeros in front", edit: line("FileSize", "0005000")},
		{what: "FileSize twice", edit: behind("FileSize: 1\n")},
		{what: "FileHash twice", edit: behind("FileHash: sha256:" + strings.Repeat("0", 52) + "\n")},
		{what: "NarHash in base 16", edit: recode(func(h []byte) string { return fmt.Sprintf("sha256:%x", h) })},
		{what: "NarHash in capitals", edit: recode(func(h []byte) string { return fmt.Sprintf("sha256:%X", h) })},
		{what: "NarHash as SRI", edit: recode(func(h []byte) string { return "sha256-" + base64.StdEncoding.EncodeToString(h) })},
		{what: "NarHash in base 64", edit: recode(func(h []byte) string { return "sha256:" + base64.StdEncoding.EncodeToString(h) })},
		{what: "NarSize with zeros in front", edit: lines("NarSize", "NarSize: 00VALUE")},
		{what: "StorePath twice, the same", edit: lines("StorePath", "StorePath: VALUE", "StorePath: VALUE")},
		{what: "URL twice, the same", edit: lines("URL", "URL: VALUE", "URL: VALUE")},
		{what: "URL twice, the second is right", edit: lines("URL", "URL: nar/none.nar", "URL: VALUE")},
		{what: "Compression twice, the second is right", edit: lines("Compression", "Compression: zstd", "Compression: VALUE")},
		{what: "NarHash twice, the same", edit: lines("NarHash", "NarHash: VALUE", "NarHash: VALUE")},
		{what: "NarHash twice, the second is right", edit: lines("NarHash", "NarHash: sha256:"+strings.Repeat("0", 52), "NarHash: VALUE")},
		{what: "NarSize twice, the second is right", edit: lines("NarSize", "NarSize: 1", "NarSize: VALUE")},
		{what: "References twice", edit: lines("References", "References: VALUE", "References: VALUE")},
		{what: "the signature twice", edit: lines("Sig", "Sig: VALUE", "Sig: VALUE")},
		{what: "CA twice", edit: behind("CA: \nCA: \n")},
		{what: "an empty CA", edit: behind("CA: \n")},
		{what: "CRLF behind what is not signed", edit: lines("Compression", "Compression: VALUE", "X-Y: z\r")},
		{what: "a tab in place of the space", edit: lines("URL", "URL:\tVALUE")},
		{what: "a key in small letters", edit: lines("URL", "url: VALUE", "URL: VALUE")},
		{what: "a zero byte in a key that is unknown", edit: behind("X-Zero: a\x00b\n")},
		{what: "the lines in another order", edit: backwards},
		{what: "Deriver twice", edit: behind("Deriver: unknown-deriver\nDeriver: unknown-deriver\n")},
		{what: "compression in capitals", compression: nix.XZ, edit: line("Compression", "XZ")},
		{what: "a compression with a space behind", compression: nix.XZ, edit: line("Compression", "xz ")},
		{what: "zstd named xz", compression: nix.Zstd, edit: line("Compression", "xz")},
		{what: "xz named bzip2", compression: nix.XZ, edit: line("Compression", "bzip2")},
		{what: "a fragment in the URL", edit: func(s string) string { return strings.Replace(s, ".nar\n", ".nar#x\n", 1) }},
		{what: "two slashes in the URL", edit: func(s string) string { return strings.Replace(s, "URL: nar/", "URL: nar//", 1) }},
		{what: "a slash before the URL", edit: func(s string) string { return strings.Replace(s, "URL: ", "URL: /", 1) }},
		{what: "a letter in percent in the URL", edit: func(s string) string { return strings.Replace(s, "URL: nar/", "URL: n%61r/", 1) }},
		{what: "a directory up in the URL", edit: func(s string) string { return strings.Replace(s, "URL: nar/", "URL: x/../nar/", 1) }},
		{what: "the URL with a dot", edit: func(s string) string { return strings.Replace(s, "URL: ", "URL: ./", 1) }},
	}
	for _, c := range []nix.Compression{nix.None, nix.XZ, nix.Bzip2, nix.Gzip, nix.Zstd, nix.Brotli, nix.LZ4, nix.LZMA, nix.Lzip, nix.LZW} {
		all = append(all, odd{what: "compressed by " + string(c), compression: c},
			odd{what: "compressed by " + string(c) + ", without FileHash", compression: c, edit: omit("FileHash")})
	}
	return append(all, odd{what: "bzip2 that is not named", compression: nix.Bzip2, edit: omit("Compression")})
}

// write puts the path of a row into a cache in a directory.
func (o odd) write(t *testing.T, dir string, key nixtest.Key) nixtest.Path {
	p := nixtest.NewPath(strings.NewReplacer(" ", "-", ",", "", "'", "").Replace(o.what), 5000)
	nixtest.WriteCache(t, dir, nixtest.UpstreamConfig{Paths: []nixtest.Path{p}, Keys: []nixtest.Key{key}, Compression: o.compression})
	if at := filepath.Join(dir, p.Hash().String()+".narinfo"); o.edit != nil {
		text, err := os.ReadFile(at)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(o.edit(string(text))), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// taken returns which paths a client gets from a cache.
func taken(t *testing.T, client *realnix.Client, from string, paths []nixtest.Path) map[string]bool {
	t.Helper()
	client.Substituters = []string{from}
	all := slices.DeleteFunc(storePaths(paths), func(p string) bool { return p == nix.StorePath{}.String() })
	if _, err := client.Realise(t.Context(), all...); err != nil { // one narinfo that it does not like is enough
		for _, p := range all {
			_, _ = client.Realise(t.Context(), p)
		}
	}
	valid, err := client.Paths(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, p := range valid {
		got[p.StorePath] = true
	}
	return got
}

// TestOddCaches: what Nix takes from a cache alone, it gets through a node, with the machine's Nix and 2.34.
func TestOddCaches(t *testing.T) {
	t.Parallel()
	key := nixtest.NewKey("cache.example.org-1")
	dir := t.TempDir()
	up := serveFiles(t, dir)
	rows := oddNarInfos()
	paths := make([]nixtest.Path, len(rows))
	for i, o := range rows {
		t.Run("", func(t *testing.T) { paths[i] = o.write(t, dir, key) }) // left out where a program is missing
	}
	test := func(t *testing.T, nix *realnix.Nix) {
		d := startDaemon(t, "--p2p=false", "--upstream", up.URL, "--store-root", t.TempDir(), "--trusted-public-key", key.Public(), "--share-key", key.Name)
		client := nix.TempClient(t, key.Public())
		alone := taken(t, client, up.URL, paths)
		client = nix.TempClient(t, key.Public())
		through := taken(t, client, d.url, paths)
		for i, o := range rows {
			switch name := paths[i].StorePath.String(); {
			case paths[i].NAR == nil:
			case !alone[name]:
				t.Logf("%s: not taken by Nix %s itself", o.what, nix.Version)
			case !through[name]:
				t.Errorf("%s: taken by Nix %s itself, and not through the node", o.what, nix.Version)
			}
		}
		if len(alone) < len(rows)/2 {
			t.Errorf("Nix itself takes %d of %d", len(alone), len(rows))
		}
		if _, err := client.VerifyAll(t.Context()); err != nil {
			t.Error(err)
		}
		if log := d.logText(); strings.Contains(log, "wrong narinfo from upstream") || strings.Contains(log, "upstream is down") || t.Failed() {
			t.Errorf("what is only odd is called wrong:\n%s", log)
		}
	}
	t.Run("machine", func(t *testing.T) {
		t.Parallel()
		test(t, realnix.Find(t))
	})
	i := slices.IndexFunc(realnix.Variants(), func(v realnix.Variant) bool { return v.Name == "2.34" })
	t.Run("2.34", func(t *testing.T) {
		t.Parallel()
		test(t, realnix.FindVariant(t, realnix.Variants()[i]))
	})
}

// TestRefusedOnce: what a cache has and this node cannot serve is requested once for all clients within a minute, and nobody
// is said to lie. `why` names the reason.
func TestRefusedOnce(t *testing.T) {
	t.Parallel()
	key, stranger := nixtest.NewKey("cache.example.org-1"), nixtest.NewKey("stranger-1")
	for _, c := range []struct {
		what string
		keys []nixtest.Key
		edit func(string) string
		why  string
	}{
		{"unsigned", nil, nil, "no trusted key signed it"},
		{"signed by a stranger", []nixtest.Key{stranger}, nil, "no trusted key signed it"},
		{"in an unknown compression", []nixtest.Key{key}, line("Compression", "lzop"), `cannot decode "lzop"`},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			dir, p := t.TempDir(), nixtest.NewPath("hello", 5000)
			nixtest.WriteCache(t, dir, nixtest.UpstreamConfig{Paths: []nixtest.Path{p}, Keys: c.keys})
			if at := filepath.Join(dir, p.Hash().String()+".narinfo"); c.edit != nil {
				text, err := os.ReadFile(at)
				if err == nil {
					err = os.WriteFile(at, []byte(c.edit(string(text))), 0o644)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			var asked atomic.Int32
			files := http.FileServer(http.Dir(dir))
			up := newServer(t, func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, ".narinfo") {
					asked.Add(1)
				}
				files.ServeHTTP(w, r)
			})
			d := startDaemon(t, "--p2p=false", "--upstream", up, "--store-root", t.TempDir(), "--trusted-public-key", key.Public(), "--share-key", key.Name)
			began := time.Now()
			eachNix(t, func(t *testing.T, nix *realnix.Nix) {
				client := nix.TempClient(t, key.Public())
				client.Substituters = []string{d.url}
				if _, err := client.Realise(t.Context(), p.StorePath.String()); err == nil {
					t.Error("it was substituted")
				}
			})
			if n, took := asked.Load(), time.Since(began); n != 1 && took < 50*time.Second {
				t.Errorf("requested %d times in %v", n, took)
			}
			out, _, _ := command(t, "why", "--config", "/dev/null", "--admin-listen", orAny(d.admin), p.StorePath.String())
			if !strings.Contains(out, c.why) {
				t.Errorf("why: %s", out)
			}
			if text := d.logText(); strings.Contains(text, "wrong narinfo") || strings.Contains(text, "invalid") {
				t.Error(text)
			}
		})
	}
}

// TestCaseHack: a store that was filled with use-case-hack, as on macOS, is served.
func TestCaseHack(t *testing.T) {
	t.Parallel()
	maker := realnix.Find(t).TempClient(t)
	secret, public := filepath.Join(maker.Dir, "sec"), filepath.Join(maker.Dir, "pub")
	run := func(c *realnix.Client, argv ...string) string {
		t.Helper()
		res, err := c.Run(t.Context(), argv...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(res.Stdout)
	}
	run(maker, "nix-store", "--generate-binary-cache-key", "case-1", secret, public)
	text, err := os.ReadFile(public)
	if err != nil {
		t.Fatal(err)
	}
	key, cache := strings.TrimSpace(string(text)), t.TempDir()
	trees := [][]string{
		{"Thunar", "thunar"},
		{"xt_MARK.h", "xt_mark.h", "Xt_mark.h", "other"},
		{"Dir/a", "dir/a", "dir/A"},
		{"sub/Sub/x", "sub/sub/x", "sub/SUB/X"},
		{"z", "Z", "z.a", "Z.a", "z-a"},
	}
	var paths []string
	for i, names := range trees {
		dir := filepath.Join(maker.Dir, fmt.Sprint("tree", i))
		for _, name := range names {
			at := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(at, []byte(name), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		paths = append(paths, run(maker, "nix-store", "--add", dir))
	}
	run(maker, append([]string{"nix", "copy", "--to", "file://" + cache + "?secret-key=" + secret}, paths...)...)
	up := serveFiles(t, cache)
	eachNix(t, func(t *testing.T, nix *realnix.Nix) {
		mac, client := nix.TempClient(t, key), nix.TempClient(t, key)
		mac.Settings = map[string]string{"use-case-hack": "true"}
		if _, err := mac.Copy(t.Context(), up.URL, paths...); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(filepath.Join(mac.Real(paths[0]), "thunar~nix~case~hack~1")); err != nil {
			t.Skip("this Nix has no case hack")
		}
		d := startDaemon(t, "--p2p=false", "--upstream", "http://127.0.0.1:1", "--store-root", mac.Root, "--trusted-public-key", key, "--share-key", "case-1")
		client.Substituters = []string{d.url}
		if _, err := client.Realise(t.Context(), paths...); err != nil {
			t.Error(err)
		}
	})
}

// TestTwoBuilds: of several caches with builds of one path that differ, the first one has collected
// its NAR since the node was asked. Nix gets the other build at the second try at the latest.
func TestTwoBuilds(t *testing.T) {
	t.Parallel()
	key := nixtest.NewKey("cache.example.org-1")
	one, two := nixtest.NewPath("build", 5000), nixtest.NewPath("build", 6000)
	two.StorePath = one.StorePath
	for _, c := range []struct {
		what    string
		narinfo bool // the first cache still has it
		restart bool
		third   bool // a cache that has nothing lies between
		disk    string
	}{
		{what: "all is collected", disk: "0"},
		{what: "the narinfo is still there", narinfo: true, disk: "0"},
		{what: "after a restart", restart: true, disk: "1GiB"},
		{what: "a third cache has nothing", third: true, disk: "1GiB"},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			test := func(t *testing.T, nix *realnix.Nix) {
				a, b := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: []nixtest.Path{one}, Keys: []nixtest.Key{key}}),
					nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: []nixtest.Path{two}, Keys: []nixtest.Key{key}})
				args := []string{"--p2p=false", "--store-root", t.TempDir(), "--trusted-public-key", key.Public(), "--cache-size", c.disk,
					"--upstream", a.URL() + "?priority=1"}
				if c.third {
					args = append(args, "--upstream", newServer(t, http.NotFound)+"?priority=2")
				}
				args = append(args, "--upstream", b.URL()+"?priority=3")
				d := startDaemon(t, args...)
				if code, _ := d.get(d.url + "/" + one.Hash().String() + ".narinfo"); code != http.StatusOK {
					t.Fatal(code)
				}
				a.Set(nixtest.NarFile, nixtest.Fault{Status: http.StatusNotFound})
				if !c.narinfo {
					a.Set(nixtest.NarInfo, nixtest.Fault{Status: http.StatusNotFound})
				}
				if c.restart {
					d.restart(args...)
				}
				var err error
				for range 2 {
					client := nix.TempClient(t, key.Public())
					client.Substituters = []string{d.url}
					if _, err = client.Realise(t.Context(), one.StorePath.String()); err == nil {
						return
					}
				}
				t.Error(err)
			}
			if c.restart {
				eachNix(t, test)
				return
			}
			test(t, realnix.Find(t))
		})
	}
}
