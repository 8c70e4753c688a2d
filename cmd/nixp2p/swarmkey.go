package main

import (
	"github.com/spf13/cobra"

	"github.com/nixp2p/nixp2p/p2p"
)

func swarmKeyCommand(u *ui) *cobra.Command {
	return &cobra.Command{
		Use: "swarm-key", Short: "print a new secret for a closed site",
		Long: `Prints a new secret for a closed site. Put it into /etc/credstore/nixp2p.swarm-key (owner root,
mode 0600) on every machine of the site and restart nixp2p; without systemd, name the file with
--swarm-key-file. Only machines with the secret take part. While a secret is being replaced, the
file may have two lines: the first is shown to others, both are accepted.`,
		RunE: func(*cobra.Command, []string) error {
			u.printf("%s\n", p2p.NewSwarmKey())
			return nil
		},
	}
}
