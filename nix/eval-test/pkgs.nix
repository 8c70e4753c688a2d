# Stands in for pkgs: nothing here can be built, all can be looked at.
{ lib, package, nixVersion ? "2.18.1" }:
let
  inherit (builtins) attrNames concatStringsSep isBool isInt isList isString map replaceStrings toString;
  value = v:
    if isString v then ''"${replaceStrings [ "\\" "\"" "\n" "\t" ] [ "\\\\" "\\\"" "\\n" "\\t" ] v}"''
    else if isBool v then (if v then "true" else "false")
    else if isInt v then toString v
    else if isList v then "[${concatStringsSep ", " (map value v)}]"
    else throw "not in TOML: ${builtins.typeOf v}";
  scalar = lib.types.either lib.types.bool (lib.types.either lib.types.ints.unsigned lib.types.str);
  outPathOf = name: { inherit name; version = nixVersion; outPath = "/nix/store/00000000000000000000000000000000-${name}"; };
in
rec {
  inherit lib;
  formats.toml = _: {
    type = lib.types.attrsOf (lib.types.either scalar (lib.types.listOf scalar));
    generate = name: settings: outPathOf name // {
      text = concatStringsSep "" (map (k: "${k} = ${value settings.${k}}\n") (attrNames settings));
    };
  };
  # What would be built: the file before the check, and the script that checks it.
  runCommand = name: env: script: { inherit name script; inherit (env.raw) text outPath; };
  callPackage = _: _: package;
  coreutils = outPathOf "coreutils";
  systemd = outPathOf "systemd";
  nix = outPathOf "nix-${nixVersion}";
  stdenv = {
    hostPlatform = { system = "x86_64-linux"; isLinux = true; isDarwin = false; };
    buildPlatform = { system = "x86_64-linux"; canExecute = _: true; };
  };
  buildGoModule = args: args // outPathOf "${args.pname}-${args.version}";
}
