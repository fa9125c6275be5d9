"""Every parser of outside text: it returns a value or raises a ZfsiloError."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from zfsilo.v1 import volume_pb2 as pb

from zfsilod import config
from zfsilod.api.dbus.contract import split, unescape
from zfsilod.api.rpc import filter as filters
from zfsilod.api.rpc.pages import Pages
from zfsilod.host import mountinfo, superblock, zfs_output
from zfsilod.host.run import Completed
from zfsilod.model import mount_options, mount_path, names
from zfsilod.model.errors import ZfsiloError
from zfsilod.model.validation import check_id, check_labels
from zfsilod.requests.paths import real_path
from zfsilod.security import certificates, join_file
from zfsilod.wire import convert

if TYPE_CHECKING:
    from collections.abc import Callable

# Texts of the alphabets of the parsers, so that inputs get beyond the first character.
TABLE = st.text("tank/zfsilo:volsize\t\n- 0123456789,local", max_size=200)
FILTERS = st.text("abcid=!:()ANDORT \"\\.*'", max_size=200)
TOML = st.text("[]=\"'\n givetokn.{},0123#_", max_size=200)
MOUNTS = st.text("0123456789: /-\\abcro,rw\n", max_size=200)
ANY = st.text(max_size=300)
PAGES = Pages(b"k" * 32)


def _config(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "zfsilod.toml").write_text(text, errors="replace")
        config.load(Path(folder))


def _page(text: str) -> None:
    request = pb.ListVolumesRequest(page_token=text.encode(errors="replace").decode())
    PAGES.parse("ListVolumes", request)


def _mounts(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with suppress(ValueError, IndexError):  # the kernel writes this file
            mountinfo.read(Path(file.name))


def _refusal(text: str) -> None:
    done = Completed(("zfs",), 1, text, text)
    zfs_output.refused(done, zfs_output.reason_of(done, "create", "tank/a"), "tank/a")


PARSERS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], object]]] = {
    "zfs table": (TABLE, zfs_output.table),
    "zfs refusal": (ANY, _refusal),
    "zfs number": (ANY, zfs_output.in_bytes),
    "dataset": (ANY, names.check_dataset),
    "superblock": (st.binary(max_size=70_000), superblock.parse),
    "mountinfo": (st.one_of(st.binary(max_size=200), MOUNTS.map(str.encode)), _mounts),
    "filter": (st.one_of(ANY, FILTERS), lambda text: filters.parse(text, ("id", "labels"))),
    "page token": (ANY, _page),
    "configuration": (st.one_of(ANY, TOML), _config),
    "join file": (st.one_of(ANY, TOML), join_file.parse_join),
    "address": (ANY, names.split_address),
    "certificate": (
        st.binary(max_size=500),
        lambda der: certificates.identify(der, b"", ("host",)),
    ),
    "certificate file": (st.binary(max_size=500), certificates.load),
    "object path": (ANY, split),
    "object name": (ANY, unescape),
    "id": (ANY, check_id),
    "labels": (st.dictionaries(ANY, ANY), lambda labels: check_labels(tuple(labels.items()))),
    "volume name": (ANY, convert.volume_id),
    "operation name": (ANY, convert.operation_id),
    "mount path": (ANY, mount_path.check_path),
    "mount options": (st.lists(ANY), lambda options: mount_options.check_options(tuple(options))),
    "path of a node": (ANY, lambda text: real_path(text, ("/var/lib/kubelet",))),
}


def try_parser(name: str, value: Any) -> None:
    """Call a parser; the only error that it may raise is a ZfsiloError."""
    with suppress(ZfsiloError):
        PARSERS[name][1](value)
