package manual

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// program has every kind of command and text that the page has to hold.
func program() *cobra.Command {
	run := func(*cobra.Command, []string) error { return nil }
	root := &cobra.Command{Use: "prog", Short: "does one thing", Long: "First line.\n\n.starts like a request\n'so does this, with \\backslash"}
	serve := &cobra.Command{Use: "serve", Short: "run it", RunE: run}
	serve.Flags().String("listen", "127.0.0.1:1", "where it `ADDR`esses")
	serve.Flags().Bool("p2p", true, "peers")
	show := &cobra.Command{Use: "show", Short: "show it", RunE: run}
	show.Flags().String("listen", "127.0.0.1:1", "where it `ADDR`esses")
	show.Flags().Bool("p2p", true, "peers")
	why := &cobra.Command{Use: "why PATH", Short: "say why", Long: "Says why.\n\n  prog why x\n  prog why y", RunE: run}
	why.Flags().Bool("p2p", true, "peers")
	why.Flags().BoolP("json", "j", false, "print JSON")
	hidden := &cobra.Command{Use: "hidden", Short: "is not there", Hidden: true, RunE: run}
	group := &cobra.Command{Use: "config", Short: "show or check"}
	group.AddCommand(show)
	root.AddCommand(serve, group, why, hidden)
	return root
}

func page(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	p := Page{Version: "1.2", Configured: "serve", Sections: []Section{
		{"FILES", []Entry{{"/etc/prog", "the file"}, {"", "A paragraph."}, {"http://… in", "x"}}},
	}}
	if err := Write(&b, program(), p); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestWrite(t *testing.T) {
	text := page(t)
	for _, want := range []string{
		`.TH "PROG" "1" "" "prog 1.2" "User Commands"`,
		"prog \\- does one thing\n",
		"\n\\&.starts like a request\n\\&'so does this, with \\ebackslash\n",
		".SS \"prog why PATH\"\nSays why.\n.PP\n.br\nprog why x\n.br\nprog why y\n",
		".TP\n\\fB\\-j\\fR, \\fB\\-\\-json\\fR\nprint JSON\n.PP\nTakes \\-\\-p2p of CONFIGURATION.\n",
		".SS \"prog config show\"\nShow it.\n.PP\nTakes the flags of CONFIGURATION.\n",
		"\\fB\\-\\-listen\\fR \\fIADDR\\fR\nwhere it ADDResses (default: 127.0.0.1:1)\n",
		".SS \"prog completion bash|zsh|fish|powershell\"\nPrint a script",
		"\nhttp://\\[u2026] in\n",
		".SH \"FILES\"\n.TP\n/etc/prog\nthe file\n.PP\nA paragraph.\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for _, no := range []string{"hidden", "install", "is not there", "\\-\\-help", ".SS \"prog config\"\n"} {
		if strings.Contains(text, no) {
			t.Errorf("%q is in\n%s", no, text)
		}
	}
	if n := strings.Count(text, "where it ADDResses"); n != 1 {
		t.Errorf("a shared flag is explained %d times", n)
	}
}

// TestGroff: what reads manuals finds nothing to complain about.
func TestGroff(t *testing.T) {
	if _, err := exec.LookPath("groff"); err != nil {
		t.Skip("NO groff: the page is not formatted")
	}
	file := filepath.Join(t.TempDir(), "prog.1")
	if err := os.WriteFile(file, []byte(page(t)), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "groff", "-man", "-Tutf8", "-ww", "-z", file).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no room") }

func TestWriteFails(t *testing.T) {
	if err := Write(full{}, program(), Page{Configured: "serve"}); err == nil {
		t.Error("an error of the writer is lost")
	}
}
