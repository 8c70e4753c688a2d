package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/nixp2p/nixp2p/internal/config"
	"github.com/nixp2p/nixp2p/internal/doctor"
)

func doctorCommand(u *ui) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "doctor", Short: "find out why nothing is substituted, and what to do",
		Long: `Asks the running daemon, looks at Nix's settings and memory, at the disk, the clock and the
network, and says of each whether it is fine, and what to do if not. It changes nothing and takes
some seconds at most. As root it also sees what the Nix daemon remembers.

The exit code is 1 if there is a failure; warnings do not count.`,
	}
	flags := configFlags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, cfgErr := flags.Load(config.Env{})
		report := doctor.Run(c.Context(), doctorConfig(cfg))
		addProblems(&report, cfg, cfgErr)
		if asJSON {
			if err := u.json(report); err != nil {
				return err
			}
		} else {
			u.report(report)
		}
		if report.Failures > 0 {
			return errSilent
		}
		return nil
	}
	return c
}

func doctorConfig(cfg *config.Config) doctor.Config {
	url, _ := substituterURL(cfg.Listen) // "" is a finding
	return doctor.Config{
		Listen: cfg.Listen, URL: url, AdminListen: cfg.AdminListen, Priority: cfg.Priority, Upstreams: cfg.Upstreams,
		TrustedKeys: cfg.TrustedPublicKeys, StateDir: cfg.StateDir, CacheDir: cfg.CacheDir,
		CacheSize: cfg.CacheSize, StoreRoot: cfg.StoreRoot, P2P: cfg.P2P, P2PListen: cfg.P2PListen, MDNS: cfg.MDNS,
		Closed: cfg.SwarmKeyFile != "", Getenv: os.Getenv,
	}
}

// addProblems adds what is wrong with the configuration itself. The rest of the report is about
// the one with defaults in its place, as it is with a daemon under systemd.
func addProblems(r *doctor.Report, cfg *config.Config, err error) {
	list := config.Problems(err)
	for _, p := range list {
		r.Add(doctor.Finding{Check: "config", Level: doctor.Failure, Message: p.Error(), Hint: p.Help})
	}
	if err != nil && len(list) == 0 {
		r.Add(doctor.Finding{Check: "config", Level: doctor.Failure, Message: err.Error(), Hint: "`nixp2p config check` checks it alone"})
	}
	for _, w := range cfg.Warnings {
		r.Add(doctor.Finding{Check: "config", Level: doctor.Warning, Message: w})
	}
}

// report prints a line for each finding, and below it what to do.
func (u *ui) report(r doctor.Report) {
	for _, f := range r.Findings {
		u.printf("%-8s %-11s  %s\n", f.Level, f.Check, f.Message)
		if f.Hint != "" {
			u.printf("%-8s %-11s  -> %s\n", "", "", f.Hint)
		}
	}
	u.printf("failures: %d, warnings: %d\n", r.Failures, r.Warnings)
}
