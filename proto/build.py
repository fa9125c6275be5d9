"""Make the Python modules of the .proto files beside them: a script, and hatchling's build hook.

    python proto/build.py

They are not kept in git, and made again only when a .proto file, or this one, is newer.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def hook() -> Any:
    """Return what hatchling's hooks derive from; in a checkout, without hatchling, nothing."""
    try:
        from hatchling.builders.hooks.plugin.interface import BuildHookInterface
    except ImportError:
        return object
    return BuildHookInterface


class CustomBuildHook(hook()):  # type: ignore[misc]
    """What hatchling runs before it packs a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the modules, whatever was there: they belong to the build's own protoc."""
        generate(force=True)


def generate(*, force: bool = False) -> bool:
    """Make the modules if need be, and tell whether it was."""
    sources = sorted(HERE.glob("*/**/*.proto"))
    if not force and not stale(sources):
        return False
    with tempfile.TemporaryDirectory(dir=HERE, prefix=".build-") as draft:
        compile_into(Path(draft), sources)
        for made in sorted(Path(draft).rglob("*_pb2.py*")):
            # Whoever imports them meanwhile sees the old module or the new one, never half of it.
            made.replace(HERE / made.relative_to(draft))
    return True


def stale(sources: list[Path]) -> bool:
    """Tell whether a module is missing or older than what it is made of."""
    newest = max(each.stat().st_mtime for each in (*sources, Path(__file__)))
    made = [each.with_name(f"{each.stem}_pb2{end}") for each in sources for end in (".py", ".pyi")]
    return any(not each.exists() or each.stat().st_mtime < newest for each in made)


def compile_into(draft: Path, sources: list[Path]) -> None:
    """Run protoc. Its own copies of google/protobuf/*.proto come with grpc_tools."""
    from grpc_tools import protoc

    known = Path(protoc.__file__).with_name("_proto")
    names = [str(each.relative_to(HERE)) for each in sources]
    arguments = [f"--proto_path={HERE}", f"--proto_path={known}"]
    outputs = [f"--python_out={draft}", f"--pyi_out={draft}"]
    if protoc.main(["protoc", *arguments, *outputs, *names]) != 0:
        raise SystemExit("protoc failed")


if __name__ == "__main__":
    sys.stdout.write("made proto/**/*_pb2.py\n" if generate() else "nothing to do\n")
