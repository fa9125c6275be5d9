# services.zfsilo: a server, a client, or both.
{ config, lib, pkgs, ... }:

let
  cfg = config.services.zfsilo;
  inherit (lib) mkOption types;
  toml = pkgs.formats.toml { };

  # Only what was set: the daemon's own defaults stay the one place where they are written.
  given = lib.filterAttrs (_name: value: value != null && value != [ ]);
  table = name: values: lib.optionalAttrs (values != { }) { ${name} = values; };

  settings = lib.recursiveUpdate
    (table "daemon" (given { host_id = cfg.hostId; })
      // table "server" (lib.optionalAttrs cfg.server.enable (given {
        inherit (cfg.server) root portals overcommit;
        iqn_prefix = cfg.server.iqnPrefix;
      })))
    cfg.settings;

  volumeFile = name: volume: lib.nameValuePair "zfsilo/volumes.d/${name}.toml" {
    source = toml.generate "zfsilo-${name}.toml" (given {
      inherit (volume) server volume state;
      mount_path = volume.mountPath;
      fs_type = volume.fsType;
      mount_options = volume.mountOptions;
      readonly = if volume.readOnly then true else null;
    });
  };
  volumeUnit = name: _volume: lib.nameValuePair "zfsilo-volume@${name}" {
    overrideStrategy = "asDropin";
    wantedBy = [ "multi-user.target" ];
  };
  # The port of "10.0.0.1:3260" or "[fd00::1]:3260".
  portOf = portal: lib.toInt (builtins.head (builtins.match ".*:([0-9]+)" portal));

  id = types.strMatching "[a-z0-9]([a-z0-9._-]*[a-z0-9])?";

  volume = types.submodule {
    options = {
      server = mkOption { type = id; description = "The storage host, as `zfsiloctl server list` names it."; };
      volume = mkOption { type = types.nullOr id; default = null; description = "Its id there, where that is another one."; };
      state = mkOption {
        type = types.enum [ "connected" "staged" "mounted" ];
        default = "mounted";
        description = "How far up it shall be.";
      };
      mountPath = mkOption { type = types.nullOr types.path; default = null; description = "Where it is mounted."; };
      fsType = mkOption { type = types.nullOr (types.enum [ "ext4" "xfs" ]); default = null; description = "The filesystem of an empty volume."; };
      mountOptions = mkOption { type = types.listOf types.str; default = [ ]; description = "Mount options."; };
      readOnly = mkOption { type = types.bool; default = false; description = "Whether writes are refused."; };
    };
  };
in
{
  options.services.zfsilo = {
    enable = mkOption { type = types.bool; default = false; description = "Whether zfsilod runs."; };
    package = mkOption { type = types.package; default = pkgs.zfsilo; description = "The package."; };
    hostId = mkOption { type = types.nullOr id; default = null; description = "This host's id; null: its host name."; };
    settings = mkOption {
      type = toml.type;
      default = { };
      example = { sync.interval_s = 60; };
      description = "Further keys of zfsilod.toml(5); they win over the options here.";
    };

    server = {
      enable = mkOption { type = types.bool; default = false; description = "Whether this host serves volumes."; };
      root = mkOption { type = types.nullOr types.str; default = null; example = "tank/zfsilo"; description = "The dataset below which volumes are made. It must exist."; };
      portals = mkOption { type = types.listOf types.str; default = [ "0.0.0.0:3260" ]; description = "Where iSCSI targets listen."; };
      iqnPrefix = mkOption { type = types.nullOr types.str; default = null; description = "Of all targets; null: made from the host's id."; };
      overcommit = mkOption { type = types.nullOr types.float; default = null; description = "How many times the pool thin volumes may promise."; };
      openFirewall = mkOption { type = types.bool; default = true; description = "Whether consumers may reach the portals and the API."; };
    };

    tls = {
      enable = mkOption { type = types.bool; default = cfg.server.enable; defaultText = "services.zfsilo.server.enable"; description = "Whether other hosts may talk to zfsilod (TLS 1.3, port 9750)."; };
      address = mkOption { type = types.str; default = "[::]:9750"; description = "Where it listens for them."; };
    };

    client = {
      enable = mkOption { type = types.bool; default = false; description = "Whether this host uses volumes of others."; };
      initiatorName = mkOption { type = types.nullOr types.str; default = null; example = "iqn.2026-01.org.example:take"; description = "This host's iSCSI name."; };
      serverFiles = mkOption {
        type = types.attrsOf types.path;
        default = { };
        example = { give = "/run/secrets/zfsilo-give.toml"; };
        description = "Files of servers.d by server: a secret each, so never a path in the store. `zfsiloctl join` makes them.";
      };
      volumes = mkOption { type = types.attrsOf volume; default = { }; description = "What is attached at boot, by its name here."; };
    };
  };

  config = lib.mkIf cfg.enable (lib.mkMerge [
    {
      assertions = [
        { assertion = cfg.server.enable -> cfg.server.root != null; message = "services.zfsilo.server.root names no dataset"; }
        { assertion = cfg.client.enable -> cfg.client.initiatorName != null; message = "services.zfsilo.client.initiatorName is not set"; }
        { assertion = cfg.client.volumes == { } || cfg.client.enable; message = "services.zfsilo.client.volumes without services.zfsilo.client.enable"; }
      ] ++ lib.mapAttrsToList (name: each: {
        assertion = (each.state == "mounted") == (each.mountPath != null);
        message = "services.zfsilo.client.volumes.${name}: mountPath goes with state \"mounted\"";
      }) cfg.client.volumes;

      environment.systemPackages = [ cfg.package ];
      environment.etc = lib.mkMerge [
        { "zfsilo/zfsilod.toml".source = toml.generate "zfsilod.toml" settings; }
        (lib.mapAttrs' volumeFile cfg.client.volumes)
      ];
      services.dbus.packages = [ cfg.package ];
      services.udev.packages = [ cfg.package ];
      systemd.packages = [ cfg.package ];
      systemd.tmpfiles.packages = [ cfg.package ];
      users.groups.zfsilo = { };

      systemd.sockets.zfsilod.wantedBy = [ "sockets.target" ];
      systemd.timers.zfsilo-renew.wantedBy = [ "timers.target" ];
      systemd.services = lib.mkMerge [
        {
          # A change of the configuration restarts the daemon; what it exported and mounted stays.
          zfsilod = { wantedBy = [ "multi-user.target" ]; restartTriggers = [ config.environment.etc."zfsilo/zfsilod.toml".source ]; };
        }
        (lib.mapAttrs' volumeUnit cfg.client.volumes)
      ];
    }

    (lib.mkIf cfg.tls.enable {
      systemd.sockets.zfsilod-tcp = {
        wantedBy = [ "sockets.target" ];
        # The empty one takes back the unit's own.
        listenStreams = [ "" cfg.tls.address ];
      };
    })

    (lib.mkIf cfg.server.enable {
      boot.supportedFilesystems = [ "zfs" ];
      boot.kernelModules = [ "target_core_mod" "target_core_iblock" "iscsi_target_mod" "nvmet" "nvmet-tcp" ];
      networking.firewall.allowedTCPPorts = lib.mkIf cfg.server.openFirewall
        (lib.unique (map portOf cfg.server.portals) ++ lib.optional cfg.tls.enable (portOf cfg.tls.address));
    })

    (lib.mkIf cfg.client.enable {
      boot.kernelModules = [ "iscsi_tcp" "nvme-tcp" ];
      boot.supportedFilesystems = [ "ext4" "xfs" ];
      services.openiscsi = { enable = true; name = cfg.client.initiatorName; };
      # Links, as the secret is elsewhere; the daemon refuses what others can read.
      systemd.tmpfiles.rules = lib.mapAttrsToList
        (name: file: "L+ /etc/zfsilo/servers.d/${name}.toml - - - - ${file}")
        cfg.client.serverFiles;
    })
  ]);
}
