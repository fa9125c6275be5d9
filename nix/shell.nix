# What `make check` needs, and nothing of the machine.
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
  # The Makefile makes an environment of its own unless it is told of this one.
  shellHook = "export PYTHONPATH=$PWD:$PWD/proto";
}
