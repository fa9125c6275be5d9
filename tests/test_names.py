"""Names and addresses that other programs define: the accepted and the refused ones."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import spellings
from zfsilod.model import mount_options, name_patterns, names
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
    (
        name_patterns.check_nqn,
        "nqn.2014-08.org.nvmexpress:uuid:A_b",
        "nqn.2014-08.org.nvmexpress:uuid:A_b",
    ),
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
    (name_patterns.check_nqn, "nqn.org.example"),
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


# The same forms as patterns: the functions import no re, since a worker calls them.
PATTERNS: dict[Callable[[str], bool], str] = {
    names.is_dataset: (
        r"(?=.{1,255}\Z)[A-Za-z][A-Za-z0-9_:.-]*(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9_:.-]+)*"
    ),
    names.is_iscsi_name: r"(?:[iI][qQ][nN]|[eE][uU][iI]|[nN][aA][aA])\.[A-Za-z0-9.:_-]{1,219}",
    names.is_object: r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}",
    names.is_uuid: r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
}
PORTAL = r"(\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]{1,15})?\]|[0-9.]+):([1-9][0-9]{0,4})"
VALID = (
    "tank/-odd/csi-x.y:z_1",
    "tank/.hidden/...",
    "iqn.1993-08.org.Debian:01:AB_c",
    "IQN.1993-08.org.debian:b",
    "zfsilo-0123456789abcdef0123456789abcdef",
    "6b1ac1d0-3c6e-4d0c-9e0e-0f5d7e3f8a11",
    "10.0.0.1:3260",
    "[fe80::1%eth0.12]:860",
    "[::ffff:10.0.0.1]:65535",
    "commit=5",
    "noatime",
)
PIECES = (
    "",
    "\n",
    "\0",
    " ",
    "/",
    "//",
    ".",
    "..",
    ":",
    "::",
    "%",
    "[",
    "]",
    "-",
    "=",
    "_",
    "0",
    "g",
)
ODD = st.sampled_from((*PIECES, "\u0661", "\u00e9", "\ud800", "a" * 250, "1" * 14))


# The machine may be busy.
LOADED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)


@st.composite
def near(draw: st.DrawFn) -> str:
    """Return a valid text in which parts are cut out, doubled or replaced, or any text."""
    text = draw(st.sampled_from(VALID) | st.text(max_size=8))
    for _change in range(draw(st.integers(0, 3))):
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 2)))
        text = text[:start] + draw(ODD | st.just(text[start:end] * 2)) + text[end:]
    return text


@pytest.mark.parametrize("check", PATTERNS)
@LOADED
@given(text=near())
def test_a_name_is_accepted_exactly_when_the_pattern_matches(
    check: Callable[[str], bool], text: str
) -> None:
    assert check(text) == bool(re.fullmatch(PATTERNS[check], text))


@LOADED
@given(text=near() | st.builds("[{}]:{}".format, st.ip_addresses(v=6), st.integers(0, 70000)))
def test_a_portal_is_accepted_exactly_when_ipaddress_accepts_it(text: str) -> None:
    match = re.fullmatch(PORTAL, text)
    valid = (
        match
        and int(match[2]) < 65536
        and version(match[1].strip("[]")) == (6 if text[0] == "[" else 4)
    )
    assert names.is_portal(text) == bool(valid)
    if match and valid:
        address, canonical = ipaddress.ip_address(match[1].strip("[]")), names.check_portal(text)
        address = getattr(address, "ipv4_mapped", None) or address
        assert ipaddress.ip_address(names.portal_parts(text)[0]) == address
        assert "." in canonical or names.portal_parts(text)[0] == str(address)
        assert names.check_portal(canonical) == canonical


def version(address: str) -> int:
    """Return the IP version of an address; 0: it is none."""
    try:
        return ipaddress.ip_address(address).version
    except ValueError:
        return 0


@LOADED
@given(option=near())
def test_a_mount_option_is_accepted_exactly_when_the_pattern_matches(option: str) -> None:
    known = option.partition("=")[0] in mount_options.OPTIONS
    try:
        mount_options.check_options((option,))
        accepted = True
    except InvalidArgument:
        accepted = False
    assert accepted == (known and bool(re.fullmatch(spellings.MOUNT_OPTION, option)))
