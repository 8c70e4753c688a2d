package config

import (
	"fmt"
	"strings"
	"testing"
)

// FuzzSize: what is read is never negative, and is written as something that reads back.
func FuzzSize(f *testing.F) {
	for _, s := range []string{"10GiB", "1.5 GB", "0", "20MB/s", "100Mbit/s", "1152921504606846976", "0.000000001T"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := ParseSize(s); err == nil {
			back, err := ParseSize(FormatSize(n))
			if n < 0 || n > maxSize || err != nil || back != n {
				t.Fatalf("%q is %d, written %q, read %d, %v", s, n, FormatSize(n), back, err)
			}
		}
		if n, err := ParseRate(s); err == nil {
			back, err := ParseRate(FormatSize(n) + "/s")
			if n < 1 || err != nil || back != n {
				t.Fatalf("%q is %d, read %d, %v", s, n, back, err)
			}
		}
	})
}

// FuzzFile: a file is read or refused, and what is read and shown has the same effect.
func FuzzFile(f *testing.F) {
	f.Add("upstream = [\"https://a\"]\ncache-size = \"1GiB\"\n")
	f.Add("listen = \"\"\"\n127.0.0.1:1\"\"\"\n[x]\ny.z = {a = 1}\n")
	f.Add("allow-cidr = [\n  \"10.0.0.0/8\", # x\n  'on-link'\n]\nstate-dir = \"/a\\u0007\"\n")
	f.Add("bootstrap = [\"file:///a\\n\", \"dns:a\", \"/ip6zone/é/ip6/fe80::1/tcp/1\"]\np2p = false\n")
	f.Fuzz(func(t *testing.T, text string) {
		values, lines, err := decode("f", text)
		if err != nil {
			for _, p := range Problems(err) {
				if p.Where == "" || p.Msg == "" {
					t.Fatalf("%+v", p)
				}
			}
			return
		}
		origins := map[string]string{}
		for k := range values {
			if lines[k] < 1 || lines[k] > strings.Count(text, "\n")+1 {
				t.Fatalf("%s is on line %d", k, lines[k])
			}
			origins[k] = fmt.Sprintf("f:%d", lines[k])
		}
		a, err := build(user(), values, origins)
		if err != nil {
			return
		}
		again, _, err := decode("g", a.TOML())
		if err != nil {
			t.Fatalf("%v\n%s", err, a.TOML())
		}
		b, err := build(user(), again, nil)
		if err != nil || len(a.Diff(b)) > 0 {
			t.Fatalf("%v: %q\n%s\n%s", err, a.Diff(b), a.TOML(), b.TOML())
		}
	})
}
