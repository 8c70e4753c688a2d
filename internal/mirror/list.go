package mirror

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/nix"
)

// List is a source of store paths that the site will want.
type List struct {
	// Name is the text of it without options: what people call it, and the key of its generations.
	Name string
	kind kind
	at   string // URL, file or store path
	Keep int    // generations
	// include and exclude are patterns of package names, as of path.Match. A path is wanted if one
	// of include fits, or there is none, and none of exclude does.
	include, exclude []string
}

type kind uint8

const (
	byURL kind = iota
	byFile
	byPath
)

const (
	channelScheme = "channel:"
	// channels has a directory for each channel, which redirects to that of its release.
	channels    = "https://channels.nixos.org/"
	channelFile = "/store-paths.xz"

	defaultKeep = 2
	maxKeep     = 16
)

var errList = errors.New("not a list to follow")

// ParseList reads "channel:NAME", a URL, "file:PATH" or "path:STORE-PATH", each with options such as
// "?keep=2&include=firefox*,*-lib&exclude=*-doc".
func ParseList(text string) (List, error) {
	name, options, _ := strings.Cut(strings.TrimSpace(text), "?")
	l := List{Name: name, Keep: defaultKeep}
	q, err := url.ParseQuery(options)
	if err != nil {
		return List{}, fmt.Errorf("%w: %q: %w", errList, text, err)
	}
	for key, values := range q {
		if err := l.option(key, values); err != nil {
			return List{}, fmt.Errorf("%w: %q: %w", errList, text, err)
		}
	}
	if err := l.locate(); err != nil {
		return List{}, fmt.Errorf("%w: %q: %w", errList, text, err)
	}
	return l, nil
}

func (l *List) isURL() bool {
	return strings.HasPrefix(l.Name, "http://") || strings.HasPrefix(l.Name, "https://")
}

// option reads one option.
func (l *List) option(key string, values []string) (err error) {
	switch key {
	case "keep":
		l.Keep, err = strconv.Atoi(values[len(values)-1])
		if err != nil || l.Keep < 1 || l.Keep > maxKeep {
			return fmt.Errorf("keep is a number from 1 to %d", maxKeep)
		}
	case "include", "exclude":
		patterns := strings.Split(strings.Join(values, ","), ",")
		for _, p := range patterns {
			if _, err := path.Match(p, ""); err != nil || p == "" {
				return fmt.Errorf("%q is not a pattern such as firefox*", p)
			}
		}
		if key == "include" {
			l.include = patterns
		} else {
			l.exclude = patterns
		}
	default:
		return fmt.Errorf("%q is none of keep, include, exclude", key)
	}
	return nil
}

func (l *List) locate() error {
	scheme, rest, _ := strings.Cut(l.Name, ":")
	switch {
	case l.isURL():
		u, err := url.Parse(l.Name)
		if err != nil || u.Host == "" {
			return errors.New("no host in the URL")
		}
		l.kind, l.at = byURL, l.Name
	case scheme == "channel" && rest != "" && !strings.ContainsAny(rest, "/?#%\\ "):
		l.kind, l.at = byURL, channels+rest+channelFile
	case scheme == "file" && filepath.IsAbs(rest):
		l.kind, l.at = byFile, filepath.Clean(strings.TrimPrefix(rest, "//"))
	case scheme == "path" && filepath.IsAbs(rest):
		l.kind, l.at = byPath, filepath.Clean(rest)
	default:
		return errors.New("it is none of channel:NAME, an http or https URL, file:/PATH, path:/STORE-PATH")
	}
	return nil
}

// wants reports whether a path with this name is of interest.
func (l *List) wants(name string) bool {
	fits := func(p string) bool { ok, _ := path.Match(p, name); return ok }
	return (len(l.include) == 0 || slices.ContainsFunc(l.include, fits)) && !slices.ContainsFunc(l.exclude, fits)
}

const (
	// maxListBytes and maxPaths bound a list: that of nixos-unstable has some 10 MB decoded.
	maxListBytes = 256 << 20
	maxPaths     = 1 << 20
)

var (
	errEmpty  = errors.New("the list is empty: what is kept stays")
	errTooBig = fmt.Errorf("the list has more than %d paths or %d bytes", maxPaths, maxListBytes)
	xzMagic   = []byte("\xfd7zXZ\x00")
)

// read returns the wanted paths of a text, plain or xz, one path a line. A line that is no store
// path makes all of it invalid: half a list is worse than the last one.
func (l *List) read(r io.Reader) ([]nix.StoreHash, error) {
	text := bufio.NewReader(r)
	if magic, _ := text.Peek(len(xzMagic)); bytes.Equal(magic, xzMagic) {
		dec, err := compress.NewReader(nix.XZ, text)
		if err != nil {
			return nil, err
		}
		defer dec.Close()
		text = bufio.NewReader(dec)
	}
	limited := &io.LimitedReader{R: text, N: maxListBytes}
	lines := bufio.NewScanner(limited)
	var wanted []nix.StoreHash
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		p, err := nix.ParseStorePath(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if l.wants(p.Name()) {
			wanted = append(wanted, p.Hash())
		}
		if len(wanted) > maxPaths {
			return nil, errTooBig
		}
	}
	switch {
	case lines.Err() != nil:
		return nil, lines.Err()
	case limited.N <= 0:
		return nil, errTooBig
	case len(wanted) == 0:
		return nil, errEmpty
	}
	return wanted, nil
}
