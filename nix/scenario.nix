# Two machines and an end-to-end scenario, a short form of tests/lab/scenario.py. Used by the NixOS
# test and the MicroVMs.
rec {
  addresses = { give = "10.77.0.1"; take = "10.77.0.2"; };

  machines.give = {
    networking.hostName = "give";
    networking.hostId = "00000001"; # required by ZFS
    services.zfsilo = {
      enable = true;
      server = { enable = true; root = "tank/zfsilo"; portals = [ "${addresses.give}:3260" ]; };
    };
  };

  machines.take = {
    networking.hostName = "take";
    services.zfsilo = {
      enable = true;
      client = { enable = true; initiatorName = "iqn.2026-01.org.zfsilo.scenario:take"; };
    };
  };

  script = ''
    import json

    start_all()
    give.wait_for_unit("multi-user.target")
    take.wait_for_unit("multi-user.target")
    give.succeed("zpool create -O mountpoint=none tank /dev/vdb")
    give.succeed("zfs create tank/zfsilo && systemctl restart zfsilod.service")
    give.succeed("zfsiloctl pki init && zfsiloctl pki issue host take --address give --file /tmp/shared/take.join")
    take.succeed("zfsiloctl join /tmp/shared/take.join")

    give.succeed("zfsiloctl volume create data 256M --host take")
    take.succeed("zfsiloctl volume connect data --restore boot")
    take.succeed("zfsiloctl volume stage data && zfsiloctl volume mount data /srv/data")
    take.succeed("echo kept > /srv/data/file && sync")

    with subtest("the mount survives a restart of the daemon"):
        take.succeed("systemctl restart zfsilod.service && grep kept /srv/data/file")

    with subtest("the export is restored after a reboot of the server"):
        give.shutdown()
        give.start()
        give.succeed("zpool import -d /dev tank || zpool list tank")
        take.wait_until_succeeds("grep kept /srv/data/file", timeout=120)

    with subtest("nothing is left after the volume is deleted"):
        take.succeed("zfsiloctl down data")
        assert json.loads(take.succeed("zfsiloctl volume list --json"))["volumes"] == []
        give.succeed("zfsiloctl volume delete data --yes")
        give.fail("zfs list tank/zfsilo/data")
  '';
}
