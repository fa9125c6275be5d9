# Evaluates module.nix for a host; the result can be printed as JSON:
# nix-instantiate --eval --strict --json nix/tests/eval.nix --arg host '(import nix/tests/hosts.nix).give'
{ host }:

let
  lib = import ./lib.nix;
  pkgs = {
    zfsilo = "/the/package";
    runCommand = name: _environment: _script: "/the/${name}";
    formats.toml = _: { type = lib.types.attrs; generate = name: value: { generated = true; inherit name value; }; };
  };
  module = import ../module.nix {
    inherit lib pkgs;
    config = {
      services.zfsilo = lib.evalOptions "services.zfsilo" module.options.services.zfsilo host;
      inherit (made) environment;
      boot.zfs.package = "/the/zfs";
    };
  };
  made = lib.resolve [ module.config ];
in
{
  files = builtins.mapAttrs (_name: file: file.source.value) (made.environment.etc or { });
  sockets = made.systemd.sockets or { };
  services = builtins.mapAttrs (_name: unit: { inherit (unit) wantedBy; script = unit.script or ""; dropin = unit.overrideStrategy or "" == "asDropin"; }) (made.systemd.services or { });
  ports = made.networking.firewall.allowedTCPPorts or [ ];
  modules = made.boot.kernelModules or [ ];
  filesystems = made.boot.supportedFilesystems or [ ];
  openiscsi = made.services.openiscsi or { };
  udev = made.services.udev.path or [ ];
  links = made.systemd.tmpfiles.rules or [ ];
  complaints = map (check: check.message) (builtins.filter (check: !check.assertion) (made.assertions or [ ]));
}
