{ lib, stdenv, buildGoModule, coreutils, systemd }:

buildGoModule {
  pname = "nixp2p";
  version = lib.fileContents ../VERSION;

  src = lib.cleanSource ../.;
  # `make vendor-hash` writes this line, `make test-nix` complains when it is wrong.
  vendorHash = "sha256-PwwtF8i2vJ9dG8o2UHJgJKR7tFelV9vVtuaNI/kGYnM=";

  subPackages = [ "cmd/nixp2p" ];
  env.CGO_ENABLED = 0;
  ldflags = [ "-s" "-w" "-X main.released=${lib.fileContents ../VERSION}" ];

  # The tests start servers, Nix and systemd tools: `make test` runs them. Here the program
  # shows that it runs.
  doCheck = false;
  doInstallCheck = stdenv.buildPlatform.canExecute stdenv.hostPlatform;
  installCheckPhase = ''
    runHook preInstallCheck
    STATE_DIRECTORY=/var/lib/nixp2p CACHE_DIRECTORY=/var/cache/nixp2p $out/bin/nixp2p config check
    $out/bin/nixp2p version | grep -F "nixp2p $version "
    runHook postInstallCheck
  '';

  # Units, manual and completions, as `make install` puts them anywhere else. systemd on
  # NixOS looks for programs nowhere, so what a unit starts has its whole path.
  postInstall = lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    make SHELL="$SHELL" BIN=$out/bin/nixp2p PREFIX=$out install-manual
  '' + lib.optionalString stdenv.hostPlatform.isLinux ''
    make SHELL="$SHELL" PREFIX=$out KILL=${coreutils}/bin/kill SLEEP=${coreutils}/bin/sleep SYSTEMCTL=${systemd}/bin/systemctl install-units
  '';

  meta = {
    description = "Peer-to-peer binary cache for Nix";
    homepage = "https://github.com/nixp2p/nixp2p";
    license = lib.licenses.mit;
    mainProgram = "nixp2p";
    platforms = lib.platforms.linux ++ lib.platforms.darwin;
  };
}
