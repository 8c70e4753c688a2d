# A derivation that fails to evaluate when the modules do not do what they should, with the
# real lib, and whose build feeds the files to the program.
{ pkgs, package }:
let
  inherit (pkgs) lib;
  cases = import ./. { inherit lib; };
  is = what: have: want: lib.assertMsg (have == want) "${what}: ${builtins.toJSON have}, want ${builtins.toJSON want}";
in
assert is "failed assertions" cases.enable.failed [ ];
assert is "substituters" cases.enable.nix.substituters [ "http://127.0.0.1:7654" "https://cache.nixos.org/" ];
assert is "ports" (cases.enable.tcp ++ cases.enable.udp) [ 7656 5353 ];
assert is "wrong settings that pass" (lib.attrNames (lib.filterAttrs (_: failed: lib.length failed != 1) cases.wrong)) [ ];
assert is "wrong types that pass" (lib.attrNames (lib.filterAttrs (_: v: (builtins.tryEval v).success) (removeAttrs cases.refused [ "option" ]))) [ ];
pkgs.runCommand "nixp2p-modules"
{
  enable = pkgs.writeText "enable.toml" cases.enable.toml;
  settings = pkgs.writeText "settings.toml" cases.settings.toml;
  freeform = pkgs.writeText "freeform.toml" cases.freeform.toml;
  STATE_DIRECTORY = "/var/lib/nixp2p";
  CACHE_DIRECTORY = "/var/cache/nixp2p";
} ''
  ${package}/bin/nixp2p config check "$enable"
  ${package}/bin/nixp2p config check "$settings"
  ! ${package}/bin/nixp2p config check "$freeform"
  touch "$out"
''
