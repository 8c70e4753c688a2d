# Evaluates the modules as a system would, and returns what each case comes to; `all` has
# those that come to something. The Go tests beside compare.
{ program ? "/nonexistent"
, lib ? import ./lib.nix
, nixVersion ? "2.18.1"
}:
let
  package = { name = "nixp2p"; version = "0"; outPath = program; };
  pkgs = import ./pkgs.nix { inherit lib package nixVersion; };

  any = lib.mkOption { type = lib.types.anything; default = { }; };
  # The rest of NixOS and nix-darwin, as far as the modules touch it.
  system = {
    options = {
      assertions = lib.mkOption { type = lib.types.listOf lib.types.unspecified; default = [ ]; };
      warnings = lib.mkOption { type = lib.types.listOf lib.types.str; default = [ ]; };
      environment.etc = any;
      environment.systemPackages = lib.mkOption { type = lib.types.listOf lib.types.package; default = [ ]; };
      systemd = {
        packages = lib.mkOption { type = lib.types.listOf lib.types.package; default = [ ]; };
        sockets = any;
        services = any;
        package = lib.mkOption { type = lib.types.package; default = pkgs.systemd; };
      };
      networking.proxy = lib.genAttrs [ "default" "httpProxy" "allProxy" "noProxy" ]
        (_: lib.mkOption { type = lib.types.nullOr lib.types.str; default = null; }) // { envVars = any; };
      networking.firewall = {
        enable = lib.mkOption { type = lib.types.bool; default = true; };
        allowedTCPPorts = lib.mkOption { type = lib.types.listOf lib.types.ints.unsigned; default = [ ]; };
        allowedUDPPorts = lib.mkOption { type = lib.types.listOf lib.types.ints.unsigned; default = [ ]; };
      };
      nix = {
        envVars = any;
        enable = lib.mkOption { type = lib.types.bool; default = true; };
        package = lib.mkOption { type = lib.types.package; default = pkgs.nix; };
        settings = {
          substituters = lib.mkOption { type = lib.types.listOf lib.types.str; default = [ ]; };
          trusted-public-keys = lib.mkOption { type = lib.types.listOf lib.types.str; default = [ ]; };
          secret-key-files = lib.mkOption { type = lib.types.listOf lib.types.str; default = [ ]; };
          connect-timeout = lib.mkOption { type = lib.types.nullOr lib.types.ints.unsigned; default = null; };
          fallback = lib.mkOption { type = lib.types.nullOr lib.types.bool; default = null; };
        };
      };
      users = { users = any; groups = any; knownUsers = any // { default = [ ]; }; knownGroups = any // { default = [ ]; }; };
      launchd.daemons = any;
      system.activationScripts.launchd.text = lib.mkOption { type = lib.types.str; default = ""; };
    };
    config.nix.settings.substituters = lib.mkAfter [ "https://cache.nixos.org/" ];
  };

  # What NixOS does with its proxy options.
  proxies = { config, lib, ... }: {
    networking.proxy.envVars = lib.filterAttrs (_: v: v != null) {
      http_proxy = config.networking.proxy.default;
      no_proxy = config.networking.proxy.noProxy;
    };
    systemd.services.nix-daemon.environment = config.networking.proxy.envVars;
  };

  evalWith = module: more:
    (lib.evalModules { modules = [ system module more ]; specialArgs = { inherit lib pkgs; }; }).config;

  # What the rest of the system would see.
  result = config: {
    failed = map (a: a.message) (builtins.filter (a: !a.assertion) config.assertions);
    inherit (config) warnings;
    toml = config.environment.etc."nixp2p/config.toml".source.text;
    check = config.environment.etc."nixp2p/config.toml".source.script;
    sockets = config.systemd.sockets;
    services = builtins.mapAttrs (_: s: removeAttrs s [ "restartTriggers" ]) config.systemd.services;
    units = map toString config.systemd.packages;
    tcp = config.networking.firewall.allowedTCPPorts;
    udp = config.networking.firewall.allowedUDPPorts;
    nix = config.nix.settings;
  };
  nixos = settings: result (evalWith ../module.nix { services.nixp2p = { enable = true; openFirewall = true; } // settings; });

  cases = {
    off = let c = evalWith ../module.nix { }; in {
      inherit (c) assertions warnings;
      inherit (c.systemd) packages services sockets;
      inherit (c.environment) etc;
      nix = c.nix.settings;
      tcp = c.networking.firewall.allowedTCPPorts;
    };
    enable = nixos { };
    settings = nixos {
      settings = {
        listen = "127.0.0.1:7700";
        cache-size = "50GiB";
        priority = 20;
        upstream = [ "https://mirror.example" "https://cache.nixos.org" ];
        p2p-listen = [ "/ip4/0.0.0.0/tcp/7666" "/ip6/::/tcp/7666" ];
        bootstrap = [ "dns:nixp2p.example:7666" ];
        upload-limit = "20MB/s";
        log-level = "debug";
      };
      swarmKeyFile = "/run/secrets/swarm";
    };
    closed = nixos { openFirewall = false; };
    silent = nixos { openFirewall = null; };
    # Several addresses, one of which stands for all.
    listens = nixos { settings.listen = [ "0.0.0.0:7700" "[::1]:7700" ]; };
    netrc = nixos { netrcFile = "/run/secrets/netrc"; };
    alone = nixos { settings.p2p = false; };
    unicast = nixos { settings.mdns = false; };
    # A key of a later version goes through; whether it is one, the program says.
    freeform = nixos { settings.color = "green"; };

    # Each has one failed assertion.
    wrong = {
      unix = (nixos { settings.listen = "unix:/run/nixp2p"; }).failed;
      netrcInStore = (nixos { netrcFile = "${builtins.storeDir}/abc-netrc"; }).failed;
      keyInStore = (nixos { swarmKeyFile = "${builtins.storeDir}/abc-key"; }).failed;
      keyInSettings = (nixos { settings.swarm-key-file = "/etc/key"; }).failed;
      keyWithoutPeers = (nixos { swarmKeyFile = "/run/key"; settings.p2p = false; }).failed;
      stateDir = (nixos { settings.state-dir = "/srv"; }).failed;
      portZero = (nixos { settings.p2p-listen = [ "/ip4/0.0.0.0/tcp/0" ]; }).failed;
    };
    # Each is refused by a type or by the module system.
    refused = {
      type = (nixos { settings.p2p = "no"; }).toml;
      level = (nixos { settings.log-level = "loud"; }).toml;
      option = (nixos { enabled = true; }).toml;
    };
    onlyUs = (result (evalWith ../module.nix ({ lib, ... }: {
      services.nixp2p = { enable = true; openFirewall = true; };
      nix.settings.substituters = lib.mkForce [ "http://127.0.0.1:7654" ];
    }))).warnings;
    # A proxy of the whole system, and whether Nix comes past it to the node.
    proxy = builtins.mapAttrs
      (_: networking: (evalWith { imports = [ ../module.nix proxies ]; } {
        services.nixp2p.enable = true;
        nix.envVars = { NIX_SSL_CERT_FILE = "/etc/corp.pem"; NIX_OTHER = "1"; };
        inherit networking;
      }).systemd.services)
      {
        none = { };
        plain.proxy.default = "http://proxy:3128";
        own.proxy = { default = "http://proxy:3128"; noProxy = "corp.example,localhost"; };
      };
    # The operator's own word counts.
    own = (result (evalWith ../module.nix {
      services.nixp2p.enable = true;
      nix.settings.connect-timeout = 30;
      nix.settings.fallback = false;
    })).nix;

    darwinOther = let c = evalWith ../darwin.nix {
      services.nixp2p = { enable = true; netrcFile = "/etc/netrc"; settings.listen = [ "127.0.0.1:7700" ]; };
      nix.enable = false;
      # As nix-darwin does it: whoever asks finds out that this is off.
      nix.package = lib.mkForce (throw "nix.package: accessed when nix.enable is off");
    }; in {
      failed = builtins.filter (a: !a.assertion) c.assertions;
      inherit (c) warnings;
      netrc = c.launchd.daemons.nixp2p.serviceConfig.EnvironmentVariables.NETRC;
      toml = c.environment.etc."nixp2p/config.toml".source.text;
    };

    darwin = let c = evalWith ../darwin.nix { services.nixp2p = { enable = true; swarmKeyFile = "/etc/nixp2p/swarm-key"; }; }; in {
      failed = builtins.filter (a: !a.assertion) c.assertions;
      toml = c.environment.etc."nixp2p/config.toml".source.text;
      daemon = c.launchd.daemons.nixp2p.serviceConfig;
      nix = c.nix.settings;
      script = c.system.activationScripts.launchd.text;
      inherit (c.users) knownUsers;
      uid = c.users.users._nixp2p.uid;
    };

    # The default of each key as the manual shows it.
    keys = builtins.mapAttrs (_: o: o.defaultText.text or o.default) (import ../settings.nix { inherit lib pkgs; }).settingsOptions;
    package = removeAttrs (import ../package.nix { inherit lib; inherit (pkgs) stdenv buildGoModule coreutils; }) [ "meta" "src" ];
  };
in
cases // { all = removeAttrs cases [ "refused" "package" ]; }
