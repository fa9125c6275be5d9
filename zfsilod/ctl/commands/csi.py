"""`zfsiloctl csi`: volumes of Kubernetes whose PersistentVolume is lost."""

from __future__ import annotations

import sys
from pathlib import Path

from zfsilod.ctl import messages as pb
from zfsilod.ctl.client import dial
from zfsilod.ctl.output import volume as volume_output
from zfsilod.ctl.output.messages import show_all
from zfsilod.ctl.output.table import show_table
from zfsilod.ctl.parse import bare
from zfsilod.ctl.times import age
from zfsilod.model.errors import InvalidArgument, NotFound
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.sizes import show_size

if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

STDIN = "-"
CSI_LABEL = "csi.zfsilo.io/name"  # the plugin gives it to each volume that it creates
HEADERS = ("NAME", "SIZE", "AGE", "CLAIM", "PV", "PUBLISHED TO")


def orphans(args: Namespace) -> None:
    """List the volumes that the plugin created and that no volume handle of the cluster names."""
    used = handles(args.file)
    with dial(args) as server:
        everything = server.ask_all("ListVolumes", pb.ListVolumesRequest(), "volumes")
    volumes = [
        volume for volume in everything if CSI_LABEL in volume.labels and volume.id not in used
    ]
    show_all(
        args,
        "volumes",
        volumes,
        name=lambda volume: str(volume.id),
        table=lambda: show_table(HEADERS, [_row(volume) for volume in volumes]),
    )


def handles(file: str) -> set[str]:
    """Return the ids in a list of volume handles (BACKEND/ID), one a line; "-": stdin."""
    try:
        text = sys.stdin.read() if file == STDIN else Path(file).read_text()
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {file}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"cannot read {file}: {error}") from error
    ids = {line.strip().partition("/")[2] for line in text.splitlines()} - {""}
    if not ids:
        # An empty list is rather that of a kubectl that failed than of a cluster without volumes.
        raise InvalidArgument(
            f"{'standard input' if file == STDIN else file} has no volume handle (BACKEND/ID); "
            "without one every volume would look lost: see zfsiloctl volume list"
        )
    return ids


def _row(volume: Any) -> list[str]:
    labels = {name.rpartition("/")[2]: value for name, value in volume.labels.items()}
    claim = (labels.get("pvc.namespace", ""), labels.get("pvc.name", ""))
    return [
        volume.id,
        show_size(volume.capacity_bytes),
        age(volume.create_time),
        "/".join(filter(None, claim)),
        labels.get("pv.name", labels["name"]),
        volume_output.commas(bare(one.host, "hosts") for one in volume.publications),
    ]
