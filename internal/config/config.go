// Package config turns the flags of nixp2p and its TOML file into one checked struct, and records
// where each value came from. Flags, keys of the file, defaults and meanings are in one table, from
// which help, README and manual are generated. It reads the file and the environment and nothing
// else.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/nixp2p/nixp2p/verify"
)

// Config is a checked configuration. Its addresses and paths are in a form that can be
// used as it is.
type Config struct {
	Listen      string   // "host:port", or "unix:" and an absolute path
	AdminListen string   // "host:port"
	ServerNames []string // host names of this node, besides its addresses and localhost
	StateDir    string   // absolute
	CacheDir    string   // absolute
	CacheSize   int64    // bytes; 0: no NAR is kept
	StoreRoot   string   // absolute
	Priority    int

	Upstreams         []string // http, https or file URLs without a slash at the end; perhaps with a password
	Follow            []string // lists to follow
	Replicate         bool     // copy what peers share into the cache
	Bucket            string   // "s3://…", "" for none
	TrustedPublicKeys []string // "name:base64"
	Keys              *verify.Keys
	ShareKeys         []string // names of keys, trusted or not

	P2P          bool
	P2PListen    []string // multiaddrs
	MDNS         bool
	Bootstrap    []string // multiaddrs and "dns:", "srv:", "http(s)://", "file:"
	Leases       bool
	Delta        bool
	MaxPeers     int
	Zone         string // "": none; ZoneAuto: as the cloud provider says
	SwarmKeyFile string // "" means an open site
	PeerName     string // "": the host name on a closed site, none on an open one; NoName: none
	AllowCIDRs   []netip.Prefix
	AllowOnLink  bool  // also the prefixes that this machine's interfaces are on
	UploadLimit  int64 // bytes a second; 0: no limit

	LogLevel  slog.Level
	LogFormat string // "text" or "json"

	// Warnings name what is allowed but probably a mistake, a sentence each.
	Warnings []string
	// File is the configuration file that was read, "" for none.
	File string

	origins map[string]string // by key: "file:line" or "--flag"
}

// ZoneAuto stands for the zone that the cloud provider names.
const ZoneAuto = "auto"

// Problem is one mistake in the configuration.
type Problem struct {
	Where string // "file:line", "--flag" or "default"; "" of a value alone
	Key   string // "" if it concerns no single key
	Msg   string
	Help  string // what to do about it; may be ""
}

func (p *Problem) Error() string {
	switch {
	case p.Where == "":
		return p.Msg
	case p.Key == "", p.Where == "--"+p.Key:
		return p.Where + ": " + p.Msg
	}
	return p.Where + ": " + p.Key + ": " + p.Msg
}

// Problems returns the mistakes that an error of Load consists of, in the order of the
// table. It is empty for other errors.
func Problems(err error) (all []*Problem) {
	switch e := err.(type) {
	case *Problem:
		return []*Problem{e}
	case interface{ Unwrap() []error }:
		for _, part := range e.Unwrap() {
			all = append(all, Problems(part)...)
		}
	}
	return all
}

// wrong is an error of the check of a value; Load adds where the value came from.
func wrong(hint, format string, args ...any) error {
	return &Problem{Msg: fmt.Sprintf(format, args...), Help: hint}
}

// build makes a Config of the values of all options, each a list of texts. Where values
// are wrong it uses the default instead, and returns the mistakes along with the result.
func build(env Env, values map[string][]string, origins map[string]string) (*Config, error) {
	c := &Config{origins: map[string]string{}}
	var bad []error
	for _, o := range options {
		if v, given := values[o.name]; given {
			err := o.set(c, v)
			if text := strings.Join(v, " "); !utf8.ValidString(text) { // it could not be written into a file again
				err = wrong("", "%q is not UTF-8", text)
			}
			if err == nil {
				c.origins[o.name] = origins[o.name]
				continue
			}
			bad = append(bad, problem(origins[o.name], o.name, err))
		}
		def, err := o.defaults(c, env)
		if err == nil {
			err = o.set(c, def)
		}
		if err != nil {
			bad = append(bad, problem("default", o.name, err))
		}
	}
	bad = append(bad, c.checkTogether()...)
	return c, errors.Join(bad...)
}

func problem(where, key string, err error) error {
	p := &Problem{Msg: err.Error()}
	errors.As(err, &p)
	return &Problem{where, key, p.Msg, p.Help}
}

// checkTogether checks what depends on more than one value, and warns.
func (c *Config) checkTogether() (bad []error) {
	warn := func(format string, args ...any) { c.Warnings = append(c.Warnings, fmt.Sprintf(format, args...)) }
	fail := func(key string, err error) { bad = append(bad, problem(c.origins[key], key, err)) }

	for _, name := range c.ShareKeys {
		if c.Keys != nil && !c.Keys.Has(name) {
			warn("share-key %q is not the name of a trusted public key: it shares nothing", name)
		}
	}
	if c.Listen != "" && c.Listen == c.AdminListen && !strings.HasSuffix(c.Listen, ":0") {
		fail("admin-listen", wrong("give it another port", "%s is the substituter's own address", c.AdminListen))
	}
	for _, u := range c.Upstreams {
		at, err := url.Parse(u)
		if err != nil {
			continue // parseUpstream has read it
		}
		if at.Scheme == "http" && at.Host == c.Listen {
			fail("upstream", wrong("leave it out", "%s is this node itself", at.Redacted()))
		}
		if _, secret := at.User.Password(); secret {
			warn("upstream %s has its password in the configuration, where everybody who may read it sees it", at.Redacted())
		}
	}
	if !strings.HasPrefix(c.Listen, "unix:") && !loopback(c.Listen) {
		warn("listen %s can be reached from other machines: they get only paths signed by a share key", c.Listen)
	}
	if !loopback(c.AdminListen) {
		warn("admin-listen %s can be reached from other machines: it has no password and shows which paths are used", c.AdminListen)
	}
	if c.Replicate && (!c.P2P || c.CacheSize == 0) {
		warn("replicate copies nothing without peers (p2p) and a cache (cache-size)")
	}
	if c.Priority > 40 {
		warn("priority %d is behind that of cache.nixos.org (40), which Nix then asks first", c.Priority)
	}
	return bad
}

// Diff returns the keys whose values differ between c and o, in the order of the table.
func (c *Config) Diff(o *Config) (keys []string) {
	for _, opt := range options {
		if a, b := render(opt.get(c)), render(opt.get(o)); a != b {
			keys = append(keys, opt.name)
		}
	}
	return keys
}
