# services.zfsilo: a server, a client, or both.
{ config, lib, pkgs, ... }:

let
  cfg = config.services.zfsilo;
  inherit (lib) mkOption types;
  toml = pkgs.formats.toml { };

  # Writes only options that are set, so that defaults are defined in the daemon alone.
  nonDefault = lib.filterAttrs (_name: value: value != null && value != [ ]);
  table = name: values: lib.optionalAttrs (values != { }) { ${name} = values; };

  settings = lib.recursiveUpdate
    (table "daemon" (nonDefault { host_id = cfg.hostId; })
      // table "server" (lib.optionalAttrs cfg.server.enable (nonDefault {
        inherit (cfg.server) root portals overcommit;
        nvme_portals = cfg.server.nvmePortals;
        nvme_tls_port = cfg.server.nvmeTlsPort;
        nvme_cntlid_min = cfg.server.nvmeCntlidMin;
        nvme_cntlid_max = cfg.server.nvmeCntlidMax;
        iqn_prefix = cfg.server.iqnPrefix;
      })))
    cfg.settings;

  volumeFile = name: volume: lib.nameValuePair "zfsilo/volumes.d/${name}.toml" {
    source = toml.generate "zfsilo-${name}.toml" (nonDefault {
      inherit (volume) server volume state;
      mount_path = volume.mountPath;
      fs_type = volume.fsType;
      mount_options = volume.mountOptions;
      readonly = if volume.readOnly then true else null;
      transport = volume.transport;
      tls = if volume.tls then true else null;
    });
  };
  volumeUnit = name: _volume: lib.nameValuePair "zfsilo-volume@${name}" {
    overrideStrategy = "asDropin";
    wantedBy = [ "multi-user.target" ];
  };
  # A policy that is deleted and created again is another one, and prunes nothing of the former one.
  scheduleUnit = name: schedule: policyUnit "schedule" name schedule
    ([ "--keep" schedule.keep ] ++ lib.optional schedule.group "--group");
  # It fails before `zfsiloctl join`.
  replicationUnit = name: replication: policyUnit "replication" name replication
    ([ "--to" replication.to "--rate" (toString replication.rate) ]
      ++ builtins.concatLists (map (volume: [ "--volume" volume ]) replication.volumes));
  policyUnit = noun: name: policy: own: lib.nameValuePair "zfsilo-${noun}-${name}" (
    let
      create = lib.escapeShellArgs ([ noun "create" name "--update" "--calendar" policy.calendar "--delay" (toString policy.delay) ] ++ own
        ++ builtins.concatLists (lib.mapAttrsToList (label: value: [ "--label" "${label}=${value}" ]) policy.labels));
    in {
      description = "zfsilo: ${noun} policy ${name}";
      wantedBy = [ "multi-user.target" ];
      after = [ "zfsilod.socket" ];
      requires = [ "zfsilod.socket" ];
      serviceConfig = { Type = "oneshot"; RemainAfterExit = true; };
      script = "${cfg.package}/bin/zfsiloctl ${create}";
    });
  # The port of "10.0.0.1:3260" or "[fd00::1]:3260".
  portOf = portal: lib.toInt (builtins.head (builtins.match ".*:([0-9]+)" portal));

  # The patterns of zfsilod/model; the daemon also checks what a pattern cannot.
  id = types.strMatching "[a-z0-9]([a-z0-9._-]{0,126}[a-z0-9])?";
  dataset = types.strMatching "[A-Za-z][A-Za-z0-9_:.-]*(/([A-Za-z0-9_:-]|\\.[A-Za-z0-9_:-]|\\.\\.[A-Za-z0-9_:.-])[A-Za-z0-9_:.-]*)*";
  initiatorName = types.strMatching "([iI][qQ][nN]|[eE][uU][iI]|[nN][aA][aA])\\.[A-Za-z0-9.:_-]{1,219}";
  targetPrefix = types.strMatching "[iI][qQ][nN]\\.[0-9]{4}-[0-9]{2}\\.[A-Za-z0-9][A-Za-z0-9._-]*(:[A-Za-z0-9.:_-]+)?";
  portal = types.strMatching "(\\[[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]{1,15})?]|[0-9.]+):[1-9][0-9]{0,4}";
  mountOption = types.strMatching "[a-z_][a-z0-9_]{0,31}(=[A-Za-z0-9._:-]{1,64})?";

  schedule = types.submodule {
    options = {
      calendar = mkOption { type = types.str; default = "daily"; description = "When snapshots are taken: OnCalendar= of systemd.timer(5)."; };
      keep = mkOption { type = types.str; example = "24x1h 7x1d 4x1w 12x1mon"; description = "The retention grid."; };
      labels = mkOption { type = types.attrsOf types.str; default = { }; description = "Labels of the volumes; none: every volume."; };
      group = mkOption { type = types.bool; default = false; description = "Whether all volumes are taken at one moment, as a snapshot group."; };
      delay = mkOption { type = types.int; default = 0; description = "The timer adds up to this many seconds, at random."; };
    };
  };

  replication = types.submodule {
    options = {
      to = mkOption { type = id; description = "The peer, by its name in `zfsiloctl server list`."; };
      calendar = mkOption { type = types.str; default = "daily"; description = "When volumes are sent: OnCalendar= of systemd.timer(5)."; };
      labels = mkOption { type = types.attrsOf types.str; default = { }; description = "Labels of the volumes; none: every volume, unless some are named."; };
      volumes = mkOption { type = types.listOf id; default = [ ]; description = "Volumes besides those with the labels."; };
      rate = mkOption { type = types.either types.int types.str; default = 0; example = "20M"; description = "The most bytes a second of all volumes together; 0: no limit."; };
      delay = mkOption { type = types.int; default = 0; description = "The timer adds up to this many seconds, at random."; };
    };
  };

  volume = types.submodule {
    options = {
      server = mkOption { type = id; description = "The server, by its name in `zfsiloctl server list`."; };
      volume = mkOption { type = types.nullOr id; default = null; description = "The volume's id on the server; null: the attribute name."; };
      state = mkOption {
        type = types.enum [ "connected" "staged" "mounted" ];
        default = "mounted";
        description = "The state to bring the volume to at boot.";
      };
      mountPath = mkOption { type = types.nullOr types.path; default = null; description = "The mount point."; };
      fsType = mkOption { type = types.nullOr (types.enum [ "ext4" "xfs" ]); default = null; description = "The filesystem that is created on an empty volume."; };
      mountOptions = mkOption { type = types.listOf mountOption; default = [ ]; description = "Mount options."; };
      transport = mkOption { type = types.nullOr (types.enum [ "iscsi" "nvme" ]); default = null; description = "The transport, if the volume has to be published; null: that of the volume."; };
      tls = mkOption { type = types.bool; default = false; description = "Whether to connect with TLS 1.3 only, over nvme; tlshd (ktls-utils) has to run."; };
      readOnly = mkOption { type = types.bool; default = false; description = "Whether the volume is attached read-only."; };
    };
  };
in
{
  options.services.zfsilo = {
    enable = mkOption { type = types.bool; default = false; description = "Whether to run zfsilod."; };
    package = mkOption { type = types.package; default = pkgs.zfsilo; description = "The zfsilo package to use."; };
    hostId = mkOption { type = types.nullOr id; default = null; description = "The id of this host; null: its host name."; };
    settings = mkOption {
      type = toml.type;
      default = { };
      example = { sync.interval_s = 60; };
      description = "Additional keys of zfsilod.toml(5); they override the other options.";
    };

    sealedKey = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = ./zfsilo.key.cred;
      description = "The key of the store as systemd-creds encrypted it for this host, with `--name=zfsilo.key`; null: a file in /var/lib/zfsilo, or what `zfsiloctl seal-key` made. Encrypted volumes need it.";
    };

    server = {
      enable = mkOption { type = types.bool; default = false; description = "Whether this host is a server."; };
      root = mkOption { type = types.nullOr dataset; default = null; example = "tank/zfsilo"; description = "The parent dataset of all volumes. It must exist."; };
      portals = mkOption { type = types.listOf portal; default = [ "0.0.0.0:3260" ]; description = "Addresses and ports of the iSCSI targets."; };
      nvmePortals = mkOption { type = types.listOf portal; default = [ "0.0.0.0:4420" ]; description = "Addresses and ports of the NVMe/TCP targets."; };
      nvmeTlsPort = mkOption { type = types.nullOr types.port; default = null; description = "Port of the NVMe/TCP targets that require TLS 1.3, which tlshd (ktls-utils) serves; null: 4421, which is not opened in the firewall."; };
      nvmeCntlidMin = mkOption { type = types.nullOr types.int; default = null; description = "First id of NVMe controllers that this server gives; null: 1. Two servers between which volumes move while they are in use need ranges that do not overlap."; };
      nvmeCntlidMax = mkOption { type = types.nullOr types.int; default = null; description = "Last of these ids; null: 65519."; };
      iqnPrefix = mkOption { type = types.nullOr targetPrefix; default = null; description = "Prefix of the target names; null: derived from the host id."; };
      overcommit = mkOption { type = types.nullOr types.float; default = null; description = "Maximum total size of thin volumes, as a multiple of the pool's size."; };
      schedules = mkOption { type = types.attrsOf schedule; default = { }; description = "Snapshot policies by name. One that is removed here stays until `zfsiloctl schedule delete`."; };
      replications = mkOption { type = types.attrsOf replication; default = { }; description = "Replication policies by name. One that is removed here stays until `zfsiloctl replication delete`."; };
      openFirewall = mkOption { type = types.bool; default = true; description = "Whether to open the firewall for the portals and the API."; };
    };

    tls = {
      enable = mkOption { type = types.bool; default = cfg.server.enable; defaultText = "services.zfsilo.server.enable"; description = "Whether zfsilod accepts connections from other hosts (TLS 1.3, port 9750)."; };
      address = mkOption { type = types.str; default = "[::]:9750"; description = "The address and port for connections from other hosts."; };
    };

    client = {
      enable = mkOption { type = types.bool; default = false; description = "Whether this host is a client."; };
      initiatorName = mkOption { type = types.nullOr initiatorName; default = null; example = "iqn.2026-01.org.example:take"; description = "The iSCSI initiator name of this host."; };
      serverFiles = mkOption {
        type = types.attrsOf types.path;
        default = { };
        example = { give = "/run/secrets/zfsilo-give.toml"; };
        description = "Files of servers.d by server name. They contain secrets, so they must not be in the Nix store. `zfsiloctl join` creates them.";
      };
      volumes = mkOption { type = types.attrsOf volume; default = { }; description = "Volumes that are attached at boot, by their name on this host."; };
    };
  };

  config = lib.mkIf cfg.enable (lib.mkMerge [
    {
      assertions = [
        { assertion = cfg.server.enable -> cfg.server.root != null; message = "services.zfsilo.server.root is not set: name the parent dataset of the volumes"; }
        { assertion = lib.intersectLists cfg.server.portals cfg.server.nvmePortals == [ ]; message = "services.zfsilo.server.portals and nvmePortals have an address with the same port: the kernel listens there for one transport only"; }
        { assertion = cfg.client.enable -> cfg.client.initiatorName != null; message = "services.zfsilo.client.initiatorName is not set: name the iSCSI initiator"; }
        { assertion = cfg.client.volumes == { } || cfg.client.enable; message = "services.zfsilo.client.volumes needs services.zfsilo.client.enable"; }
      ] ++ lib.mapAttrsToList (name: volume: {
        assertion = (volume.state == "mounted") == (volume.mountPath != null);
        message = "services.zfsilo.client.volumes.${name}: mountPath must be set if, and only if, state is \"mounted\"";
      }) cfg.client.volumes;

      environment.systemPackages = [ cfg.package ];
      environment.etc = lib.mkMerge [
        { "zfsilo/zfsilod.toml".source = toml.generate "zfsilod.toml" settings; }
        (lib.mapAttrs' volumeFile cfg.client.volumes)
        (lib.mkIf (cfg.sealedKey != null) { "credstore.encrypted/zfsilo.key".source = cfg.sealedKey; })
      ];
      services.dbus.packages = [ cfg.package ];
      services.udev.packages = [ cfg.package ];
      systemd.packages = [ cfg.package ];
      systemd.tmpfiles.packages = [ cfg.package ];
      users.groups.zfsilo = { };
      users.groups.zfsilo-gateway = { };
      users.users.zfsilo-gateway = { isSystemUser = true; group = "zfsilo-gateway"; description = "zfsilo gateway"; };

      systemd.sockets.zfsilod.wantedBy = [ "sockets.target" ];
      systemd.timers.zfsilo-renew.wantedBy = [ "timers.target" ];
      systemd.services = lib.mkMerge [
        {
          # A changed configuration restarts the daemon; exports and mounts are not interrupted.
          zfsilod = { wantedBy = [ "multi-user.target" ]; restartTriggers = [ config.environment.etc."zfsilo/zfsilod.toml".source ]; };
        }
        (lib.mapAttrs' volumeUnit cfg.client.volumes)
        (lib.mkIf cfg.server.enable (lib.mapAttrs' scheduleUnit cfg.server.schedules))
        (lib.mkIf cfg.server.enable (lib.mapAttrs' replicationUnit cfg.server.replications))
      ];
    }

    (lib.mkIf cfg.tls.enable {
      systemd.sockets.zfsilod-tcp = {
        wantedBy = [ "sockets.target" ];
        # The empty string clears the list of the unit file.
        listenStreams = [ "" cfg.tls.address ];
      };
    })

    (lib.mkIf cfg.server.enable {
      boot.supportedFilesystems = [ "zfs" ];
      # For zfsilo-zvol: zfs, and zvol_id, which is not in a bin directory.
      services.udev.path = [
        config.boot.zfs.package
        (pkgs.runCommand "zvol-id" { } "mkdir -p $out/bin; ln -s ${config.boot.zfs.package}/lib/udev/zvol_id $out/bin")
      ];
      boot.kernelModules = [ "target_core_mod" "target_core_iblock" "iscsi_target_mod" "nvmet" "nvmet-tcp" ];
      networking.firewall.allowedTCPPorts = lib.mkIf cfg.server.openFirewall
        (lib.unique (map portOf (cfg.server.portals ++ cfg.server.nvmePortals)) ++ lib.optional cfg.tls.enable (portOf cfg.tls.address)
          ++ lib.optional (cfg.server.nvmeTlsPort != null) cfg.server.nvmeTlsPort);
    })

    (lib.mkIf cfg.client.enable {
      boot.kernelModules = [ "iscsi_tcp" "nvme-tcp" ];
      boot.supportedFilesystems = [ "ext4" "xfs" ];
      services.openiscsi = { enable = true; name = cfg.client.initiatorName; };
      # Links to the secret files; the daemon refuses files that other users can read.
      systemd.tmpfiles.rules = lib.mapAttrsToList
        (name: file: "L+ /etc/zfsilo/servers.d/${name}.toml - - - - ${file}")
        cfg.client.serverFiles;
    })
  ]);
}
