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

// Want is what Nix shall be told.
type Want struct {
	URL string // of the node: http://HOST:PORT
	// Fallback lets Nix go on without a cache that does not answer. A Nix before 2.13 crashes
	// with it when a cache goes away.
	Fallback bool
	// UserFiles are files that add to the machine's one, in which a list may only be added to.
	UserFiles []string
	// StoreDir is where files are not changed; "" means /nix/store.
	StoreDir string
}

// ConnectTimeout in seconds: what a cache that cannot be reached may cost.
const ConnectTimeout = 5

// Plan is a change of a file that has not been made yet.
type Plan struct {
	File   string   // whose bytes change: links are followed
	Edits  []Edit   // what changes, from the top down; empty: nothing
	Notes  []string // what the user should know, a sentence each
	Backup string   // the file with the text from before; "" if there is none

	old, new   []byte
	before     []byte      // what the backup has to hold; nil: there shall be none
	was        fs.FileInfo // nil: there is no file
	mkdir      bool        // nor its directory
	remove     bool        // the file goes away
	removeDir  bool        // and its directory, if nothing else is in it
	dropBackup bool        // the backup is no longer of use
}

// Nothing tells whether the file is already as it should be.
func (p *Plan) Nothing() bool {
	return !p.remove && string(p.old) == string(p.new) && (p.was != nil || len(p.new) == 0)
}

// Removes tells whether the file goes away.
func (p *Plan) Removes() bool { return p.remove }

// NewPlan says what is to be changed in the file name so that Nix asks the node. It refuses a
// file that Nix refuses (*SyntaxError), one that is made by NixOS (*ManagedError), and one
// whose earlier change was changed (*ChangedError).
func NewPlan(name string, want Want) (*Plan, error) {
	name, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	p, err := open(name, want.StoreDir)
	if err != nil {
		return nil, err
	}
	lines, m, again, err := strip(p.File, slices.Collect(strings.Lines(string(p.old))))
	if err != nil {
		return nil, p.located(err)
	}
	if !again {
		m = mark{Created: p.was == nil, Dir: p.mkdir}
		if p.was != nil {
			if m.Backup, err = p.freeBackup(); err != nil {
				return nil, err
			}
		}
	}
	m.URL, m.Edited, m.Joined = want.URL, false, false
	text, err := p.change(name, lines, m, want)
	if err != nil {
		return nil, err
	}
	before := strings.Join(lines, "")
	if m.Backup != "" && text != before {
		p.Backup, p.before = filepath.Join(filepath.Dir(p.File), m.Backup), []byte(before)
	}
	p.new = []byte(text)
	p.Edits = diff(string(p.old), text)
	return p, nil
}

// NewUndo says what is to be changed so that the file is as it was before, other changes that
// were made to it meanwhile aside. It refuses (*ChangedError) where that cannot be told.
func NewUndo(name, storeDir string) (*Plan, error) {
	p, err := open(name, storeDir)
	if err != nil {
		return nil, err
	}
	lines, m, found, err := strip(p.File, slices.Collect(strings.Lines(string(p.old))))
	if err != nil {
		return nil, p.located(err)
	}
	p.mkdir = false
	if !found {
		p.new = p.old
		return p, nil
	}
	p.new = []byte(strings.Join(lines, ""))
	p.Edits = diff(string(p.old), string(p.new))
	if m.Created {
		p.remove, p.removeDir = len(p.new) == 0, m.Dir
		return p, nil
	}
	if m.Backup == "" {
		return p, nil
	}
	p.Backup = filepath.Join(filepath.Dir(p.File), m.Backup)
	before, err := readFile(p.Backup)
	switch {
	case err != nil:
		p.Backup = ""
	case string(before) == string(p.new):
		p.dropBackup = true
	default:
		p.Notes = append(p.Notes, "The file was changed after the setup; those changes stay. What it was before the setup is in "+p.Backup+".")
	}
	return p, nil
}

// open reads the file and finds out what it is.
func open(name, storeDir string) (*Plan, error) {
	if storeDir == "" {
		storeDir = "/nix/store"
	}
	file, err := resolve(name, storeDir)
	if err != nil {
		return nil, err
	}
	p := &Plan{File: file}
	p.was, err = os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		_, err := os.Stat(filepath.Dir(file))
		p.mkdir = errors.Is(err, fs.ErrNotExist)
		return p, nil
	case err != nil:
		return nil, err
	}
	p.old, err = readFile(file)
	return p, err
}

// located makes the name of the backup in a ChangedError one that can be used.
func (p *Plan) located(err error) error {
	var changed *ChangedError
	if errors.As(err, &changed) && changed.Backup != "" {
		changed.Backup = filepath.Join(filepath.Dir(p.File), changed.Backup)
		if _, err := os.Stat(changed.Backup); err != nil {
			changed.Backup = ""
		}
	}
	return err
}

// change returns the text with what is wanted. Three ways lead there:
//
//   - where the file itself says last what the list is, the URL goes in front in that line;
//   - where nobody says it, the machine's file does now, at its top, so that what the file
//     adds to the list below stays added;
//   - where an included file says it last, or the file only adds to the machine's own, the
//     URL is added at the end: naming the list here would freeze what the other file says.
//
// The order in the list only breaks ties: Nix goes by the priorities that caches give.
func (p *Plan) change(name string, lines []string, m mark, want Want) (string, error) {
	text := strings.Join(lines, "")
	all, err := flatten(name, text, 0)
	if err != nil {
		return "", err
	}
	p.alone(name, all, want)
	p.others(name, text)
	before := fileSettings(name, all, want)
	var settings []string
	top := false
	if last := lastList(all); !before.Uses(want.URL) {
		switch {
		case last != nil && last.file == name:
			lines = slices.Clone(lines)
			lines[last.line-1] = withURL(lines[last.line-1], want.URL)
			m.Edited = true
		case last == nil && !adds(name, want):
			settings, top = append(settings, "substituters = "+want.URL+" "+DefaultSubstituter), true
		default:
			settings = append(settings, "extra-substituters = "+want.URL)
			p.Notes = append(p.Notes, "The URL stands last in the list: what other files say stays theirs. Nix goes by the priorities of the caches, not by this order.")
		}
	}
	settings = append(settings, p.bounds(all, want)...)
	if len(settings) == 0 && !m.Edited {
		return text, nil
	}
	text = m.insert(lines, settings, top)
	after, err := flatten(name, text, 0)
	if err != nil {
		return "", err
	}
	return text, p.check(before, fileSettings(name, after, want), want.URL)
}

// insert puts the block at the top or the end.
func (m mark) insert(lines, settings []string, top bool) string {
	eol := "\n"
	if len(lines) > 0 && strings.HasSuffix(lines[0], "\r\n") {
		eol = "\r\n"
	}
	if n := len(lines); !top && n > 0 && !strings.HasSuffix(lines[n-1], "\n") {
		lines = slices.Clone(lines)
		lines[n-1] += eol
		m.Joined = true
	}
	block := m.block(settings, eol)
	if top {
		return strings.Join(block, "") + strings.Join(lines, "")
	}
	return strings.Join(lines, "") + strings.Join(block, "")
}

// bounds are the settings that bound what a cache costs that does not answer. What somebody
// set stays.
func (p *Plan) bounds(all []statement, want Want) (settings []string) {
	has := func(name string) bool {
		return slices.ContainsFunc(all, func(s statement) bool { return s.name == name })
	}
	if !has("connect-timeout") {
		settings = append(settings, fmt.Sprintf("connect-timeout = %d", ConnectTimeout))
	}
	if want.Fallback && !has("fallback") {
		settings = append(settings, "fallback = true")
	}
	return settings
}

// check makes sure that nothing is lost, whatever the file looks like: without the URL the list
// is what it was.
func (p *Plan) check(before, after Settings, url string) error {
	rest := slices.DeleteFunc(slices.Clone(after.Substituters), func(u string) bool { return u == url })
	was := slices.DeleteFunc(slices.Clone(before.Substituters), func(u string) bool { return u == url })
	if !after.Uses(url) || !slices.Equal(rest, was) {
		return fmt.Errorf("%s: the list of substituters would become %q from %q: this file has to be changed by hand", p.File, after.Substituters, before.Substituters)
	}
	return nil
}

// customFile is what the nix.conf of Determinate Nix includes for users' own settings.
const customFile = "nix.custom.conf"

// others says it when the file is another program's, which may write it anew.
func (p *Plan) others(name, text string) {
	own, _ := parse(name, text) // read before
	for _, s := range own {
		if filepath.Base(s.include) == customFile {
			p.Notes = append(p.Notes, "This file looks like one that Determinate Nix writes anew; the one for changes is "+s.include+": name it with --nix-conf.")
		}
	}
}

// alone says it when the node would be the only cache.
func (p *Plan) alone(name string, all []statement, want Want) {
	s := fileSettings(name, all, want)
	others := slices.DeleteFunc(slices.Clone(s.Substituters), func(u string) bool { return SameCache(u, want.URL) })
	if len(others) == 0 && (lastList(all) != nil || !adds(name, want)) {
		p.Notes = append(p.Notes, "There is no other cache in the list: while the node is stopped nothing can be substituted. "+DefaultSubstituter+" should be there, too.")
	}
}

// fileSettings are the settings that the file makes, of the defaults if it is the machine's.
func fileSettings(name string, all []statement, want Want) Settings {
	s := Defaults()
	if adds(name, want) {
		s.Substituters = nil
	}
	s.apply(all)
	return s
}

// adds tells whether the file is not the machine's own but adds to it: a user's file, or one that
// is included under another name.
func adds(name string, want Want) bool {
	return filepath.Base(name) != "nix.conf" || slices.Contains(want.UserFiles, name)
}

// lastList returns the statement that last set the list of substituters anew.
func lastList(all []statement) *statement {
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].name == "substituters" && !all[i].extra {
			return &all[i]
		}
	}
	return nil
}
