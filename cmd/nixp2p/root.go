package main

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/nixp2p/nixp2p/internal/config"
	"github.com/nixp2p/nixp2p/internal/manual"
)

func newRoot(u *ui) *cobra.Command {
	root := &cobra.Command{
		Use:   "nixp2p",
		Short: "a binary cache on every machine, fed by the machines around it",
		Long: `nixp2p answers Nix on http://127.0.0.1:7654: from this machine's own store, from peers on
the same site, or from the upstream caches, in that order. It hands out nothing that a
trusted key has not signed.`,
		SilenceUsage: true, SilenceErrors: true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: false},
	}
	root.SetOut(u.out)
	root.SetErr(u.err)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &usageError{&hintError{err, "`" + c.CommandPath() + " --help` lists the flags"}}
	})
	root.AddCommand(serveCommand(u), statusCommand(u), whyCommand(u), peersCommand(u), setupCommand(u), doctorCommand(u), prefetchCommand(u), gcCommand(u), swarmKeyCommand(u), demoCommand(u), demoNodeCommand(u), configCommand(u), versionCommand(u), manCommand(u))
	for _, c := range root.Commands() {
		wrapArgs(c)
	}
	return root
}

// wrapArgs makes wrong arguments wrong usage, for the exit code.
func wrapArgs(c *cobra.Command) {
	check := c.Args
	if check == nil {
		check = cobra.NoArgs
	}
	if !c.HasSubCommands() {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return &usageError{&hintError{err, "`" + c.CommandPath() + " --help` says what it takes"}}
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		wrapArgs(sub)
	}
}

func serveCommand(u *ui) *cobra.Command {
	c := &cobra.Command{Use: "serve", Short: "run the daemon"}
	flags := config.Register(c.Flags())
	c.RunE = func(c *cobra.Command, _ []string) error {
		return serve(c.Context(), u, func() (*config.Config, error) { return flags.Load(config.Env{}) })
	}
	return c
}

// released is set by release builds with -ldflags -X; else the version is what Go noted.
var released string

// version returns the version of this build.
func version() string {
	if released != "" {
		return released
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "devel-" + s.Value[:12]
		}
	}
	return "devel"
}

func versionCommand(u *ui) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{Use: "version", Short: "print the version"}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(*cobra.Command, []string) error {
		if asJSON {
			return u.json(map[string]string{"version": version(), "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH})
		}
		u.printf("nixp2p %s (%s, %s/%s)\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return nil
	}
	return c
}

func configCommand(u *ui) *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "show or check the configuration"}
	c.AddCommand(configShow(u), configCheck(u))
	return c
}

func configShow(u *ui) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{Use: "show", Short: "print the configuration in effect, and where each value comes from"}
	flags := config.Register(c.Flags())
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(*cobra.Command, []string) error {
		cfg, err := flags.Load(config.Env{})
		if err != nil {
			return u.problems(err)
		}
		u.warnings(cfg)
		if asJSON {
			return u.json(cfg.Values())
		}
		u.printf("%s", cfg.TOML())
		return nil
	}
	return c
}

func configCheck(u *ui) *cobra.Command {
	c := &cobra.Command{
		Use: "check [FILE]", Short: "say what is wrong with the configuration", Args: cobra.MaximumNArgs(1),
	}
	flags := config.Register(c.Flags())
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 1 {
			if err := c.Flags().Set("config", args[0]); err != nil {
				return &usageError{err}
			}
		}
		cfg, err := flags.Load(config.Env{})
		if err != nil {
			return u.problems(err)
		}
		u.warnings(cfg)
		if cfg.File == "" {
			u.printf("ok: no configuration file, defaults\n")
			return nil
		}
		u.printf("ok: %s\n", cfg.File)
		return nil
	}
	return c
}

// manCommand is for packagers: it is hidden, since a reader has the page itself.
func manCommand(u *ui) *cobra.Command {
	c := &cobra.Command{Use: "man", Short: "print the manual page", Hidden: true}
	c.RunE = func(c *cobra.Command, _ []string) error {
		return manual.Write(u.out, c.Root(), manual.Page{Version: version(), Configured: "serve", Sections: []manual.Section{
			{Title: "FILES", Entries: []manual.Entry{
				{Term: config.DefaultFile, Text: "The configuration, TOML. It need not exist."},
				{Term: "/var/lib/nixp2p", Text: "Identity, known peers, narinfos, what was saved by hour and day."},
				{Term: "/var/cache/nixp2p", Text: "NAR files, bounded by --cache-size."},
			}},
			{Title: "EXIT STATUS", Entries: []manual.Entry{
				{Term: "0", Text: "Done."},
				{Term: "1", Text: "Failed."},
				{Term: "2", Text: "Wrong usage or configuration."},
			}},
			{Title: "SEE ALSO", Entries: []manual.Entry{{Text: "nix.conf(5), systemd.socket(5), https://github.com/nixp2p/nixp2p"}}},
		}})
	}
	return c
}
