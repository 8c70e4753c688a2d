package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
)

// TestPathArgs: what Nix's own commands take for a path is taken here.
func TestPathArgs(t *testing.T) {
	const hash, other = "6lwdzpbig6zz8678blcqr5f5q1caxjw2", "b2hc0i92l22ir2kavnjn3z5z6mzabbvm"
	const path, second = nix.StoreDir + "/" + hash + "-hello-2.12", nix.StoreDir + "/" + other + "-hello-2.12-doc"
	dir := t.TempDir()
	t.Chdir(dir)
	link := func(target, name string) {
		if err := os.Symlink(target, name); err != nil {
			t.Fatal(err)
		}
	}
	link(path, "result") // the path itself is not on this machine
	link("profile-2-link", "profile")
	link(dir+"/profile-1-link", "profile-2-link")
	link(path, "profile-1-link")
	link(path+"/bin", "bin")
	link("loop", "loop")
	link("/etc", "elsewhere")
	if err := os.Mkdir("sub", 0o755); err != nil {
		t.Fatal(err)
	}
	link("../result", "sub/up")
	drv := filepath.Join(dir, hash+"-x.drv")
	text := `Derive([("doc","` + second + `","",""),("later","","r:sha256",""),("out","` + path + `","","")],[],[],"x","x",[],[])`
	if err := os.WriteFile(drv, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	link(drv, "no-store.drv") // a derivation is read where it lies
	for arg, want := range map[string]string{
		path:                 hash,
		path + "/bin/hello":  hash,
		hash + "-hello-2.12": hash,
		hash:                 hash,
		"result":             hash,
		"./result":           hash,
		dir + "/result":      hash,
		"result/bin/hello":   hash,
		"sub/up":             hash,
		"sub/../result":      hash,
		"profile":            hash,
		"bin":                hash,
		path + "^out":        hash,
		"result^out":         hash,
		"-":                  hash + " " + other,
		path + ".drv^out":    "its outputs are not known here",
		"elsewhere":          "does not lead into /nix/store",
		"loop":               "does not lead into /nix/store",
		"nowhere":            "no such file",
		"":                   "not a store path",
		"nixpkgs#hello":      "no such file",
		nix.StoreDir + "//" + hash + "-hello-2.12/x": hash,
		"//nix//store/./" + hash + "-hello-2.12":     hash,
		path + "!out":                                hash,
		nix.StoreDir + "/short":                      "it looks like",
		"/nix/store/":                                "not a store path",
		hash + "-hello-2.12 and more":                "not a store path",
		"https://cache.nixos.org/" + hash:            "not a store path",
	} {
		got, err := pathArgs(arg, strings.NewReader("# two\n"+path+"\r\n\n  "+second+"^out  \n"))
		var names []string
		for _, h := range got {
			names = append(names, h.String())
		}
		switch {
		case len(want) >= len(hash) && want[0] != 'i':
			if s := strings.Join(names, " "); err != nil || s != want {
				t.Errorf("%q: %q, %v", arg, s, err)
			}
		case err == nil:
			t.Errorf("%q was taken for %v", arg, names)
		default:
			var usage *usageError
			ok := false
			for _, w := range strings.Split(want, "|") {
				ok = ok || strings.Contains(err.Error(), w)
			}
			if !errors.As(err, &usage) || !ok {
				t.Errorf("%q: %v", arg, err)
			}
		}
	}
	for outputs, want := range map[string]string{
		"out": hash, "doc": other, "*": "known only when it is built", "out,doc": hash + " " + other, "dev": "no output", "later": "known only when it is built",
	} {
		got, err := outputsOf(drv, outputs)
		var names []string
		for _, h := range got {
			names = append(names, h.String())
		}
		if s := strings.Join(names, " "); s != want && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("^%s: %q, %v", outputs, s, err)
		}
	}
	if _, err := pathArg("-", strings.NewReader(path+"\n"+second)); err == nil {
		t.Error("two paths were taken for one")
	}
}

// FuzzOutputs: whatever a derivation holds, reading it ends.
func FuzzOutputs(f *testing.F) {
	f.Add(`Derive([("out","/nix/store/6lwdzpbig6zz8678blcqr5f5q1caxjw2-x","","")],[]`, "out")
	f.Fuzz(func(t *testing.T, text, names string) {
		drv := filepath.Join(t.TempDir(), "x.drv")
		if err := os.WriteFile(drv, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = outputsOf(drv, names)
	})
}

// TestPathsAsNix: what nix path-info takes for a path is the same path here, and what is on standard input as well.
func TestPathsAsNix(t *testing.T) {
	eachNix(t, func(t *testing.T, n *realnix.Nix) {
		c := n.TempClient(t)
		t.Chdir(c.Dir)
		write := func(name string) {
			if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(name), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		write("one")
		write("two/file")
		add := func(name string) string {
			at, err := c.Visible(filepath.Join(c.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			res, err := c.Run(t.Context(), "nix-store", "--add", at)
			if err != nil {
				t.Fatal(err)
			}
			return strings.TrimSpace(res.Stdout)
		}
		one, two := add("one"), add("two")
		base := filepath.Base(two)
		links := map[string]string{"result": two, "result-2": "result", "profile": "profile-1-link", "profile-1-link": two, "deep": two + "/file"}
		for name, target := range links {
			if err := os.Symlink(target, name); err != nil {
				t.Fatal(err)
			}
		}
		write("sub/x")
		here, taken := nix.StoreDir+"/", 0
		for _, arg := range []string{
			one, two, two + "/", two + "//", two + "/file", here + "/" + base, "/" + two, "/nix//store/" + base, here + "./" + base, here + "x/../" + base,
			"./result", "./result-2", "./profile", "./deep", "./sub/../result", "./result/", "result", "result/file",
			base, strings.SplitN(base, "-", 2)[0], two + "^out", two + "^*", two + "!out", "./result^out",
			"", " " + two, "./one", "./nowhere", here, "/nix/store", "/etc", here + base[:32], here + "no-path", two + "#x", "path:" + two,
		} {
			res, err := c.Run(t.Context(), "nix", "path-info", "--", arg)
			if err != nil || res.Stdout == "" {
				continue // not Nix's either
			}
			taken++
			got, err := pathArg(arg, nil)
			if want, _ := nix.ParseStorePath(strings.TrimSpace(res.Stdout)); err != nil || got != want.Hash() {
				t.Errorf("%q: Nix %s takes it for %s, and here it is %v, %v", arg, n.Version, want, got, err)
			}
		}
		if taken < 10 {
			t.Errorf("Nix took %d", taken)
		}
		for _, list := range []string{one + "\n" + two, one + "\r\n" + two + "\r\n", one + " " + two, one + "\t" + two + "\n\n", one + "\x00" + two + "\x00", "# two\n" + one + "\n./result"} {
			if got, err := pathArgs("-", strings.NewReader(list)); err != nil || len(got) != 2 {
				t.Errorf("%q: %v, %v", list, got, err)
			}
		}
	})
}
