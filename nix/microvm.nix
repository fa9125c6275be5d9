# MicroVM settings of a machine of the scenario: a network between both machines, a disk for the pool.
{ config, lib, scenario, ... }:

let
  name = config.networking.hostName;
  number = { give = 1; take = 2; }.${name};
in
{
  system.stateVersion = lib.mkDefault "25.05";
  microvm = {
    hypervisor = "qemu";
    vcpu = 2;
    mem = 1536;
    interfaces = [ { type = "tap"; id = "zfsilo-${name}"; mac = "02:00:00:00:77:0${toString number}"; } ];
    volumes = [ { image = "${name}-var.img"; mountPoint = "/var"; size = 1024; } ]
      ++ lib.optional (name == "give") { image = "tank.img"; mountPoint = null; size = 4096; };
    shares = [ { tag = "store"; source = "/nix/store"; mountPoint = "/nix/.ro-store"; } ];
  };
  networking.useNetworkd = true;
  systemd.network.networks."10-lan" = {
    matchConfig.Type = "ether";
    address = [ "${scenario.addresses.${name}}/24" ];
  };
  networking.extraHosts = lib.concatStringsSep "\n"
    (lib.mapAttrsToList (host: address: "${address} ${host}") scenario.addresses);
  services.getty.autologinUser = "root";
}
