"""A Kubernetes control plane, a kubelet, kubectl, helm and the sidecars of CSI, from Go modules."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tests.setup import apt
from tests.setup.cache import digest, files_digest, product
from tests.setup.command import run
from tests.setup.csi import go
from tests.setup.say import stage

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAMS = Path(__file__).parents[1] / "kubernetes/programs"
PACKAGES = ("mount", "util-linux")  # of the tests: namespaces and loop devices
TOOLS = {
    "csi-attacher": "github.com/kubernetes-csi/external-attacher/v4",
    "csi-provisioner": "github.com/kubernetes-csi/external-provisioner/v6",
    "csi-resizer": "github.com/kubernetes-csi/external-resizer/v2",
    "csi-snapshotter": "github.com/kubernetes-csi/external-snapshotter/v8",
    "helm": "helm.sh/helm/v3",
    "snapshot-controller": "github.com/kubernetes-csi/external-snapshotter/v8",
}
SNAPSHOTTER = TOOLS["snapshot-controller"]
METADATA = "github.com/kubernetes-csi/external-snapshot-metadata"
DEFINITIONS = ("github.com/kubernetes-csi/external-snapshotter/client/v8", f"{METADATA}/client")
RELEASE = re.compile(r"^\tk8s\.io/kubernetes v(1)\.(\d+)\.\d+$", re.M)
VERSION = "k8s.io/component-base/version"


def prepare() -> Path:
    """The folder with bin/ (kube, kubectl, helm, sidecars) and snapshots/, built on first use."""
    apt.install(PACKAGES, reason="tests with Kubernetes")
    return product("kubernetes", digest(files_digest(PROGRAMS, "**/*"), flags()), build)


def build(draft: Path) -> None:
    """Build the programs, and copy the manifests of the snapshot controller."""
    programs = draft / "bin"
    programs.mkdir()
    with stage("Kubernetes: 10 minutes on 2 idle CPUs, once"):
        compile_program(".", programs / "kube")
    with stage("the sidecars of CSI, and helm"):
        for name, module in TOOLS.items():
            compile_program(f"{module}/cmd/{name}", programs / name)
        name = "csi-snapshot-metadata"
        compile_program(f"{METADATA}/cmd/{name}", programs / name, PROGRAMS / "sidecar")
    # The commands of the documentation are run as they are typed.
    (programs / "kubectl").write_text('#!/bin/sh\nexec "$(dirname "$0")/kube" kubectl "$@"\n')
    (programs / "kubectl").chmod(0o755)
    copy_manifests(draft / "snapshots")


def compile_program(package: str, target: Path, module: Path = PROGRAMS) -> None:
    """Build one program of a module, by default that in tests/kubernetes/programs."""
    run([go(), "build", *flags(), "-o", target, package], env=environment(), cwd=module)


def compile_static(sources: Sequence[Path], target: Path) -> None:
    """Build a static program of files outside the module, with what the module requires."""
    static = environment() | {"CGO_ENABLED": "0"}
    run([go(), "build", *flags(), "-o", target, *sources], env=static, cwd=PROGRAMS)


def flags() -> list[str]:
    """The flags of the compiler; the API server tells helm its release."""
    release = RELEASE.search((PROGRAMS / "go.mod").read_text())
    assert release, "go.mod names no release of Kubernetes"
    values = {
        "gitVersion": release[0].split()[1],
        "gitMajor": release[1],
        "gitMinor": release[2],
    }
    link = " ".join(f"-X {VERSION}.{name}={value}" for name, value in values.items())
    return ["-trimpath", "-buildvcs=false", f"-ldflags=-s -w {link}"]


def copy_manifests(target: Path) -> None:
    """Copy the definitions of snapshots, and the roles beside the chart's, out of their modules."""
    target.mkdir()
    for module in DEFINITIONS:
        for path in sorted((module_folder(module) / "config/crd").glob("*snapshot*.yaml")):
            shutil.copyfile(path, target / path.name)
    roles = module_folder(SNAPSHOTTER) / "deploy/kubernetes/snapshot-controller"
    shutil.copyfile(roles / "rbac-snapshot-controller.yaml", target / "roles.yaml")
    client = module_folder(METADATA) / "deploy/snapshot-metadata-client-cluster-role.yaml"
    shutil.copyfile(client, target / "backup-role.yaml")


def module_folder(module: str) -> Path:
    """The folder of a module's source."""
    template = "{{.Dir}}"
    listed = run([go(), "list", "-m", "-f", template, module], env=environment(), cwd=PROGRAMS)
    return Path(listed.strip())


def environment() -> dict[str, str]:
    """The compiler's environment; it may fetch a newer toolchain where Debian's is too old."""
    return {"GOTOOLCHAIN": "auto", **os.environ, "GOFLAGS": "-mod=readonly"}
