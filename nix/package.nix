# The daemon, its worker and zfsiloctl, with units, D-Bus files and udev rules in the folders that
# systemd.packages, services.dbus.packages and services.udev.packages read.
{ lib, coreutils, python3Packages }:

python3Packages.buildPythonApplication {
  pname = "zfsilo";
  version = builtins.head (builtins.match ".*__version__ = \"([^\"]+)\".*" (builtins.readFile ../zfsilod/__init__.py));
  pyproject = true;
  src = lib.cleanSource ../.;

  build-system = with python3Packages; [ hatchling googleapis-common-protos grpcio-tools ];
  dependencies = with python3Packages; [
    cryptography
    dbus-next
    googleapis-common-protos
    grpcio
    grpcio-health-checking
    grpcio-reflection
    h11
    lmdb
    msgspec
    prometheus-client
    protobuf
    systemd
    tomli
  ];
  # nixpkgs has other versions; its grpcio-tools regenerates the protobuf modules to match.
  pythonRelaxDeps = true;

  # On NixOS the tools are in the running system's path, the programs of zfsilo in the store.
  postPatch = ''
    substituteInPlace zfsilod/systemd/launcher.py \
      --replace-fail /usr/lib/zfsilo/zfsilo-worker $out/bin/zfsilo-worker
    substituteInPlace zfsilod/host/run.py \
      --replace-fail '"/usr/sbin:/usr/bin:/sbin:/bin"' '"/run/booted-system/sw/bin:/run/current-system/sw/bin"'
    substituteInPlace units/*.service \
      --replace-quiet /usr/bin/ $out/bin/ --replace-quiet /usr/lib/zfsilo/ $out/bin/ \
      --replace-quiet =/bin/sleep =${coreutils}/bin/sleep
    substituteInPlace units/host/59-zfsilo.rules --replace-fail '"zfsilo-zvol ' "\"$out/lib/udev/zfsilo-zvol "
  '';
  # The launchers of `make install` expect /usr/lib/zfsilo; the Python build has installed its own.
  postInstall = ''
    make install-files PREFIX=$TMPDIR/files ETC=$TMPDIR/files/etc PYTHON=python3
    rm -r $TMPDIR/files/bin $TMPDIR/files/lib/zfsilo
    cp -r $TMPDIR/files/. $out/
  '';

  doCheck = false; # `make check` needs the tests of the whole tree; the NixOS test covers the package
  pythonImportsCheck = [ "zfsilod.daemon" "zfsilod.engine.worker" "zfsilod.gateway.main" "zfsilod.ctl" ];

  meta = {
    description = "Network block storage for ZFS";
    license = lib.licenses.mit;
    mainProgram = "zfsiloctl";
    platforms = lib.platforms.linux;
  };
}
