# The outputs of the flake, with inputs that stand in.
let
  lib = import ./lib.nix // {
    hasSuffix = suffix: s: builtins.match ".*${suffix}" s != null;
  };
  package = { name = "nixp2p-0"; version = "0"; outPath = "/nonexistent"; };
  pkgs = import ./pkgs.nix { inherit lib package; } // {
    testers.runNixOSTest = test: test;
    callPackage = f: _: import f { inherit lib; inherit (pkgs) stdenv buildGoModule coreutils systemd; };
    writeText = name: _: "/nix/store/00000000000000000000000000000000-${name}";
    writeTextDir = name: _: "/nix/store/00000000000000000000000000000000-dir";
  };
  nixpkgs = { inherit lib; legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" "aarch64-darwin" "x86_64-darwin" ] (_: pkgs); };
  # The inputs may have more systems or fewer.
  self = (import ../../flake.nix).outputs { inherit self nixpkgs; };
in
{
  vmScript = self.checks.x86_64-linux.vm.testScript;
  result = {
    names = builtins.attrNames self;
    systems = builtins.attrNames self.packages;
    checks = builtins.attrNames self.checks.x86_64-linux;
    package = self.packages.x86_64-linux.default.name;
    module = builtins.attrNames (self.nixosModules.default { inherit lib pkgs; });
  };
}
