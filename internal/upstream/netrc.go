package upstream

import (
	"errors"
	"fmt"
	"io"
	"os"
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
	if n == nil {
		return nil
	}
	if c, ok := n.hosts[strings.ToLower(host)]; ok || !other {
		return c
	}
	return n.other
}

// readNetrc reads a file; nil for no file. The errors tell lines, never their text.
func readNetrc(path string) (*netrc, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("netrc: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxNetrc+1))
	if err != nil {
		return nil, fmt.Errorf("netrc: %w", err)
	}
	n, err := parseNetrc(string(text))
	if err != nil {
		return nil, fmt.Errorf("netrc %s: %w", path, err)
	}
	return n, nil
}

// parseNetrc reads "machine NAME login NAME password SECRET" and "default ..." in any
// layout. Words may be quoted, with \", \\, \n, \r and \t inside; # begins a comment where
// a word could stand. Of several entries for a host the first counts. account is read
// and macros are skipped.
func parseNetrc(text string) (*netrc, error) {
	if len(text) > maxNetrc {
		return nil, fmt.Errorf("more than %d bytes", maxNetrc)
	}
	n := &netrc{hosts: map[string]*credential{}}
	var at *credential
	s := scanner{text: text, line: 1}
	for {
		word, ok, err := s.word()
		if err != nil || !ok {
			return n, err
		}
		switch word {
		case "default":
			at = &credential{}
			if n.other == nil {
				n.other = at
			}
			continue
		case "macdef":
			s.skipMacro()
			continue
		case "machine", "login", "password", "account":
		default:
			return nil, fmt.Errorf("line %d: not a keyword", s.line)
		}
		value, ok, err := s.word()
		switch {
		case err != nil:
			return nil, err
		case !ok:
			return nil, fmt.Errorf("line %d: %s without a value", s.line, word)
		case word == "machine":
			at = &credential{}
			if host := strings.ToLower(value); n.hosts[host] == nil {
				n.hosts[host] = at
			}
		case at == nil:
			return nil, fmt.Errorf("line %d: %s before any machine", s.line, word)
		case word == "login":
			at.login = value
		case word == "password":
			at.password = value
		}
	}
}

// scanner splits a netrc file into words.
type scanner struct {
	text string
	line int
}

var errQuote = errors.New("quotation without an end")

// skip drops the first n bytes.
func (s *scanner) skip(n int) {
	s.line += strings.Count(s.text[:n], "\n")
	s.text = s.text[n:]
}

// before returns how many bytes there are before one of these.
func (s *scanner) before(chars string) int {
	if n := strings.IndexAny(s.text, chars); n >= 0 {
		return n
	}
	return len(s.text)
}

// word returns the next word; not ok at the end.
func (s *scanner) word() (word string, ok bool, err error) {
	for {
		s.skip(len(s.text) - len(strings.TrimLeft(s.text, " \t\r\n")))
		switch {
		case s.text == "":
			return "", false, nil
		case s.text[0] == '#':
			s.skip(s.before("\n"))
		case s.text[0] == '"':
			return s.quoted()
		default:
			n := s.before(" \t\r\n")
			word = s.text[:n]
			s.skip(n)
			return word, true, nil
		}
	}
}

func (s *scanner) quoted() (string, bool, error) {
	var b strings.Builder
	for i := 1; i < len(s.text) && s.text[i] != '\n'; i++ {
		switch c := s.text[i]; {
		case c == '"':
			s.skip(i + 1)
			return b.String(), true, nil
		case c != '\\':
			b.WriteByte(c)
		case i+1 < len(s.text):
			i++
			b.WriteString(strings.NewReplacer("n", "\n", "r", "\r", "t", "\t").Replace(s.text[i : i+1]))
		}
	}
	return "", false, fmt.Errorf("line %d: %w", s.line, errQuote)
}

// skipMacro skips to the next empty line.
func (s *scanner) skipMacro() {
	body, _, _ := strings.Cut(s.text, "\n\n")
	s.skip(min(len(body)+2, len(s.text)))
}
