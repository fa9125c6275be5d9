"""`zfsiloctl audit`: what it trusts, its order, and a journalctl that fails."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from zfsilod.ctl import main
from zfsilod.ctl.commands.audit import MAX_RECORDS
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


JOURNALCTL = """#!/usr/bin/python3
import json, pathlib, sys
here = pathlib.Path(__file__).parent
words = dict(word.partition("=")[::2] for word in sys.argv[1:])
entries = [json.loads(line) for line in (here / "journal").read_text().splitlines()]
for name in ("_UID", "ZFSILO_AUDIT"):
    if name in words:
        entries = [entry for entry in entries if entry[name] == words[name]]
count = int(words["--lines"])
for entry in entries[::-1][:count] if "--reverse" in words else entries[:count]:
    print(json.dumps(entry))
"""


def journal(directory: Path, entries: list[tuple[str, str]]) -> None:
    """Write a journalctl that shows records of these users and callers, oldest first."""
    tool = directory / "journalctl"
    tool.write_text(JOURNALCTL)
    tool.chmod(0o755)
    (directory / "journal").write_text(
        "".join(
            json.dumps(
                {
                    "__REALTIME_TIMESTAMP": str(1_000_000 * index),
                    "_UID": uid,
                    "ZFSILO_AUDIT": "1",
                    "ZFSILO_CALLER": caller,
                    "ZFSILO_OUTCOME": "DONE",
                }
            )
            + "\n"
            for index, (uid, caller) in enumerate(entries)
        )
    )


def test_forged_records_do_not_hide_those_of_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forged = [("1000", "uid 0 (unix)")] * (MAX_RECORDS + 5)
    journal(tmp_path, [("0", "first"), *forged, ("0", "second"), *forged, ("0", "third")])
    monkeypatch.setenv(TOOLS_PATH_VARIABLE, f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("ZFSILO_SIMULATE", str(tmp_path))
    assert main(["audit", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [record["caller"] for record in shown["records"]] == ["third", "second", "first"]
    assert shown["more"] is False
    assert main(["audit", "--limit", "2", "--quiet"]) == 0
    printed = capsys.readouterr()
    assert "third" in printed.out
    assert "  done" in printed.out, "the words of operation list"
    assert "first" not in printed.out
    assert printed.err == "zfsiloctl: there are older records; use --limit\n"


def test_the_newest_records_are_shown_when_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    journal(tmp_path, [("0", "old")] * (MAX_RECORDS + 5) + [("0", "new")])
    monkeypatch.setenv(TOOLS_PATH_VARIABLE, f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("ZFSILO_SIMULATE", str(tmp_path))
    assert main(["audit", "--json", "--limit", "100000"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["records"][0]["caller"] == "new"
    assert len(shown["records"]) == MAX_RECORDS
    assert shown["more"] is True


@pytest.mark.parametrize(
    ("caller", "shown_as"),
    [
        ('"a\u2028b\u0085c"', "a\u2028b\u0085c"),
        (str(list(b"a\x1b\xff")), "a\x1b\ufffd"),  # as journalctl shows what is not printable
        ("null", ""),  # and what is too long
    ],
)
def test_a_record_of_any_text_hides_no_other(
    caller: str,
    shown_as: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = "".join(
        f'{{"__REALTIME_TIMESTAMP": "1", "_UID": "0", "ZFSILO_CALLER": {text}}}\n'
        for text in (caller, '"root"')
    )
    tool = tmp_path / "journalctl"
    (tmp_path / "journal").write_text(rows)
    tool.write_text(f"#!/bin/sh\ncat {tmp_path}/journal\n")
    tool.chmod(0o755)
    monkeypatch.setenv(TOOLS_PATH_VARIABLE, f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("ZFSILO_SIMULATE", str(tmp_path))
    assert main(["audit", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)["records"]
    assert [record.get("caller", "") for record in records] == [shown_as, "root"]
    assert main(["audit"]) == 0
    assert "\x1b" not in capsys.readouterr().out
