"""Exposure of the daemon and its workers, as rated by systemd-analyze security."""

from __future__ import annotations

import subprocess
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.examples import PLANS
from zfsilod.systemd import sandbox
from zfsilod.systemd.unit import on_the_wire

if TYPE_CHECKING:
    from zfsilod.model.words import SandboxPart

UNITS = Path(__file__).parents[2] / "units"
DAEMON, WORKER = 1.6, 5.0  # at most
PARTS = tuple(sandbox.PERMISSIONS)
SETS = [parts for count in range(1, 5) for parts in combinations(PARTS, count)]


def exposure(unit: Path) -> float:
    """Return the exposure of a unit file, 0 to 10."""
    argv = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    report = subprocess.run(argv, capture_output=True, text=True, timeout=60).stdout
    return float(report.rpartition("service: ")[2].split()[0])


def text(settings: dict[str, str]) -> str:
    """Return settings as lines of a unit file."""
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def test_the_daemon(tmp_path: Path) -> None:
    measured = exposure(UNITS / "zfsilod.service")
    print(f"zfsilod.service: {measured}")
    assert measured <= DAEMON


@pytest.mark.parametrize("parts", SETS)
def test_a_worker(parts: tuple[SandboxPart, ...], tmp_path: Path) -> None:
    unit = tmp_path / "zfsilo-op-x.service"
    allowed = text(sandbox.settings(parts))
    unit.write_text(
        f"[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nExecStart=/bin/true\n{allowed}"
    )
    measured = exposure(unit)
    print(f"{allowed}{measured}")
    assert measured <= WORKER


def test_a_rollback_has_the_permissions_of_every_step() -> None:
    template = (UNITS / "zfsilo-rollback@.service").read_text()
    assert set(text(sandbox.settings(PARTS)).splitlines()) <= set(template.splitlines())
    assert exposure(UNITS / "zfsilo-rollback@.service") <= WORKER


def test_a_zfs_operation_cannot_load_kernel_modules() -> None:
    create = next(plan for plan in PLANS if plan.name == "create")
    allowed = sandbox.sandbox(action.step for action in create.actions)
    seeing = "CAP_DAC_READ_SEARCH CAP_SYS_ADMIN CAP_SYS_PTRACE"  # who has a device open
    assert allowed["CapabilityBoundingSet"] == seeing
    assert allowed["ProtectSystem"] == "strict"
    assert on_the_wire("CapabilityBoundingSet", "CAP_SYS_ADMIN").value == 1 << 21


def test_connect_may_write_its_paths_and_mount_has_no_namespace() -> None:
    connect, mount = (
        sandbox.sandbox(action.step for action in plan.actions)
        for plan in PLANS
        if plan.name in ("connect", "mount")
    )
    assert connect["CapabilityBoundingSet"] == (
        "CAP_DAC_READ_SEARCH CAP_SYS_ADMIN CAP_SYS_MODULE CAP_SYS_PTRACE"
    )
    assert "-/etc/iscsi" in connect["ReadWritePaths"].split()
    apart = {*sandbox.NAMESPACED, "ReadWritePaths", "ProtectKernelModules"}
    assert not apart & set(mount)
