"""Replicas of the simulated host, and their streams.

A stream has the header of a real one, then a line of JSON for each block of the snapshot, or of the
difference, and a last line. What came of a stream that is cut off is the part `receiving` of the
fact `zvol:DATASET`; its token tells how many lines that is.
"""

from __future__ import annotations

import os
import struct

from zfsilod.host.fake.snapshot_sets import guid_of
from zfsilod.host.replica_protocol import stream_cut
from zfsilod.host.send_stream import BEGIN, MAGIC, RECORD_BYTES, SUBSTREAM
from zfsilod.host.stream_header import RAW, RESUMING, ZVOL_TYPE, read_header
from zfsilod.model.errors import FailedPrecondition
from zfsilod.model.host_facts import SnapshotRef
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.replica import ReplicaFacts
from zfsilod.storage import record_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from zfsilod.host.fake.snapshots import FakeSnapshots
    from zfsilod.model.record import Pairs
    from zfsilod.model.replica import SendJob

READ_BYTES = 65536
END = {"end": True}


class FakeReplicas:
    """Replicas as facts: `peer:UID/PEER` of what is kept, and the zvols and sets of a peer."""

    def __init__(self, snapshots: FakeSnapshots, open_stream: Callable[[str], int]) -> None:
        self._snapshots = snapshots
        self._zfs = snapshots.zfs
        self._facts = snapshots.facts
        self._open_stream = open_stream

    # On the server that sends

    def is_kept(self, ref: SnapshotRef, uid: str, peer: str) -> bool:
        return self._facts.get(f"peer:{ref.uid}/{uid}/{peer}") is not None

    def keep(self, ref: SnapshotRef, uid: str, peer: str) -> None:
        self._need(ref, uid)
        if not self.is_kept(ref, uid, peer):
            self._facts.effect(f"peer:{ref.uid}/{uid}/{peer}", "kept")

    def release(self, ref: SnapshotRef, uid: str, peer: str) -> None:
        if self.is_kept(ref, uid, peer):
            self._facts.effect(f"peer:{ref.uid}/{uid}/{peer}", None)

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
        lines = [first, *({"block": n, "text": blocks.get(n)} for n in numbers), END]
        skip = _parsed(job.token).get("lines", 0)
        return [record_json.dumps(line) + b"\n" for line in lines[skip:]]

    def _kept_blocks(self, job: SendJob) -> dict[str, str]:
        base = SnapshotRef(dataset=job.dataset, uid=job.volume_uid, guid=job.base_guid)
        older = self._need(base, job.base_uid)
        blocks: dict[str, str] = older.get("blocks", {}).get(job.volume_uid, {})
        return blocks

    def _need(self, ref: SnapshotRef, uid: str) -> Any:
        if not self._snapshots.has_set((ref,), uid):
            from zfsilod.host.zfs_output import lost

            raise lost(f"{ref.dataset}@zfsilo-{uid}")
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
                if line == END:
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
        first, *blocks, _end = lines
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
        self._facts.effect(
            f"zvol:{dataset}",
            whole,
            also={f"replica-blocks:{uid}": present, f"replica-content:{uid}": first["content"]},
        )

    def destroy_received(self, dataset: str, *, uid: str, snapshot_uid: str, guid: str) -> None:
        if not self._zfs.has_zvol(dataset, uid=uid, guid=""):
            return
        zvol = self._zfs.zvol(dataset)
        if not {*zvol["replica_sets"]} - {snapshot_uid}:
            also = {f"replica-blocks:{uid}": None, f"replica-content:{uid}": None}
            self._facts.effect(f"zvol:{dataset}", None, also=also)
        elif snapshot_uid in zvol["replica_sets"]:
            left = {name: one for name, one in zvol["replica_sets"].items() if name != snapshot_uid}
            self._facts.effect(f"zvol:{dataset}", zvol | {"replica_sets": left})

    def find(self, dataset: str, *, uid: str) -> ReplicaFacts:
        if not self._zfs.has_zvol(dataset, uid=uid, guid=""):
            return ReplicaFacts()
        zvol = self._zfs.zvol(dataset)
        token = ""
        if receiving := zvol.get("receiving"):
            told = receiving | {"lines": len(receiving["lines"])}
            token = record_json.dumps(told).hex()
        return ReplicaFacts(exists=True, guid=_newest(zvol)[1], token=token)


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
