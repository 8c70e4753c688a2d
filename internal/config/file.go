package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// DefaultFile is read if it exists and --config names no other.
const DefaultFile = "/etc/nixp2p/config.toml"

// maxFile is far above any real configuration, and keeps a wrong path (a device, a NAR)
// from being read into memory.
const maxFile = 1 << 20

// readFile reads the values of a file. A file that is not TOML has none.
func readFile(name string) (values map[string][]string, lines map[string]int, err error) {
	var text []byte
	f, err := os.Open(name)
	if err == nil {
		defer f.Close()
		text, err = io.ReadAll(io.LimitReader(f, maxFile+1))
	}
	var pe *fs.PathError
	switch {
	case errors.Is(err, fs.ErrPermission):
		err = wrong("let the user of the service read it", "%v", fs.ErrPermission)
	case errors.As(err, &pe):
		err = pe.Err // without the name again
	case len(text) > maxFile:
		err = wrong("name a configuration file", "is larger than 1 MiB")
	}
	if err != nil {
		return nil, nil, problem(name, "", err)
	}
	return decode(name, string(text))
}

// decode reads TOML text into the values of options. Where some are wrong the others are
// returned all the same.
func decode(name, text string) (values map[string][]string, lines map[string]int, err error) {
	var all map[string]any
	if _, err := toml.Decode(text, &all); err != nil {
		p := &Problem{Where: name, Msg: err.Error()}
		if pe := (toml.ParseError{}); errors.As(err, &pe) {
			p.Where = fmt.Sprintf("%s:%d", name, pe.Position.Line)
			p.Msg = pe.Message
			if p.Msg == "" {
				p.Msg = strings.TrimPrefix(pe.Error(), "toml: ")
			}
			p.Help = "lines look like: key = \"value\", key = [\"a\", \"b\"]"
		}
		return nil, nil, p
	}
	lines = keyLines(text)
	values = map[string][]string{}
	bad := map[int]error{} // by line
	for key, v := range all {
		where := fmt.Sprintf("%s:%d", name, lines[key])
		list, err := []string(nil), wrong(suggest(key, v), "no such key")
		if o := find(key); o != nil {
			list, err = texts(o, v)
		}
		if err == nil {
			values[key] = list
		} else {
			bad[lines[key]] = problem(where, key, err)
		}
	}
	var errs []error
	for _, n := range slices.Sorted(maps.Keys(bad)) {
		errs = append(errs, bad[n])
	}
	return values, lines, errors.Join(errs...)
}

// texts brings a TOML value into the form in which flags give it.
func texts(o *option, v any) ([]string, error) {
	switch v := v.(type) {
	case string:
		if o.kind == text || o.kind == size {
			return []string{v}, nil
		}
	case bool:
		if o.kind == truth {
			return []string{strconv.FormatBool(v)}, nil
		}
	case int64:
		if o.kind == number || o.kind == size {
			return []string{strconv.FormatInt(v, 10)}, nil
		}
	case []any:
		if o.kind != list {
			break
		}
		all := []string{}
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, wrong("put each element into quotes", "%v in the list is not a string", e)
			}
			all = append(all, s)
		}
		return all, nil
	}
	want := map[kind]string{
		text: `a string, such as "x"`, truth: "true or false", number: "a whole number", size: `a size, such as "10GiB"`,
		list: `a list of strings, such as ["a", "b"]`,
	}[o.kind]
	return nil, wrong("", "is not %s", want)
}

func find(name string) *option {
	for i := range options {
		if options[i].name == name {
			return &options[i]
		}
	}
	return nil
}

// suggest names the key that was probably meant.
func suggest(key string, v any) string {
	if _, table := v.(map[string]any); table {
		return "there are no tables: all keys stand at the top"
	}
	best, dist := "", math.MaxInt
	for _, o := range options {
		if d := distance(strings.NewReplacer("_", "-").Replace(strings.ToLower(key)), o.name); d < dist {
			best, dist = o.name, d
		}
	}
	if dist > 1+len(best)/4 {
		return "nixp2p config show prints all keys"
	}
	return "did you mean " + best + "?"
}

// distance counts the letters to change, add or remove to make b of a. Only short keys
// are compared: the cost is the product of the lengths.
func distance(a, b string) int {
	if len(a) > 64 {
		return math.MaxInt
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := corner
			if a[i] != b[j] {
				d++
			}
			corner = row[j+1]
			row[j+1] = min(d, corner+1, row[j]+1)
		}
	}
	return row[len(b)]
}

// keyLines tells on which line each top-level key of a valid text begins. The parser does
// not say, so the text is cut into the shortest pieces that are TOML by themselves: since
// keys are flat, each piece has one.
func keyLines(text string) map[string]int {
	at := map[string]int{}
	start := 1
	var piece strings.Builder
	n := 0
	for line := range strings.Lines(text) {
		n++
		piece.WriteString(line)
		// A value of many lines ends with a bracket or quotes; trying only there keeps a
		// list of thousands from being read thousands of times.
		if n > start && !strings.ContainsAny(line, `]}"'`) {
			continue
		}
		var m map[string]any
		if _, err := toml.Decode(piece.String(), &m); err != nil {
			continue
		}
		for k := range m {
			if _, ok := at[k]; !ok {
				at[k] = start
			}
		}
		start = n + 1
		piece.Reset()
	}
	return at
}
