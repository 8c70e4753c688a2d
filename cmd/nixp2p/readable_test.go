package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nixp2p/nixp2p/internal/config"
)

// What only root can read is reported, unless the service gets it as a credential.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	unit := sandbox{credentials: filepath.Join(dir, "credstore"), hidden: []string{filepath.Join(dir, "home")}}
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if info, err := os.Stat(d); err != nil || info.Mode().Perm()&1 == 0 && os.Chmod(d, 0o755) != nil {
			t.Skipf("%s is not for others", d)
		}
	}
	write := func(name string, mode os.FileMode) string {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, nil, mode); err != nil {
			t.Fatal(err)
		}
		return file
	}
	closed, open, home := write("closed", 0o600), write("open", 0o644), write("home/u/list", 0o644)
	private := write("private/list", 0o644)
	if err := os.Chmod(filepath.Dir(private), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		cfg  config.Config
		nix  []named
		want string
	}{
		{"nothing", config.Config{}, nil, ""},
		{"readable", config.Config{File: open}, []named{{"netrc-file", open}, {"ssl-cert-file", dir + "/none"}}, ""},
		{"config", config.Config{File: closed}, nil, "config: the user of the service cannot read " + closed + ": its mode is 0600"},
		{"netrc", config.Config{}, []named{{"netrc-file", closed}}, "put a copy into " + unit.credentials + "/nixp2p.netrc"},
		{"home", config.Config{Bootstrap: []string{"file:" + home}}, nil, "systemd hides " + unit.hidden[0]},
		{"directory", config.Config{SwarmKeyFile: private}, nil, "the mode of " + filepath.Dir(private) + " is 0700"},
	} {
		got := strings.Join(unit.unreadable(&tt.cfg, tt.nix), "; ")
		if !strings.Contains(got, tt.want) || (tt.want == "") != (got == "") {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	write("credstore/nixp2p.netrc", 0o600)
	if got := unit.unreadable(&config.Config{}, []named{{"netrc-file", closed}}); got != nil {
		t.Errorf("with a credential: %q", got)
	}
}
