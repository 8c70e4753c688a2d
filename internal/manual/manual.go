// Package manual writes the manual page of a program from its commands, so that the page
// names exactly the commands and flags that there are. It formats for man(7) and neither
// reads files nor knows what a command does.
package manual

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Page is what the commands do not say themselves.
type Page struct {
	Version string
	// Configured names the command whose flags make up a section of their own; the others
	// that take them refer to it.
	Configured string
	// Sections follow the commands.
	Sections []Section
}

// Section is a heading with entries.
type Section struct {
	Title   string
	Entries []Entry
}

// Entry is a term and what it means; an entry without a term is a paragraph.
type Entry struct{ Term, Text string }

// Write writes the page of root and the commands below it, apart from hidden ones.
func Write(w io.Writer, root *cobra.Command, p Page) error {
	root.InitDefaultHelpFlag()
	root.InitDefaultCompletionCmd()
	t := &troff{w: bufio.NewWriter(w)}
	name := root.Name()
	t.line(`.TH "%s" "1" "" "%s" "User Commands"`, escape(strings.ToUpper(name)), escape(name+" "+p.Version))
	t.heading("NAME")
	t.text(name + " - " + root.Short)
	t.heading("SYNOPSIS")
	t.line(`.B %s`, escape(name))
	t.line(`\fICOMMAND\fR [\fIFLAG\fR]... [\fIARGUMENT\fR]...`)
	t.heading("DESCRIPTION")
	t.text(root.Long)

	configured := pflag.NewFlagSet("", pflag.ContinueOnError)
	if c, _, err := root.Find([]string{p.Configured}); err == nil && c != root {
		configured = c.NonInheritedFlags()
	}
	t.heading("COMMANDS")
	t.commands(root, configured)
	t.heading("CONFIGURATION")
	t.text("Flags of " + name + " " + p.Configured + "; each is a key of the same name in the configuration file.")
	configured.VisitAll(t.flag)
	for _, s := range p.Sections {
		t.heading(s.Title)
		for _, e := range s.Entries {
			t.entry(escape(e.Term), e.Text)
		}
	}
	return t.w.Flush()
}

// troff writes man(7). The first error sticks in its writer.
type troff struct{ w *bufio.Writer }

func (t *troff) line(format string, args ...any) { fmt.Fprintf(t.w, format+"\n", args...) }

func (t *troff) heading(title string) { t.line(`.SH "%s"`, escape(title)) }

// text writes paragraphs.
func (t *troff) text(s string) {
	for i, par := range strings.Split(strings.TrimSpace(s), "\n\n") {
		if i > 0 {
			t.line(".PP")
		}
		// A line that is indented is an example and stays as it is.
		for l := range strings.Lines(par) {
			if strings.HasPrefix(l, "  ") {
				t.line(".br")
			}
			t.line("%s", escape(strings.TrimSpace(l)))
		}
	}
}

// entry writes a term, which is escaped, and its text.
func (t *troff) entry(term, text string) {
	if term == "" {
		t.line(".PP")
	} else {
		t.line(".TP")
		t.line("%s", term)
	}
	t.text(text)
}

func (t *troff) commands(c *cobra.Command, configured *pflag.FlagSet) {
	for _, sub := range c.Commands() {
		if !sub.IsAvailableCommand() || sub.Name() == "help" {
			continue
		}
		if sub.Name() == "completion" {
			// Cobra's own texts tell how to install what a package has installed.
			t.line(`.SS "%s"`, escape(sub.CommandPath()+" bash|zsh|fish|powershell"))
			t.text("Print a script that completes commands and flags in this shell.")
			continue
		}
		if sub.Runnable() {
			t.command(sub, configured)
		}
		t.commands(sub, configured)
	}
}

func (t *troff) command(c *cobra.Command, configured *pflag.FlagSet) {
	t.line(`.SS "%s"`, escape(strings.TrimSuffix(c.UseLine(), " [flags]")))
	long := c.Long
	if long == "" {
		long = strings.ToUpper(c.Short[:1]) + c.Short[1:] + "."
	}
	t.text(long)
	var shared []string
	c.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
		if same := configured.Lookup(f.Name); same != nil && same.Usage == f.Usage {
			shared = append(shared, "--"+f.Name)
		} else {
			t.flag(f)
		}
	})
	n := 0
	configured.VisitAll(func(f *pflag.Flag) {
		if f.Name != "help" {
			n++
		}
	})
	switch {
	case len(shared) >= n && n > 0:
		t.line(".PP")
		t.text("Takes the flags of CONFIGURATION.")
	case len(shared) > 0:
		t.line(".PP")
		t.text("Takes " + strings.Join(shared, ", ") + " of CONFIGURATION.")
	}
}

func (t *troff) flag(f *pflag.Flag) {
	if f.Hidden || f.Name == "help" {
		return
	}
	arg, usage := pflag.UnquoteUsage(f)
	term := `\fB` + escape("--"+f.Name) + `\fR`
	if f.Shorthand != "" {
		term = `\fB` + escape("-"+f.Shorthand) + `\fR, ` + term
	}
	if arg != "" {
		term += ` \fI` + escape(arg) + `\fR`
	}
	if d := f.DefValue; d != "" && d != "false" && d != "[]" {
		usage += " (default: " + d + ")"
	}
	t.entry(term, usage)
}

// escape keeps text from being read as requests of troff, which reads Latin-1.
func escape(s string) string {
	var b strings.Builder
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		b.WriteString(`\&`)
	}
	for _, r := range s {
		switch {
		case r == '\\':
			b.WriteString(`\e`)
		case r == '-':
			b.WriteString(`\-`)
		case r == '"':
			b.WriteString(`\(dq`)
		case r == '\n':
			b.WriteByte(' ')
		case r > '~':
			fmt.Fprintf(&b, `\[u%04X]`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
