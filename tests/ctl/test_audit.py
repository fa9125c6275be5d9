"""What `zfsiloctl audit` makes of a journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from zfsilod.ctl import main
from zfsilod.host.run import TOOLS_PATH_VARIABLE

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("said", "code", "complaint"),
    [
        (
            "Failed to parse timestamp: bogus",
            2,
            "'bogus' is no time: write it as for journalctl --since",
        ),
        ("Failed to open files", 1, "journalctl: Failed to open files"),
    ],
)
def test_a_refusal_is_told_once(
    said: str,
    code: int,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tool = tmp_path / "journalctl"
    tool.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv(TOOLS_PATH_VARIABLE, str(tmp_path))
    monkeypatch.setenv("ZFSILO_SIMULATE", str(tmp_path))
    assert main(["audit", "--since", "bogus"]) == code
    assert capsys.readouterr().err == f"zfsiloctl: {complaint}\n"
