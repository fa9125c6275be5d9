"""Names and addresses that other programs define: the accepted and the refused ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from zfsilod.model import names
from zfsilod.model.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

    Check = Callable[[str], object]

ACCEPTED: list[tuple[Check, str, object]] = [
    (names.check_dataset, "tank/-odd/csi-x.y:z_1", "tank/-odd/csi-x.y:z_1"),
    (names.check_dataset, "tank/.hidden/...", "tank/.hidden/..."),
    (names.iscsi_name, "iqn.1993-08.org.Debian:01:AB_c", "iqn.1993-08.org.Debian:01:AB_c"),
    (names.initiator_name, "iqn.1993-08.org.Debian:01:AB_c", "iqn.1993-08.org.debian:01:ab_c"),
    (names.initiator_name, "eui.02004567A425678D", "eui.02004567a425678d"),
    (names.check_nqn, "nqn.2014-08.org.nvmexpress:uuid:A_b", "nqn.2014-08.org.nvmexpress:uuid:A_b"),
    (names.portal_parts, "10.0.0.1:3260", ("10.0.0.1", 3260)),
    (names.portal_parts, "[fe80::1%eth0.12]:860", ("fe80::1%eth0.12", 860)),
    (names.split_address, "[fe80::1%eth0]:7845", ("fe80::1%eth0", 7845)),
]

REFUSED: list[tuple[Check, str]] = [
    (names.check_dataset, "1tank/data"),
    (names.check_dataset, "tank/../data"),
    (names.check_dataset, "tank/."),
    (names.check_dataset, "tank/data\n"),
    (names.check_dataset, f"tank/{'a' * 251}"),
    (names.iscsi_name, "iqn.2026-01.org.example:a/b"),
    (names.iscsi_name, f"iqn.2026-01.org.example:{'a' * 200}"),
    (names.initiator_name, "example:a"),
    (names.check_nqn, "nqn.org.example"),
    (names.portal_parts, "host:3260"),
    (names.portal_parts, "fe80::1:3260"),
    (names.portal_parts, "[10.0.0.1]:3260"),
    (names.portal_parts, "[fe80::1%]:3260"),
    (names.portal_parts, "[fe80::1%a/b]:3260"),
    (names.portal_parts, "10.0.0.1:65536"),
    (names.portal_parts, "10.0.0.256:3260"),
]


@pytest.mark.parametrize(("check", "text", "expected"), ACCEPTED)
def test_accepted(check: Check, text: str, expected: object) -> None:
    assert check(text) == expected


@pytest.mark.parametrize(("check", "text"), REFUSED)
def test_refused(check: Check, text: str) -> None:
    with pytest.raises(InvalidArgument):
        check(text)
