# NixOS: `services.nixp2p.enable = true` is all that an office needs.
{ config, lib, pkgs, ... }:
let
  cfg = config.services.nixp2p;
  common = import ./settings.nix { inherit lib pkgs; };

  # systemd hands the secret to the service's own user, wherever it lies and whoever owns
  # it. The path is systemd's (systemd.exec(5)), fixed for a service of the system.
  credential = "/run/credentials/nixp2p.service/swarm-key";
  settings = cfg.settings // lib.optionalAttrs (cfg.swarmKeyFile != null) { swarm-key-file = credential; };
  configFile = common.configFile cfg settings;

  p2p = cfg.settings.p2p != false;
  mdns = p2p && cfg.settings.mdns != false;
  listens = if cfg.settings.p2p-listen == null then [ "/ip4/0.0.0.0/tcp/7656" ] else cfg.settings.p2p-listen;
  # Other forms than ADDRESS/tcp/PORT are refused by `nixp2p config check`.
  portOf = addr: builtins.match ".*/tcp/([0-9]+)" addr;
  peerPorts = lib.unique (map (a: lib.toInt (builtins.head (portOf a))) (builtins.filter (a: portOf a != null) listens));
in
{
  options.services.nixp2p = common.options // {
    openFirewall = lib.mkOption {
      type = lib.types.bool;
      default = true;
      description = ''
        Let machines of the site in: the peers' port (7656/tcp), and mDNS (5353/udp) by which
        they find each other. Whom the service then talks to, `settings.allow-cidr` and
        `swarmKeyFile` decide.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = common.assertions cfg ++ [
      {
        assertion = !(p2p && cfg.openFirewall && builtins.elem 0 peerPorts);
        message = ''
          services.nixp2p.settings.p2p-listen has port 0, which is another one after each start: the
          firewall cannot let it in. Give it a port, or set services.nixp2p.openFirewall = false.
        '';
      }
    ];
    warnings = common.warnings config;

    # The file that every nixp2p command reads, so that `nixp2p status` and `nixp2p doctor`
    # need no flags.
    environment.etc."nixp2p/config.toml".source = configFile;
    environment.systemPackages = [ cfg.package ];

    # The units are the package's own; here stands only what differs on this machine.
    systemd.packages = [ cfg.package ];
    systemd.sockets.nixp2p = {
      wantedBy = [ "sockets.target" ];
      # The empty one takes the unit's own address away.
      listenStreams = [ "" cfg.settings.listen ];
    };
    systemd.services.nixp2p = {
      wantedBy = [ "multi-user.target" ];
      restartTriggers = [ configFile ];
      # Restarted in place. Stopped first, it would take the socket with it, and Nix would
      # be refused while the system switches.
      stopIfChanged = false;
      serviceConfig = lib.mkIf (cfg.swarmKeyFile != null) {
        LoadCredential = "swarm-key:${cfg.swarmKeyFile}";
      };
    };

    networking.firewall = lib.mkIf (cfg.openFirewall && p2p) {
      allowedTCPPorts = peerPorts;
      allowedUDPPorts = lib.optional mdns 5353;
    };

    nix.settings = common.nixSettings config cfg;
  };
}
