# A NixOS test: nix build 'path:.?dir=nix#checks.x86_64-linux.two-machines'
{ testers, module, zfsilo }:

let
  scenario = import ./scenario.nix;
  node = name: { ... }: {
    imports = [ module scenario.machines.${name} ];
    services.zfsilo.package = zfsilo;
    virtualisation.memorySize = 1536;
    virtualisation.emptyDiskImages = [ 2048 ]; # /dev/vdb, for the pool
    networking.interfaces.eth1.ipv4.addresses = [ { address = scenario.addresses.${name}; prefixLength = 24; } ];
    networking.extraHosts = builtins.concatStringsSep "\n"
      (map (host: "${scenario.addresses.${host}} ${host}") (builtins.attrNames scenario.addresses));
  };
in
testers.runNixOSTest {
  name = "zfsilo-two-machines";
  nodes.give = node "give";
  nodes.take = node "take";
  testScript = scenario.script;
}
