package main

import (
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
		u.printf("%-16s  %-8s  %9s  %8s  %10s  %10s  %-8s  %s\n", "PEER", "FOUND BY", "RTT", "PATHS", "SENT", "RECEIVED", "STANDING", "ADDRESSES")
		for _, p := range peers {
			u.printf("%-16s  %-8s  %6.1f ms  %8d  %10s  %10s  %-8s  %s\n", shortID(p.ID), p.FoundBy, p.RTTMS, p.Paths,
				humanSize(p.SentBytes), humanSize(p.ReceivedBytes), p.Standing, strings.Join(p.Addresses, " "))
		}
		return nil
	}
	return c
}

// shortID is the end of a peer ID: all begin alike.
func shortID(id string) string { return "…" + id[max(len(id)-15, 0):] }
