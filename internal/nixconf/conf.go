// Package nixconf reads how this machine's Nix is configured: from nix.conf, as Nix reads it, and
// from an installed Nix. It writes one thing: a file nixp2p.conf next to nix.conf, and the line
// that includes it.
package nixconf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxIncludes is how deep files may include each other. Nix has no bound and crashes on a file
// that includes itself.
const maxIncludes = 16

// maxFile bounds a configuration file; real ones have some kilobytes.
const maxFile = 4 << 20

// A SyntaxError is a line because of which every Nix command fails.
type SyntaxError struct {
	File string
	Line int // from 1
	Why  string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Why) }

// statement is a line that sets name or includes another file.
type statement struct {
	line   int // from 1
	name   string
	extra  bool // the values are added to the earlier ones
	values []string

	include  string // path of a file
	required bool   // Nix refuses the configuration if that file is missing
}

// aliases are old names of settings that matter here.
var aliases = map[string]string{
	"binary-caches":            "substituters",
	"trusted-binary-caches":    "trusted-substituters",
	"binary-cache-public-keys": "trusted-public-keys",
	"build-fallback":           "fallback",
	"build-use-substitutes":    "substitute",
}

// canonical returns the current name of a setting, and reports whether it had the prefix "extra-".
func canonical(name string) (string, bool) {
	name, extra := strings.CutPrefix(name, "extra-")
	if now, ok := aliases[name]; ok {
		name = now
	}
	return name, extra
}

// words splits a line: a # ends it wherever it is, there are no quotes, and a line does not
// continue in the next one.
func words(line string) []string {
	line, _, _ = strings.Cut(line, "#")
	return strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\n\r", r) })
}

// parse reads one file without the files that it includes.
func parse(file, content string) (all []statement, err error) {
	n := 0
	for line := range strings.Lines(content) {
		n++
		words := words(line)
		if len(words) == 0 {
			continue
		}
		refuse := func(why string) ([]statement, error) { return nil, &SyntaxError{file, n, why} }
		s := statement{line: n}
		switch first := words[0]; {
		case len(words) < 2:
			return refuse(fmt.Sprintf("%q is neither a setting nor an include", first))
		case first == "include" || first == "!include":
			if len(words) != 2 {
				return refuse("an include takes one file, without spaces in its name")
			}
			s.include, s.required = words[1], first == "include"
			if !filepath.IsAbs(s.include) {
				s.include = filepath.Join(filepath.Dir(file), s.include)
			}
		case words[1] != "=":
			return refuse(fmt.Sprintf("no = between spaces after %q", first))
		default:
			s.name, s.extra = canonical(first)
			s.values = words[2:]
		}
		all = append(all, s)
	}
	return all, nil
}

// flatten reads a file and the files that it includes, in the order in which Nix applies them.
func flatten(read func(string) ([]byte, error), file, content string, depth int) (all []statement, err error) {
	own, err := parse(file, content)
	if err != nil {
		return nil, err
	}
	for _, s := range own {
		if s.include == "" {
			all = append(all, s)
			continue
		}
		if depth == maxIncludes {
			return nil, &SyntaxError{file, s.line, "files include each other too deeply"}
		}
		text, err := read(s.include)
		if errors.Is(err, fs.ErrNotExist) && s.required {
			return nil, &SyntaxError{file, s.line, "the included file " + s.include + " does not exist"}
		}
		if err != nil {
			continue // as Nix does if it may not read the file
		}
		more, err := flatten(read, s.include, string(text), depth+1)
		if err != nil {
			return nil, err
		}
		all = append(all, more...)
	}
	return all, nil
}

// readFile reads a regular file of bounded size.
func readFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: is not a regular file", name)
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%s: has %d bytes, too many for a nix.conf", name, info.Size())
	}
	return os.ReadFile(name)
}

// Places are where Nix looks for its settings, see nix.conf(5).
type Places struct {
	System string   // the file of the machine; $NIX_CONF_DIR/nix.conf
	User   []string // the files of the user; an earlier one overrides a later one
	Inline string   // the text in $NIX_CONFIG, which overrides all files
}

// Look finds the places in an environment.
func Look(getenv func(string) string) Places {
	dir := getenv("NIX_CONF_DIR")
	if dir == "" {
		dir = "/etc/nix"
	}
	p := Places{System: filepath.Join(dir, "nix.conf"), Inline: getenv("NIX_CONFIG")}
	if files := getenv("NIX_USER_CONF_FILES"); files != "" {
		p.User = strings.Split(files, ":")
		return p
	}
	config, dirs := getenv("XDG_CONFIG_HOME"), getenv("XDG_CONFIG_DIRS")
	if config == "" && getenv("HOME") != "" {
		config = filepath.Join(getenv("HOME"), ".config")
	}
	if dirs == "" {
		dirs = "/etc/xdg"
	}
	for _, d := range append([]string{config}, strings.Split(dirs, ":")...) {
		if d != "" {
			p.User = append(p.User, filepath.Join(d, "nix/nix.conf"))
		}
	}
	return p
}

// Read computes the settings from all places. Files that do not exist or may not be read are
// skipped.
func (p Places) Read() (Settings, error) {
	s := Defaults()
	files := slices.Clone(p.User)
	slices.Reverse(files)
	for _, name := range append([]string{p.System}, files...) {
		if err := s.read(name); err != nil {
			return s, err
		}
	}
	all, err := flatten(readFile, "NIX_CONFIG", p.Inline, 0)
	s.apply(all)
	return s, err
}

// ReadSystem computes the settings from the machine's file alone: those of the Nix daemon.
func (p Places) ReadSystem() (Settings, error) {
	s := Defaults()
	return s, s.read(p.System)
}

func (s *Settings) read(name string) error {
	text, err := readFile(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	all, err := flatten(readFile, name, string(text), 0)
	s.apply(all)
	return err
}
