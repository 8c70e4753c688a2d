{
  description = "nixp2p: every machine is a binary cache for its neighbours on the LAN";

  # Go 1.26 or later is needed, which the stable releases may not have yet.
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs = { self, nixpkgs }:
    let
      # Those that this nixpkgs has: x86_64-darwin goes away in 2026.
      systems = builtins.filter (system: nixpkgs.legacyPackages ? ${system}) [ "x86_64-linux" "aarch64-linux" "aarch64-darwin" "x86_64-darwin" ];
      forEach = f: nixpkgs.lib.genAttrs systems (system: f system nixpkgs.legacyPackages.${system});
      isLinux = nixpkgs.lib.hasSuffix "-linux";
      # The flake's own package: built with the nixpkgs that it is tested with.
      withPackage = module: { lib, pkgs, ... }: {
        imports = [ module ];
        services.nixp2p.package = lib.mkDefault self.packages.${pkgs.stdenv.hostPlatform.system}.default;
      };
    in
    {
      packages = forEach (_: pkgs: rec {
        nixp2p = pkgs.callPackage ./nix/package.nix { };
        default = nixp2p;
      });

      overlays.default = final: _: {
        nixp2p = final.callPackage ./nix/package.nix { };
      };

      nixosModules.default = withPackage ./nix/module.nix;
      darwinModules.default = withPackage ./nix/darwin.nix;

      # `nix flake check` builds the package, evaluates the modules, and on Linux boots machines.
      checks = forEach (system: pkgs: {
        package = self.packages.${system}.default;
        modules = import ./nix/eval-test/check.nix { inherit pkgs; package = self.packages.${system}.default; };
      } // nixpkgs.lib.optionalAttrs (isLinux system) {
        vm = import ./nix/vm-test.nix { inherit pkgs; module = self.nixosModules.default; };
      });

      # What `make test` needs.
      devShells = forEach (_: pkgs: {
        default = pkgs.mkShell {
          packages = with pkgs; [ go gopls golangci-lint gnumake git nginx xz zstd brotli bzip2 sqlite ];
        };
      });
    };
}
