package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/config"
)

func whyCommand(u *ui) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "why STORE-PATH", Short: "ask every source for a path and show the answers", Args: oneArg("STORE-PATH", false),
		Long: `Asks every source for a path, past all memory, and shows what each answers. The path may be given
in every way that Nix takes: as store path, base name or hash, as a link to one such as ./result or
a profile, as DERIVATION^OUTPUT, or with - on standard input.`,
	}
	flags := config.RegisterClient(c.Flags())
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		h, err := pathArg(args[0], c.InOrStdin())
		if err != nil {
			return err
		}
		var w admin.Why
		if err := ask(c.Context(), flags, "/api/v1/why/"+h.String(), &w); err != nil {
			return err
		}
		if asJSON {
			return u.json(w)
		}
		return u.why(w)
	}
	return c
}

var resultStyles = map[admin.Result]style{admin.Has: green, admin.Absent: dim, admin.Unavailable: yellow, admin.Invalid: red}

// why prints the answer of each source. It fails if no source has the path.
func (u *ui) why(w admin.Why) error {
	var rows [][]cell
	found := false
	for _, a := range w.Answers {
		detail := a.Err
		if a.Result == admin.Has {
			found, detail = true, ""
			if a.StorePath != "" {
				detail = a.StorePath + ", " + humanSize(a.NarSize) + ", signed by " + strings.Join(a.Signers, ", ")
			}
			if len(a.Forms) > 0 {
				detail += ", holds " + strings.Join(a.Forms, ", ")
			}
			if len(a.DeltaBases) > 0 {
				detail += "; on a slow link, what differs from " + strings.Join(a.DeltaBases, " or ")
				if a.DeltaBytes > 0 {
					detail += ", about " + humanSize(a.DeltaBytes) + " if it is like the last deltas"
				}
			}
		}
		rows = append(rows, []cell{{text: a.Source}, {string(a.Result), resultStyles[a.Result]}, {text: admin.FormatMS(a.TookMS)}, {text: strings.TrimPrefix(detail, ", ")}})
	}
	u.lines(u.terminal().table([]string{"SOURCE", "ANSWER", "TOOK", ""}, rows))
	if !found {
		u.printf("no source has %s\n", clean(w.StoreHash))
		return errSilent
	}
	return nil
}
