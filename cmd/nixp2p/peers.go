package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/config"
)

func peersCommand(u *ui) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{Use: "peers", Short: "list the peers of the daemon"}
	flags := config.RegisterClient(c.Flags())
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		var peers []admin.Peer
		if err := ask(c.Context(), flags, "/api/v1/peers", &peers); err != nil {
			return err
		}
		if asJSON {
			return u.json(peers)
		}
		if len(peers) == 0 {
			u.printf("no peers\n")
			return nil
		}
		u.lines(u.terminal().peers(peers))
		return nil
	}
	return c
}

// peers lists them; rates are those of the last seconds.
func (p terminal) peers(peers []admin.Peer) []string {
	var rows [][]cell
	for _, x := range peers {
		standing := cell{x.Standing, yellow}
		switch {
		case x.Standing == "good":
			standing.style = green
		case strings.HasPrefix(x.Standing, "liar"):
			standing.style = red
		}
		rows = append(rows, []cell{
			{text: x.Label()}, standing, {text: humanSize(x.SentBytes)}, {text: rate(x.SendingBytesPerSecond)}, {text: humanSize(x.ReceivedBytes)},
			{text: rate(x.ReceivingBytesPerSecond)}, {text: fmt.Sprint(x.Paths)}, {text: admin.FormatMS(x.RTTMS)}, {text: x.FoundBy}, {text: address(x)}, {text: admin.ShortID(x.ID)},
		})
	}
	return p.table([]string{"PEER", "STANDING", "SENT", "NOW", "RECEIVED", "NOW", "PATHS", "RTT", "FOUND BY", "ADDRESS", "ID"}, rows)
}

// address returns one address at which others can reach a peer; --json has all.
func address(p admin.Peer) string {
	if len(p.Addresses) == 0 {
		return ""
	}
	return p.Addresses[0]
}

// rate writes bytes a second.
func rate(n int64) string {
	if n <= 0 {
		return "–"
	}
	return humanSize(n) + "/s"
}
