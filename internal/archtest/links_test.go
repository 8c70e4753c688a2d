package archtest

import (
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// TestLinks: who follows a link of a document arrives.
func TestLinks(t *testing.T) {
	tree := os.DirFS(root)
	docs, err := documents(tree)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"README.md", "ARCHITECTURE.md", "docs/how-it-works.md"} {
		if docs[name] == "" {
			t.Errorf("%s was not looked at", name)
		}
	}
	followed, bad := checkLinks(tree, docs)
	report(t, bad)
	if followed < 30 {
		t.Errorf("only %d links found", followed)
	}
	t.Logf("%d links in %d documents", followed, len(docs))
}

// TestDocsReachable: every page of docs/ can be reached from the README by following links.
func TestDocsReachable(t *testing.T) {
	docs, err := documents(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	report(t, unreachable(docs, "README.md", "docs/"))
}

func TestLinkRules(t *testing.T) {
	const good = "# A, b & `c`!\n\n## Twice\n## Twice\n\n[x](d/b.md) [y](d/b.md#in-b) ![p](p.svg \"t\") [z](#a-b--c) [z](#twice-1) [w](https://x.invalid/#y)\n" +
		"<img src=\"p.svg\"> <a id=\"own\"></a>[o](#own)\n[ref]: d/b.md\n`[no](gone.md)` <!-- [no](gone.md) -->\n\n```\n[no](gone.md)\n```\n"
	tree := func(a string) fstest.MapFS {
		return fstest.MapFS{
			"a.md": {Data: []byte(a)}, "d/b.md": {Data: []byte("## In b\n[up](../a.md)\n")}, "p.svg": {},
			".hidden/x.md": {Data: []byte("[no](gone.md)")}, "x/testdata/x.md": {Data: []byte("[no](gone.md)")},
		}
	}
	check := func(a string) (int, []string) {
		fsys := tree(a)
		docs, err := documents(fsys)
		if err != nil || len(docs) != 2 {
			t.Fatalf("%v, %d documents", err, len(docs))
		}
		return checkLinks(fsys, docs)
	}
	if n, bad := check(good); n != 9 || len(bad) > 0 {
		t.Errorf("followed %d: %q", n, bad)
	}
	for _, c := range [][2]string{
		{"[x](gone.md)", "a.md: gone.md: no such file"},
		{"![x](d/p.svg)", "a.md: d/p.svg: no such file"},
		{"[x](d/b.md#in-c)", "a.md: d/b.md#in-c: no such heading"},
		{"[x](#twice-2)\n# Twice\n# Twice", "a.md: #twice-2: no such heading"},
		{"[x](p.svg#in)", "a.md: p.svg#in: only documents have places"},
		{"[x](../a.md)", "a.md: ../a.md: leaves the repository"},
		{"[x](/a.md)", "a.md: /a.md: leaves the repository"},
		{"<img srcset=\"gone.svg\">", "a.md: gone.svg: no such file"},
		{"[ref]: gone.md", "a.md: gone.md: no such file"},
	} {
		if _, bad := check(c[0]); !slices.Equal(bad, []string{c[1]}) {
			t.Errorf("%s: %q, want %q", c[0], bad, c[1])
		}
	}

	docs := map[string]string{"README.md": "[x](docs/a.md#y)", "docs/a.md": "[x](b.md)", "docs/b.md": "", "docs/c.md": "[x](a.md)", "d.md": ""}
	if bad := unreachable(docs, "README.md", "docs/"); len(bad) != 1 || !strings.HasPrefix(bad[0], "docs/c.md") {
		t.Errorf("unreachable: %q", bad)
	}
}
