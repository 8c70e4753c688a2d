package nixconf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// A ManagedError is a file that lies in the Nix store: NixOS, nix-darwin or home-manager make
// it, and would make it anew.
type ManagedError struct{ File, Target string }

func (e *ManagedError) Error() string {
	return fmt.Sprintf("%s is made by NixOS, nix-darwin or home-manager (it is %s) and cannot be changed by hand", e.File, e.Target)
}

// ErrMeanwhile is a file that somebody else changed between reading and writing it.
var ErrMeanwhile = errors.New("changed meanwhile by somebody else")

// resolve follows links: the bytes are replaced where they lie, the links stay.
func resolve(name, storeDir string) (string, error) {
	name, err := filepath.Abs(name)
	if err != nil {
		return "", err
	}
	file := name
	for range maxIncludes {
		if inside(file, storeDir) {
			return "", &ManagedError{name, file}
		}
		target, err := os.Readlink(file)
		if err != nil {
			break
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(file), target)
		}
		file = target
	}
	real, err := filepath.EvalSymlinks(name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && file != name:
		return "", fmt.Errorf("%s is a link to %s, which is not there", name, file)
	case errors.Is(err, fs.ErrNotExist):
		if dir, err := filepath.EvalSymlinks(filepath.Dir(name)); err == nil && inside(dir, storeDir) {
			return "", &ManagedError{name, dir}
		}
		return name, nil
	case err != nil:
		return "", err
	case inside(real, storeDir):
		return "", &ManagedError{name, real}
	}
	return real, nil
}

func inside(file, dir string) bool { return strings.HasPrefix(file, strings.TrimRight(dir, "/")+"/") }

// Make makes the change. The file is either the old one or the new one at every moment, and what
// it held before is in the backup.
func (p *Plan) Make() error {
	if p.Nothing() {
		return nil
	}
	if err := p.make(); err != nil {
		return fmt.Errorf("change %s: %w", p.File, err)
	}
	return nil
}

func (p *Plan) make() error {
	dir := filepath.Dir(p.File)
	if p.mkdir {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if p.remove {
		return p.removeFile(dir)
	}
	if p.before != nil {
		if err := p.backUp(); err != nil {
			return fmt.Errorf("backup: %w", err)
		}
	}
	if err := p.replace(dir); err != nil {
		return err
	}
	if p.dropBackup {
		return os.Remove(p.Backup)
	}
	return nil
}

func (p *Plan) removeFile(dir string) error {
	if err := p.unchanged(); err != nil {
		return err
	}
	if err := os.Remove(p.File); err != nil {
		return err
	}
	if p.removeDir {
		_ = os.Remove(dir) // something else may be in it by now
	}
	return nil
}

// unchanged makes sure that the plan is about the file that is there.
func (p *Plan) unchanged() error {
	now, err := readFile(p.File)
	switch {
	case p.was == nil && errors.Is(err, fs.ErrNotExist):
		return nil
	case p.was == nil && err == nil, err == nil && string(now) != string(p.old):
		return fmt.Errorf("%s: %w", p.File, ErrMeanwhile)
	}
	return err
}

// replace writes a new file beside the old one and puts it into its place.
func (p *Plan) replace(dir string) error {
	f, err := os.CreateTemp(dir, "."+filepath.Base(p.File)+".nixp2p-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // in vain once it has its new name
	if err := errors.Join(p.fill(f, p.new), f.Close()); err != nil {
		return err
	}
	if err := p.unchanged(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), p.File); err != nil {
		return err
	}
	return syncDir(dir)
}

// fill writes text into a new file and gives it the mode and owner of the old one: nix.conf may
// hold access tokens.
func (p *Plan) fill(f *os.File, text []byte) error {
	mode := fs.FileMode(0o644)
	if p.was != nil {
		mode = p.was.Mode().Perm()
		if st, ok := p.was.Sys().(*syscall.Stat_t); ok {
			if err := p.own(f, st); err != nil {
				return err
			}
		}
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if _, err := f.Write(text); err != nil {
		return err
	}
	return f.Sync()
}

func (p *Plan) own(f *os.File, was *syscall.Stat_t) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if now, ok := info.Sys().(*syscall.Stat_t); ok && now.Uid == was.Uid && now.Gid == was.Gid {
		return nil
	}
	return f.Chown(int(was.Uid), int(was.Gid))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		err = nil // some file systems cannot
	}
	return errors.Join(err, d.Close())
}

// backupSuffix names the file with the text from before.
const backupSuffix = ".before-nixp2p"

// maxBackups bounds how many are made: each is left behind by somebody who took the change out
// by hand.
const maxBackups = 100

// freeBackup returns the name of a backup that is free, or holds the very text.
func (p *Plan) freeBackup() (string, error) {
	name := filepath.Base(p.File) + backupSuffix
	for i := 2; i <= maxBackups; i++ {
		text, err := readFile(filepath.Join(filepath.Dir(p.File), name))
		if errors.Is(err, fs.ErrNotExist) || err == nil && string(text) == string(p.old) {
			return name, nil
		}
		name = filepath.Base(p.File) + backupSuffix + "-" + strconv.Itoa(i)
	}
	return "", fmt.Errorf("%s%s and %d more backups are there already: remove what is not needed", p.File, backupSuffix, maxBackups-2)
}

// backUp writes the backup. One from an earlier setup that is in force stays: it is older.
func (p *Plan) backUp() error {
	f, err := os.OpenFile(p.Backup, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := errors.Join(p.fill(f, p.before), f.Close()); err != nil {
		return errors.Join(err, os.Remove(p.Backup))
	}
	return nil
}
