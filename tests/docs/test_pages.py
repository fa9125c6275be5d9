"""The pages that are made from what there is: complete, and fit for man(1)."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.docs.blocks import ROOT
from zfsilod.ctl.command_table import COMMANDS
from zfsilod.model.reasons import REASONS

if TYPE_CHECKING:
    from pathlib import Path

PAGES = (
    "zfsilod.8", "zfsiloctl.1", "zfsilod.toml.5", "zfsilo-volume@.service.5", "org.zfsilo1.5",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make docs` makes, by a Python without any packages."""
    folder = tmp_path_factory.mktemp("doc")
    subprocess.run(
        ["/usr/bin/env", "-u", "PYTHONPATH", "python3", "-S", "units/doc/build.py", folder],
        cwd=ROOT, check=True, timeout=60,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_man_likes_the_page(made: Path, page: str) -> None:
    if shutil.which("man") is None:
        pytest.skip("man is not installed here")
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", made / page],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert not re.search(r"@[A-Z]+@", (made / page).read_text()), "something was not filled in"


def test_every_command_has_its_place(made: Path) -> None:
    text = (made / "zfsiloctl.1").read_text().replace("\\-", "-")
    assert [each.words for each in COMMANDS if f"zfsiloctl {each.words}\\fR" not in text] == []


def test_an_argument_says_what_it_may_be_and_how_often(made: Path) -> None:
    text = (made / "zfsiloctl.1").read_text().replace("\\-", "-")
    assert "those in this state; one of created, published, connected, staged, mounted\n" in text
    assert "\\fBzfsiloctl orphan remove\\fR \\fIORPHAN\\fR ...\n" in text


def test_every_method_has_its_place(made: Path) -> None:
    grpc = (made / "grpc.md").read_text()
    protos = "".join(path.read_text() for path in (ROOT / "proto/zfsilo/v1").glob("*.proto"))
    names = re.findall(r"^ *(?:rpc|message|enum|service) (\w+)", protos, re.M)
    assert [name for name in names if name not in grpc] == []
    assert [reason for reason in REASONS if f"| `{reason}` |" not in grpc] == []
    page = (made / "org.zfsilo1.5").read_text().replace("\\-", "-")
    xml = (ROOT / "dbus/org.zfsilo1.xml").read_text()
    members = re.findall(r"<(interface|method|signal|property) name=\"([^\"]+)\"", xml)
    assert [name for kind, name in members if f"{kind} {name}" not in page] == []


def test_every_key_has_its_place(made: Path) -> None:
    from tests.test_config import README

    keys = re.findall(r"^\| `([a-z]+\.\w+)` \|", README.read_text(), re.M)
    text = (made / "zfsilod.toml.5").read_text()
    assert len(keys) > 10
    assert [key for key in keys if f"\\fB{key}\\fR" not in text] == []


def test_the_examples_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zfsilod import config
    from zfsilod.ctl.commands.up import wish_for

    etc = tmp_path / "etc"
    (etc / "volumes.d").mkdir(parents=True)
    shutil.copy(ROOT / "units/doc/examples/zfsilod.toml", etc)
    shutil.copy(ROOT / "units/doc/examples/data.toml", etc / "volumes.d")
    assert config.load(etc).server.root == "tank/zfsilo"
    monkeypatch.setenv("ZFSILO_SIMULATE", str(tmp_path))
    wish = wish_for("data")
    assert wish is not None
    assert wish.mount_path == "/srv/data"
