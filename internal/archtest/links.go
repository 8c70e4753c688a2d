package archtest

import (
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// documents returns every Markdown text below root by its name, but for those of hidden
// directories, of tests and of what was built.
func documents(root fs.FS) (map[string]string, error) {
	docs := map[string]string{}
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		base := path.Base(name)
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (base == "testdata" || base == "node_modules" || name == "dist" || base[0] == '.'):
			return fs.SkipDir
		case d.IsDir() || path.Ext(name) != ".md":
			return nil
		}
		text, err := fs.ReadFile(root, name)
		docs[name] = string(text)
		return err
	})
	return docs, err
}

var (
	remark   = regexp.MustCompile(`(?s)<!--.*?-->`)
	fence    = regexp.MustCompile("(?ms)^ *```.*?^ *```")
	codeSpan = regexp.MustCompile("`[^`\n]*`")
	// link finds [text](target), ![picture](target), [name]: target, and src= and href= of HTML.
	link    = regexp.MustCompile(`\]\(<?([^()\s>]+)>?(?:\s+"[^"]*")?\)|(?m:^\[[^\]^]+\]:\s+(\S+))|(?:src|srcset|href)="([^"\s]+)`)
	heading = regexp.MustCompile(`(?m)^#{1,6} +(.+?) *#*$`)
	anchor  = regexp.MustCompile(`<[a-z]+ [^>]*(?:id|name)="([^"]+)"`)
	scheme  = regexp.MustCompile(`^(?:https?://|mailto:)`)
)

// links returns the targets of a document's links and pictures. What stands in a comment or
// in code is none.
func links(text string) (targets []string) {
	text = codeSpan.ReplaceAllString(fence.ReplaceAllString(remark.ReplaceAllString(text, ""), ""), "")
	for _, m := range link.FindAllStringSubmatch(text, -1) {
		targets = append(targets, m[1]+m[2]+m[3])
	}
	return targets
}

// anchors returns the names of the places in a document, as GitHub makes them of headings.
func anchors(text string) map[string]bool {
	text = fence.ReplaceAllString(remark.ReplaceAllString(text, ""), "")
	names := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(text, -1) {
		name := slug(m[1])
		for n, base := 1, name; names[name]; n++ {
			name = fmt.Sprintf("%s-%d", base, n)
		}
		names[name] = true
	}
	for _, m := range anchor.FindAllStringSubmatch(text, -1) {
		names[m[1]] = true
	}
	return names
}

var linkText = regexp.MustCompile(`!?\[([^\]]*)\]\([^)]*\)`)

// slug is the name of a heading: lower case, punctuation gone, spaces made hyphens.
func slug(title string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(linkText.ReplaceAllString(title, "$1")) {
		switch {
		case r == ' ':
			b.WriteByte('-')
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			b.WriteRune(r)
		}
	}
	return b.String()
}

// checkLinks complains about links inside the repository that lead nowhere. It returns how
// many it followed, so that a pattern that finds none is noticed.
func checkLinks(root fs.FS, docs map[string]string) (followed int, bad []string) {
	for name, text := range docs {
		for _, target := range links(text) {
			if scheme.MatchString(target) {
				continue
			}
			followed++
			if why := follow(root, docs, name, target); why != "" {
				bad = append(bad, fmt.Sprintf("%s: %s: %s", name, target, why))
			}
		}
	}
	return followed, bad
}

// follow says why a link from the document name leads nowhere, or "".
func follow(root fs.FS, docs map[string]string, name, target string) string {
	file, place, hasPlace := strings.Cut(target, "#")
	to := name
	if file != "" {
		to = path.Join(path.Dir(name), file)
	}
	if strings.HasPrefix(file, "/") || to == ".." || strings.HasPrefix(to, "../") {
		return "leaves the repository"
	}
	if _, err := fs.Stat(root, to); err != nil {
		return "no such file"
	}
	switch text, isDoc := docs[to]; {
	case !hasPlace:
		return ""
	case !isDoc:
		return "only documents have places"
	case !anchors(text)[place]:
		return "no such heading"
	}
	return ""
}

// unreachable complains about documents below dir to which no chain of links leads.
func unreachable(docs map[string]string, from, dir string) (bad []string) {
	seen, queue := map[string]bool{from: true}, []string{from}
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		for _, target := range links(docs[name]) {
			file, _, _ := strings.Cut(target, "#")
			to := path.Join(path.Dir(name), file)
			if _, ok := docs[to]; ok && !seen[to] {
				seen[to], queue = true, append(queue, to)
			}
		}
	}
	for name := range docs {
		if strings.HasPrefix(name, dir) && !seen[name] {
			bad = append(bad, name+": no link leads there from "+from)
		}
	}
	slices.Sort(bad)
	return bad
}
