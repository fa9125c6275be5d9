"""The machine id of zfsilo against systemd's own."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.host.doubles import chap
from zfsilod.host.attributes import read
from zfsilod.host.fake import FakeHost
from zfsilod.host.machine_id import APPLICATION, MACHINE_ID, machine_id
from zfsilod.model.errors import Unavailable

if TYPE_CHECKING:
    from pathlib import Path


def test_machine_id_is_application_specific(tmp_path: Path) -> None:
    """A known pair, computed by systemd-id128 of systemd 252."""
    path = tmp_path / "machine-id"
    path.write_text("3d1219c7c4c5404aaa1f6d2a48adfda4\n")
    assert machine_id(path) == "8d2dc01f32484695a43790dfdbf14f7f"
    path.write_text("3d1219c7c4c5404aaa1f6d2a48adfda5\n")
    assert machine_id(path) != "8d2dc01f32484695a43790dfdbf14f7f"


@pytest.mark.skipif(
    not (shutil.which("systemd-id128") and len(read(MACHINE_ID)) > 30),
    reason="systemd-id128 is not installed, or this machine has no id",
)
def test_systemd_computes_the_same() -> None:
    argv = ["systemd-id128", "machine-id", f"--app-specific={APPLICATION}"]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=10)
    assert machine_id() == done.stdout.strip()


@pytest.mark.parametrize("content", [None, "", "uninitialized\n"])
def test_machine_without_an_id_is_unavailable(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "machine-id"
    if content is not None:
        path.write_text(content)
    with pytest.raises(Unavailable, match="systemd-machine-id-setup"):
        machine_id(path)


def test_simulated_machine_can_become_another() -> None:
    host = FakeHost(chap=lambda _name: chap())
    before = host.machine_id()
    host.facts.effect("machine", "ab" * 16)
    assert host.machine_id() == "ab" * 16 != before
