package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"

	"github.com/nixp2p/nixp2p/internal/config"
	"github.com/nixp2p/nixp2p/p2p"
)

func newRoot(u *ui) *cobra.Command {
	root := &cobra.Command{
		Use:   "nixp2p",
		Short: "peer-to-peer binary cache for Nix",
		Long: `nixp2p is a binary cache for Nix that runs on every machine and shares with its neighbours.
It answers on http://127.0.0.1:7654: from this machine's own store, from peers on the same
site, or from the upstream caches, in this order. It serves nothing that a trusted key has not
signed.`,
		SilenceUsage: true, SilenceErrors: true,
	}
	root.SetOut(u.out)
	root.SetErr(u.err)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &usageError{&hintError{err, "`" + c.CommandPath() + " --help` lists the flags"}}
	})
	root.AddCommand(serveCommand(u), statusCommand(u), whyCommand(u), peersCommand(u), setupCommand(u), doctorCommand(u),
		prefetchCommand(u), followCommand(u), gcCommand(u), swarmKeyCommand(u), demoCommand(u), demoNodeCommand(u), configCommand(u),
		versionCommand(u), manCommand(u))
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	checkArgs(root)
	return root
}

// checkArgs makes wrong arguments of all commands a usage error. Cobra prints the help of a
// command that only has subcommands, and succeeds.
func checkArgs(c *cobra.Command) {
	switch check := c.Args; {
	case c.Name() == "help":
		c.Args = func(c *cobra.Command, args []string) error {
			if found, _, err := c.Root().Find(args); err != nil || found == c.Root() && len(args) > 0 {
				return unknownCommand(c.Root(), args[0])
			}
			return nil
		}
	case c.HasSubCommands():
		c.Args = func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(c, args[0])
			}
			return nil
		}
		if !c.Runnable() {
			c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
		}
	case check == nil:
		c.Args = noArgs
	}
	if c.ValidArgsFunction == nil && !c.HasSubCommands() {
		c.ValidArgsFunction = cobra.NoFileCompletions
	}
	for _, sub := range c.Commands() {
		checkArgs(sub)
	}
}

func unknownCommand(c *cobra.Command, name string) error {
	hint := "`" + c.CommandPath() + " --help` lists the commands"
	if near := c.SuggestionsFor(name); len(near) > 0 {
		hint = "did you mean `" + c.CommandPath() + " " + near[0] + "`?"
	}
	return &usageError{&hintError{fmt.Errorf("unknown command %q", strings.TrimPrefix(c.CommandPath()+" "+name, "nixp2p ")), hint}}
}

func noArgs(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := "`" + c.CommandPath() + " --help` lists what it takes"
	if args[0] == "true" || args[0] == "false" {
		hint = "write the value of a switch with =, such as --p2p=" + args[0]
	}
	return &usageError{&hintError{fmt.Errorf("unexpected argument %q", args[0]), hint}}
}

// oneArg requires one argument; at most one if it is optional.
func oneArg(what string, optional bool) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) == 0 && !optional {
			return &usageError{&hintError{errors.New("the argument " + what + " is missing"), "`" + c.CommandPath() + " --help` shows how to use it"}}
		}
		return noArgs(c, args[min(len(args), 1):])
	}
}

// configFlags registers the flags of the configuration. Only `serve` lists them in its help.
func configFlags(c *cobra.Command) *config.Flags {
	own := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags := config.Register(own)
	var switches []string
	own.VisitAll(func(f *pflag.Flag) {
		f.Hidden = c.Name() != "serve" && f.Name != "config" && f.Name != "admin-listen"
		if f.NoOptDefVal != "" {
			switches = append(switches, f.Name)
		}
	})
	c.Flags().AddFlagSet(own)
	for name, values := range map[string][]string{"log-level": {"debug", "info", "warn", "error"}, "log-format": {"text", "json"}} {
		_ = c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	for _, name := range switches {
		_ = c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions([]string{"true", "false"}, cobra.ShellCompDirectiveNoFileComp))
	}
	if c.Name() != "serve" {
		c.Long = strings.TrimSpace(c.Long + "\n\nIt also takes the flags of `nixp2p serve`.")
	}
	return flags
}

func serveCommand(u *ui) *cobra.Command {
	c := &cobra.Command{
		Use: "serve", Short: "run the daemon",
		Long: `Runs the daemon until SIGTERM or SIGINT. Each flag is a key of the same name in the
configuration file. A list given as a flag (repeat the flag) replaces the file's list, which
replaces the default.`,
	}
	flags := configFlags(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		load := func() (*config.Config, error) { return flags.Load(config.Env{}) }
		if cfg, err := load(); err == nil {
			if err := refuseRoot(cfg); err != nil {
				return err
			}
		}
		return serve(c.Context(), u, load)
	}
	return c
}

// refuseRoot keeps root from leaving files in the directories of the service that its user
// cannot write. A daemon whose socket systemd holds is not stopped: it has to answer.
func refuseRoot(cfg *config.Config) error {
	if os.Geteuid() != 0 || os.Getenv("LISTEN_FDS") != "" {
		return nil
	}
	for _, dir := range []string{cfg.StateDir, cfg.CacheDir} {
		info, err := os.Stat(dir)
		if err != nil {
			continue
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 {
			return &hintError{fmt.Errorf("%s belongs to the user of the service (%d), and root would leave files there that the service cannot use", dir, st.Uid),
				startHint() + ", or name other directories with --state-dir and --cache-dir"}
		}
	}
	return nil
}

// released is set by release builds with -ldflags -X. Without it, the version is what Go
// recorded.
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
	c := &cobra.Command{
		Use: "show", Short: "print the configuration and where each value comes from",
		Long: `Prints the configuration that the daemon would use if it were started by this user with
these flags, and where each value comes from. A service of systemd has directories of its own;
` + "`nixp2p status`" + ` shows what the running daemon uses.`,
	}
	flags := configFlags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(*cobra.Command, []string) error {
		cfg, err := flags.Load(config.Env{})
		if err != nil {
			return u.problems(err)
		}
		u.warnings(cfg)
		if os.Getenv("STATE_DIRECTORY") == "" && systemdHas("nixp2p.service") {
			fmt.Fprintln(u.err, "nixp2p: note: this is what `nixp2p serve` would use if this user started it; the service has its own directories, /var/lib/nixp2p and /var/cache/nixp2p")
		}
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
		Use: "check [FILE]", Short: "check the configuration", Args: oneArg("FILE", true),
		Long: `Checks the configuration file and the flags, and reports each mistake with its line. Run as
root, it also reports files that the user of the service will not be able to read.`,
	}
	c.ValidArgsFunction = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveDefault
	}
	flags := configFlags(c)
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
		if os.Geteuid() == 0 && systemdHas("nixp2p.service") {
			cfg.Warnings = append(cfg.Warnings, systemdUnit().unreadable(cfg, nixCacheFiles())...)
		}
		for _, c := range p2p.KeptOut(p2p.Config{Listen: cfg.P2PListen, Bootstrap: cfg.Bootstrap, AllowCIDRs: cfg.AllowCIDRs, AllowOnLink: cfg.AllowOnLink}) {
			cfg.Warnings = append(cfg.Warnings, c.Text+"; "+c.Hint)
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

// manCommand is for packagers.
func manCommand(u *ui) *cobra.Command {
	c := &cobra.Command{Use: "man DIR", Short: "write the manual pages into a directory", Hidden: true, Args: oneArg("DIR", false)}
	c.RunE = func(c *cobra.Command, args []string) error {
		c.Root().DisableAutoGenTag = true // the same pages each time
		if err := os.MkdirAll(args[0], 0o755); err != nil {
			return err
		}
		return doc.GenManTree(c.Root(), &doc.GenManHeader{Section: "1", Source: "nixp2p " + version(), Manual: "User Commands"}, args[0])
	}
	return c
}
