package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// layout makes the NAR that the files of a package would have as a store path: what names /usr names
// the store path, each ELF file has an RPATH with a store path for each library and an
// interpreter in the store, and scripts name theirs there.
type layout struct {
	tree string // where the package was extracted
	name string // name and version
	seed string // decides all hashes and build IDs
}

// entry is a file, link or directory of the NAR.
type entry struct {
	path  string // on disk
	mode  fs.FileMode
	below map[string]*entry
}

const nix32 = "0123456789abcdfghijklmnpqrsvwxyz"

// store returns the store path of a name.
func (l *layout) store(name string) string {
	sum := sha256.Sum256([]byte(l.seed + "|" + name))
	var h [32]byte
	for i := range h {
		h[i] = nix32[sum[i]&31]
	}
	return nix.StoreDir + "/" + string(h[:]) + "-" + name
}

// write writes the NAR to a file.
func (l *layout) write(file string) error {
	root, err := l.load()
	if err != nil {
		return err
	}
	f, err := os.Create(file + ".tmp")
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	words(w, nix.NARMagic)
	if err := l.dump(w, root); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return os.Rename(file+".tmp", file)
}

// load reads the tree: /usr is the root, directories named by the architecture are left out, and so are
// the changelogs that every package of Debian has.
func (l *layout) load() (*entry, error) {
	root := &entry{mode: fs.ModeDir, below: map[string]*entry{}}
	err := filepath.WalkDir(l.tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(l.tree, path)
		if err != nil {
			return err
		}
		rel = strings.TrimPrefix(rel, "usr/")
		rel = strings.ReplaceAll(rel, "/x86_64-linux-gnu", "")
		base := filepath.Base(rel)
		if d.IsDir() || strings.HasPrefix(rel, "share/doc/") && (strings.HasPrefix(base, "changelog") || base == "copyright" || strings.HasPrefix(base, "NEWS")) {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		at := root
		for dir := range strings.SplitSeq(filepath.Dir(rel), "/") {
			if dir == "." {
				continue
			}
			if at.below[dir] == nil || !at.below[dir].mode.IsDir() {
				at.below[dir] = &entry{mode: fs.ModeDir, below: map[string]*entry{}}
			}
			at = at.below[dir]
		}
		if at.below[base] == nil {
			at.below[base] = &entry{path: path, mode: info.Mode()}
		}
		return nil
	})
	return root, err
}

func (l *layout) dump(w io.Writer, e *entry) error {
	words(w, "(", "type")
	switch {
	case e.mode.IsDir():
		words(w, "directory")
		var names []string
		for name := range e.below {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			words(w, "entry", "(", "name", name, "node")
			if err := l.dump(w, e.below[name]); err != nil {
				return err
			}
			words(w, ")")
		}
	case e.mode&fs.ModeSymlink != 0:
		target, err := os.Readlink(e.path)
		if err != nil {
			return err
		}
		if strings.HasPrefix(target, "/") {
			target = l.store(l.name) + strings.TrimPrefix(target, "/usr")
		}
		words(w, "symlink", "target", target)
	default:
		words(w, "regular")
		if e.mode&0o111 != 0 {
			words(w, "executable", "")
		}
		b, err := os.ReadFile(e.path)
		if err != nil {
			return err
		}
		words(w, "contents", string(l.convert(e.path, b)))
	}
	words(w, ")")
	return nil
}

func words(w io.Writer, list ...string) {
	for _, s := range list {
		_, _ = w.Write(nix.AppendNARString(nil, s)) // a bufio.Writer keeps its error
	}
}

var (
	inUsr   = regexp.MustCompile(`/usr/(?:local/)?(bin|sbin|lib|share|include|libexec|etc)\b`)
	shebang = regexp.MustCompile(`^#! ?(?:/usr)?/bin/(?:env )?([a-z0-9.+-]+)`)
)

const interpreter = "/lib64/ld-linux-x86-64.so.2"

// convert returns the contents of a file as they would be in the store.
func (l *layout) convert(path string, b []byte) []byte {
	switch filepath.Ext(path) {
	case ".gz", ".xz", ".png", ".zst", ".jar", ".ttf":
		return b
	}
	if bytes.HasPrefix(b, []byte(elf.ELFMAG)) {
		b = l.convertELF(b)
	} else if m := shebang.FindSubmatchIndex(b[:min(len(b), 80)]); m != nil {
		program := string(b[m[2]:m[3]])
		b = append([]byte("#!"+l.store(program+"-1.0")+"/bin/"+program), b[m[1]:]...)
	}
	if !bytes.Contains(b, []byte("/usr/")) {
		return b
	}
	return inUsr.ReplaceAll(b, []byte(l.store(l.name)+"/$1"))
}

// convertELF sets build ID and debug link, and inserts an RPATH behind the names of the libraries, and
// the interpreter. Addresses do not shift as a linker would shift them, on either side.
func (l *layout) convertELF(b []byte) []byte {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return b
	}
	b = bytes.Clone(b)
	stamp := func(name string, from, n uint64) {
		s := f.Section(name)
		if s == nil || s.Type == elf.SHT_NOBITS || s.Size < from+n {
			return
		}
		at := b[s.Offset+from : s.Offset+from+n]
		sum := sha256.Sum256(append(bytes.Clone(at), l.seed...))
		copy(at, sum[:])
	}
	stamp(".note.gnu.build-id", 16, 20)
	if s := f.Section(".gnu_debuglink"); s != nil {
		stamp(".gnu_debuglink", s.Size-4, 4)
	}
	libs, _ := f.ImportedLibraries()
	if s := f.Section(".dynstr"); s != nil && len(libs) > 0 && s.Type != elf.SHT_NOBITS {
		paths := []string{l.store(l.name) + "/lib"}
		for _, lib := range libs {
			name, _, _ := strings.Cut(strings.TrimPrefix(lib, "lib"), ".so")
			if path := l.store(name+"-1.2.3") + "/lib"; !slices.Contains(paths, path) {
				paths = append(paths, path)
			}
		}
		b = slices.Insert(b, int(s.Offset+s.Size), append([]byte(strings.Join(paths, ":")), 0)...)
	}
	if i := bytes.Index(b[:min(len(b), 4096)], []byte(interpreter)); i >= 0 {
		b = slices.Replace(b, i, i+len(interpreter), []byte(l.store("glibc-2.40-66")+interpreter)...)
	}
	return b
}
