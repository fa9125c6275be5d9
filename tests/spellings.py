"""Spellings of names and addresses, valid and not: every place that takes one judges it alike."""

from __future__ import annotations

INITIATORS = {
    "iqn.1993-08.org.debian:01:abc": True,
    "iqn.1993-08.org.Debian:01:AB_c": True,
    "IQN.1993-08.org.debian:01:abc": True,
    "eui.02004567A425678D": True,
    "EUI.02004567A425678D": True,
    "naa.52004567BA64678D": True,
    "iqn.2026-01.org.example:a/b": False,
    "iqn.2026-01.org.example:a b": False,
    "iqn.": False,
    "example:a": False,
    "nqn.2014-08.org.example:a": False,
}
PREFIXES = {
    "iqn.2026-01.org.example:storage": True,
    "iqn.2026-01.org.Example:Storage_1": True,
    "IQN.2026-01.org.example:storage": True,
    "iqn.2026-01.org.example": True,
    "iqn.2026.org.example:storage": False,
    "iqn.2026-01.org.example:": False,
    "eui.02004567A425678D": False,
    "storage": False,
}
PORTALS = {
    "10.0.0.1:3260": "10.0.0.1:3260",
    "0.0.0.0:860": "0.0.0.0:860",
    "[fd00::1]:3260": "[fd00::1]:3260",
    "[FD00:0:0::1]:3260": "[fd00::1]:3260",
    "[fe80::1%eth0.12]:3260": "[fe80::1%eth0.12]:3260",
    "[::ffff:10.0.0.1]:3260": "10.0.0.1:3260",
    "10.0.0.1": "",
    "10.0.0.1:0": "",
    "10.0.0.1:03260": "",
    "10.0.0.1:326000": "",
    "fd00::1:3260": "",
    "[fe80::1%]:3260": "",
    "give.example:3260": "",
    "": "",
}
"""Each portal with its only form; "": it is none."""
DATASETS = {
    "tank/zfsilo": True,
    "Tank_1/a.b:c-d": True,
    "tank/.hidden/...": True,
    "tank": True,
    "1tank/a": False,
    "tank/../a": False,
    "tank/.": False,
    "tank//a": False,
    "tank/a b": False,
    "/tank": False,
}
MOUNT_OPTION = r"[a-z_][a-z0-9_]{0,31}(?:=[A-Za-z0-9._:-]{1,64})?"
MOUNT_OPTIONS = {
    "noatime": True,
    "commit=30": True,
    "context=system_u:object_r:tmp_t:s0": True,
    "noatime,suid": False,
    "commit=": False,
    "NOATIME": False,
    "-o": False,
}
