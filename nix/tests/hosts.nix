# Three example hosts for the module.
{
  give = {
    enable = true;
    hostId = "give";
    server = { enable = true; root = "tank/zfsilo"; portals = [ "10.0.0.1:3260" "[fd00::1]:3261" ]; nvmeCntlidMin = 32000; overcommit = 3; schedules.nightly = { keep = "7x1d 4x1w"; labels.app = "db's"; group = true; }; replications.hourly = { to = "other"; calendar = "hourly"; labels.app = "db"; volumes = [ "data" ]; rate = "20M"; }; };
  };

  take = {
    enable = true;
    client = {
      enable = true;
      initiatorName = "iqn.2026-01.org.example:take";
      serverFiles.give = "/run/secrets/give.toml";
      volumes.data = { server = "give"; mountPath = "/srv/data"; fsType = "xfs"; mountOptions = [ "noatime" ]; };
      volumes.disk = { server = "give"; volume = "other"; state = "connected"; };
    };
  };

  both = {
    enable = true;
    server = { enable = true; root = "rpool/volumes"; openFirewall = false; };
    tls = { enable = true; address = "127.0.0.1:9750"; };
    client = { enable = true; initiatorName = "iqn.2026-01.org.example:both"; };
    settings = { sync.interval_s = 60; server.volblocksize = 65536; };
  };
}
