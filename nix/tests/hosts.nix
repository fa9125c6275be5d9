# Three hosts that use the module.
{
  give = {
    enable = true;
    hostId = "give";
    give = { enable = true; root = "tank/zfsilo"; portals = [ "10.0.0.1:3260" "[fd00::1]:3261" ]; overcommit = 3; };
  };

  take = {
    enable = true;
    take = {
      enable = true;
      initiatorName = "iqn.2026-01.org.example:take";
      serverFiles.give = "/run/secrets/give.toml";
      volumes.data = { server = "give"; mountPath = "/srv/data"; fsType = "xfs"; mountOptions = [ "noatime" ]; };
      volumes.disk = { server = "give"; volume = "other"; state = "connected"; };
    };
  };

  both = {
    enable = true;
    give = { enable = true; root = "rpool/volumes"; openFirewall = false; };
    tls = { enable = true; address = "127.0.0.1:9750"; };
    take = { enable = true; initiatorName = "iqn.2026-01.org.example:both"; };
    settings = { sync.interval_s = 60; give.volblocksize = 65536; };
  };
}
