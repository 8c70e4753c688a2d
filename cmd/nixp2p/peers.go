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
		for _, line := range u.terminal().peers(peers) {
			u.printf("%s\n", line)
		}
		return nil
	}
	return c
}

// peers lists them; rates are those of the last seconds.
func (p terminal) peers(peers []admin.Peer) []string {
	columns := []column{
		{head: "PEER"}, {head: "FOUND BY", drop: 3}, {head: "RTT", right: true, drop: 1}, {head: "PATHS", right: true, drop: 2},
		{head: "SENT", right: true}, {head: "NOW", right: true, drop: 4}, {head: "RECEIVED", right: true}, {head: "NOW", right: true, drop: 4},
		{head: "STANDING", shrink: true}, {head: "ADDRESSES", drop: 5},
	}
	var rows [][]cell
	for _, x := range peers {
		rows = append(rows, []cell{
			{text: shortID(clean(x.ID))}, {text: clean(x.FoundBy)}, {text: fmt.Sprintf("%.1f ms", x.RTTMS)}, {text: fmt.Sprint(x.Paths)},
			{text: humanSize(x.SentBytes)}, {text: rate(x.SendingBytesPerSecond)},
			{text: humanSize(x.ReceivedBytes)}, {text: rate(x.ReceivingBytesPerSecond)},
			standing(x.Standing), {text: clean(strings.Join(x.Addresses, " "))},
		})
	}
	return p.table(columns, rows)
}

func standing(s string) cell {
	switch {
	case s == "good":
		return cell{s, green}
	case strings.HasPrefix(s, "liar"):
		return cell{clean(s), red}
	}
	return cell{clean(s), yellow}
}

// rate writes bytes a second.
func rate(n int64) string {
	if n <= 0 {
		return "–"
	}
	return humanSize(n) + "/s"
}

// shortID is the end of a peer ID: all begin with the same letters.
func shortID(id string) string {
	r := []rune(id)
	return "…" + string(r[max(len(r)-15, 0):])
}
