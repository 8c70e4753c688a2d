package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/nix"
)

// pathForms names what path arguments may be, for error messages.
const pathForms = "it may be a store path or one below it, its base name or hash, a link to one such as ./result or a profile, " +
	"PATH^OUTPUT of a derivation, or - for a list on standard input"

// pathArgs reads the paths that an argument stands for, as Nix's own commands do: pathForms. stdin
// is read for "-".
func pathArgs(arg string, stdin io.Reader) ([]nix.StoreHash, error) {
	if arg == "-" {
		return readPaths("standard input", stdin)
	}
	path, outputs := arg, ""
	at := strings.LastIndexAny(arg, "^!") // ! is how older commands write it
	if at >= 0 {
		path, outputs = arg[:at], arg[at+1:]
	}
	real, err := inStore(path)
	if err != nil {
		return nil, pathError(arg, err)
	}
	if at >= 0 && strings.HasSuffix(real, ".drv") {
		hashes, err := outputsOf(real, outputs)
		if err != nil {
			return nil, pathError(arg, err)
		}
		return hashes, nil
	}
	h, err := admin.ParseAsked(real)
	if err != nil {
		return nil, pathError(arg, err)
	}
	return []nix.StoreHash{h}, nil
}

func pathError(arg string, err error) error {
	hint := pathForms
	if strings.Contains(arg, "#") {
		hint = fmt.Sprintf("flakes are not evaluated here: nix eval --raw '%s.outPath' prints the store path", arg)
	}
	return &usageError{&hintError{fmt.Errorf("%q is not a store path: %w", arg, err), hint}}
}

// pathArg is pathArgs for exactly one path.
func pathArg(arg string, stdin io.Reader) (nix.StoreHash, error) {
	hashes, err := pathArgs(arg, stdin)
	if err == nil && len(hashes) != 1 {
		err = &usageError{fmt.Errorf("%q stands for %d paths, and one is asked for", arg, len(hashes))}
	}
	if err != nil {
		return nix.StoreHash{}, err
	}
	return hashes[0], nil
}

// maxLinks is how many links are followed, as the kernel does.
const maxLinks = 40

// inStore follows links until path is in the store, which need not have it: a path that only
// others have is asked for, too. A base name or a hash is returned as it is.
func inStore(path string) (string, error) {
	if _, err := admin.ParseAsked(path); err == nil {
		return path, nil
	}
	at, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if strings.HasPrefix(at, nix.StoreDir+"/") {
		return at, nil
	}
	for range maxLinks {
		link, target := firstLink(at)
		if link == "" {
			break
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(link), target)
		}
		at = filepath.Join(target, strings.TrimPrefix(at, link))
		if strings.HasPrefix(at, nix.StoreDir+"/") {
			return at, nil
		}
	}
	if _, err := os.Lstat(at); err != nil {
		return "", errors.New("there is no such file, and it is neither the base name nor the hash of a store path")
	}
	return "", fmt.Errorf("it does not lead into %s", nix.StoreDir)
}

// firstLink returns the shortest beginning of an absolute path that is a symbolic link, and where
// that leads; "" if there is none.
func firstLink(path string) (link, target string) {
	for i := 1; i <= len(path); i++ {
		if i < len(path) && path[i] != filepath.Separator {
			continue
		}
		if target, err := os.Readlink(path[:i]); err == nil {
			return path[:i], target
		}
	}
	return "", ""
}

// drvOutput is one output of a derivation, as its file has it: name, path, and two strings.
var drvOutput = regexp.MustCompile(`^,?\("([^"\\]+)","([^"\\]*)","[^"\\]*","[^"\\]*"\)`)

// maxDerivation bounds what is read of a derivation.
const maxDerivation = 16 << 20

// outputsOf returns those outputs of a derivation that are named: NAME,NAME or * for all.
func outputsOf(drv, names string) (hashes []nix.StoreHash, err error) {
	f, err := os.Open(drv)
	if err != nil {
		return nil, fmt.Errorf("its outputs are not known here: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxDerivation))
	if err != nil {
		return nil, err
	}
	rest, ok := strings.CutPrefix(string(b), "Derive([")
	if !ok {
		return nil, errors.New("it is not a derivation")
	}
	paths := map[string]string{}
	var order []string
	for {
		m := drvOutput.FindStringSubmatch(rest)
		if m == nil {
			break
		}
		order = append(order, m[1])
		paths[m[1]] = m[2]
		rest = rest[len(m[0]):]
	}
	if names != "*" {
		order = strings.Split(names, ",")
	}
	for _, name := range order {
		h, err := admin.ParseAsked(paths[name])
		switch {
		case paths[name] == "" && strings.Contains(string(b), `("`+name+`"`):
			return nil, fmt.Errorf("the path of its output %q is known only when it is built", name)
		case paths[name] == "":
			return nil, fmt.Errorf("it has no output %q", name)
		case err != nil:
			return nil, err
		}
		hashes = append(hashes, h)
	}
	return hashes, nil
}

// maxPathList bounds the decoded list of paths: a channel's store-paths has some 10 MB.
const maxPathList = 1 << 30

// readPathFile reads a list of paths, one a line, from a file; - is stdin.
func readPathFile(name string, stdin io.Reader) ([]nix.StoreHash, error) {
	if name == "-" {
		return readPaths("standard input", stdin)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if !strings.HasSuffix(name, ".xz") {
		return readPaths(name, f)
	}
	dec, err := compress.NewReader(nix.XZ, f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	defer dec.Close()
	return readPaths(name, dec)
}

// scanPaths splits at the ends of lines, and at zero bytes, as find -print0 ends names.
func scanPaths(data []byte, atEOF bool) (advance int, token []byte, err error) {
	if i := bytes.IndexAny(data, "\n\x00"); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}

// readPaths reads a list of paths: words, as Nix has it. Lines that begin with # are left out.
func readPaths(name string, r io.Reader) (hashes []nix.StoreHash, err error) {
	lines := bufio.NewScanner(io.LimitReader(r, maxPathList))
	lines.Split(scanPaths)
	for n := 1; lines.Scan(); n++ {
		if strings.HasPrefix(strings.TrimSpace(lines.Text()), "#") {
			continue
		}
		for word := range strings.FieldsSeq(lines.Text()) {
			if word == "-" {
				continue
			}
			more, err := pathArgs(word, nil)
			if err != nil {
				return nil, fmt.Errorf("%s:%d: %w", name, n, err)
			}
			hashes = append(hashes, more...)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return hashes, nil
}
