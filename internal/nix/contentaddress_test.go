package nix

import (
	"encoding/base64"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func path(t testing.TB, base string) StorePath {
	t.Helper()
	p, err := ParseBaseName(base)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestCheckCA: paths that Nix 2.8 computed (nix-store --print-fixed-path, builtins.toFile,
// nix store make-content-addressed).
func TestCheckCA(t *testing.T) {
	const self = "dpk46ifm02jnli54p9aimw5lfns0plb2-self"
	for _, c := range []struct {
		base, ca string
		refs     []string
	}{
		{"7s9z2am75yq73wgn24qpijd5jf44vb5s-f", "fixed:md5:4425hx5d1mc9y39llj4k4nm55i", nil},
		{"3bs8579d8al9m8bqsnjzl011bhn891dw-d", "fixed:r:md5:7badnyvpn83f9pzg77di26k3v1", nil},
		{"pbqmppvgnnyqxagz7bnmwfdfvr3h43f2-f", "fixed:sha1:iwjz551fyw0cxcjgf4l6c879zabd6wpm", nil},
		{"jb2smd8s0iy1n0ynma42h1l2gr3amrbq-d", "fixed:r:sha1:b26vfr7h58bbbkvb0ywr2wli35i9rfnn", nil},
		{"1p9q0bz6f22dyxh4lw8xs08p4201vyq4-f", "fixed:sha256:00xyyr3fi8l6hb839bv3f7yb86yjv7xi1cgh1xnhipym4asvb4aq", nil},
		{"7x25z45vg5paacrx7mzrnsikmvkbx82a-d", "fixed:r:sha256:014znj6hnd349vhlqmvfbl7aa0bawgrhp305jb92g2ahhzkmh6za", nil},
		{"73j0b3a4s7j9abkll8kb61zam2n0cmmn-f", "fixed:sha512:0lrc0dwnvipqviibf7qfm1y492qvjwb1zhkcyi05cndmva1mr5gjcgrnz1x36djmk0sfg8djd2n0qv68vib2jg590mwznar9jcjphp7", nil},
		{"2ic012vj9siqz42dlmdwfizy0d7k0zbn-d", "fixed:r:sha512:1r69v3lg6cil96r3jwiib8ki4pgdqfdcny121rv7yv4hx07pijiwhf2m4dv30kcrhj7gk0z1qy7fli1866sfiaqcw87n055pwwijqqb", nil},
		{"vqpn17r03lqabwk0wksgpbgy620zwfd4-t", "text:sha256:094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic", nil},
		{self, "fixed:r:sha256:0wc49q71hpsyip0xl936g621frlx7cmfmshcprjvshdj7pakbcgk", []string{"az31knmcmkcvqp327ha4d0jxlpimbbi3-dep", self}},
	} {
		p := path(t, c.base)
		var refs []StorePath
		for _, r := range c.refs {
			refs = append(refs, path(t, r))
		}
		if got := CheckCA(c.ca, p, refs); got != c.ca {
			t.Errorf("%s, %s: %q", c.base, c.ca, got)
		}
		checkWrongCAs(t, c.ca, p, refs)
	}
}

// checkWrongCAs changes each part of what a content address stands for.
func checkWrongCAs(t *testing.T, ca string, p StorePath, refs []StorePath) {
	t.Helper()
	at := strings.LastIndex(ca, ":") + 1
	method, algo, digest, _ := parseCA(ca)
	wrong := []string{
		"", "x", ca + "0", ca[:at], ca[1:], " " + ca, ca + " ", "fixed:git:sha1:" + ca[at:],
		ca[:at] + strings.Repeat("0", len(ca)-at), method + "blake3:" + ca[at:], method + ":" + ca[at:], ca[:at] + strings.ToUpper(ca[at:]),
	}
	for _, m := range []string{"text:", "fixed:", "fixed:r:"} {
		if m != method {
			wrong = append(wrong, m+algo+":"+ca[at:])
		}
	}
	for _, w := range wrong {
		if got := CheckCA(w, p, refs); got != "" {
			t.Errorf("%s is taken for the address of %s as %q", w, p, got)
		}
	}
	// Another encoding of the digest is the same address.
	for _, text := range []string{hex.EncodeToString(digest), base64.StdEncoding.EncodeToString(digest)} {
		if got := CheckCA(method+algo+":"+text, p, refs); got != ca {
			t.Errorf("%s: %q", text, got)
		}
	}
	more := SortPaths(append([]StorePath{path(t, "vqpn17r03lqabwk0wksgpbgy620zwfd4-other")}, refs...))
	renamed := path(t, p.Base()+"x")
	if CheckCA(ca, p, more) != "" || CheckCA(ca, renamed, refs) != "" || len(refs) > 0 && CheckCA(ca, p, refs[1:]) != "" {
		t.Errorf("%s: other references or another name", ca)
	}
}

// TestCheckRealCA: content addresses in narinfos of cache.nixos.org, with and without references.
func TestCheckRealCA(t *testing.T) {
	found := 0
	paths, err := filepath.Glob("../../verify/testdata/real-narinfo/*.narinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range paths {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		n, err := ParseNarInfo(text)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if ca, ok := strings.CutPrefix(line, "CA: "); ok {
				found++
				if n.CA+"\n" != ca {
					t.Errorf("%s: %q", file, n.CA)
				}
			}
		}
	}
	if found < 2 {
		t.Errorf("%d content addresses", found)
	}
}

// TestNixCA asks the Nix of this machine.
func TestNixCA(t *testing.T) {
	nixStore, err := exec.LookPath("nix-store")
	if err != nil {
		t.Skip("no nix-store")
	}
	for algo, size := range digestSizes {
		digest := make([]byte, size)
		for i := range digest {
			digest[i] = byte(i * 7)
		}
		text := string(appendNix32(nil, digest))
		for method, args := range map[string][]string{"fixed:": nil, "fixed:r:": {"--recursive"}} {
			args = append(append([]string{"--print-fixed-path"}, args...), algo, text, "name")
			out, err := exec.CommandContext(t.Context(), nixStore, args...).Output()
			if err != nil {
				t.Skipf("nix-store %v: %v", args, err)
			}
			p, err := ParseStorePath(strings.TrimSpace(string(out)))
			if err != nil {
				t.Fatal(err)
			}
			if ca := method + algo + ":" + text; CheckCA(ca, p, nil) != ca {
				t.Errorf("%s: Nix computes %s", ca, p)
			}
		}
	}
}

func FuzzCheckCA(f *testing.F) {
	p := path(f, "vqpn17r03lqabwk0wksgpbgy620zwfd4-t")
	const ca = "text:sha256:094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic"
	f.Add(ca)
	f.Add("fixed:r:sha256:" + strings.Repeat("0", 64))
	f.Add("fixed:md5:")
	f.Fuzz(func(t *testing.T, s string) {
		if got := CheckCA(s, p, nil); got != "" && got != ca {
			t.Errorf("%q is taken for %q", s, got)
		}
	})
}
