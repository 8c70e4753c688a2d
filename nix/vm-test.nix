# Three machines of one office and an upstream, as virtual machines: one machine gets a path
# from upstream, the others get it from that machine after upstream is gone, and a daemon
# that is killed is not felt. Run by `nix flake check`; needs KVM.
{ pkgs, module }:
let
  # Made for this test, and trusted by nobody else.
  publicKey = "vm-test-1:+xDKK+yETMnCXtz26AwAh3XrnNhXy48+l+lxhDRJbMw=";
  secretKey = pkgs.writeText "vm-test-secret-key" "vm-test-1:XhIgn508XaECd3YdrBNBI2XHuedu494Y663T/sZUQPX7EMor7IRMycJe3PboDACHdeuc2FfLjz6X6XGENElszA==";

  path = pkgs.writeTextDir "share/probe" "what the machines fetch\n";

  machine = {
    imports = [ module ];
    services.nixp2p = {
      enable = true;
      openFirewall = true;
      settings = {
        upstream = [ "http://upstream" ];
        trusted-public-key = [ publicKey ];
        share-key = [ "vm-test-1" ];
      };
    };
    nix.settings = {
      substituters = pkgs.lib.mkForce [ "http://127.0.0.1:7654" ];
      trusted-public-keys = [ publicKey ];
      # Asked again at once after a miss.
      narinfo-cache-negative-ttl = 0;
    };
    # The path is named, not installed: it has to be fetched.
    virtualisation.writableStore = true;
  };
in
pkgs.testers.runNixOSTest {
  name = "nixp2p";

  nodes = {
    a = machine;
    b = machine;
    c = machine;
    upstream = {
      virtualisation.additionalPaths = [ path ];
      virtualisation.writableStore = true;
      networking.firewall.allowedTCPPorts = [ 80 ];
      services.nginx.enable = true;
      services.nginx.virtualHosts.default = {
        default = true;
        root = "/srv/cache";
      };
    };
  };

  testScript = ''
    path = "${builtins.unsafeDiscardStringContext "${path}"}"
    machines = [a, b, c]

    upstream.start()
    upstream.wait_for_unit("nginx.service")
    upstream.succeed("mkdir -p /srv/cache")
    upstream.succeed(f"nix --extra-experimental-features nix-command copy --to 'file:///srv/cache?secret-key=${secretKey}' {path}")

    for m in machines:
        m.start()
    for m in machines:
        m.wait_for_unit("nixp2p.service")
        m.wait_until_succeeds("curl -sf http://127.0.0.1:7654/nix-cache-info | grep -x 'Priority: 30'")

    with subtest("machines find each other"):
        for m in machines:
            m.wait_until_succeeds("test $(curl -sf http://127.0.0.1:7655/api/v1/peers | grep -o '\"rtt_ms\"' | wc -l) = 2", timeout=60)

    with subtest("from upstream"):
        a.succeed(f"nix-store -r {path}")

    with subtest("from a peer, upstream gone"):
        upstream.shutdown()
        for m in [b, c]:
            m.wait_until_succeeds(f"nix-store -r {path}", timeout=60)
            m.succeed(f"grep -x 'what the machines fetch' {path}/share/probe")

    with subtest("a killed daemon is not felt"):
        b.succeed("systemctl kill -s KILL nixp2p.service")
        b.succeed("curl -sf http://127.0.0.1:7654/nix-cache-info")

    with subtest("what nobody has is a miss, at once"):
        c.succeed("test \"$(curl -s -m 5 -o /dev/null -w '%{http_code}' http://127.0.0.1:7654/00000000000000000000000000000000.narinfo)\" = 404")
  '';
}
