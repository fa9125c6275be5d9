"""The parameters of StorageClass, VolumeAttributesClass and VolumeSnapshotClass.

backend           the one storage host to use
thin              "true" (default) or "false"
zfs.PROPERTY      a ZFS property of the volume; all but zfs.volblocksize may change later
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zfsilo_csi.errors import invalid

if TYPE_CHECKING:
    from collections.abc import Mapping

PROPERTY = "zfs."
MADE_FOR = "csi.storage.k8s.io/"  # what the sidecars add about the claim, when they are told to
LABELS = "csi.zfsilo.io/"
THIN = {"true": True, "false": False}
FIXED = "volblocksize"


class Parameters(NamedTuple):
    """What a class asks for."""

    backend: str
    thin: bool
    properties: dict[str, str]
    labels: dict[str, str]


def read(given: Mapping[str, str], mutable: Mapping[str, str]) -> Parameters:
    """Read the parameters of a new volume. Raises INVALID_ARGUMENT naming the odd one."""
    properties = {}
    for key, value in given.items():
        if key.startswith(PROPERTY):
            properties[key.removeprefix(PROPERTY)] = value
        elif key not in ("backend", "thin") and not key.startswith(MADE_FOR):
            raise _unknown(key)
    thin = given.get("thin", "true")
    if thin not in THIN:
        raise invalid(f"the parameter thin is {thin[:40]!r}, neither true nor false")
    return Parameters(
        backend=given.get("backend", ""), thin=THIN[thin], labels=labels(given),
        properties=properties | changes(mutable),
    )  # fmt: skip


def changes(mutable: Mapping[str, str]) -> dict[str, str]:
    """Return the ZFS properties that a VolumeAttributesClass sets, else raise INVALID_ARGUMENT."""
    for key in mutable:
        if not key.startswith(PROPERTY):
            raise _unknown(key)
        if key == PROPERTY + FIXED:
            raise invalid(f"{key} is fixed when a volume is made")
    return {key.removeprefix(PROPERTY): value for key, value in mutable.items()}


def only_labels(given: Mapping[str, str]) -> dict[str, str]:
    """Read the parameters of a snapshot: there are none but those of the sidecar."""
    for key in given:
        if not key.startswith(MADE_FOR):
            raise _unknown(key)
    return labels(given)


def labels(given: Mapping[str, str]) -> dict[str, str]:
    """Return what the sidecars told about the claim, as labels: csi.zfsilo.io/pvc.name."""
    return {
        LABELS + key.removeprefix(MADE_FOR).replace("/", "."): value
        for key, value in given.items()
        if key.startswith(MADE_FOR) and len(key) <= len(MADE_FOR) + 40
    }


def _unknown(key: str) -> Exception:
    return invalid(f"there is no parameter {key[:80]!r}")


def block_bytes(text: str) -> int:
    """Return a volblocksize in bytes; 0: it is none."""
    number = text.lower().removesuffix("k")
    if not number.isdecimal():
        return 0
    return int(number) * (1024 if number != text.lower() else 1)
