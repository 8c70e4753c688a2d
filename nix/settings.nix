# What the NixOS and the nix-darwin module have in common: the options, and what is wrong
# with values that are each fine by themselves.
{ lib, pkgs }:
let
  inherit (lib) mkOption types;
  toml = pkgs.formats.toml { };

  # A key of the program. What is not set is not written, so that the default of the program
  # counts; the manual shows that one.
  key = type: default: description: mkOption {
    type = types.nullOr type;
    default = null;
    defaultText = lib.literalExpression default;
    inherit description;
  };
  strings = types.listOf types.str;
in
rec {
  # The keys that the manual names (`nixp2p config show` prints them with their defaults).
  settingsOptions = {
    listen = mkOption {
      type = types.either types.str strings;
      default = "127.0.0.1:7654";
      example = [ "127.0.0.1:7654" "172.17.0.1:7654" ];
      description = ''
        HOST:PORT of the substituter, or several on NixOS, for example one for containers. Nix is
        told the first; of one that stands for all addresses, the one of this machine.
      '';
    };
    admin-listen = key types.str ''"127.0.0.1:7655"'' "Where the status page, API, metrics and health are.";
    server-name = key strings "[ ]" "Host names in URLs of this node, besides its addresses and localhost.";
    state-dir = key types.str ''"/var/lib/nixp2p"'' "Identity, peers, narinfos. The service's own directory.";
    cache-dir = key types.str ''"/var/cache/nixp2p"'' "NAR files. The service's own directory.";
    cache-size = key (types.either types.ints.unsigned types.str) ''"10GiB"'' "Limit of the NAR cache; 0 keeps none.";
    store-root = key types.str ''"/"'' "The store is ROOT/nix/store.";
    priority = key types.ints.unsigned "30" "In nix-cache-info; lower is asked first (cache.nixos.org has 40).";
    upstream = key strings ''[ "https://cache.nixos.org" ]'' "Caches and mirrors.";
    bucket = key types.str "null" "Binary cache in an object store: s3://NAME/PREFIX?endpoint=…&region=…. Use {option}`services.nixp2p.bucket` instead.";
    follow = key strings "[ ]" "Lists of store paths to fetch and keep. Use {option}`services.nixp2p.follow` instead.";
    replicate = key types.bool "false" "Copy what peers share into the cache. Use {option}`services.nixp2p.replicate` instead.";
    trusted-public-key = key strings ''[ "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ]'' "Keys whose signatures are accepted.";
    share-key = key strings ''[ "cache.nixos.org-1" ]'' "Names of keys: paths signed by these keys may be shown to others.";
    p2p = key types.bool "true" "false: no peers at all.";
    p2p-listen = key strings ''[ "/ip4/0.0.0.0/tcp/7656" "/ip6/::/tcp/7656" ]'' "Multiaddrs for peers.";
    mdns = key types.bool "true" "Look for peers on the link.";
    bootstrap = key strings "[ ]" "Where else to look for peers: multiaddr, dns:NAME[:PORT], srv:NAME, http(s)://…, file:PATH.";
    leases = key types.bool "true" "Agree with the site on which node downloads what no peer has.";
    delta = key types.bool "true" "On slow links, ask peers and mirrors for what differs from the version that is here, and send them the same.";
    max-peers = key types.ints.positive "256" "Connected peers.";
    zone = key types.str "null" "Name of the zone of this machine, the same on all machines in it: peers of it are asked first; auto asks the cloud provider.";
    swarm-key-file = key types.str "null" "Closed site: only holders of this secret. Use {option}`services.nixp2p.swarmKeyFile` instead.";
    peer-name = key types.str "null" "Name of this machine for peers; its host name on a closed site, none on an open one. none: no names are exchanged.";
    allow-cidr = key strings ''[ "10.0.0.0/8" "172.16.0.0/12" "192.168.0.0/16" "169.254.0.0/16" "fc00::/7" "fe80::/10" "on-link" ]'' "Networks in which peers are accepted and dialled.";
    upload-limit = key types.str "null" ''To peers, such as "20MB/s".'';
    log-level = key (types.enum [ "debug" "info" "warn" "error" ]) ''"info"'' "How much is logged.";
    log-format = key (types.enum [ "text" "json" ]) ''"text"'' "How it is logged.";
  };

  # A file that only root can read.
  secret = example: description: mkOption {
    type = types.nullOr types.str;
    default = null;
    inherit example;
    description = description + " A file outside of the Nix store that root can read; the service gets a copy.";
  };

  options = {
    enable = lib.mkEnableOption "nixp2p, a binary cache of this machine that shares with those around it";

    # Before nixpkgs has the package, it is made of the sources that this file is part of.
    package = lib.mkPackageOption ({ nixp2p = pkgs.callPackage ./package.nix { }; } // pkgs) "nixp2p" { };

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

    bucket = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "s3://nix-cache/site?endpoint=s3.example.org&region=eu-1";
      description = ''
        A binary cache in an object store, asked before the upstreams. What this machine fetches
        from those is written to it. Credentials: the role of the instance, or
        /etc/credstore/nixp2p.aws in the format of ~/.aws/credentials.
      '';
    };

    follow = mkOption {
      type = strings;
      default = [ ];
      example = [ "channel:nixos-unstable?include=firefox*,linux-*" ];
      description = ''
        Lists of store paths that are fetched ahead and kept: channel:NAME, a URL, file:PATH,
        path:STORE-PATH, with ?keep=N&include=…&exclude=….
      '';
    };

    replicate = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Copy into the cache, as far as it has room, what the peers of this machine share and it
        lacks, so that it is there when they have left.
      '';
    };

    siteKeys = mkOption {
      type = strings;
      default = [ ];
      example = [ "site-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ];
      description = ''
        Public keys that sign what this site builds. Paths signed by them are accepted by Nix and
        by nixp2p, and shared with the machines of the site, as those of cache.nixos.org are.
      '';
    };

    signingKeyFile = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/run/secrets/site-1";
      description = ''
        On a builder: the secret key with which Nix signs what this machine builds (`nix key
        generate-secret --key-name site-1` makes one). Its public key belongs into
        {option}`services.nixp2p.siteKeys` of all machines.
      '';
    };

    swarmKeyFile = secret "/run/secrets/nixp2p-swarm-key" ''
      The secret of a closed site (`nixp2p swarm-key` makes one): machines that do not have it are
      not talked to.'';
    netrcFile = secret "/run/secrets/netrc" ''
      Credentials for upstream caches in the form of {manpage}`curl(1)`'s netrc. Without this option,
      the service uses Nix's own netrc file if all users can read it.'';
  };

  # The addresses of the substituter.
  listens = cfg: lib.toList cfg.settings.listen;

  officialKey = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
  orElse = default: value: if value == null then default else value;

  # What options of their own add to the settings.
  withOptions = cfg: cfg.settings
    // lib.optionalAttrs (cfg.bucket != null) { inherit (cfg) bucket; }
    // lib.optionalAttrs (cfg.follow != [ ]) { inherit (cfg) follow; }
    // lib.optionalAttrs cfg.replicate { inherit (cfg) replicate; }
    // lib.optionalAttrs (cfg.siteKeys != [ ]) {
      trusted-public-key = orElse [ officialKey ] cfg.settings.trusted-public-key ++ cfg.siteKeys;
      share-key = orElse [ "cache.nixos.org-1" ] cfg.settings.share-key
        ++ map (k: builtins.head (lib.splitString ":" k)) cfg.siteKeys;
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
  url = cfg:
    let
      first = builtins.head (listens cfg);
      wildcard = builtins.match "(0\\.0\\.0\\.0|\\[::]|\\*)?(:[0-9]+)" first;
    in
    "http://${if wildcard == null then first else "127.0.0.1" + builtins.elemAt wildcard 1}";

  assertions = cfg: map
    (name: {
      assertion = cfg.${name} == null || lib.hasPrefix "/" cfg.${name} && !lib.hasPrefix builtins.storeDir cfg.${name};
      message = ''
        services.nixp2p.${name} is "${toString cfg.${name}}". It must be an absolute path outside of
        the Nix store, which everybody can read: put it into quotes, and let the machine's secret
        management (or scp) bring the file there.
      '';
    }) [ "swarmKeyFile" "netrcFile" ] ++ [
    {
      assertion = listens cfg != [ ] && !lib.hasPrefix "unix:" (builtins.head (listens cfg));
      message = ''
        services.nixp2p.settings.listen has ${builtins.toJSON (lib.take 1 (listens cfg))} first, but Nix asks substituters over TCP only.
        Put a HOST:PORT first, or leave it out for 127.0.0.1:7654.
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
    trusted-public-keys = cfg.siteKeys;
    secret-key-files = lib.mkIf (cfg.signingKeyFile != null) [ cfg.signingKeyFile ];
    connect-timeout = lib.mkDefault 5;
    fallback = lib.mkIf (lib.versionAtLeast (lib.getVersion config.nix.package) "2.13") (lib.mkDefault true);
  };
}
