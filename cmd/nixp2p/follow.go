package main

import (
	"github.com/spf13/cobra"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/config"
)

func followCommand(u *ui) *cobra.Command {
	var asJSON, now, dry bool
	c := &cobra.Command{
		Use: "follow", Short: "show the followed lists, or look at them now",
		Long: `Shows how far the running daemon is with the lists that it follows (--follow of nixp2p serve).
With --now it looks at them at once and fetches what is new in the background; with --dry-run it
says how many paths and bytes that would be, and fetches nothing.`,
	}
	flags := config.RegisterClient(c.Flags())
	c.Flags().BoolVar(&now, "now", false, "look at the lists at once")
	c.Flags().BoolVar(&dry, "dry-run", false, "show how much would be fetched")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		d, _, err := dialDaemon(flags)
		if err != nil {
			return err
		}
		if now || dry {
			plans := []admin.FollowPlan{}
			if err := d.Post(c.Context(), "/api/v1/follow", admin.FollowRequest{DryRun: dry}, &plans); err != nil {
				return err
			}
			if dry {
				if asJSON {
					return u.json(plans)
				}
				u.followPlans(plans)
				return nil
			}
		}
		s, err := d.Status(c.Context())
		switch {
		case err != nil:
			return err
		case asJSON:
			return u.json(s.Follow)
		case len(s.Follow) == 0:
			u.printf("nothing is followed: name lists with --follow of nixp2p serve\n")
		}
		u.followed(s.Follow)
		return nil
	}
	return c
}

func (u *ui) followPlans(plans []admin.FollowPlan) {
	for _, p := range plans {
		u.printf("%s: %s (%s): %d here, %d to fetch (%s)", p.List, count(p.Paths, "path"), humanSize(p.Bytes), p.Here, p.MissingPaths, humanSize(p.MissingBytes))
		if p.Absent > 0 {
			u.printf(", %d that no source has", p.Absent)
		}
		if p.Failed > 0 {
			u.printf(", %d unknown: a source could not say", p.Failed)
		}
		u.printf("\n")
		if p.Bytes > p.RoomBytes {
			u.printf("  does not fit: the cache keeps %s at most; raise cache-size or leave out names\n", humanSize(p.RoomBytes))
		}
	}
}

// followed prints lists, one block each.
func (u *ui) followed(lists []admin.Followed) {
	for _, l := range lists {
		u.printf("%s: %s\n", l.List, l.State())
		for _, text := range l.Problems() {
			u.printf("  %s\n", text)
		}
		for _, g := range l.Generations {
			u.printf("  %s  %s  %s\n", g.Found.Local().Format("2006-01-02 15:04"), g, g.From)
		}
	}
}
