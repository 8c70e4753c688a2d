# nix-darwin: the same options as on NixOS, run by launchd. launchd keeps no socket for
# the daemon while it restarts, so a short gap is felt; connect-timeout bounds it.
{ config, lib, pkgs, ... }:
let
  cfg = config.services.nixp2p;
  common = import ./settings.nix { inherit lib pkgs; };
  settings = common.withOptions cfg // {
    listen = builtins.head (common.listens cfg);
    state-dir = "/var/lib/nixp2p";
    cache-dir = "/var/cache/nixp2p";
  } // lib.optionalAttrs (cfg.swarmKeyFile != null) { swarm-key-file = "/var/lib/nixp2p/swarm-key"; };
  user = "_nixp2p";
  log = "/var/log/nixp2p.log";
in
{
  options.services.nixp2p = common.options;

  config = lib.mkIf cfg.enable {
    assertions = common.assertions cfg ++ [
      {
        assertion = builtins.length (common.listens cfg) == 1;
        message = ''
          services.nixp2p.settings.listen has several addresses, but without systemd's socket the
          program listens on one. Leave one, or give it an address that stands for all, such as 0.0.0.0:7654.
        '';
      }
    ];
    warnings =
      if config.nix.enable then common.warnings config
      else [
        ''
          services.nixp2p: nix.enable is false, so nix-darwin does not change nix.conf. Run
          `sudo nixp2p setup --apply`, which adds ${common.url cfg} to the nix.conf of the other installer.
        ''
      ];

    environment.etc."nixp2p/config.toml".source = common.configFile cfg settings;
    environment.systemPackages = [ cfg.package ];

    users.users.${user} = {
      # Below 500: not offered at the login window.
      uid = lib.mkDefault 454;
      gid = config.users.groups.${user}.gid;
      home = "/var/empty";
      shell = "/usr/bin/false";
      description = "nixp2p";
    };
    users.groups.${user}.gid = lib.mkDefault 454;
    users.knownUsers = [ user ];
    users.knownGroups = [ user ];

    system.activationScripts.launchd.text = lib.mkBefore (''
      mkdir -p /var/lib/nixp2p /var/cache/nixp2p
      touch ${log}
      chmod 0700 /var/lib/nixp2p /var/cache/nixp2p
      chown ${user}:${user} /var/lib/nixp2p /var/cache/nixp2p ${log}
    '' + lib.optionalString (cfg.swarmKeyFile != null) ''
      install -m 0400 -o ${user} -g ${user} "${cfg.swarmKeyFile}" /var/lib/nixp2p/swarm-key
    '' + lib.optionalString (cfg.netrcFile != null) ''
      install -m 0400 -o ${user} -g ${user} "${cfg.netrcFile}" /var/lib/nixp2p/netrc
    '');

    launchd.daemons.nixp2p.serviceConfig = {
      ProgramArguments = [ "${cfg.package}/bin/nixp2p" "serve" ];
      UserName = user;
      GroupName = user;
      RunAtLoad = true;
      KeepAlive = true;
      # Somebody is waiting; launchd's own pause is 10 s.
      ThrottleInterval = 1;
      # Transfers may end for 30 s.
      ExitTimeOut = 35;
      Umask = 63; # 077
      SoftResourceLimits.NumberOfFiles = 65536;
      HardResourceLimits.NumberOfFiles = 65536;
      StandardErrorPath = log;
      # launchd starts the daemon anew when the configuration, which this names, changes.
      EnvironmentVariables = {
        NIXP2P_CONFIG_GENERATION = "${common.configFile cfg settings}";
      } // lib.optionalAttrs (cfg.netrcFile != null) { NETRC = "/var/lib/nixp2p/netrc"; };
    };

    # With another installer's Nix (nix.enable = false), nix-darwin manages no nix.conf.
    nix.settings = lib.mkIf config.nix.enable (common.nixSettings config cfg);
  };
}
