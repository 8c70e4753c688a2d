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
	p, err := NewUndo(name, "")
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

// What stands in a file stays, the URL comes to it, and undoing gives the same bytes back.
func TestSetup(t *testing.T) {
	const official = DefaultSubstituter
	for _, tt := range []struct {
		name  string
		files []string // nix.conf first
		want  []string // substituters
		notes int
	}{
		{"empty", []string{"nix.conf", ""}, []string{node, official}, 0},
		{"comments alone", []string{"nix.conf", "# substituters = https://x\n"}, []string{node, official}, 0},
		{"other settings", []string{"nix.conf", "sandbox = true\n"}, []string{node, official}, 0},
		{"no end of line", []string{"nix.conf", "sandbox = true"}, []string{node, official}, 0},
		{"a list", []string{"nix.conf", "substituters = https://a https://b # both\n"}, []string{node, "https://a", "https://b"}, 0},
		{"a list without end of line", []string{"nix.conf", "substituters = https://a https://b"}, []string{node, "https://a", "https://b"}, 0},
		{"spaces and tabs", []string{"nix.conf", "  substituters\t=\t https://a  https://b \t\n"}, []string{node, "https://a", "https://b"}, 0},
		{"repeated", []string{"nix.conf", "substituters = https://a\nsubstituters = https://b\n"}, []string{node, "https://b"}, 0},
		{"the old name", []string{"nix.conf", "substituters = https://a\nbinary-caches = https://b\n"}, []string{node, "https://b"}, 0},
		{"added to", []string{"nix.conf", "extra-substituters = https://a\n"}, []string{node, official, "https://a"}, 0},
		{"added to before and after", []string{"nix.conf", "extra-substituters = https://a\nsubstituters = https://b\nextra-substituters = https://c"}, []string{node, "https://b", "https://c"}, 0},
		{"an empty list", []string{"nix.conf", "substituters =\n"}, []string{node}, 1},
		{"an empty list and a comment", []string{"nix.conf", "substituters =# none\n"}, []string{node}, 1},
		{"Windows", []string{"nix.conf", "sandbox = true\r\nsubstituters = https://a\r\n"}, []string{node, "https://a"}, 0},
		{"Windows without end of line", []string{"nix.conf", "sandbox = true\r\nsubstituters = https://a"}, []string{node, "https://a"}, 0},
		{"Windows, half an end of line", []string{"nix.conf", "sandbox = true\r\nsubstituters = https://a\r"}, []string{node, "https://a"}, 0},
		{"a byte order mark", []string{"nix.conf", "\ufeffsandbox = true\n"}, []string{node, official}, 0},
		{"not UTF-8", []string{"nix.conf", "# \xff\xfe\x00\nsandbox = true\n"}, []string{node, official}, 0},
		{"included", []string{"nix.conf", "include more.conf\n", "more.conf", "cores = 2\n"}, []string{node, official}, 0},
		{"list is included", []string{"nix.conf", "sandbox = true\n!include more.conf\n", "more.conf", "substituters = https://a\n"}, []string{"https://a", node}, 1},
		{"list is included and replaced", []string{"nix.conf", "!include more.conf\nsubstituters = https://b\n", "more.conf", "substituters = https://a\n"}, []string{node, "https://b"}, 0},
		{"list is replaced by an included one", []string{"nix.conf", "substituters = https://b\ninclude more.conf\n", "more.conf", "substituters = https://a\n"}, []string{"https://a", node}, 1},
		{"included adds", []string{"nix.conf", "include more.conf\n", "more.conf", "extra-substituters = https://a\n"}, []string{node, official, "https://a"}, 0},
		{"included is not there", []string{"nix.conf", "!include more.conf\n"}, []string{node, official}, 0},
		{"of Determinate Nix", []string{"nix.conf", "extra-substituters = https://a\n!include nix.custom.conf\n"}, []string{node, official, "https://a"}, 1},
		{"user's bounds", []string{"nix.conf", "connect-timeout = 30\nfallback = false\n"}, []string{node, official}, 0},
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
			if given := tt.name == "user's bounds"; s.ConnectTimeout != map[bool]int64{true: 30, false: 5}[given] || s.Fallback == given {
				t.Errorf("connect-timeout %d, fallback %t", s.ConnectTimeout, s.Fallback)
			}
			if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o640 {
				t.Errorf("mode %v (%v)", info.Mode(), err)
			}
			if got := read(t, p.Backup); got != tt.files[1] {
				t.Errorf("backup %q", got)
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
		if s := settings(t, name); !slices.Equal(s.Substituters, []string{node, DefaultSubstituter}) {
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
		if !p.Nothing() || p.Backup != "" || len(p.Edits) > 0 {
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

// A user's file counts after the machine's: a list named in it would replace that one.
func TestSetupAddsToOthers(t *testing.T) {
	name := write(t, "nix.conf", "sandbox = true\n")
	w := want
	w.UserFiles = []string{name}
	custom := write(t, "nix.custom.conf", "")
	for _, name := range []string{name, custom} {
		makeIt(t, plan(t, name, w))
		text := read(t, name)
		if !strings.Contains(text, "\nextra-substituters = "+node+"\n") || strings.Contains(text, "\nsubstituters") {
			t.Errorf("%s", text)
		}
		makeIt(t, undo(t, name))
	}
}

// The address of the node changed: the earlier change goes, the backup stays what it was.
func TestSetupOtherAddress(t *testing.T) {
	const old = "substituters = https://a"
	name := write(t, "nix.conf", old)
	makeIt(t, plan(t, name, want))
	p := plan(t, name, Want{URL: "http://127.0.0.1:1234"})
	makeIt(t, p)
	s := settings(t, name)
	if !slices.Equal(s.Substituters, []string{"http://127.0.0.1:1234", "https://a"}) || s.Fallback {
		t.Errorf("%+v", s)
	}
	if got := read(t, p.Backup); got != old {
		t.Errorf("backup %q", got)
	}
	makeIt(t, undo(t, name))
	if got := read(t, name); got != old {
		t.Errorf("undone %q", got)
	}
}

// What is changed after the setup stays, or the undoing is refused.
func TestUndoAfterChange(t *testing.T) {
	const old = "sandbox = true\nsubstituters = https://a\ncores = 2"
	for _, tt := range []struct {
		name   string
		change func(string) string
		want   string // "" is refused
	}{
		{"line added behind", func(s string) string { return s + "cores = 3\n" }, "sandbox = true\nsubstituters = https://a\ncores = 2\ncores = 3\n"},
		{"line changed before", func(s string) string { return strings.Replace(s, "true", "false", 1) }, "sandbox = false\nsubstituters = https://a\ncores = 2"},
		{"cache added", func(s string) string { return strings.Replace(s, "https://a", "https://a https://b", 1) }, "sandbox = true\nsubstituters = https://a https://b\ncores = 2"},
		{"cache put in front", func(s string) string { return strings.Replace(s, node, "https://b "+node, 1) }, "sandbox = true\nsubstituters = https://b https://a\ncores = 2"},
		{"other cache taken out", func(s string) string { return strings.Replace(s, " https://a", "", 1) }, "sandbox = true\nsubstituters =\ncores = 2"},
		{"URL taken out", func(s string) string { return strings.Replace(s, node+" ", "", 1) }, old},
		{"backup gone", func(s string) string { return s }, old},
		{"setting in the block changed", func(s string) string { return strings.Replace(s, "connect-timeout = 5", "connect-timeout = 9", 1) }, ""},
		{"line put into the block", func(s string) string { return strings.Replace(s, "connect-timeout", "cores = 1\nconnect-timeout", 1) }, ""},
		{"end taken out", func(s string) string { return strings.Replace(s, endLine, "", 1) }, ""},
		{"beginning taken out", func(s string) string { return strings.Replace(s, beginLine, "", 1) }, ""},
		{"second line taken out", func(s string) string { return strings.Replace(s, metaMark, "# {", 1) }, ""},
		{"block twice", func(s string) string { return s + s }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			name := write(t, "nix.conf", old)
			p := plan(t, name, want)
			makeIt(t, p)
			changed := tt.change(read(t, name))
			if err := os.WriteFile(name, []byte(changed), 0o600); err != nil {
				t.Fatal(err)
			}
			if tt.name == "backup gone" {
				_ = os.Remove(p.Backup)
			}
			u, err := NewUndo(name, "")
			if tt.want == "" {
				var c *ChangedError
				if !errors.As(err, &c) || c.Line == 0 || read(t, name) != changed {
					t.Errorf("%v", err)
				}
				if _, err := NewPlan(name, Want{URL: "http://127.0.0.1:1"}); !errors.As(err, &c) {
					t.Errorf("planned over it: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			makeIt(t, u)
			if got := read(t, name); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
			_, err = os.Stat(p.Backup)
			if kept := err == nil; kept != (tt.want != old) || kept != (len(u.Notes) > 0) {
				t.Errorf("backup kept: %t, notes %q", kept, u.Notes)
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
		if _, err := NewUndo(name, store); !errors.As(err, &m) {
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
	if !strings.Contains(read(t, real), node) {
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
	// The backup that the failed one wrote is not taken for this one's.
	p = plan(t, name, want)
	makeIt(t, p)
	if read(t, p.Backup) != "cores = 3\n" {
		t.Errorf("backup %q", read(t, p.Backup))
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
	for _, f := range []string{name, p.Backup} {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && (st.Uid != 65534 || st.Gid != 12345) {
			t.Errorf("%s belongs to %d:%d", f, st.Uid, st.Gid)
		}
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

func TestDiff(t *testing.T) {
	for _, tt := range []struct{ old, now, want string }{
		{"", "", "[]"},
		{"a\nb\n", "a\nb", "[]"},
		{"a\n", "x\na\n", "[{1 [] [x]}]"},
		{"a\nb\nc\n", "a\nB\nc\nd\n", "[{2 [b] [B]} {4 [] [d]}]"},
		{"a\nb\nc\n", "c\n", "[{1 [a b] []}]"},
		{"a\nx\nb\ny\n", "a\nb\n", "[{2 [x] []} {4 [y] []}]"},
	} {
		if got := fmt.Sprint(diff(tt.old, tt.now)); got != tt.want {
			t.Errorf("%q to %q: %s, want %s", tt.old, tt.now, got, tt.want)
		}
	}
}

// FuzzSetup: whatever stands in a file, it stays, and undoing gives the same bytes back.
func FuzzSetup(f *testing.F) {
	for _, text := range []string{"", "a", "a = b", "substituters = x\r\n# y", "substituters =", "extra-substituters = x\n", "binary-caches=", "a\r", "substituters = " + node + " x", beginLine} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "include") {
			t.Skip()
		}
		const name = "/nowhere/nix.conf"
		lines := slices.Collect(strings.Lines(text))
		old, _, found, err := strip(name, lines)
		if err != nil || found {
			return
		}
		p := &Plan{File: name}
		now, err := p.change(name, old, mark{URL: node}, want)
		var syntax *SyntaxError
		if errors.As(err, &syntax) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		back, _, _, err := strip(name, slices.Collect(strings.Lines(now)))
		if got := strings.Join(back, ""); err != nil || got != text {
			t.Errorf("%q became %q became %q (%v)", text, now, got, err)
		}
	})
}
