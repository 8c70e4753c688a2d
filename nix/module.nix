# NixOS: `services.nixp2p.enable = true` is all that an office needs.
{ config, lib, pkgs, ... }:
let
  cfg = config.services.nixp2p;
  common = import ./settings.nix { inherit lib pkgs; };

  # The socket unit has all addresses, the file the one that `nixp2p doctor` asks.
  settings = common.withOptions cfg // { listen = builtins.head (common.listens cfg); };
  configFile = common.configFile cfg settings;

  # systemd hands a secret to the service's own user, wherever it lies and whoever owns it. The
  # program knows these names.
  credentials = lib.optional (cfg.swarmKeyFile != null) "nixp2p.swarm-key:${cfg.swarmKeyFile}"
    ++ lib.optional (cfg.netrcFile != null) "nixp2p.netrc:${cfg.netrcFile}";

  p2p = cfg.settings.p2p != false;
  mdns = p2p && cfg.settings.mdns != false;
  listens = if cfg.settings.p2p-listen == null then [ "/ip4/0.0.0.0/tcp/7656" ] else cfg.settings.p2p-listen;
  opens = cfg.openFirewall == true;

  # Nix reads the variables as curl does, which goes through the proxy also to this machine.
  proxy = config.networking.proxy;
  hasProxy = proxy.default != null || proxy.httpProxy != null || proxy.allProxy != null;
  here = [ "127.0.0.1" "::1" "localhost" ];
  noProxy = lib.concatStringsSep "," (lib.unique (lib.filter (x: x != "") (lib.splitString "," (proxy.envVars.no_proxy or "")) ++ here));
  # Other forms than ADDRESS/tcp/PORT are refused by `nixp2p config check`.
  portOf = addr: builtins.match ".*/tcp/([0-9]+)" addr;
  peerPorts = lib.unique (map (a: lib.toInt (builtins.head (portOf a))) (builtins.filter (a: portOf a != null) listens));
in
{
  options.services.nixp2p = common.options // {
    openFirewall = lib.mkOption {
      type = lib.types.nullOr lib.types.bool;
      default = null;
      example = true;
      description = ''
        Let machines of the site in: the peers' port (7656/tcp), and mDNS (5353/udp) by which
        they find each other. Whom the service then talks to, `settings.allow-cidr` and
        `swarmKeyFile` decide. As with other services nothing is opened unless this is true: a
        laptop is not always at home. `null` does not open anything and warns that peers are kept
        out.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = common.assertions cfg ++ [
      {
        assertion = !(p2p && opens && builtins.elem 0 peerPorts);
        message = ''
          services.nixp2p.settings.p2p-listen has port 0, which is another one after each start: the
          firewall cannot let it in. Give it a port, or set services.nixp2p.openFirewall = false.
        '';
      }
    ];
    warnings = common.warnings config
      ++ lib.optional (p2p && cfg.openFirewall == null && config.networking.firewall.enable) ''
      services.nixp2p: the firewall keeps other machines out, so this one finds no peers. Set
      services.nixp2p.openFirewall = true, or false if you let them in yourself or want none.
    '';

    # The file that every nixp2p command reads, so that `nixp2p status` and `nixp2p doctor`
    # need no flags.
    environment.etc."nixp2p/config.toml".source = configFile;
    environment.systemPackages = [ cfg.package ];

    # The units are the package's own; here stands only what differs on this machine.
    systemd.packages = [ cfg.package ];
    systemd.sockets.nixp2p = {
      wantedBy = [ "sockets.target" ];
      # The empty one takes the unit's own address away.
      listenStreams = [ "" ] ++ common.listens cfg;
      # The address of a bridge may come later.
      socketConfig = lib.mkIf (builtins.length (common.listens cfg) > 1) { FreeBind = true; };
    };
    # switch-to-configuration leaves a changed socket as it is, unless it stops the service first.
    # It reloads this unit instead, which restarts socket and service.
    systemd.services.nixp2p-listen = {
      description = "nixp2p, take over changed addresses";
      wantedBy = [ "multi-user.target" ];
      reloadTriggers = [ (toString (common.listens cfg)) ];
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = "${pkgs.coreutils}/bin/true";
        ExecReload = "${config.systemd.package}/bin/systemctl restart nixp2p.socket nixp2p.service";
      };
    };
    systemd.services.nixp2p = {
      wantedBy = [ "multi-user.target" ];
      restartTriggers = [ configFile ];
      # Restarted in place. Stopped first, it would take the socket with it, and Nix would
      # be refused while the system switches.
      stopIfChanged = false;
      # The upstreams are behind the same proxy and authorities as for Nix.
      environment = proxy.envVars // lib.filterAttrs (name: _: name == "NIX_SSL_CERT_FILE") config.nix.envVars;
      serviceConfig = lib.mkIf (credentials != [ ]) { LoadCredential = credentials; };
    };

    # For commands that work without the Nix daemon, as root's do. Whoever has a list of their own
    # keeps it; the daemon gets what it lacks.
    networking.proxy.noProxy = lib.mkIf hasProxy (lib.mkDefault (lib.concatStringsSep "," here));
    systemd.services.nix-daemon = lib.mkIf (config.nix.enable && hasProxy) { environment.no_proxy = lib.mkForce noProxy; };

    networking.firewall = lib.mkIf (opens && p2p) {
      allowedTCPPorts = peerPorts;
      allowedUDPPorts = lib.optional mdns 5353;
    };

    nix.settings = common.nixSettings config cfg;
  };
}
