package upstream

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseNetrc(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		host string
		want string // "login password" or "none", with "; error" if there was one
	}{
		"one line":          {"machine h login me password secret", "h", "me secret"},
		"many lines":        {"machine h\n\tlogin me\n\tpassword secret\n", "h", "me secret"},
		"token alone":       {"machine h password secret", "h", " secret"},
		"case":              {"machine Cache.Example.Org password x", "cache.example.org", " x"},
		"first counts":      {"machine h login a password b machine h login c password d", "h", "a b"},
		"second host":       {"machine g login a password b machine h login c password d", "h", "c d"},
		"default":           {"machine g login a password b\ndefault login c password d", "h", "c d"},
		"none":              {"machine g login a password b", "h", "none"},
		"empty":             {"", "h", "none"},
		"comment":           {"# machine h login no password no\nmachine h login a password b # more", "h", "a b"},
		"quoted":            {`machine h login "a b" password "q\"\\\t#"`, "h", "a b q\"\\\t#"},
		"sharp in a word":   {"machine h login a password b#c", "h", "a b#c"},
		"account":           {"machine h login a account x password b", "h", "a b"},
		"macro":             {"macdef init\ncd /\nmachine no\n\nmachine h login a password b", "h", "a b"},
		"macro without end": {"machine h password b\nmacdef x\nfoo", "h", " b"},
		"capitals":          {"MACHINE h Login a PASSWORD b", "h", "a b"},
		"byte order mark":   {"\ufeffmachine h password b", "h", " b"},
		"no value":          {"machine h login", "h", " ; error"},
		"no machine":        {"login a password b", "h", "none; error"},
		"not a keyword":     {"machine h login me password two secret", "h", "me two; error"},
		"other keywords":    {"nonsense\nmachine h protocol https login me password p more", "h", "me p; error"},
		"open quotation":    {`machine h password "secret`, "h", " ; error"},
		"then a quotation":  {"machine h login a password b\nmachine g password \"secret", "h", "a b; error"},
		"across lines":      {"machine h password \"secret\n\"", "h", " ; error"},
		"backslash at end":  {`machine h password "secret\`, "h", " ; error"},
		"too large":         {strings.Repeat("#\n", maxNetrc), "h", "none; error"},
	} {
		n, err := parseNetrc(c.text)
		got := "none"
		if cred := n.find(c.host, true); cred != nil {
			got = cred.login + " " + cred.password
		}
		if err != nil {
			got += "; error"
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("%s: tells a secret: %v", name, err)
			}
		}
		if got != c.want {
			t.Errorf("%s: %q (%v), want %q", name, got, err, c.want)
		}
	}
}

func TestReadNetrc(t *testing.T) {
	if n, err := readNetrc(""); err != nil || n.find("h", true) != nil {
		t.Error(err)
	}
	dir := t.TempDir()
	if _, err := readNetrc(dir); err == nil {
		t.Error("a directory")
	}
	name := filepath.Join(dir, "netrc")
	if err := os.WriteFile(name, []byte("\nbad"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readNetrc(name); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "line 2") {
		t.Error(err)
	}
}

func FuzzNetrc(f *testing.F) {
	f.Add("machine h login me password secret\ndefault password x")
	f.Add("macdef x\n\n# c\n\"q\\\"\"")
	f.Fuzz(func(t *testing.T, text string) {
		n, _ := parseNetrc(text)
		for host, c := range n.hosts {
			if c == nil || host != strings.ToLower(host) {
				t.Errorf("%q: %v", host, c)
			}
		}
	})
}
