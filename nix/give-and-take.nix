# A NixOS test: nix build 'path:.?dir=nix#checks.x86_64-linux.give-and-take'
{ testers, module, zfsilo }:

let
  story = import ./story.nix;
  node = name: { ... }: {
    imports = [ module story.machines.${name} ];
    services.zfsilo.package = zfsilo;
    virtualisation.memorySize = 1536;
    virtualisation.emptyDiskImages = [ 2048 ]; # /dev/vdb, for the pool
    networking.interfaces.eth1.ipv4.addresses = [ { address = story.addresses.${name}; prefixLength = 24; } ];
    networking.extraHosts = builtins.concatStringsSep "\n"
      (map (host: "${story.addresses.${host}} ${host}") (builtins.attrNames story.addresses));
  };
in
testers.runNixOSTest {
  name = "zfsilo-give-and-take";
  nodes.give = node "give";
  nodes.take = node "take";
  testScript = story.script;
}
