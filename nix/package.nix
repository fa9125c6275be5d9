# The daemon, its worker and zfsiloctl, with their units and D-Bus files at the places where
# systemd.packages, services.dbus.packages and services.udev.packages look for them.
{ lib, python3Packages }:

python3Packages.buildPythonApplication {
  pname = "zfsilo";
  version = builtins.head (builtins.match ".*__version__ = \"([^\"]+)\".*" (builtins.readFile ../zfsilod/__init__.py));
  pyproject = true;
  src = lib.cleanSource ../.;

  build-system = with python3Packages; [ hatchling grpcio-tools ];
  dependencies = with python3Packages; [
    cryptography
    dbus-next
    googleapis-common-protos
    grpcio
    grpcio-health-checking
    grpcio-reflection
    lmdb
    msgspec
    prometheus-client
    protobuf
    systemd
    tomli
  ];
  # Their exact versions are nixpkgs' own; the stubs are made anew by its grpcio-tools.
  pythonRelaxDeps = true;

  # NixOS has its tools where the running system is, and ours in the store.
  postPatch = ''
    substituteInPlace zfsilod/systemd/launcher.py \
      --replace-fail /usr/lib/zfsilo/zfsilo-worker $out/bin/zfsilo-worker
    substituteInPlace zfsilod/host/run.py \
      --replace-fail '"/usr/sbin:/usr/bin:/sbin:/bin"' '"/run/booted-system/sw/bin:/run/current-system/sw/bin"'
    substituteInPlace units/*.service \
      --replace-quiet /usr/bin/ $out/bin/ --replace-quiet /usr/lib/zfsilo/ $out/bin/
  '';
  # The launchers of `make install` are for a library of their own; here Python's build made better ones.
  postInstall = ''
    make install-files PREFIX=$TMPDIR/files ETC=$TMPDIR/files/etc PYTHON=python3
    rm -r $TMPDIR/files/bin $TMPDIR/files/lib/zfsilo
    cp -r $TMPDIR/files/. $out/
  '';

  doCheck = false; # `make check` wants the whole tree of tests; the NixOS test runs what matters
  pythonImportsCheck = [ "zfsilod.daemon" "zfsilod.engine.worker" "zfsilod.ctl" ];

  meta = {
    description = "Network block storage for ZFS";
    license = lib.licenses.mit;
    mainProgram = "zfsiloctl";
    platforms = lib.platforms.linux;
  };
}
