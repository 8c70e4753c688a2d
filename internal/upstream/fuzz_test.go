package upstream

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseContentRange(t *testing.T) {
	for text, want := range map[string]string{
		"bytes 0-499/1234":                 "0 1234 true",
		"bytes 5-5/6":                      "5 6 true",
		"bytes 7-9/*":                      "7 -1 true",
		"bytes 7-9/9":                      "0 0 false",
		"bytes 9-7/10":                     "0 0 false",
		"bytes */10":                       "0 0 false",
		"bytes -5-9/10":                    "0 0 false",
		"bytes 0-9/-1":                     "0 0 false",
		"bytes 0-9":                        "0 0 false",
		"octets 0-9/10":                    "0 0 false",
		"bytes 0-9/10,20-29/40":            "0 0 false",
		"":                                 "0 0 false",
		"bytes 0-9/9999999999999999999999": "0 0 false",
	} {
		first, whole, ok := parseContentRange(text)
		if !ok {
			first, whole = 0, 0
		}
		if got := fmt.Sprint(first, whole, ok); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 0-499/1234")
	f.Add("bytes 7-9/*")
	f.Fuzz(func(t *testing.T, text string) {
		first, whole, ok := parseContentRange(text)
		if ok && (first < 0 || whole >= 0 && first >= whole || whole < -1) {
			t.Errorf("%q: %d of %d", text, first, whole)
		}
	})
}

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
