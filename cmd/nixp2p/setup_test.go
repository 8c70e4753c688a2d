package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
)

// commandIn runs a command of the program with more in its environment; prefix is put before it.
func commandIn(t testing.TB, env, prefix []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	argv := append(append(slices.Clone(prefix), os.Args[0]), args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(append(os.Environ(), beMain+"=1"), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// substitutersOf asks the real Nix what it makes of its configuration.
func substitutersOf(t *testing.T, nix *realnix.Nix, client *realnix.Client) []string {
	t.Helper()
	show := []string{"show-config"}
	if nix.AtLeast(2, 20) {
		show = []string{"config", "show"}
	}
	argv := append([]string{"env", "-u", "NIX_CONFIG", "nix", "--extra-experimental-features", "nix-command"}, show...)
	res, err := client.Run(t.Context(), append(argv, "--json")...)
	if err != nil {
		t.Fatal(err)
	}
	var shown struct {
		Substituters struct {
			Value []string `json:"value"`
		} `json:"substituters"`
		ConnectTimeout struct {
			Value int `json:"value"`
		} `json:"connect-timeout"`
	}
	if err := json.Unmarshal([]byte(res.Stdout), &shown); err != nil {
		t.Fatal(err)
	}
	if shown.ConnectTimeout.Value != 5 {
		t.Errorf("connect-timeout is %d", shown.ConnectTimeout.Value)
	}
	return shown.Substituters.Value
}

const (
	ourURL   = "http://127.0.0.1:7654"
	official = "https://cache.nixos.org/"
)

// Nix itself uses the node after the change, and undo restores the bytes.
func TestSetupOddFiles(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, text string // of nix.conf; "-" is none
		more       string // of more.conf, beside it
		want       []string
	}{
		{name: "missing", text: "-", want: []string{official, ourURL}},
		{name: "empty", text: "", want: []string{official, ourURL}},
		{name: "comments", text: "# substituters = https://x\n\n  # and no more\n", want: []string{official, ourURL}},
		{name: "no end of line", text: "sandbox = false", want: []string{official, ourURL}},
		{name: "list without end of line", text: "substituters = https://a https://b", want: []string{"https://a", "https://b", ourURL}},
		{name: "Windows", text: "substituters = https://a\r\nsandbox = false\r\n", want: []string{"https://a", ourURL}},
		{name: "repeated", text: "substituters = https://a\nextra-substituters = https://c\nsubstituters = https://b # last\n", want: []string{"https://b", ourURL}},
		{name: "old name", text: "binary-caches = https://a\n", want: []string{"https://a", ourURL}},
		{name: "added to", text: "extra-substituters = https://a", want: []string{official, "https://a", ourURL}},
		{name: "includes", text: "!include more.conf\n!include none.conf\n", more: "cores = 2\nextra-substituters = https://a\n", want: []string{official, "https://a", ourURL}},
		{name: "list is included", text: "cores = 2\ninclude more.conf\n", more: "substituters = https://a https://b\n", want: []string{"https://a", "https://b", ourURL}},
	}
	eachNix(t, func(t *testing.T, nix *realnix.Nix) {
		for _, tt := range tests {
			if nix.Chroot != "" && tt.more == "" { // all versions read plain lines alike
				continue
			}
			t.Run(tt.name, func(t *testing.T) {
				client := nix.TempClient(t)
				dir := filepath.Join(client.Dir, "conf")
				for name, text := range map[string]string{"nix.conf": tt.text, "more.conf": tt.more} {
					if text == "-" || name == "more.conf" && text == "" {
						continue
					}
					if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				before := contents(t, dir)
				env := []string{"NIX_CONF_DIR=" + dir}
				setup := func(args ...string) string {
					t.Helper()
					out, errs, code := commandIn(t, env, nil, append([]string{"setup", "--config", os.DevNull}, args...)...)
					if code != 0 || errs != "" {
						t.Fatalf("setup %q: exit %d: %s", args, code, errs)
					}
					return out
				}
				if out := setup(); !strings.Contains(out, ourURL) || !mapsEqual(before, contents(t, dir)) {
					t.Errorf("without --apply: %s", out)
				}
				setup("--apply")
				if got := substitutersOf(t, nix, client); !slices.Equal(got, tt.want) {
					t.Errorf("Nix sees %q, want %q", got, tt.want)
				}
				applied := contents(t, dir)
				if out := setup("--apply"); !strings.Contains(out, "nothing to do") || !mapsEqual(applied, contents(t, dir)) {
					t.Errorf("applied twice: %s", out)
				}
				setup("--undo")
				if got := contents(t, dir); !mapsEqual(got, before) {
					t.Errorf("undone %q, want %q", got, before)
				}
				setup("--undo")
			})
		}
	})
}

// contents is what the files of a directory hold.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(name)] = string(text)
	}
	return all
}

func mapsEqual(a, b map[string]string) bool {
	for k, v := range a {
		if w, ok := b[k]; !ok || w != v {
			return false
		}
	}
	return len(a) == len(b)
}

// On NixOS the file is a link into the store: what is to be written instead is shown.
func TestSetupRefusesStore(t *testing.T) {
	t.Parallel()
	store, conf := t.TempDir(), t.TempDir()
	made := filepath.Join(store, "2222-nix.conf")
	if err := os.WriteFile(made, []byte("cores = 2\n"), 0o444); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(conf, "nix.conf")
	if err := os.Symlink(made, file); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--apply"}, {"--undo"}, {}, {"--apply", "--json"}} {
		args = append([]string{"setup", "--config", os.DevNull, "--listen", "127.0.0.1:1234", "--nix-conf", file}, args...)
		_, errs, code := commandIn(t, []string{"NIX_STORE_DIR=" + store}, nil, args...)
		for _, want := range []string{"services.nixp2p.enable = true;", `settings.listen = "127.0.0.1:1234"`, `nix.settings.substituters = lib.mkBefore [ "http://127.0.0.1:1234" ];`} {
			if code != exitFailed || !strings.Contains(errs, want) {
				t.Errorf("%q: exit %d, no %s in: %s", args, code, want, errs)
			}
		}
	}
	if text, err := os.ReadFile(made); err != nil || string(text) != "cores = 2\n" {
		t.Errorf("changed: %q %v", text, err)
	}
}

// Whoever may not write the file is told so, and nothing is left behind.
func TestSetupNotWritable(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("skipped: becoming another user takes root")
	}
	dir, bin := t.TempDir(), t.TempDir()
	file := filepath.Join(dir, "nix.conf")
	self := filepath.Join(bin, "nixp2p")
	text, err := os.ReadFile(os.Args[0])
	if err == nil {
		err = errors.Join(os.WriteFile(self, text, 0o755), os.WriteFile(file, []byte("cores = 2\n"), 0o644), os.Chmod(filepath.Dir(bin), 0o755), os.Chmod(bin, 0o755), os.Chmod(dir, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "setup", "--apply", "--config", os.DevNull, "--nix-conf", file)
	cmd.Dir, cmd.Env = "/", append(os.Environ(), beMain+"=1", "HOME=/nonexistent")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Skipf("skipped: %v", err)
	}
	if code := cmd.ProcessState.ExitCode(); code != exitFailed || !strings.Contains(string(out), "permission denied") || !strings.Contains(string(out), "sudo") {
		t.Errorf("exit %d: %s", code, out)
	}
	if got := contents(t, dir); len(got) != 1 || got["nix.conf"] != "cores = 2\n" {
		t.Errorf("%q", got)
	}
}

func TestSetupWrongUse(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "nix.conf")
	for _, args := range [][]string{
		{"--listen", "unix:/run/nixp2p.sock"}, {"--listen", "127.0.0.1:0"}, {"--apply", "--undo"}, {"what"}, {"--listen", "nowhere"},
	} {
		_, errs, code := command(t, append([]string{"setup", "--config", os.DevNull, "--nix-conf", file}, args...)...)
		if code != exitUsage || errs == "" {
			t.Errorf("%q: exit %d: %s", args, code, errs)
		}
	}
	if err := os.WriteFile(file, []byte("substituters = https://a \\\n  https://b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := command(t, "setup", "--apply", "--config", os.DevNull, "--nix-conf", file); code != exitFailed || !strings.Contains(errs, "nix.conf:2") || !strings.Contains(errs, "hint") {
		t.Errorf("a file that Nix refuses: exit %d: %s", code, errs)
	}
}

// Undo removes the node whatever was edited meanwhile, and nothing else.
func TestSetupUndoAfterEdits(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "nix.conf")
	if err := os.WriteFile(file, []byte("cores = 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := command(t, "setup", "--apply", "--config", os.DevNull, "--nix-conf", file); code != 0 {
		t.Fatal(errs)
	}
	text := contents(t, filepath.Dir(file))["nix.conf"] + "extra-substituters = https://a " + ourURL + "\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, errs, code := command(t, "setup", "--undo", "--config", os.DevNull, "--nix-conf", file); code != 0 {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	if got := contents(t, filepath.Dir(file)); len(got) != 1 || got["nix.conf"] != "cores = 2\nextra-substituters = https://a\n" {
		t.Errorf("%q", got)
	}
}

// `fallback` is set for a Nix that does not crash with it.
func TestSetupFallback(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]bool{"2.8.0": false, "2.12.1": false, "2.13.0": true, "2.34.8": true, "junk": false, "": false} {
		dir := t.TempDir()
		if version != "" {
			script := "#!/bin/sh\necho 'nix (Nix) " + version + "'\n"
			if err := os.WriteFile(filepath.Join(dir, "nix"), []byte(script), 0o755); err != nil { //nolint:gosec // it is to be run
				t.Fatal(err)
			}
		}
		file := filepath.Join(dir, "etc/nix.conf")
		out, errs, code := commandIn(t, []string{"PATH=" + dir}, nil, "setup", "--apply", "--json", "--config", os.DevNull, "--nix-conf", file)
		var r setupResult
		if err := json.Unmarshal([]byte(out), &r); err != nil || code != 0 || !r.Done || !r.Change {
			t.Fatalf("exit %d, %v: %s%s", code, err, out, errs)
		}
		text := contents(t, filepath.Dir(file))["nixp2p.conf"]
		if got := strings.Contains(text, "fallback = true"); got != want || len(r.Notes) == 0 != want {
			t.Errorf("Nix %q: fallback %t, notes %q", version, got, r.Notes)
		}
		out, errs, code = commandIn(t, nil, nil, "setup", "--undo", "--json", "--config", os.DevNull, "--nix-conf", file)
		if err := json.Unmarshal([]byte(out), &r); err != nil || code != 0 || !r.Removes {
			t.Fatalf("exit %d, %v: %s%s", code, err, out, errs)
		}
		if _, err := os.Stat(filepath.Dir(file)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the directory that was made is there: %v", err)
		}
	}
}

// TestProxyNote: setup says when a proxy of the environment stands between Nix and the node.
func TestProxyNote(t *testing.T) {
	for _, c := range []struct{ variable, proxy, none, want string }{
		{"", "", "", ""},
		{"http_proxy", "http://proxy:3128", "", "http_proxy=http://proxy:3128 sends Nix through"},
		{"all_proxy", "socks5h://u:hidden@proxy:1080", "", "all_proxy=socks5h://u:xxxxx@proxy:1080"},
		{"http_proxy", "http://proxy:3128", "localhost", "add 127.0.0.1 to no_proxy"},
		{"http_proxy", "http://proxy:3128", "127.0.0.1", ""},
		{"https_proxy", "http://proxy:3128", "", ""},
	} {
		for _, v := range []string{"http_proxy", "https_proxy", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"} {
			t.Setenv(v, "")
		}
		if c.variable != "" {
			t.Setenv(c.variable, c.proxy)
		}
		t.Setenv("no_proxy", c.none)
		got := strings.Join(proxyNote("http://127.0.0.1:7654"), "\n")
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) || strings.Contains(got, "hidden") {
			t.Errorf("%+v: %q", c, got)
		}
	}
}
