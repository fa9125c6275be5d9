"""`zfsiloctl csi orphans`: volumes of Kubernetes that no PersistentVolume names."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from zfsilo_csi import ids

from zfsilod.ctl.commands.csi import CSI_LABEL

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.ctl.shell import Shell

LABELS = "-l csi.zfsilo.io/pvc.namespace=shop -l csi.zfsilo.io/pvc.name=data"


def create(ctl: Shell, name: str) -> str:
    """Create a volume as the plugin does, and return its id."""
    volume = ids.id_of(name)
    ctl.ok(f"volume create {volume} 1G -l {CSI_LABEL}={name} {LABELS}")
    return volume


def test_a_volume_without_a_persistent_volume_is_listed(ctl: Shell, tmp_path: Path) -> None:
    kept, lost = create(ctl, "pvc-kept"), create(ctl, "pvc-lost")
    ctl.ok("volume create by-hand 1G")
    listed = tmp_path / "handles"
    listed.write_text(f"vol-of-another-driver\n\n give/{kept} \ngive/by-hand\n")
    shown = ctl.ok(f"csi orphans {listed}")
    assert lost in shown
    assert "pvc-lost" in shown
    assert "shop/data" in shown
    assert kept not in shown
    assert "by-hand" not in shown
    assert ctl.ok(f"csi orphans {listed} -q") == f"{lost}\n"
    assert [one["id"] for one in ctl(f"csi orphans {listed} --json").json["volumes"]] == [lost]
    listed.write_text(f"give/{kept}\ngive/{lost}\n")
    assert ctl.ok(f"csi orphans {listed} -q") == ""


def test_handles_from_standard_input(ctl: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = create(ctl, "pvc-lost")
    monkeypatch.setattr("sys.stdin", io.StringIO("give/csi-other\n"))
    assert lost in ctl.ok("csi orphans - -q").split()


def test_an_empty_list_loses_no_volume(ctl: Shell, tmp_path: Path) -> None:
    """It is that of a kubectl that failed."""
    create(ctl, "pvc-kept")
    listed = tmp_path / "handles"
    listed.write_text("\n")
    assert "has no volume handle" in ctl.fails(2, f"csi orphans {listed}")
    assert "there is no file" in ctl.fails(3, f"csi orphans {tmp_path}/missing")


def test_the_label_is_that_of_the_plugin() -> None:
    assert CSI_LABEL == ids.NAME_LABEL
