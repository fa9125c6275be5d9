"""The modules of a kernel, as the daemon and as the tools of an administrator see them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from zfsilod.host import kernel_modules
from zfsilod.host.kernel_modules import has_module, may_have_module

if TYPE_CHECKING:
    from pathlib import Path


def test_a_module_is_loaded_built_in_or_can_be_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "lib/modules/6.12"
    folder.mkdir(parents=True)
    (folder / "modules.dep").write_text("kernel/drivers/nvme/host/nvme-tcp.ko.xz: kernel/x.ko\n")
    (folder / "modules.builtin").write_text("kernel/fs/configfs/configfs.ko\n")
    with (folder / "modules.dep").open("ab") as file:
        file.write(b"extra/J\xfcrgen.ko:\n")
    (tmp_path / "sys/module/nvmet").mkdir(parents=True)
    for name, there in (("nvme_tcp", True), ("configfs", True), ("nvmet", True), ("zfs", False)):
        assert has_module(name, root=tmp_path, release="6.12") == there


@pytest.mark.parametrize(
    ("error", "may"), [(PermissionError(13, "hidden"), True), (FileNotFoundError(2, "none"), False)]
)
def test_what_a_sandbox_hides_may_be_there(
    monkeypatch: pytest.MonkeyPatch, error: OSError, *, may: bool
) -> None:
    """ProtectKernelModules= of zfsilod.service: a client without open-iscsi could not join."""

    def refused(_path: str) -> list[str]:
        raise error

    monkeypatch.setattr(kernel_modules, "has_module", lambda _name: False)
    monkeypatch.setattr(os, "listdir", refused)
    assert may_have_module("nvme_tcp") == may
