package upstream

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
)

// maxNetrc bounds a netrc file. Real ones have a few lines; a wrong path may name anything.
const maxNetrc = 256 << 10

// credential is what a host is told in a Basic Authorization header (RFC 7617). The login
// may be empty: tokens are given as passwords alone.
type credential struct{ login, password string }

// netrc has credentials by host name. Ports and schemes are not told apart, as in curl,
// which Nix reads such files with.
type netrc struct {
	hosts map[string]*credential
	other *credential // "default"
}

// find returns the credential for a host, nil for none; that of "default" only if allowed.
func (n *netrc) find(host string, other bool) *credential {
	if c, ok := n.hosts[strings.ToLower(host)]; ok || !other {
		return c
	}
	return n.other
}

// readNetrc reads a file; "" is an empty one. What it returns can be used whatever the error says, which
// tells lines, never their text.
func readNetrc(path string) (*netrc, error) {
	if path == "" {
		return &netrc{}, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return &netrc{}, fmt.Errorf("netrc: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxNetrc+1))
	if err != nil {
		return &netrc{}, fmt.Errorf("netrc: %w", err)
	}
	n, err := parseNetrc(string(text))
	if err != nil {
		return n, fmt.Errorf("netrc %s: %w", path, err)
	}
	return n, nil
}

var (
	// netrcWord is a comment, a quoted word, a quotation without an end, or a word.
	netrcWord = regexp.MustCompile(`^(?:#[^\n]*|"(?:[^"\\\n]|\\[^\n])*"|(")|[^"\s]\S*)`)
	unquote   = strings.NewReplacer(`\n`, "\n", `\r`, "\r", `\t`, "\t", `\\`, `\`, `\"`, `"`, `\`, "")
)

// parseNetrc reads "machine NAME login NAME password SECRET" and "default ..." in any
// layout. Words may be quoted, with \", \\, \n, \r and \t inside; # begins a comment where
// a word could stand. Of several entries for a host the first counts. account is read and
// macros are skipped. As in curl, capitals in keywords make no difference and other words are left
// out; the error is the first of what was left out, and what was read can be used.
func parseNetrc(text string) (n *netrc, err error) {
	n = &netrc{hosts: map[string]*credential{}}
	if len(text) > maxNetrc {
		return n, fmt.Errorf("more than %d bytes", maxNetrc)
	}
	var at *credential
	var key string // whose value comes next
	text = strings.TrimPrefix(text, "\ufeff")
	for rest := strings.TrimSpace(text); rest != ""; rest = strings.TrimSpace(rest) {
		bad := func(what string) {
			if err == nil {
				err = fmt.Errorf("line %d: %s", 1+strings.Count(text[:strings.LastIndex(text, rest)], "\n"), what)
			}
		}
		found := netrcWord.FindStringSubmatch(rest)
		if found[1] != "" {
			bad("quotation without an end")
			return n, err
		}
		word := found[0]
		switch keyword := strings.ToLower(word); {
		case word[0] == '#':
		case key != "":
			value := word
			if word[0] == '"' {
				value = unquote.Replace(word[1 : len(word)-1])
			}
			switch {
			case key == "machine":
				at = n.machine(value)
			case at == nil:
				bad(key + " before any machine")
			case key == "login":
				at.login = value
			case key == "password":
				at.password = value
			}
			key = ""
		case keyword == "default":
			at = &credential{}
			if n.other == nil {
				n.other = at
			}
		case keyword == "macdef": // to the next empty line
			_, rest, _ = strings.Cut(rest, "\n\n")
			continue
		case keyword == "machine", keyword == "login", keyword == "password", keyword == "account":
			key = keyword
		default:
			bad("not a keyword")
		}
		rest = rest[len(word):]
	}
	if key != "" && err == nil {
		err = fmt.Errorf("%s without a value", key)
	}
	return n, err
}

// machine returns the credential of an entry that begins, which counts if it is the first one of its host.
func (n *netrc) machine(host string) *credential {
	c := &credential{}
	if host = strings.ToLower(host); n.hosts[host] == nil {
		n.hosts[host] = c
	}
	return c
}
