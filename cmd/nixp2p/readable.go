package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nixp2p/nixp2p/internal/config"
	"github.com/nixp2p/nixp2p/internal/nixconf"
)

// named is a file and the setting that names it.
type named struct{ setting, file string }

// nixCacheFiles returns the files with which Nix reaches caches.
func nixCacheFiles() []named {
	places := nixconf.Look(os.Getenv)
	s, err := places.ReadSystem()
	if err != nil {
		return nil
	}
	netrc := cmp.Or(s.NetrcFile, filepath.Join(filepath.Dir(places.System), "netrc"))
	return []named{{"netrc-file", netrc}, {"ssl-cert-file", s.CACertFile}}
}

// sandbox is what the unit says about files.
type sandbox struct {
	credentials string   // directory of LoadCredential=
	hidden      []string // ProtectHome=, PrivateTmp=
}

// systemdUnit is nixp2p.service.
func systemdUnit() sandbox {
	return sandbox{credentials: "/etc/credstore", hidden: []string{"/home", "/root", "/run/user", "/tmp", "/var/tmp"}}
}

// unreadable returns a warning for each file of the configuration and of Nix that the user of the
// service cannot read: that user owns nothing, is in no group and has no home. What systemd hands it
// as a credential is not looked for elsewhere.
func (s sandbox) unreadable(cfg *config.Config, nix []named) (warnings []string) {
	files := append([]named{{"config", cfg.File}, {"swarm-key-file", cfg.SwarmKeyFile}}, nix...)
	for _, b := range cfg.Bootstrap {
		if file, ok := strings.CutPrefix(b, "file:"); ok {
			files = append(files, named{"bootstrap", file})
		}
	}
	for _, f := range files {
		why := s.why(f.file)
		if f.file == "" || why == "" {
			continue
		}
		hint := ""
		if credential := map[string]string{"swarm-key-file": "nixp2p.swarm-key", "netrc-file": "nixp2p.netrc"}[f.setting]; credential != "" {
			if _, err := os.Stat(filepath.Join(s.credentials, credential)); err == nil {
				continue
			}
			hint = ": put a copy into " + filepath.Join(s.credentials, credential)
		}
		warnings = append(warnings, fmt.Sprintf("%s: the user of the service cannot read %s: %s%s", f.setting, f.file, why, hint))
	}
	return warnings
}

// why says what keeps other users, or the unit, from a file; "" if nothing does or there is
// no file.
func (s sandbox) why(file string) string {
	info, err := os.Stat(file)
	if err != nil {
		return ""
	}
	if target, err := filepath.EvalSymlinks(file); err == nil {
		file = target
	}
	if i := slices.IndexFunc(s.hidden, func(dir string) bool { return strings.HasPrefix(file, dir+"/") }); i >= 0 {
		return "systemd hides " + s.hidden[i] + " from it"
	}
	if info.Mode().Perm()&0o004 == 0 {
		return fmt.Sprintf("its mode is %04o", info.Mode().Perm())
	}
	for dir := filepath.Dir(file); ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o001 == 0 {
			return fmt.Sprintf("the mode of %s is %04o", dir, info.Mode().Perm())
		}
		if dir == filepath.Dir(dir) {
			return ""
		}
	}
}
