"""`zfsiloctl audit` when journalctl fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from zfsilod.ctl import main
from zfsilod.host.run import TOOLS_PATH_VARIABLE

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("stderr", "code", "complaint"),
    [
        (
            "Failed to parse timestamp: bogus",
            2,
            "invalid time 'bogus'; write it as for journalctl --since",
        ),
        ("Failed to open files", 1, "journalctl: Failed to open files"),
    ],
)
def test_a_failure_is_reported_once(
    stderr: str,
    code: int,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tool = tmp_path / "journalctl"
    tool.write_text(f"#!/bin/sh\necho '{stderr}' >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv(TOOLS_PATH_VARIABLE, str(tmp_path))
    monkeypatch.setenv("ZFSILO_SIMULATE", str(tmp_path))
    assert main(["audit", "--since", "bogus"]) == code
    assert capsys.readouterr().err == f"zfsiloctl: {complaint}\n"
