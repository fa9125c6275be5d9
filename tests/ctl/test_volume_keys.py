"""`volume create --encrypt`, `rotate-key`, `recovery-key` and `seal-key`."""

from __future__ import annotations

import os
import pty
import re
from typing import TYPE_CHECKING

from zfsilod.ctl import main

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.ctl.fake_tools import FakeTools
    from tests.ctl.shell import Shell

KEY = "ab" * 32
DAEMON = "zfsilod.service"


def test_an_encrypted_volume(ctl: Shell) -> None:
    plan = ctl.ok("volume create secret 1G --encrypt --dry-run")
    assert "(1 GiB, thin, blocks of 16 KiB, encrypted" in plan
    ctl.ok("volume create secret 1G --encrypt")
    assert "aes-256-gcm, key 0, shown as recovery key: never" in ctl.ok("volume show secret")
    assert ctl.ok("volume rotate-key secret") == "new key for secret: done\n"
    assert "key 1, shown" in ctl.ok("volume show secret")
    ctl.ok("volume create copy --from-volume secret")
    assert "aes-256-gcm, by the key of its origin" in ctl.ok("volume show copy")
    ctl.ok("volume delete copy --yes")
    assert ctl.ok("volume delete secret --yes") == (
        "delete secret (1 GiB) and its data, and its key: done\n"
    )


def test_a_recovery_key_is_shown_on_a_terminal_only(ctl: Shell) -> None:
    ctl.ok("volume create shown 1G --encrypt")
    assert "on a terminal only" in ctl.fails(2, "volume recovery-key shown")
    assert "on a terminal only" in ctl.fails(2, "volume recovery-key shown --json")
    ours, theirs = pty.openpty()
    process = ctl.process("volume recovery-key shown", stdout=theirs)
    os.close(theirs)
    _out, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    printed = os.read(ours, 4096).decode()
    os.close(ours)
    assert len(re.findall(r"^  [0-9a-f]{64}\r?$", printed, re.M)) == 1
    assert "zfs load-key tank/zfsilo/shown" in printed
    assert "shown as recovery key: never" not in ctl.ok("volume show shown")


def show(folder: Path, *units: tuple[str, str, int]) -> None:
    """Let `systemctl show` name these units, with their states and the times of their starts."""
    names = ("Id", "ActiveState", "InactiveExitTimestampMonotonic")
    blocks = ("\n".join(map("{}={}".format, names, unit)) for unit in units)
    (folder / "shown").write_text("\n\n".join(blocks) + "\n")


def seal_tools(tools: FakeTools, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Let systemd-creds copy a key, and return the path of the sealed one."""
    sealed = folder / "credstore"
    monkeypatch.setattr("zfsilod.ctl.commands.seal_key.FOLDER", sealed)
    tools(
        "systemd-creds",
        'case "$1" in encrypt) cp "$3" "$4";; '
        'decrypt) od -An -v -tx1 "$4" | tr -d " \\n"; echo;; esac',
    )
    passed = folder / "run" / DAEMON / "zfsilo.key"
    monkeypatch.setattr("zfsilod.ctl.commands.seal_key.PASSED", folder / "run")
    tools(
        "systemctl",
        f'case "$1" in restart) mkdir -p {passed.parent}; cp {sealed}/zfsilo.key {passed};; '
        f"show) cat {folder}/shown;; esac",
    )
    show(folder, (DAEMON, "active", 100), ("zfsilo-op-new.service", "activating", 101))
    return sealed / "zfsilo.key"


def test_the_key_of_the_store_is_sealed_before_its_file_is_removed(
    tools: FakeTools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = seal_tools(tools, monkeypatch, tmp_path)
    (tmp_path / "key").write_bytes(bytes.fromhex(KEY))
    assert main(["seal-key", "--dry-run"]) == 0
    assert tools.calls == []
    assert main(["seal-key", "--yes"]) == 0
    assert sealed.read_bytes() == bytes.fromhex(KEY)
    assert not (tmp_path / "key").exists()
    assert tools.calls[-2] == "systemctl restart zfsilod.service"
    assert not any(KEY in call for call in tools.calls)
    assert main(["seal-key", "--yes"]) == 0  # already so
    assert len(tools.calls) == 4


def test_a_key_that_is_not_that_of_the_store_is_not_used(
    tools: FakeTools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = seal_tools(tools, monkeypatch, tmp_path)
    sealed.parent.mkdir()
    sealed.write_bytes(bytes(32))
    (tmp_path / "key").write_bytes(bytes.fromhex(KEY))
    assert main(["seal-key", "--yes"]) == 5
    assert (tmp_path / "key").read_bytes() == bytes.fromhex(KEY)


def test_the_file_stays_when_the_daemon_does_not_start(
    tools: FakeTools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal_tools(tools, monkeypatch, tmp_path)
    (tmp_path / "key").write_bytes(bytes.fromhex(KEY))
    tools("systemctl", "exit 1")
    assert main(["seal-key", "--yes"]) != 0
    assert (tmp_path / "key").exists()


def test_the_file_stays_while_an_older_worker_may_need_it(
    tools: FakeTools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal_tools(tools, monkeypatch, tmp_path)
    (tmp_path / "key").write_bytes(bytes.fromhex(KEY))
    show(tmp_path, (DAEMON, "active", 100), ("zfsilo-op-old.service", "activating", 99))
    assert main(["seal-key", "--yes"]) != 0
    assert (tmp_path / "key").read_bytes() == bytes.fromhex(KEY)
    show(tmp_path, (DAEMON, "active", 100), ("zfsilo-rollback@old.service", "failed", 99))
    assert main(["seal-key", "--yes"]) == 0
    assert not (tmp_path / "key").exists()


def test_the_file_stays_when_the_daemon_does_not_get_the_sealed_key(
    tools: FakeTools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal_tools(tools, monkeypatch, tmp_path)
    (tmp_path / "key").write_bytes(bytes.fromhex(KEY))
    tools("systemctl", "exit 0")
    assert main(["seal-key", "--yes"]) == 5
    assert (tmp_path / "key").read_bytes() == bytes.fromhex(KEY)


def test_no_key_is_made_where_the_daemon_has_one_from_elsewhere(
    tools: FakeTools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = seal_tools(tools, monkeypatch, tmp_path)
    assert main(["seal-key", "--yes"]) == 5
    assert not sealed.exists()
    assert tools.calls == ["systemctl start zfsilod.service"]
