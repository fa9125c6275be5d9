"""Patterns of names that the daemon and the tools check, and no worker: importing re takes 8 ms."""

from __future__ import annotations

import re

from zfsilod.model.errors import InvalidArgument

IQN_PREFIX = re.compile(
    r"[iI][qQ][nN]\.[0-9]{4}-[0-9]{2}\.[A-Za-z0-9][A-Za-z0-9._-]*(?::[A-Za-z0-9.:_-]+)?"
)
MAX_PREFIX = 150
# NVMe base specification 2.0, 4.5: at most 223 characters.
NQN = re.compile(r"nqn\.[0-9]{4}-[0-9]{2}\.[A-Za-z0-9.:_-]{1,211}")
HOST_ADDRESS = re.compile(r"[A-Za-z0-9.:_%-]{1,253}")


def check_nqn(name: str) -> str:
    """Return the NVMe name of a host. Raises InvalidArgument."""
    if not NQN.fullmatch(name):
        raise InvalidArgument(
            f"{name[:223]!r} is not an NQN; see /etc/nvme/hostnqn", reason="BAD_NQN"
        )
    return name


def target_prefix(text: str) -> str:
    """Return the prefix of target names in the form that targets have. Raises InvalidArgument.

    Initiators may send the name of a target in lower case only: RFC 3720, 3.2.6.1.
    """
    if not IQN_PREFIX.fullmatch(text) or len(text) > MAX_PREFIX:
        raise InvalidArgument(
            f"{text[:223]!r} is not an IQN; use iqn.2026-01.org.example:storage", reason="BAD_IQN"
        )
    return text.lower()
