# What the NixOS and the nix-darwin module have in common: the options, and what is wrong
# with values that are each fine by themselves.
{ lib, pkgs }:
let
  inherit (lib) mkOption types;
  toml = pkgs.formats.toml { };

  # A key without a default of its own: what is not set is not written, so that the
  # program's default counts, whatever version it is.
  key = type: description: mkOption {
    type = types.nullOr type;
    default = null;
    inherit description;
  };
  strings = types.listOf types.str;
in
rec {
  # The keys that the manual names (`nixp2p config show` prints them with their defaults).
  settingsOptions = {
    listen = mkOption {
      type = types.str;
      default = "127.0.0.1:7654";
      description = "HOST:PORT of the substituter. After a change, run `systemctl restart nixp2p.socket` once.";
    };
    admin-listen = key types.str "Where the status page, API, metrics and health are (127.0.0.1:7655).";
    server-name = key strings "Host names in URLs of this node, besides its addresses and localhost.";
    state-dir = key types.str "Identity, peers, narinfos. The service's own directory.";
    cache-dir = key types.str "NAR files. The service's own directory.";
    cache-size = key (types.either types.ints.unsigned types.str) ''Limit of the NAR cache, such as "10GiB"; 0 keeps none.'';
    store-root = key types.str "The store is ROOT/nix/store (/).";
    priority = key types.ints.unsigned "In nix-cache-info; lower is asked first (30; cache.nixos.org has 40).";
    upstream = key strings "Caches and mirrors ([ \"https://cache.nixos.org\" ]).";
    trusted-public-key = key strings "Keys whose signatures are accepted (cache.nixos.org's).";
    share-key = key strings "Names of keys: paths signed by these keys may be shown to others (cache.nixos.org's).";
    p2p = key types.bool "false: no peers at all.";
    p2p-listen = key strings "Multiaddrs for peers ([ \"/ip4/0.0.0.0/tcp/7656\" \"/ip6/::/tcp/7656\" ]).";
    mdns = key types.bool "Look for peers on the link.";
    bootstrap = key strings "Where else to look for peers: multiaddr, dns:NAME[:PORT], srv:NAME, http(s)://…, file:PATH.";
    leases = key types.bool "Agree with the site on which node downloads what no peer has.";
    max-peers = key types.ints.positive "Connected peers (256).";
    swarm-key-file = key types.str "Closed site: only holders of this secret. Use {option}`services.nixp2p.swarmKeyFile` instead.";
    peer-name = key types.str "Name of this machine for peers (its host name on a closed site, none on an open one); none: no names are exchanged.";
    allow-cidr = key strings "Networks in which peers are accepted and dialled (private and on-link ones).";
    upload-limit = key types.str ''To peers, such as "20MB/s".'';
    log-level = key (types.enum [ "debug" "info" "warn" "error" ]) "How much is logged (info).";
    log-format = key (types.enum [ "text" "json" ]) "How it is logged (text).";
  };

  options = {
    enable = lib.mkEnableOption "nixp2p, a binary cache of this machine that shares with those around it";

    package = mkOption {
      type = types.package;
      default = pkgs.callPackage ./package.nix { };
      defaultText = lib.literalExpression "pkgs.callPackage ./package.nix { }";
      description = "The nixp2p to run.";
    };

    settings = mkOption {
      type = types.submodule {
        freeformType = toml.type;
        options = settingsOptions;
      };
      default = { };
      example = { cache-size = "50GiB"; upload-limit = "20MB/s"; };
      description = ''
        Keys of /etc/nixp2p/config.toml, the same as the flags of `nixp2p serve`. What is not
        set has the program's default, which serves an office.
      '';
    };

    swarmKeyFile = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/run/secrets/nixp2p-swarm-key";
      description = ''
        File outside of the Nix store with the secret of a closed site (`nixp2p swarm-key`
        makes one). Machines that do not have it are not talked to. Only root needs to be
        able to read it.
      '';
    };
  };

  # The configuration file. It is checked when the system is built, by the program that
  # will read it, so that a mistake is seen there and not in the log of a service.
  configFile = cfg: settings:
    let
      raw = toml.generate "nixp2p.toml" (lib.filterAttrs (_: v: v != null) settings);
      host = pkgs.stdenv.hostPlatform;
    in
    if pkgs.stdenv.buildPlatform.canExecute host then
      pkgs.runCommand "nixp2p-config.toml"
        {
          inherit raw;
          STATE_DIRECTORY = "/var/lib/nixp2p";
          CACHE_DIRECTORY = "/var/cache/nixp2p";
        } ''
        ${cfg.package}/bin/nixp2p config check "$raw"
        cp "$raw" "$out"
      ''
    else raw;

  # A node that listens on all addresses is asked on loopback.
  url = cfg: "http://${builtins.replaceStrings [ "0.0.0.0:" "[::]:" ] [ "127.0.0.1:" "[::1]:" ] cfg.settings.listen}";

  assertions = cfg: [
    {
      assertion = !lib.hasPrefix "unix:" cfg.settings.listen;
      message = ''
        services.nixp2p.settings.listen is "${cfg.settings.listen}", but Nix asks substituters over TCP only.
        Give it a HOST:PORT, or leave it out for 127.0.0.1:7654.
      '';
    }
    {
      assertion = cfg.settings.swarm-key-file == null;
      message = ''
        services.nixp2p.settings.swarm-key-file would have to be readable by the service's user, and a
        path literal would put the secret into the world-readable Nix store. Write instead
          services.nixp2p.swarmKeyFile = "${toString cfg.settings.swarm-key-file}";
      '';
    }
    {
      assertion = cfg.swarmKeyFile == null
        || lib.hasPrefix "/" cfg.swarmKeyFile && !lib.hasPrefix builtins.storeDir cfg.swarmKeyFile;
      message = ''
        services.nixp2p.swarmKeyFile is "${toString cfg.swarmKeyFile}". It must be an absolute path outside of
        the Nix store, which everybody can read: put it into quotes, and let the machine's secret
        management (or scp) bring the file there.
      '';
    }
    {
      assertion = cfg.swarmKeyFile == null || cfg.settings.p2p != false;
      message = ''
        services.nixp2p.swarmKeyFile is set, but settings.p2p = false: there are no peers to keep a
        secret from. Leave one of the two out.
      '';
    }
    {
      assertion = cfg.settings.state-dir == null && cfg.settings.cache-dir == null;
      message = ''
        services.nixp2p.settings.state-dir and .cache-dir belong to the service, which can write to no
        other place: leave them out. For a cache on another disk mount that at /var/cache/private/nixp2p.
      '';
    }
  ];

  warnings = config:
    lib.optional (builtins.length config.nix.settings.substituters < 2) ''
      services.nixp2p: nix.settings.substituters has no other cache left. While nixp2p is stopped
      nothing can be substituted then; keep https://cache.nixos.org there, it is asked last.
    '';

  # The first of the bounds on what a cache that does not answer costs. `fallback` lets Nix
  # go on without it; before 2.13 Nix crashes with it when a cache goes away.
  nixSettings = config: cfg: {
    substituters = lib.mkBefore [ (url cfg) ];
    connect-timeout = lib.mkDefault 5;
    fallback = lib.mkIf (lib.versionAtLeast (lib.getVersion config.nix.package) "2.13") (lib.mkDefault true);
  };
}
