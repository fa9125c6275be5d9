# A shell with the dependencies of `make check`.
{ mkShell, zfsilo, python3, python3Packages, gnumake, git }:

mkShell {
  inputsFrom = [ zfsilo ];
  packages = [
    gnumake
    git
    (python3.withPackages (p: with p; [
      grpcio-tools
      hypothesis
      mypy
      pytest
      pytest-asyncio
      pytest-timeout
      ruff
      types-protobuf
      vulture
    ]))
  ];
  # The Makefile creates its own environment; commands run by hand use this one.
  shellHook = "export PYTHONPATH=$PWD:$PWD/proto";
}
