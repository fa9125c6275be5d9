"""Generates Python modules and OpenAPI from .proto files: a script, and a build hook of hatchling.

    python proto/build.py

The modules, zfsilo/v1/openapi.json and schema.py are stored beside the .proto files, not in git,
and regenerated when a .proto file or a program is newer.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OPENAPI, SCHEMA = "zfsilo/v1/openapi.json", "zfsilo/v1/schema.py"


def hook() -> Any:
    """Return the base class of hatchling's hooks, or object where hatchling is not installed."""
    try:
        from hatchling.builders.hooks.plugin.interface import BuildHookInterface
    except ImportError:
        return object
    return BuildHookInterface


class CustomBuildHook(hook()):  # type: ignore[misc]
    """Generates the modules before hatchling builds a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate the modules even if they are new: they must match the protoc of the build."""
        generate(force=True)


def generate(*, force: bool = False) -> bool:
    """Generate the modules unless they are up to date; return whether they were generated."""
    sources = sorted(HERE.glob("*/**/*.proto"))
    if not force and not stale(sources):
        return False
    with tempfile.TemporaryDirectory(dir=HERE, prefix=".build-") as draft:
        compile_into(Path(draft), sources)
        for module in sorted((*Path(draft).rglob("*.py*"), *Path(draft).rglob("*.json"))):
            # Atomic: a concurrent import reads the old module or the new one.
            module.replace(HERE / module.relative_to(draft))
    return True


def stale(sources: list[Path]) -> bool:
    """Return whether a module is missing or older than its sources."""
    programs = (*HERE.glob("*.py"), HERE.parent / "zfsilod/__init__.py")
    newest = max(path.stat().st_mtime for path in (*sources, *programs))
    modules = [
        source.with_name(f"{source.stem}_pb2{suffix}")
        for source in sources
        for suffix in (".py", ".pyi")
    ]
    modules += [HERE / OPENAPI, HERE / SCHEMA]
    return any(not module.exists() or module.stat().st_mtime < newest for module in modules)


def compile_into(draft: Path, sources: list[Path]) -> None:
    """Run protoc; grpc_tools has google/protobuf/*.proto, googleapis-common-protos google/api."""
    import google.api
    from grpc_tools import protoc

    well_known = Path(protoc.__file__).with_name("_proto")
    annotations = Path(next(iter(google.api.__path__))).parents[1]
    names = [str(source.relative_to(HERE)) for source in sources]
    arguments = [f"--proto_path={path}" for path in (HERE, well_known, annotations)]
    described = draft / "descriptors"
    outputs = [f"--python_out={draft}", f"--pyi_out={draft}", "--include_source_info"]
    outputs += [f"--descriptor_set_out={described}"]
    if protoc.main(["protoc", *arguments, *outputs, *names]) != 0:
        raise SystemExit(f"protoc failed for {' '.join(names)}")
    sys.path.insert(0, str(HERE))
    try:
        import openapi
        import schema
    finally:
        sys.path.remove(str(HERE))
    (draft / OPENAPI).write_text(openapi.document(described.read_bytes()))
    (draft / SCHEMA).write_text(schema.module(described.read_bytes()))


if __name__ == "__main__":
    sys.stdout.write(
        "generated proto/**/*_pb2.py\n" if generate() else "proto/**/*_pb2.py are up to date\n"
    )
