package config

import (
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/wire"
	"github.com/nixp2p/nixp2p/verify"
)

// option is a flag and the key of the same name.
type option struct {
	name    string
	arg     string // what the value is, for the help
	kind    kind
	def     []string                                   // the default
	defFor  func(c *Config, env Env) ([]string, error) // the default, where it depends on something
	defText string                                     // the default as the README says it, if def does not
	meaning string
	access
}

// access is how an option is set and shown.
type access struct {
	set func(c *Config, v []string) error // v has one element unless kind is list
	get func(c *Config) any               // string, bool, int or []string
}

type kind int

const (
	text   kind = iota // a string
	truth              // true or false
	number             // an integer
	size               // an integer or a string with a unit
	list               // strings
)

func (o *option) defaults(c *Config, env Env) ([]string, error) {
	if o.defFor != nil {
		return o.defFor(c, env)
	}
	return o.def, nil
}

const officialKey = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="

// options is the table of all flags. Order matters: defaults may depend on entries above
// them.
var options = []option{
	{
		name: "listen", arg: "ADDR", def: []string{"127.0.0.1:7654"},
		meaning: "the substituter (also `unix:PATH`, or a socket from systemd)",
		access:  one(func(c *Config) *string { return &c.Listen }, parseListen),
	}, {
		name: "admin-listen", arg: "ADDR", def: []string{"127.0.0.1:7655"},
		meaning: "page, API, metrics, health",
		access:  one(func(c *Config) *string { return &c.AdminListen }, parseAddr),
	}, {
		name: "server-name", arg: "NAME", kind: list, defText: none,
		meaning: "host names in URLs of this node, besides its addresses and `localhost`: whoever uses them gets what other machines get, also through a proxy on this one; requests with another name in `Host` are refused",
		access:  many(func(c *Config) *[]string { return &c.ServerNames }, parseServerName),
	}, {
		name: "state-dir", arg: "DIR", defFor: dir("STATE_DIRECTORY", "/var/lib/nixp2p", "XDG_STATE_HOME", ".local/state", "state-dir"),
		defText: "systemd's `$STATE_DIRECTORY`, else `/var/lib/nixp2p`; `~/.local/state/nixp2p` for an ordinary user",
		meaning: "identity, peers, narinfos",
		access:  one(func(c *Config) *string { return &c.StateDir }, parseDir),
	}, {
		name: "cache-dir", arg: "DIR", defFor: dir("CACHE_DIRECTORY", "/var/cache/nixp2p", "XDG_CACHE_HOME", ".cache", "cache-dir"),
		defText: "systemd's `$CACHE_DIRECTORY`, else `/var/cache/nixp2p`; `~/.cache/nixp2p` for an ordinary user",
		meaning: "NAR files",
		access:  one(func(c *Config) *string { return &c.CacheDir }, parseDir),
	}, {
		name: "cache-size", arg: "SIZE", kind: size, def: []string{"10GiB"},
		meaning: "limit for NAR cache and downloads in progress together; what does not fit (with `0`, everything) streams through a 1 MiB window and cannot be followed",
		access:  one(func(c *Config) *int64 { return &c.CacheSize }, ParseSize),
	}, {
		name: "store-root", arg: "DIR", def: []string{"/"},
		meaning: "the store is `ROOT/nix/store`, its database `ROOT/nix/var/nix/db/db.sqlite`; a root without a database is an empty store until one appears",
		access:  one(func(c *Config) *string { return &c.StoreRoot }, parseDir),
	}, {
		name: "priority", arg: "N", kind: number, def: []string{"30"},
		meaning: "in `nix-cache-info` (cache.nixos.org has 40; lower is asked first)",
		access:  one(func(c *Config) *int { return &c.Priority }, whole(0, 1<<20)),
	}, {
		name: "upstream", arg: "URL", kind: list, def: []string{"https://cache.nixos.org"},
		meaning: "caches and mirrors",
		access:  many(func(c *Config) *[]string { return &c.Upstreams }, parseUpstream),
	}, {
		name: "bucket", arg: "URL", def: []string{""}, defText: none,
		meaning: "`s3://NAME/PREFIX?endpoint=…&region=…`: a binary cache in an object store, asked before the upstreams; what this machine fetches from those is written to it",
		access:  one(func(c *Config) *string { return &c.Bucket }, maybe(parseBucket)),
	}, {
		name: "follow", arg: "LIST", kind: list, defText: none,
		meaning: "fetch and keep what a list of store paths has: `channel:NAME`, a URL, `file:PATH`, `path:STORE-PATH`; `?keep=N&include=…&exclude=…`",
		access:  many(func(c *Config) *[]string { return &c.Follow }, parseFollow),
	}, {
		name: "replicate", arg: "BOOL", kind: truth, def: []string{"false"},
		meaning: "copy into the NAR cache, and keep, what peers share and this machine lacks",
		access:  one(func(c *Config) *bool { return &c.Replicate }, parseBool),
	}, {
		name: "trusted-public-key", arg: "KEY", kind: list, def: []string{officialKey},
		meaning: "keys whose signatures are accepted",
		access:  access{setKeys, func(c *Config) any { return c.TrustedPublicKeys }},
	}, {
		name: "share-key", arg: "NAME", kind: list, def: []string{"cache.nixos.org-1"},
		meaning: "paths signed by these keys may be shown to others; a name that is not trusted causes a warning and shares nothing",
		access:  many(func(c *Config) *[]string { return &c.ShareKeys }, parseKeyName),
	}, {
		name: "p2p", arg: "BOOL", kind: truth, def: []string{"true"},
		meaning: "`false`: no peers at all",
		access:  one(func(c *Config) *bool { return &c.P2P }, parseBool),
	}, {
		name: "p2p-listen", arg: "MULTIADDR", kind: list, def: []string{"/ip4/0.0.0.0/tcp/7656", "/ip6/::/tcp/7656"},
		meaning: "multiaddrs; port 0 picks one",
		access:  many(func(c *Config) *[]string { return &c.P2PListen }, parseP2PListen),
	}, {
		name: "mdns", arg: "BOOL", kind: truth, def: []string{"true"},
		meaning: "look for peers on the link",
		access:  one(func(c *Config) *bool { return &c.MDNS }, parseBool),
	}, {
		name: "bootstrap", arg: "WHERE", kind: list, defText: none,
		meaning: "multiaddr (peer ID optional), `dns:NAME[:PORT]`, `srv:NAME`, `http(s)://…`, `file:PATH`",
		access:  many(func(c *Config) *[]string { return &c.Bootstrap }, parseBootstrap),
	}, {
		name: "max-peers", arg: "N", kind: number, def: []string{"256"},
		meaning: "connected peers",
		access:  one(func(c *Config) *int { return &c.MaxPeers }, whole(1, 1<<16)),
	}, {
		name: "leases", arg: "BOOL", kind: truth, def: []string{"true"},
		meaning: "agree with the site on which node downloads what no peer has",
		access:  one(func(c *Config) *bool { return &c.Leases }, parseBool),
	}, {
		name: "zone", arg: "NAME", def: []string{""}, defText: none,
		meaning: "name of the zone of this machine, the same on all machines in it: peers of it are asked first, and what crosses zones crosses once for each; `auto` asks the cloud provider",
		access:  one(func(c *Config) *string { return &c.Zone }, parseZone),
	}, {
		name: "delta", arg: "BOOL", kind: truth, def: []string{"true"},
		meaning: "on slow links, ask peers and mirrors for what differs from the version that is here, and send them the same",
		access:  one(func(c *Config) *bool { return &c.Delta }, parseBool),
	}, {
		name: "swarm-key-file", arg: "FILE", defFor: func(_ *Config, env Env) ([]string, error) { return []string{env.credential("nixp2p.swarm-key")}, nil },
		defText: "`/etc/credstore/nixp2p.swarm-key`, if systemd hands it over",
		meaning: "closed site: only holders of this secret",
		access:  one(func(c *Config) *string { return &c.SwarmKeyFile }, maybe(parseDir)),
	}, {
		name: "peer-name", arg: "NAME", def: []string{""}, defText: "the host name on a closed site, none on an open one",
		meaning: "name of this machine for peers, whose names it then shows; `none`: no names are exchanged",
		access:  one(func(c *Config) *string { return &c.PeerName }, maybe(parseServerName)),
	}, {
		name: "allow-cidr", arg: "CIDR", kind: list, defFor: defaultCIDRs,
		defText: "10/8, 172.16/12, 192.168/16, 169.254/16, fc00::/7, fe80::/10, `on-link`; 127/8 and ::1 if `--p2p-listen` names a loopback address",
		meaning: "networks in which peers are accepted and dialled; `on-link` stands for the networks of this machine's interfaces",
		access:  access{setCIDRs, getCIDRs},
	}, {
		name: "upload-limit", arg: "RATE", def: []string{""}, defText: none,
		meaning: "e.g. `20MB/s`, to peers",
		access: access{
			set: one(func(c *Config) *int64 { return &c.UploadLimit }, maybe(ParseRate)).set,
			get: func(c *Config) any {
				if c.UploadLimit == 0 {
					return ""
				}
				return FormatSize(c.UploadLimit) + "/s"
			},
		},
	}, {
		name: "log-level", arg: "LEVEL", def: []string{"info"},
		meaning: "`debug`, `info`, `warn` or `error`",
		access:  one(func(c *Config) *slog.Level { return &c.LogLevel }, parseLevel),
	}, {
		name: "log-format", arg: "FORMAT", def: []string{"text"},
		meaning: "`text` or `json`",
		access:  one(func(c *Config) *string { return &c.LogFormat }, parseFormat),
	},
}

// one is the access to a single value. An int64 is a number of bytes, and shown with its unit.
func one[T any](field func(*Config) *T, parse func(string) (T, error)) access {
	return access{
		set: func(c *Config, v []string) error {
			x, err := parse(v[0])
			if err == nil {
				*field(c) = x
			}
			return err
		},
		get: func(c *Config) any {
			switch x := any(*field(c)).(type) {
			case int64:
				return FormatSize(x)
			case slog.Level:
				return strings.ToLower(x.String())
			default:
				return x
			}
		},
	}
}

// many is the access to a list, without what is repeated in it.
func many(field func(*Config) *[]string, parse func(string) (string, error)) access {
	return access{
		set: func(c *Config, v []string) error {
			all := []string{}
			for _, s := range v {
				x, err := parse(s)
				if err != nil {
					return err
				}
				if !slices.Contains(all, x) {
					all = append(all, x)
				}
			}
			*field(c) = all
			return nil
		},
		get: func(c *Config) any { return *field(c) },
	}
}

// maybe lets an empty text through as the zero value.
func maybe[T any](parse func(string) (T, error)) func(string) (T, error) {
	return func(s string) (x T, err error) {
		if s == "" {
			return x, nil
		}
		return parse(s)
	}
}

func whole(lo, hi int) func(string) (int, error) {
	return func(s string) (int, error) {
		n, err := strconv.Atoi(s)
		if err != nil || n < lo || n > hi {
			return 0, wrong("", "%q is not a number from %d to %d", s, lo, hi)
		}
		return n, nil
	}
}

func parseBool(s string) (bool, error) {
	if s != "true" && s != "false" {
		return false, wrong("", "%q is neither true nor false", s)
	}
	return s == "true", nil
}

func parseLevel(s string) (slog.Level, error) {
	for _, l := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		if strings.EqualFold(s, l.String()) {
			return l, nil
		}
	}
	return 0, wrong("", "%q is none of debug, info, warn, error", s)
}

func parseFormat(s string) (string, error) {
	if s != "text" && s != "json" {
		return "", wrong("", "%q is neither text nor json", s)
	}
	return s, nil
}

// NoName is the value of peer-name with which no names are exchanged.
const NoName = "none"

func parseDir(s string) (string, error) {
	if !filepath.IsAbs(s) || strings.ContainsRune(s, 0) {
		return "", wrong("write it from / on", "%q is not an absolute path", s)
	}
	return filepath.Clean(s), nil
}

func setKeys(c *Config, v []string) error {
	var texts []string
	for _, s := range v {
		s = strings.TrimSpace(s)
		if len(strings.Fields(s)) > 1 {
			return wrong("give each key on its own", "more than one key in %q", s)
		}
		k, err := nix.ParsePublicKey(s)
		if err != nil {
			return wrong("it looks like "+officialKey, "%q: %v", s, err)
		}
		texts = append(texts, k.String())
	}
	if len(texts) == 0 {
		return wrong("leave it out for the key of cache.nixos.org", "no key: then nothing can be answered")
	}
	keys, err := verify.ParseKeys(texts)
	if err != nil {
		return err
	}
	c.TrustedPublicKeys, c.Keys = texts, keys
	return nil
}

func parseKeyName(s string) (string, error) {
	name, _, whole := strings.Cut(s, ":")
	if whole {
		return "", wrong("write "+strconv.Quote(name), "%q is not the name of a key but a key", s)
	}
	if name == "" || strings.ContainsAny(name, " \t\n") {
		return "", wrong("it looks like cache.nixos.org-1", "%q is not the name of a key", s)
	}
	return name, nil
}

func parseZone(s string) (string, error) {
	if _, err := wire.ParseZone(s); err != nil {
		return "", wrong("letters, digits, dots, dashes and underscores, at most 64", "%q is not the name of a zone", s)
	}
	return s, nil
}

// onLink stands in a list of networks for those that the interfaces are on.
const onLink = "on-link"

func defaultCIDRs(c *Config, _ Env) ([]string, error) {
	all := []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10", onLink}
	for _, a := range c.P2PListen {
		if ip, err := netip.ParseAddr(strings.Split(a+"//", "/")[2]); err == nil && ip.IsLoopback() {
			return append(all, "127.0.0.0/8", "::1/128"), nil
		}
	}
	return all, nil
}

func setCIDRs(c *Config, v []string) error {
	all := []netip.Prefix{}
	link := false
	for _, s := range v {
		if s == onLink {
			link = true
			continue
		}
		p, err := parseCIDR(s)
		if err != nil {
			return err
		}
		all = append(all, p)
	}
	c.AllowCIDRs, c.AllowOnLink = all, link
	return nil
}

func getCIDRs(c *Config) any {
	all := []string{}
	for _, p := range c.AllowCIDRs {
		all = append(all, p.String())
	}
	if c.AllowOnLink {
		all = append(all, onLink)
	}
	return all
}

func parseCIDR(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err == nil && p.Addr().Is4In6() {
		err = errors.New("write it as IPv4")
	}
	if err != nil {
		return p, wrong("it looks like 10.0.0.0/8, fd00::/8, or "+onLink, "%q is not a network", s)
	}
	return p.Masked(), nil
}
