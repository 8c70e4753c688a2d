package main

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/nixp2p/nixp2p/internal/nixconf"
)

// cacheAccess is how this machine's Nix reaches caches: the daemon reaches them in the same way.
type cacheAccess struct {
	netrc  string // file with credentials, "" for none
	caFile string // file with certificate authorities, "" for the system's
	err    error  // why the file with credentials is not used; nil if there is none
}

// nixCacheAccess reads the machine's nix.conf. $NETRC and a credential that systemd passes
// override netrc-file.
func nixCacheAccess(getenv func(string) string, log *slog.Logger) cacheAccess {
	places := nixconf.Look(getenv)
	settings, err := places.ReadSystem()
	if err != nil {
		log.Warn("nix.conf cannot be read: upstreams are asked without its netrc-file and ssl-cert-file", "err", err)
		settings = nixconf.Defaults()
	}
	a := cacheAccess{netrc: getenv("NETRC"), caFile: settings.CACertFile}
	if dir := getenv("CREDENTIALS_DIRECTORY"); a.netrc == "" && dir != "" {
		a.netrc = readable(filepath.Join(dir, "nixp2p.netrc"))
	}
	if a.netrc == "" {
		name := settings.NetrcFile
		if name == "" {
			name = filepath.Join(filepath.Dir(places.System), "netrc")
		}
		if a.netrc = readable(name); a.netrc == "" {
			_, a.err = os.ReadFile(name)
			if errors.Is(a.err, fs.ErrNotExist) {
				a.err = nil
			}
		}
	}
	return a
}

// readable returns name if this user may read the file, else "".
func readable(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	_ = f.Close()
	return name
}
