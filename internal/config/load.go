package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"
)

// Env is what the configuration takes from its surroundings. The zero value is the
// process's own.
type Env struct {
	Getenv      func(string) string // nil means os.Getenv
	Root        func() bool         // whether this runs as root; nil asks the system
	DefaultFile string              // "" means DefaultFile
}

func (e Env) get(name string) string {
	if e.Getenv == nil {
		return os.Getenv(name)
	}
	return e.Getenv(name)
}

// credential returns the file with a credential that systemd hands to this service, "" if it
// does not.
func (e Env) credential(name string) string {
	dir := e.get("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return ""
	}
	file := filepath.Join(dir, name)
	if _, err := os.Stat(file); err != nil {
		return ""
	}
	return file
}

func (e Env) root() bool {
	if e.Root == nil {
		return os.Geteuid() == 0
	}
	return e.Root()
}

// dir picks a directory: systemd's (systemd.exec(5); the first of several), the system's
// for root, else the user's (XDG base directory specification: relative values are ignored).
func dir(unit, system, xdg, home, flag string) func(*Config, Env) ([]string, error) {
	return func(_ *Config, e Env) ([]string, error) {
		if d, _, _ := strings.Cut(e.get(unit), ":"); filepath.IsAbs(d) {
			return []string{d}, nil
		}
		if e.root() {
			return []string{system}, nil
		}
		if d := e.get(xdg); filepath.IsAbs(d) {
			return []string{filepath.Join(d, "nixp2p")}, nil
		}
		if d := e.get("HOME"); filepath.IsAbs(d) {
			return []string{filepath.Join(d, home, "nixp2p")}, nil
		}
		return nil, wrong("set $HOME, or give --"+flag, "this user has no home directory")
	}
}

// Flags are the flags of one command.
type Flags struct {
	set    *pflag.FlagSet
	file   string
	values map[string]*value
}

// Register adds --config and a flag for each key to set.
func Register(set *pflag.FlagSet) *Flags {
	f := register(set)
	for i := range options {
		f.add(&options[i])
	}
	return f
}

// RegisterClient adds the flags of commands that talk to a running node: --config and
// --admin-listen.
func RegisterClient(set *pflag.FlagSet) *Flags {
	f := register(set)
	f.add(find("admin-listen"))
	return f
}

func register(set *pflag.FlagSet) *Flags {
	f := &Flags{set: set, values: map[string]*value{}}
	set.StringVar(&f.file, "config", DefaultFile, "configuration `FILE`, TOML; each flag is a key in it")
	// Left alone: the default file need not exist.
	set.Lookup("config").DefValue = DefaultFile + " if there is one"
	return f
}

func (f *Flags) add(o *option) {
	v := &value{option: o}
	f.values[o.name] = v
	usage := strings.ReplaceAll(o.meaning, "`", "")
	flag := f.set.VarPF(v, o.name, "", usage)
	if flag.DefValue = strings.ReplaceAll(defaultText(o), "`", ""); flag.DefValue == none {
		flag.DefValue = ""
	}
	if o.kind == truth {
		flag.NoOptDefVal = "true"
	}
}

// value collects what a flag is given.
type value struct {
	option *option
	given  bool
	texts  []string
}

func (v *value) String() string { return strings.Join(v.texts, " ") }

func (v *value) Type() string { return v.option.arg }

// Set is called for each time that the flag is given: a list grows, of others the last
// counts. One empty element is an empty list.
func (v *value) Set(s string) error {
	v.given = true
	switch {
	case v.option.kind != list:
		v.texts = []string{s}
	case s != "":
		v.texts = append(v.texts, s)
	}
	return nil
}

// Load reads the file, lays the flags over it and the defaults under it, and checks all.
// Mistakes are *Problem, joined into one error (see Problems).
//
// The Config is never nil: beside an error it has the default in place of every value that
// is wrong, so that a node can tell on its usual address that it is not well.
func (f *Flags) Load(env Env) (*Config, error) {
	values := map[string][]string{}
	origins := map[string]string{}
	file := f.file
	if file == DefaultFile && env.DefaultFile != "" {
		file = env.DefaultFile
	}
	var err error
	if _, e := os.Stat(file); errors.Is(e, os.ErrNotExist) && !f.set.Changed("config") {
		file = ""
	}
	if file != "" {
		var lines map[string]int
		if values, lines, err = readFile(file); values == nil {
			values = map[string][]string{}
		}
		for key := range values {
			origins[key] = fmt.Sprintf("%s:%d", file, lines[key])
		}
	}
	for key, v := range f.values {
		if v.given {
			values[key], origins[key] = v.absolute(), "--"+key
		}
	}
	c, more := build(env, values, origins)
	c.File = file
	return c, errors.Join(err, more)
}

// absolute makes a path on the command line, which is meant from the working directory on,
// one that holds anywhere.
func (v *value) absolute() []string {
	if v.option.arg != "DIR" && v.option.arg != "FILE" || v.texts[0] == "" {
		return v.texts
	}
	if p, err := filepath.Abs(v.texts[0]); err == nil {
		return []string{p}
	}
	return v.texts
}
