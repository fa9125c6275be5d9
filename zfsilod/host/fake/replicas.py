"""Replicas of the simulated host, and their streams.

A stream has the header of a real one, then a line of JSON for each block of the snapshot, or of the
difference, and a last line. A raw one has the key of the zvol as it is when the stream begins,
sealed as it is: the replica has that key when the snapshot is whole. What came of a stream that is
cut off is the part `receiving` of the fact `zvol:DATASET`; its token tells how many lines that is.
"""

from __future__ import annotations

import os
import struct

from zfsilod.host.fake.snapshot_sets import guid_of, holders, remaining
from zfsilod.host.replica_protocol import stream_cut
from zfsilod.host.send_stream import BEGIN, MAGIC, RECORD_BYTES, SUBSTREAM
from zfsilod.host.stream_header import RAW, RESUMING, ZVOL_TYPE, read_header
from zfsilod.model.errors import Conflict, FailedPrecondition
from zfsilod.model.host_facts import SnapshotRef
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.replica import KeptSnapshot, ReplicaFacts
from zfsilod.storage import record_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from zfsilod.host.fake.snapshots import FakeSnapshots
    from zfsilod.model.record import Pairs
    from zfsilod.model.replica import SendJob

READ_BYTES = 65536


class FakeReplicas:
    """Replicas as facts: holds `peer:VOLUME/SET/PEER`, bookmarks `bookmark:VOLUME/SET`.

    The zvols of a peer have what was received. A bookmark has the blocks of its snapshot.
    """

    def __init__(self, snapshots: FakeSnapshots, open_stream: Callable[[str], int]) -> None:
        self._zfs = snapshots.zfs
        self._facts = snapshots.facts
        self._open_stream = open_stream

    # On the server that sends

    def list_kept(self, dataset: str, *, uid: str) -> tuple[KeptSnapshot, ...]:
        if not self._zfs.has_zvol(dataset, uid=uid, guid=""):
            return ()
        bookmarks = self._facts.of_kind("bookmark")
        kept = {
            name.partition("/")[2]: KeptSnapshot(
                uid=name.partition("/")[2],
                guid=mark["guid"],
                created_txg=mark["txg"],
                bookmarked=True,
            )
            for name, mark in bookmarks.items()
            if name.startswith(f"{uid}/")
        }
        for name, snapshot_set in self._facts.of_kind("cut").items():
            if uid in snapshot_set["of"]:
                guid, txg = guid_of(f"{uid}@{name}"), snapshot_set.get("txg", 0)
                one = kept.get(name) or KeptSnapshot(uid=name, guid=guid, created_txg=txg)
                kept[name] = one.but(exists=True, peers=tuple(holders(self._facts, uid, name)))
        for txg, (name, guid) in enumerate(self._zfs.zvol(dataset).get("replica_sets", {}).items()):
            kept[name] = KeptSnapshot(uid=name, guid=guid, created_txg=txg, exists=True)
        return tuple(kept.values())

    def is_kept(self, ref: SnapshotRef, uid: str, peer: str) -> bool:
        if self._facts.get(f"bookmark:{ref.uid}/{uid}") is None:
            return False
        return not self._exists(ref, uid) or peer in holders(self._facts, ref.uid, uid)

    def keep(self, ref: SnapshotRef, uid: str, peer: str) -> None:
        snapshot_set = self._need(ref, uid)
        if peer not in holders(self._facts, ref.uid, uid):
            self._facts.effect(f"peer:{ref.uid}/{uid}/{peer}", "held")
        if self._facts.get(f"bookmark:{ref.uid}/{uid}") is None:
            bookmark = {
                "guid": guid_of(f"{ref.uid}@{uid}"),
                "txg": snapshot_set.get("txg", 0),
                "blocks": snapshot_set.get("blocks", {}).get(ref.uid, {}),
            }
            self._facts.effect(f"bookmark:{ref.uid}/{uid}", bookmark)

    def release(self, ref: SnapshotRef, uid: str, peer: str) -> None:
        if self._facts.get(f"bookmark:{ref.uid}/{uid}") is not None:
            self._facts.effect(f"bookmark:{ref.uid}/{uid}", None)
        if peer not in holders(self._facts, ref.uid, uid):
            return
        self._facts.effect(f"peer:{ref.uid}/{uid}/{peer}", None)
        snapshot_set = self._facts.get(f"cut:{uid}")
        left = remaining(self._facts, uid, snapshot_set)
        if left != snapshot_set:  # it was released before
            self._facts.effect(f"cut:{uid}", left)

    def _exists(self, ref: SnapshotRef, uid: str) -> bool:
        """Tell whether a snapshot exists, also when it is released and still held."""
        snapshot_set = self._facts.get(f"cut:{uid}")
        return snapshot_set is not None and ref.uid in snapshot_set["of"]

    def matches(self, job: SendJob) -> bool:
        token = _parsed(job.token)
        return (token.get("to"), token.get("from")) == (job.guid, job.base_guid)

    def find_size(self, job: SendJob) -> int:
        return RECORD_BYTES + sum(map(len, self._lines(job)))

    def send(self, job: SendJob, output: int) -> None:
        features = (RAW if job.raw else 0) | (RESUMING if job.token else 0)
        guids = int(job.guid), int(job.base_guid or 0)
        begin = (BEGIN, 0, MAGIC, SUBSTREAM | features << 2, 0, ZVOL_TYPE, 0, *guids)
        header = struct.pack("<IIQQQIIQQ", *begin).ljust(RECORD_BYTES, b"\0")
        try:
            for piece in (header, *self._lines(job)):
                while piece:
                    piece = piece[os.write(output, piece) :]
        except BrokenPipeError:
            raise stream_cut(job.dataset, "the connection to the peer has ended") from None

    def _lines(self, job: SendJob) -> list[bytes]:
        ref = SnapshotRef(dataset=job.dataset, uid=job.volume_uid, guid=job.guid)
        snapshot_set = self._need(ref, job.uid)
        older: dict[str, str] = {}
        if job.base_uid:
            older = self._kept_blocks(job)
        blocks = snapshot_set.get("blocks", {}).get(job.volume_uid, {})
        changed = sorted(blocks.items() ^ older.items())
        zvol = self._zfs.zvol(job.dataset)
        first = {
            "size": snapshot_set["sizes"][job.volume_uid],
            "volblocksize": zvol["properties"]["volblocksize"],
            "content": snapshot_set["of"][job.volume_uid],
        }
        numbers = dict.fromkeys(number for number, _text in changed)
        end = {"end": True} | ({"wrapped": zvol["wrapped"]} if job.raw else {})
        lines = [first, *({"block": n, "text": blocks.get(n)} for n in numbers), end]
        skip = _parsed(job.token).get("lines", 0)
        return [record_json.dumps(line) + b"\n" for line in lines[skip:]]

    def _kept_blocks(self, job: SendJob) -> dict[str, str]:
        bookmark = self._facts.get(f"bookmark:{job.volume_uid}/{job.base_uid}")
        if bookmark is None:
            raise _lost(f"{job.dataset}#zfsilo-{job.base_uid}")
        blocks: dict[str, str] = bookmark["blocks"]
        return blocks

    def _need(self, ref: SnapshotRef, uid: str) -> Any:
        if not self._exists(ref, uid):
            raise _lost(f"{ref.dataset}@zfsilo-{uid}")
        if ref.guid not in ("", guid_of(f"{ref.uid}@{uid}")):
            raise Conflict(f"the snapshot {uid} of {ref.dataset} has another guid")
        return self._facts.get(f"cut:{uid}")

    # On the peer

    def has_received(self, dataset: str, *, uid: str, snapshot_uid: str, guid: str) -> bool:
        if not self._zfs.has_zvol(dataset, uid=uid, guid=""):
            return False
        return snapshot_uid in self._zfs.zvol(dataset).get("replica_sets", {})

    def receive(
        self,
        dataset: str,
        *,
        uid: str,
        snapshot_uid: str,
        guid: str,
        base_guid: str,
        raw: bool,
        marks: Pairs,
        operation: str,
    ) -> None:
        if self.has_received(dataset, uid=uid, snapshot_uid=snapshot_uid, guid=guid):
            return
        stream = self._open_stream(operation)
        try:
            header = read_header(dataset, stream)
            header.check(dataset, guid=guid, base_guid=base_guid, raw=raw)
            if self.find(dataset, uid=uid).is_empty and not base_guid:
                self._destroy(dataset, uid)
            zvol = self._begun(dataset, uid, dict(marks))
            known = zvol.get("receiving", {}) if header.resuming else {}
            if base_guid and _newest(zvol)[1] != base_guid:
                raise FailedPrecondition(
                    f"replica {dataset} was changed since its last snapshot",
                    reason="REPLICA_CHANGED",
                )
            lines = [*known.get("lines", [])]
            for line in _read(stream):
                lines.append(line)
                if "end" in line:
                    break
                receiving = {"to": guid, "from": base_guid, "lines": lines}
                self._facts.effect(f"zvol:{dataset}", zvol | {"receiving": receiving})
            else:
                raise stream_cut(dataset, "it is incomplete")
            self._complete(dataset, zvol, lines, snapshot_uid, header.guid)
        finally:
            os.close(stream)

    def _begun(self, dataset: str, uid: str, marks: dict[str, str]) -> Any:
        if self._zfs.has_zvol(dataset, uid=uid, guid=""):
            return self._zfs.zvol(dataset)
        properties = {"readonly": "on", "volblocksize": "0"} | marks
        zvol = {"uid": uid, "guid": guid_of(f"replica {uid}"), "size": 0, "thin": True}
        return zvol | {"properties": properties, "replica_sets": {}}

    def _complete(
        self, dataset: str, zvol: Any, lines: list[Any], snapshot_uid: str, guid: str
    ) -> None:
        first, *blocks, end = lines
        uid = zvol["uid"]
        present = dict(self._facts.get(f"replica-blocks:{uid}") or {})
        for line in blocks:
            present.pop(line["block"], None)
            if line["text"] is not None:
                present[line["block"]] = line["text"]
        whole = {name: value for name, value in zvol.items() if name != "receiving"} | {
            "size": first["size"],
            "properties": zvol["properties"] | {"volblocksize": first["volblocksize"]},
            "replica_sets": zvol["replica_sets"] | {snapshot_uid: guid},
        }
        if "wrapped" in end:
            whole |= {"root": zvol["guid"], "wrapped": end["wrapped"]}
        self._facts.effect(
            f"zvol:{dataset}",
            whole,
            also={f"replica-blocks:{uid}": present, f"replica-content:{uid}": first["content"]},
        )

    def destroy_received(self, dataset: str, *, uid: str, snapshot_uid: str, guid: str) -> None:
        if not self._zfs.has_zvol(dataset, uid=uid, guid=""):
            return
        zvol = {**self._zfs.zvol(dataset)}
        if zvol.pop("receiving", None) and zvol["replica_sets"]:
            self._facts.effect(f"zvol:{dataset}", zvol)
        if snapshot_uid in zvol["replica_sets"]:
            left = {name: one for name, one in zvol["replica_sets"].items() if name != snapshot_uid}
            zvol["replica_sets"] = left
            self._facts.effect(f"zvol:{dataset}", zvol)
        if not zvol["replica_sets"]:
            self._destroy(dataset, uid)

    def _destroy(self, dataset: str, uid: str) -> None:
        also = {f"replica-blocks:{uid}": None, f"replica-content:{uid}": None}
        self._facts.effect(f"zvol:{dataset}", None, also=also)

    def find(self, dataset: str, *, uid: str) -> ReplicaFacts:
        if not self._zfs.has_zvol(dataset, uid=uid, guid=""):
            return ReplicaFacts()
        zvol = self._zfs.zvol(dataset)
        token = ""
        if receiving := zvol.get("receiving"):
            told = receiving | {"lines": len(receiving["lines"])}
            token = record_json.dumps(told).hex()
        return ReplicaFacts(exists=True, guid=_newest(zvol)[1], token=token)


def _lost(name: str) -> FailedPrecondition:
    from zfsilod.host.zfs_output import lost

    return lost(name)


def _newest(zvol: Any) -> tuple[str, str]:
    """Return uid and guid of the newest snapshot that was received; "": none."""
    uid, guid = [("", ""), *zvol.get("replica_sets", {}).items()][-1]
    return str(uid), str(guid)


def _parsed(token: str) -> dict[str, Any]:
    try:
        told = record_json.loads(bytes.fromhex(token))
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _read(stream: int) -> Iterator[Any]:
    """Yield the lines of a stream behind its header."""
    data = b""
    skipped = False
    while piece := os.read(stream, READ_BYTES):
        data += piece
        if not skipped and len(data) >= RECORD_BYTES:
            data, skipped = data[RECORD_BYTES:], True
        while skipped and b"\n" in data:
            line, _newline, data = data.partition(b"\n")
            yield record_json.loads(line)
