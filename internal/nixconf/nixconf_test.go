package nixconf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const node = "http://127.0.0.1:7654"

var want = Want{URL: node, Fallback: true}

// write writes files into a directory of the test and returns the path of the first.
func write(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		if err := os.WriteFile(filepath.Join(dir, files[i]), []byte(files[i+1]), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, files[0])
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func plan(t *testing.T, name string, want Want) *Plan {
	t.Helper()
	p, err := NewPlan(name, want)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func undo(t *testing.T, name string) *Plan {
	t.Helper()
	p, err := NewUndo(name, "", "")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func makeIt(t *testing.T, p *Plan) {
	t.Helper()
	if err := p.Make(); err != nil {
		t.Fatal(err)
	}
}

func settings(t *testing.T, name string) Settings {
	t.Helper()
	s, err := Places{System: name}.ReadSystem()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// listOf is what is in a directory.
func listOf(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// Nothing in the file changes, one line is added, and undo restores the bytes.
func TestSetup(t *testing.T) {
	const official = DefaultSubstituter
	for _, tt := range []struct {
		name  string
		files []string // nix.conf first
		want  []string // substituters
		notes int
	}{
		{"empty", []string{"nix.conf", ""}, []string{official, node}, 0},
		{"comments alone", []string{"nix.conf", "# substituters = https://x\n"}, []string{official, node}, 0},
		{"other settings", []string{"nix.conf", "sandbox = true\n"}, []string{official, node}, 0},
		{"no end of line", []string{"nix.conf", "sandbox = true"}, []string{official, node}, 0},
		{"a list", []string{"nix.conf", "substituters = https://a https://b # both\n"}, []string{"https://a", "https://b", node}, 0},
		{"a list without end of line", []string{"nix.conf", "substituters = https://a https://b"}, []string{"https://a", "https://b", node}, 0},
		{"spaces and tabs", []string{"nix.conf", "  substituters\t=\t https://a  https://b \t\n"}, []string{"https://a", "https://b", node}, 0},
		{"repeated", []string{"nix.conf", "substituters = https://a\nsubstituters = https://b\n"}, []string{"https://b", node}, 0},
		{"the old name", []string{"nix.conf", "substituters = https://a\nbinary-caches = https://b\n"}, []string{"https://b", node}, 0},
		{"added to", []string{"nix.conf", "extra-substituters = https://a\n"}, []string{official, "https://a", node}, 0},
		{"added to before and after", []string{"nix.conf", "extra-substituters = https://a\nsubstituters = https://b\nextra-substituters = https://c"}, []string{"https://b", "https://c", node}, 0},
		{"an empty list", []string{"nix.conf", "substituters =\n"}, []string{node}, 1},
		{"an empty list and a comment", []string{"nix.conf", "substituters =# none\n"}, []string{node}, 1},
		{"Windows", []string{"nix.conf", "sandbox = true\r\nsubstituters = https://a\r\n"}, []string{"https://a", node}, 0},
		{"Windows without end of line", []string{"nix.conf", "sandbox = true\r\nsubstituters = https://a"}, []string{"https://a", node}, 0},
		{"Windows, half an end of line", []string{"nix.conf", "sandbox = true\r\nsubstituters = https://a\r"}, []string{"https://a", node}, 0},
		{"a byte order mark", []string{"nix.conf", "\ufeffsandbox = true\n"}, []string{official, node}, 0},
		{"not UTF-8", []string{"nix.conf", "# \xff\xfe\x00\nsandbox = true\n"}, []string{official, node}, 0},
		{"included", []string{"nix.conf", "include more.conf\n", "more.conf", "cores = 2\n"}, []string{official, node}, 0},
		{"list is included", []string{"nix.conf", "sandbox = true\n!include more.conf\n", "more.conf", "substituters = https://a\n"}, []string{"https://a", node}, 0},
		{"list is included and replaced", []string{"nix.conf", "!include more.conf\nsubstituters = https://b\n", "more.conf", "substituters = https://a\n"}, []string{"https://b", node}, 0},
		{"list is replaced by an included one", []string{"nix.conf", "substituters = https://b\ninclude more.conf\n", "more.conf", "substituters = https://a\n"}, []string{"https://a", node}, 0},
		{"included adds", []string{"nix.conf", "include more.conf\n", "more.conf", "extra-substituters = https://a\n"}, []string{official, "https://a", node}, 0},
		{"included is not there", []string{"nix.conf", "!include more.conf\n"}, []string{official, node}, 0},
		{"of Determinate Nix", []string{"nix.conf", "extra-substituters = https://a\n!include nix.custom.conf\n"}, []string{official, "https://a", node}, 1},
		{"user's limits", []string{"nix.conf", "connect-timeout = 30\nfallback = false\n"}, []string{official, node}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			name := write(t, tt.files...)
			before := listOf(t, filepath.Dir(name))
			p := plan(t, name, want)
			if p.Nothing() || len(p.Edits) == 0 || len(p.Notes) != tt.notes {
				t.Errorf("plan %+v %q", p.Edits, p.Notes)
			}
			if read(t, name) != tt.files[1] {
				t.Error("planning has changed the file")
			}
			makeIt(t, p)
			s := settings(t, name)
			if !slices.Equal(s.Substituters, tt.want) {
				t.Errorf("substituters %q, want %q:\n%s", s.Substituters, tt.want, read(t, name))
			}
			if given := tt.name == "user's limits"; s.ConnectTimeout != map[bool]int64{true: 30, false: 5}[given] || s.Fallback == given {
				t.Errorf("connect-timeout %d, fallback %t", s.ConnectTimeout, s.Fallback)
			}
			if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o640 {
				t.Errorf("mode %v (%v)", info.Mode(), err)
			}
			if got := strings.ReplaceAll(read(t, name), includeLine, ""); strings.TrimRight(got, "\n") != strings.TrimRight(tt.files[1], "\n") {
				t.Errorf("more than a line is added: %q", got)
			}
			if again := plan(t, name, want); !again.Nothing() || len(again.Edits) > 0 {
				t.Errorf("the second time %+v", again.Edits)
			}
			makeIt(t, undo(t, name))
			if got := read(t, name); got != tt.files[1] {
				t.Errorf("undone %q, want %q", got, tt.files[1])
			}
			if after := listOf(t, filepath.Dir(name)); !slices.Equal(after, before) {
				t.Errorf("left behind: %q", after)
			}
			if u := undo(t, name); !u.Nothing() {
				t.Error("undone twice changes something")
			}
		})
	}
}

// A file that was not there is not there again.
func TestSetupMissing(t *testing.T) {
	for _, sub := range []string{"", "nix"} {
		name := filepath.Join(t.TempDir(), sub, "nix.conf")
		if u := undo(t, name); !u.Nothing() || u.Make() != nil {
			t.Error("something to undo")
		}
		makeIt(t, plan(t, name, want))
		if s := settings(t, name); !slices.Equal(s.Substituters, []string{DefaultSubstituter, node}) {
			t.Errorf("substituters %q", s.Substituters)
		}
		if !plan(t, name, want).Nothing() {
			t.Error("the second time changes something")
		}
		u := undo(t, name)
		if !u.Removes() {
			t.Error("does not remove the file")
		}
		makeIt(t, u)
		if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the file is there: %v", err)
		}
		if _, err := os.Stat(filepath.Dir(name)); errors.Is(err, fs.ErrNotExist) != (sub != "") {
			t.Errorf("its directory: %v", err)
		}
	}
	name := filepath.Join(t.TempDir(), "no/such/nix.conf")
	if err := plan(t, name, want).Make(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without the directory above: %v", err)
	}
}

func TestSetupNothingToDo(t *testing.T) {
	for _, text := range []string{
		"substituters = " + node + " https://a\nconnect-timeout = 5\nfallback = true\n",
		"extra-substituters = " + node + "/\nconnect-timeout = 0\nbuild-fallback = false\n",
		"substituters = https://a " + node + "?priority=3\nconnect-timeout = 1\nfallback = true\n",
	} {
		name := write(t, "nix.conf", text)
		p := plan(t, name, want)
		if !p.Nothing() || len(p.Edits) > 0 {
			t.Errorf("%q: %+v", text, p)
		}
		makeIt(t, p)
		if got := listOf(t, filepath.Dir(name)); len(got) != 1 {
			t.Errorf("left behind: %q", got)
		}
	}
	// Old versions of Nix crash with fallback.
	name := write(t, "nix.conf", "")
	makeIt(t, plan(t, name, Want{URL: node}))
	if s := settings(t, name); s.Fallback || s.ConnectTimeout != 5 {
		t.Errorf("%+v", s)
	}
}

// The address of the node changed: only our own file does.
func TestSetupOtherAddress(t *testing.T) {
	const old = "substituters = https://a"
	name := write(t, "nix.conf", old)
	makeIt(t, plan(t, name, want))
	before := read(t, name)
	makeIt(t, plan(t, name, Want{URL: "http://127.0.0.1:1234"}))
	s := settings(t, name)
	if !slices.Equal(s.Substituters, []string{"https://a", "http://127.0.0.1:1234"}) || s.Fallback || read(t, name) != before {
		t.Errorf("%+v", s)
	}
	makeIt(t, undo(t, name))
	if got := read(t, name); got != old {
		t.Errorf("undone %q", got)
	}
}

// The line is put where it counts again if a later line replaces the list.
func TestSetupAgain(t *testing.T) {
	name := write(t, "nix.conf", "cores = 2\n")
	makeIt(t, plan(t, name, want))
	text := read(t, name) + "substituters = https://b\n"
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	makeIt(t, plan(t, name, want))
	if s := settings(t, name); !s.Uses(node) {
		t.Errorf("%+v:\n%s", s, read(t, name))
	}
	// A line that is effective stays where somebody put it.
	moved := includeLine + "\ncores = 2\n"
	if err := os.WriteFile(name, []byte(moved), 0o600); err != nil {
		t.Fatal(err)
	}
	makeIt(t, plan(t, name, want))
	if got := read(t, name); got != moved {
		t.Errorf("%q", got)
	}
}

// Undo always removes the node, whatever was edited, and nothing else.
func TestUndoAfterChange(t *testing.T) {
	const old = "sandbox = true\nsubstituters = https://a\ncores = 2"
	for _, tt := range []struct {
		name   string
		change func(string) string
		want   string
	}{
		{"line added", func(s string) string { return s + "\ncores = 3\n" }, old + "\ncores = 3\n"},
		{"line changed", func(s string) string { return strings.Replace(s, "true", "false", 1) }, strings.Replace(old, "true", "false", 1)},
		{"line repeated", func(s string) string { return s + "\n" + includeLine + "\n" }, old + "\n"},
		{"line edited", func(s string) string { return strings.Replace(s, "!include ", "include   ./", 1) + " # ours" }, old},
		{"line removed", func(string) string { return old }, old},
		{"URL added", func(s string) string { return strings.Replace(s, "= https://a", "= https://a "+node+"/ # b", 1) }, strings.Replace(old, "https://a", "https://a # b", 1)},
		{"URL put first", func(s string) string { return strings.Replace(s, "= https://a", "= "+node+" https://a", 1) }, old},
		{"list with the URL alone", func(s string) string { return "trusted-substituters = " + node + "\n" + s }, old},
		{"similar URL", func(s string) string { return strings.Replace(s, "https://a", "https://a "+node+"0", 1) }, strings.Replace(old, "https://a", "https://a "+node+"0", 1)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			name := write(t, "nix.conf", old)
			makeIt(t, plan(t, name, want))
			if err := os.WriteFile(name, []byte(tt.change(read(t, name))), 0o600); err != nil {
				t.Fatal(err)
			}
			makeIt(t, undo(t, name))
			if got := read(t, name); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
			if got := listOf(t, filepath.Dir(name)); len(got) != 1 {
				t.Errorf("left behind: %q", got)
			}
		})
	}
	// A file that the setup made, to which something was added.
	name := filepath.Join(t.TempDir(), "nix.conf")
	makeIt(t, plan(t, name, want))
	if err := os.WriteFile(name, []byte(read(t, name)+"cores = 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	makeIt(t, undo(t, name))
	if got := read(t, name); got != "cores = 2\n" {
		t.Errorf("%q", got)
	}
	// Our own file is gone, and the URL is known from the configuration.
	name = write(t, "nix.conf", "extra-substituters = "+node+" https://a\n!include nixp2p.conf\n")
	p, err := NewUndo(name, node, "")
	if err != nil {
		t.Fatal(err)
	}
	makeIt(t, p)
	if got := read(t, name); got != "extra-substituters = https://a\n" {
		t.Errorf("%q", got)
	}
	// What is in somebody else's file is said.
	name = write(t, "nix.conf", "include more.conf\n", "more.conf", "extra-substituters = "+node+"\n")
	if p, err := NewUndo(name, node, ""); err != nil || !p.Nothing() || len(p.Notes) != 1 {
		t.Errorf("%+v %v", p, err)
	}
}

// Root runs no program that another user could have put there.
func TestOwnedByRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("skipped: only root can give files away")
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"root/bin", "user/bin", "open"} {
		if err := os.MkdirAll(at(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		os.WriteFile(at("root/bin/nix"), []byte("#!/bin/sh\necho nix 2.34.0\n"), 0o755), //nolint:gosec // it is to be run
		os.WriteFile(at("user/bin/nix"), []byte("#!/bin/sh\necho nix 2.34.0\n"), 0o755), //nolint:gosec // it is to be run
		os.Symlink(at("root/bin/nix"), at("user/link")), os.Symlink("../user/link", at("root/link")),
		os.Symlink("../root/bin", at("root/dir")), os.Symlink(at("root/bin/nix"), at("open/nix")),
		os.Chown(at("user"), 65534, 65534), os.Chmod(at("open"), 0o777), //nolint:gosec // on purpose
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]bool{
		"root/bin/nix": true, "root/dir/nix": true, "user/bin/nix": false, "user/link": false, "root/link": false, "open/nix": false, "root/none": false,
	} {
		if got := ownedByRoot(at(name)); got != want {
			t.Errorf("%s: %t", name, got)
		}
	}
	t.Setenv("PATH", at("user/bin"))
	if n, err := Find(t.Context(), func(string) string { return "" }); err == nil && strings.HasPrefix(n.Path, dir) {
		t.Errorf("ran %s", n.Path)
	}
}

func TestLinks(t *testing.T) {
	dir := t.TempDir()
	store, real := filepath.Join(dir, "store"), write(t, "real.conf", "substituters = https://a\n")
	if err := os.MkdirAll(filepath.Join(store, "x-etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	made := filepath.Join(store, "x-etc/nix.conf")
	if err := os.WriteFile(made, []byte("cores = 1\n"), 0o444); err != nil {
		t.Fatal(err)
	}
	w := want
	w.StoreDir = store
	link := func(target string) string {
		name := filepath.Join(t.TempDir(), "nix.conf")
		if err := os.Symlink(target, name); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for _, name := range []string{link(made), link(link(made)), link(filepath.Join(store, "gone")), filepath.Join(link(filepath.Dir(made)), "nix.conf"), filepath.Join(link(filepath.Dir(made)), "other.conf")} {
		var m *ManagedError
		if _, err := NewPlan(name, w); !errors.As(err, &m) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := NewUndo(name, "", store); !errors.As(err, &m) {
			t.Errorf("undo of %s: %v", name, err)
		}
	}
	if _, err := NewPlan(link("/nix/store/0000-nix.conf"), want); err == nil || !strings.Contains(err.Error(), "NixOS") {
		t.Errorf("link into the store: %v", err)
	}
	if _, err := NewPlan(link(filepath.Join(dir, "gone")), w); err == nil {
		t.Error("no error for a link to nothing")
	}
	if _, err := NewPlan(dir, w); err == nil {
		t.Error("no error for a directory")
	}
	// Another link stays one.
	name := link(real)
	makeIt(t, plan(t, name, want))
	if target, err := os.Readlink(name); err != nil || target != real {
		t.Errorf("no link any more: %v", err)
	}
	if !strings.Contains(read(t, real), includeLine) || !strings.Contains(read(t, filepath.Join(filepath.Dir(name), OwnFile)), node) {
		t.Error("the file behind the link is not changed")
	}
	makeIt(t, undo(t, name))
	if read(t, real) != "substituters = https://a\n" {
		t.Error("not undone behind the link")
	}
}

func TestRefused(t *testing.T) {
	for text, line := range map[string]int{
		"cores\n":                                1,
		"substituters=https://a\n":               1,
		"\nsubstituters = a \\\n  https://b\n":   3,
		"include nothing.conf\n":                 1,
		"include a b\n":                          1,
		"# x\ninclude nix.conf\n":                2, // itself
		"cores = 2\nsubstituters https://a b\n":  2,
		"substituters = a\n!include broken.conf": 1,
	} {
		name := write(t, "nix.conf", text, "broken.conf", "what\n")
		var s *SyntaxError
		if _, err := NewPlan(name, want); !errors.As(err, &s) || s.Line != line {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestMeanwhile(t *testing.T) {
	name := write(t, "nix.conf", "cores = 2\n")
	p := plan(t, name, want)
	if err := os.WriteFile(name, []byte("cores = 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.Make(); !errors.Is(err, ErrMeanwhile) || read(t, name) != "cores = 3\n" {
		t.Errorf("%v", err)
	}
	for _, f := range listOf(t, filepath.Dir(name)) {
		if strings.HasPrefix(f, ".") {
			t.Errorf("left behind: %s", f)
		}
	}
	if got := listOf(t, filepath.Dir(name)); len(got) != 1 {
		t.Errorf("left behind: %q", got)
	}
	missing := filepath.Join(t.TempDir(), "nix.conf")
	p = plan(t, missing, want)
	if err := os.WriteFile(missing, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.Make(); !errors.Is(err, ErrMeanwhile) {
		t.Errorf("%v", err)
	}
}

func TestOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("skipped: only root can give files away")
	}
	name := write(t, "nix.conf", "cores = 2\n")
	if err := os.Chown(name, 65534, 12345); err != nil {
		t.Fatal(err)
	}
	p := plan(t, name, want)
	makeIt(t, p)
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && (st.Uid != 65534 || st.Gid != 12345) {
		t.Errorf("it belongs to %d:%d", st.Uid, st.Gid)
	}
	link := filepath.Join(t.TempDir(), "nix.conf")
	if err := errors.Join(os.Symlink(name, link), os.Lchown(link, 65534, 65534)); err != nil {
		t.Fatal(err)
	}
	if _, err := NewPlan(link, want); err == nil || !strings.Contains(err.Error(), "another user") {
		t.Errorf("a link of another user: %v", err)
	}
}

func TestPlaces(t *testing.T) {
	dir := t.TempDir()
	env := map[string]string{"NIX_CONF_DIR": dir + "/etc", "HOME": dir + "/home", "XDG_CONFIG_DIRS": dir + "/xdg", "NIX_CONFIG": "extra-substituters = https://inline"}
	for file, text := range map[string]string{
		"etc/nix.conf":              "substituters = https://system\ntrusted-users = root @wheel\nsubstitute = false\nconnect-timeout = x\n",
		"home/.config/nix/nix.conf": "substituters = https://user\nsubstitute = yes\n",
		"xdg/nix/nix.conf":          "substituters = https://xdg\nrequire-sigs = false\n",
	} {
		file = filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := Look(func(k string) string { return env[k] })
	s, err := p.Read()
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(s.Substituters, s.TrustedUsers, s.Substitute, s.RequireSigs, s.ConnectTimeout); got != "[https://user https://inline] [root @wheel] true false 0" {
		t.Errorf("%s", got)
	}
	if s, err := p.ReadSystem(); err != nil || !s.Uses("https://system/") || s.Substitute {
		t.Errorf("%+v %v", s, err)
	}
	env["NIX_USER_CONF_FILES"] = "/a:/b"
	if p := Look(func(k string) string { return env[k] }); !slices.Equal(p.User, []string{"/a", "/b"}) {
		t.Errorf("%+v", p)
	}
	if p := Look(func(string) string { return "" }); p.System != "/etc/nix/nix.conf" || !slices.Equal(p.User, []string{"/etc/xdg/nix/nix.conf"}) {
		t.Errorf("%+v", p)
	}
}

func TestVersions(t *testing.T) {
	for text, want := range map[string]string{
		"nix (Nix) 2.8.0\n":                       "2.8",
		"nix (Nix) 2.34.8":                        "2.34",
		"nix (Lix, like Nix) 2.93.0":              "2.93",
		"nix (Determinate Nix 3.6.8) 2.30.2":      "2.30",
		"nix (Nix) 2.36pre20260801_abcdef":        "2.36",
		"nix (Lix, like Nix) 2.91.0-dev-pre20240": "2.91",
		"":          "",
		"oh\nno\n":  "",
		"nix (Nix)": "",
	} {
		var n Nix
		err := n.parseVersion(text)
		if got := fmt.Sprintf("%d.%d", n.major, n.minor); (err == nil) != (want != "") || err == nil && got != want {
			t.Errorf("%q: %s, %v", text, got, err)
		}
	}
	n := Nix{major: 2, minor: 13}
	if !n.AtLeast(2, 13) || n.AtLeast(2, 14) || n.AtLeast(3, 0) || !n.AtLeast(1, 20) {
		t.Error("AtLeast")
	}
}

// FuzzSetup: whatever is in a file, it stays, and undo restores the bytes.
func FuzzSetup(f *testing.F) {
	for _, text := range []string{"", "a", "a = b", "substituters = x\r\n# y", "substituters =", "extra-substituters = x\n", "binary-caches=", "a\r", "\n\n", "\n", "substituters = x"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if removeInclude(text) != text {
			t.Skip()
		}
		now := addInclude(text)
		if !strings.HasPrefix(now, text) || strings.Count(now, includeLine) != strings.Count(text, includeLine)+1 {
			t.Errorf("%q became %q", text, now)
		}
		if back := removeInclude(now); back != text {
			t.Errorf("%q became %q became %q", text, now, back)
		}
		// Nix reads what it read before, and then our line.
		before, err := parse("/x/nix.conf", text)
		if err != nil {
			return
		}
		after, err := parse("/x/nix.conf", now)
		if err != nil || len(after) != len(before)+1 || after[len(before)].include != "/x/"+OwnFile {
			t.Errorf("%q: %v %v", now, after, err)
		}
		if got := removeURLs(text, []string{"http://127.0.0.1:7654", ""}); !strings.Contains(text, "7654") && got != text {
			t.Errorf("%q became %q", text, got)
		}
	})
}
