"""The CSI conformance suite, helm, and a validator with the schemas of Kubernetes."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.setup import apt
from tests.setup.cache import digest, product
from tests.setup.command import run
from tests.setup.say import stage

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAMS = {
    "csi-sanity": "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@v5.6.0",
    "helm": "helm.sh/helm/v3/cmd/helm@v3.22.0",
}
# Has the schemas of Kubernetes in the package, so validation needs no network.
SCHEMAS = ("kubernetes-validate==1.37.0", "pyyaml>=6", "jsonschema>=4.23")
GO = Path("/usr/local/go/bin")


def prepare() -> Path:
    """The folder with bin/csi-sanity, bin/helm and python/, built on first use."""
    return product("csi", digest(PROGRAMS, SCHEMAS, sys.version), build)


def build(draft: Path) -> None:
    """Build the programs and install the validator."""
    for name, module in PROGRAMS.items():
        with stage(f"building {name}"):
            run([go(), "install", module], env=dict(environment(draft)))
    with stage("Kubernetes' schemas"):
        words = [sys.executable, "-m", "pip", "install", "--quiet", "--root-user-action=ignore"]
        run([*words, "--target", draft / "python", *SCHEMAS])


def go() -> str:
    """The Go compiler; where there is none, Debian's is installed, on Debian 12 from backports."""
    compiler = shutil.which("go", path=f"{os.environ.get('PATH', '')}:{GO}")
    if compiler:
        return compiler
    old = apt.machine_release() == apt.BACKPORTS_RELEASE
    apt.install(
        ("golang-go",),
        reason="building csi-sanity and helm",
        suite=f"{apt.BACKPORTS_RELEASE}-backports" if old else None,
    )
    return "go"


def environment(draft: Path) -> Iterator[tuple[str, str]]:
    """The compiler's environment; it may fetch a newer toolchain where Debian's is too old."""
    yield from os.environ.items()
    yield "GOBIN", str(draft / "bin")
    yield "GOFLAGS", "-buildvcs=false -trimpath"
    if "GOTOOLCHAIN" not in os.environ:
        yield "GOTOOLCHAIN", "auto"
