// Package nixconf knows how this machine's Nix is set up: it reads nix.conf as Nix does, asks
// an installed Nix for its effective settings, and makes and takes back the one change that
// points Nix at a node. Whatever else stands in the file stays, byte for byte. It asks nothing
// over the network, and touches no file but nix.conf and the backup beside it.
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

// maxIncludes is how deep files may include each other. Nix has no bound: a file that includes
// itself ends it.
const maxIncludes = 16

// maxFile bounds a configuration file; real ones have some kilobytes.
const maxFile = 4 << 20

// A SyntaxError is a line that Nix refuses, and with it every command.
type SyntaxError struct {
	File string
	Line int // from 1
	Why  string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Why) }

// token is a word of a line and where it begins.
type token struct {
	text string
	at   int
}

// split cuts a line into words: a # ends it wherever it stands, there are no quotes, and no
// line goes on in the next one.
func split(line string) (words []token) {
	line, _, _ = strings.Cut(line, "#")
	for at := 0; at < len(line); {
		rest := line[at:]
		skip := len(rest) - len(strings.TrimLeft(rest, " \t\n\r"))
		at += skip
		n := strings.IndexAny(line[at:], " \t\n\r")
		if n < 0 {
			n = len(line) - at
		}
		if n > 0 {
			words = append(words, token{line[at : at+n], at})
		}
		at += n
	}
	return words
}

// statement is a line that says something: it sets name, or includes another file.
type statement struct {
	file   string
	line   int // from 1
	name   string
	extra  bool // the values are added to what was there
	values []string

	include string // path of a file
	must    bool   // which has to exist
}

// aliases are old names of settings that count here.
var aliases = map[string]string{
	"binary-caches":            "substituters",
	"trusted-binary-caches":    "trusted-substituters",
	"binary-cache-public-keys": "trusted-public-keys",
	"build-fallback":           "fallback",
	"build-use-substitutes":    "substitute",
}

// canonical returns the present name of a setting, and whether "extra-" stood before it.
func canonical(name string) (string, bool) {
	name, extra := strings.CutPrefix(name, "extra-")
	if now, ok := aliases[name]; ok {
		name = now
	}
	return name, extra
}

// parse reads one file without those that it includes.
func parse(file, content string) (all []statement, err error) {
	n := 0
	for line := range strings.Lines(content) {
		n++
		words := split(line)
		if len(words) == 0 {
			continue
		}
		refuse := func(why string) ([]statement, error) { return nil, &SyntaxError{file, n, why} }
		s := statement{file: file, line: n}
		switch first := words[0].text; {
		case len(words) < 2:
			return refuse(fmt.Sprintf("%q is neither a setting nor an include", first))
		case first == "include" || first == "!include":
			if len(words) != 2 {
				return refuse("an include takes one file, without spaces in its name")
			}
			s.include, s.must = words[1].text, first == "include"
			if !filepath.IsAbs(s.include) {
				s.include = filepath.Join(filepath.Dir(file), s.include)
			}
		case words[1].text != "=":
			return refuse(fmt.Sprintf("no = between spaces after %q", first))
		default:
			s.name, s.extra = canonical(first)
			for _, w := range words[2:] {
				s.values = append(s.values, w.text)
			}
		}
		all = append(all, s)
	}
	return all, nil
}

// flatten reads a file and those that it includes, in the order in which Nix takes them over.
func flatten(file, content string, depth int) (all []statement, err error) {
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
		if _, err := os.Lstat(s.include); err != nil {
			if s.must {
				return nil, &SyntaxError{file, s.line, "the included file " + s.include + " is not there"}
			}
			continue
		}
		text, err := readFile(s.include)
		if err != nil {
			continue // Nix goes on, too, when it may not read it
		}
		more, err := flatten(s.include, string(text), depth+1)
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
		return nil, fmt.Errorf("%s: is no regular file", name)
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%s: has %d bytes: that is no nix.conf", name, info.Size())
	}
	return os.ReadFile(name)
}

// Places are where Nix looks for its settings: nix.conf(5).
type Places struct {
	System string   // the file of the machine; $NIX_CONF_DIR/nix.conf
	User   []string // those of the user, the first counting most
	Inline string   // the text in $NIX_CONFIG, which counts more than all files
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

// Read works out the settings from the files. Files that are not there or may not be read say
// nothing.
func (p Places) Read() (Settings, error) {
	s := Defaults()
	files := slices.Clone(p.User)
	slices.Reverse(files)
	for _, name := range append([]string{p.System}, files...) {
		if err := s.read(name); err != nil {
			return s, err
		}
	}
	all, err := flatten("NIX_CONFIG", p.Inline, 0)
	s.apply(all)
	return s, err
}

// ReadSystem works out the settings from the machine's file alone, which is what the Nix
// daemon goes by.
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
	all, err := flatten(name, string(text), 0)
	s.apply(all)
	return err
}
