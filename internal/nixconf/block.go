package nixconf

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// What is added stands in a block of its own that carries all that is needed to take it out
// again, also when the backup is gone or other lines of the file have changed meanwhile.
const (
	beginLine = "# nixp2p setup: begin. `nixp2p setup --undo` takes this block out; change nothing in it."
	endLine   = "# nixp2p setup: end"
	beginMark = "# nixp2p setup: begin"
	metaMark  = "# nixp2p setup: {"
)

// mark is what the block says about itself.
type mark struct {
	URL     string `json:"url"`
	Edited  bool   `json:"edited,omitempty"`  // the URL was put into a line outside of the block
	Joined  bool   `json:"joined,omitempty"`  // the line before the block had no end
	Created bool   `json:"created,omitempty"` // there was no file
	Dir     bool   `json:"dir,omitempty"`     // nor its directory
	Backup  string `json:"backup,omitempty"`  // name of the file with the old text, beside this one
	Sum     string `json:"sum"`               // of the lines in the block
}

// sum tells whether lines were changed; it is no protection from anybody.
func sum(lines []string) string {
	h := sha256.New()
	for _, l := range lines {
		fmt.Fprintln(h, strings.TrimRight(l, "\r\n"))
	}
	return hex.EncodeToString(h.Sum(nil)[:4])
}

// block returns the lines of the block, with ends of lines.
func (m mark) block(settings []string, eol string) []string {
	m.Sum = sum(settings)
	text, _ := json.Marshal(m) // strings and booleans
	var lines []string
	for _, l := range slices.Concat([]string{beginLine, "# nixp2p setup: " + string(text)}, settings, []string{endLine}) {
		lines = append(lines, l+eol)
	}
	return lines
}

// A ChangedError is a block that cannot be taken out, since it is not as it was written.
type ChangedError struct {
	File string
	Line int
	Why  string
	// Backup is the file with the text from before, "" if there is none.
	Backup string
}

func (e *ChangedError) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Why) }

// find returns where the block begins and ends (behind its last line), and what it says about
// itself; found is false if there is none.
func find(file string, lines []string) (from, to int, m mark, found bool, err error) {
	changed := func(at int, why string) (int, int, mark, bool, error) {
		return 0, 0, m, false, &ChangedError{File: file, Line: at + 1, Why: why, Backup: m.Backup}
	}
	from, to = -1, -1
	for i, l := range lines {
		l = strings.TrimSpace(l)
		switch {
		case strings.HasPrefix(l, beginMark) && from >= 0:
			return changed(i, "a second block of nixp2p setup begins here")
		case strings.HasPrefix(l, beginMark):
			from = i
		case l == endLine && (from < 0 || to >= 0):
			return changed(i, "a block of nixp2p setup ends that did not begin")
		case l == endLine:
			to = i + 1
		}
	}
	switch {
	case from < 0:
		return 0, 0, m, false, nil
	case to < 0:
		return changed(from, "the end of this block of nixp2p setup is missing")
	case to < from+3 || !strings.HasPrefix(lines[from+1], metaMark):
		return changed(from, "the second line of this block of nixp2p setup is missing")
	}
	if json.Unmarshal([]byte(strings.TrimPrefix(lines[from+1], "# nixp2p setup: ")), &m) != nil || m.URL == "" || m.Backup != "" && filepath.Base(m.Backup) != m.Backup {
		m.Backup = ""
		return changed(from+1, "this line of nixp2p setup was changed")
	}
	if sum(lines[from+2:to-1]) != m.Sum {
		return changed(from+2, "lines of this block of nixp2p setup were changed")
	}
	return from, to, m, true, nil
}

// strip takes the block and the URL that goes with it out.
func strip(file string, lines []string) (_ []string, m mark, found bool, err error) {
	from, to, m, found, err := find(file, lines)
	if !found || err != nil {
		return lines, m, found, err
	}
	last, eol := to == len(lines), "\n"
	if strings.HasSuffix(lines[from], "\r\n") {
		eol = "\r\n"
	}
	lines = slices.Concat(lines[:from], lines[to:])
	if m.Edited {
		lines = withoutURL(lines, m.URL)
	}
	if n := len(lines); m.Joined && last && n > 0 {
		lines[n-1] = strings.TrimSuffix(lines[n-1], eol)
	}
	return lines, m, true, nil
}

// sets tells whether a line sets the list of substituters, and returns its words.
func sets(line string) ([]token, bool) {
	words := split(line)
	if len(words) < 2 || words[1].text != "=" {
		return nil, false
	}
	name, extra := canonical(words[0].text)
	return words, name == "substituters" && !extra
}

// withURL puts the URL before the other values of a line that sets the list.
func withURL(line, url string) string {
	words, _ := sets(line)
	if len(words) > 2 {
		at := words[2].at
		return line[:at] + url + " " + line[at:]
	}
	at := words[1].at + 1
	return line[:at] + " " + url + line[at:]
}

// withoutURL is the reverse of withURL, for the first line in which the URL is found. Where
// somebody took it out already there is nothing to do.
func withoutURL(lines []string, url string) []string {
	for i, line := range lines {
		words, ok := sets(line)
		if !ok {
			continue
		}
		at := slices.IndexFunc(words, func(w token) bool { return w.text == url })
		if at < 2 {
			continue
		}
		lines = slices.Clone(lines)
		from, to := words[at].at, words[at].at+len(url)
		if at+1 < len(words) && line[to] == ' ' {
			to++ // the space that came with it
		} else if line[from-1] == ' ' {
			from--
		}
		lines[i] = line[:from] + line[to:]
		return lines
	}
	return lines
}
