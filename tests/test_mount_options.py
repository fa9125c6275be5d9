"""The mount options that a user may choose, and their list in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from zfsilod.model.errors import InvalidArgument
from zfsilod.model.mount_options import OPTIONS, check_options

PAGE = Path(__file__).parents[1] / "docs/operations.md"


@pytest.mark.parametrize(
    "option",
    [
        "context=system_u:object_r:container_file_t:s0:c1.c5",
        "rootcontext=system_u:object_r:root_t:s0",
        "nofail",
        "_netdev",
        "nodelalloc",
        "stripe=16",
    ],
)
def test_labels_and_harmless_options_are_allowed(option: str) -> None:
    assert check_options((option,)) == (option,)


@pytest.mark.parametrize(
    "option",
    [
        "suid",
        "dev",
        "bind",
        "remount",
        "loop",
        "logdev=/dev/sda",
        "journal_path=/dev/sda",
        "norecovery",
        "nouuid",
        "ro",
        "context=a,suid",
        "context=a b",
        'context="a"',
        "x-systemd.automount",
        "context=" + "a" * 65,
    ],
)
def test_options_that_leave_the_mount_or_weaken_it_are_refused(option: str) -> None:
    with pytest.raises(InvalidArgument):
        check_options((option,))


def test_every_option_is_documented_with_a_reason() -> None:
    section = PAGE.read_text().partition("## Mount options\n")[2]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(listed) == sorted(OPTIONS)
    assert all(row.split("|")[2].strip() for row in rows)
