package main

import (
	"github.com/spf13/cobra"

	"github.com/nixp2p/nixp2p/p2p"
)

func swarmKeyCommand(u *ui) *cobra.Command {
	return &cobra.Command{
		Use: "swarm-key", Short: "print a new secret for a closed site",
		Long: `Prints a new secret. Put it into a file on every machine of the site, readable by the daemon
alone, and name it with --swarm-key-file: only who has it takes part. While it is being
replaced the file may have two: the first is shown to others, both are taken from them.`,
		RunE: func(*cobra.Command, []string) error {
			u.printf("%s\n", p2p.NewSwarmKey())
			return nil
		},
	}
}
