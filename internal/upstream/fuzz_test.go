package upstream

import (
	"strings"
	"testing"
)

// FuzzLocate: no URL line leads to a lesser scheme or out of a directory's own URL space.
func FuzzLocate(f *testing.F) {
	for _, s := range []string{"nar/x.nar.xz", "/a", "../../x", "http://h/x", "//h/x", "file:///etc/passwd", "?a", "#b", "\x00", "a:b", "http:///x"} {
		f.Add(s)
	}
	u, err := New(Config{URLs: []string{"http://h.example/base", "https://h.example/base/", "file:///srv/cache"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, m := range u.mirrors {
			to, err := m.locate(text)
			if err != nil {
				continue
			}
			from := m.base.Scheme
			good := to.Scheme == schemeHTTPS || to.Scheme == schemeHTTP && from == schemeHTTP
			if from == schemeFile {
				good = to.Scheme == schemeFile && to.Host == "" && strings.HasPrefix(to.Path, "/srv/cache/")
			} else if to.Host == "" || to.Fragment != "" {
				good = false
			}
			if !good {
				t.Errorf("%s: %q leads to %s", m.name, text, to)
			}
		}
	})
}
