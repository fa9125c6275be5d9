"""Replicas of zvols, through zfs(8): what a server keeps for a peer, sends, and receives.

A stream has no properties: `zfs send` without -p. So the marks of a replica are local ones, which
the receive sets, and it belongs to zfsilo as other zvols do. A receive never forces a rollback
(`zfs receive -F`).
"""

from __future__ import annotations

import os
import struct

from zfsilod.host.kept_snapshots import HOLD, parse_kept
from zfsilod.host.replica_protocol import no_stream, stream_cut
from zfsilod.host.snapshots import checked_uid
from zfsilod.host.stream_header import read_header
from zfsilod.host.zfs import ANY, CHANGE_TIMEOUT_S, READ_TIMEOUT_S, UID
from zfsilod.host.zfs_output import (
    Properties,
    asked,
    first_line,
    foreign,
    lost,
    no_pool,
    own_marks,
    pool_of,
    property_options,
    refused,
    table,
)
from zfsilod.model.errors import FailedPrecondition, ResourceExhausted
from zfsilod.model.lean import TYPE_CHECKING, socket
from zfsilod.model.names import check_dataset
from zfsilod.model.replica import ReplicaFacts, is_token

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.host.run import Completed, Runner
    from zfsilod.host.zfs import RealZfs
    from zfsilod.model.errors import ZfsiloError
    from zfsilod.model.host_facts import SnapshotRef
    from zfsilod.model.record import Pairs
    from zfsilod.model.replica import KeptSnapshot, SendJob

PROPERTIES = (("readonly", "on"), ("volmode", "dev"), ("snapdev", "hidden"))
KEPT_BLOCKS = ("-c", "-L", "-e")  # compressed, large and embedded blocks as they are: zfs-send(8)
RELEASED = "defer_destroy"  # of a snapshot that is destroyed with its last clone
CUT_MARK = "zfsilo:cut"  # of a snapshot that is one of zfsilo's: host/snapshots.py
TOKEN = "receive_resume_token"  # noqa: S105 - a property, no secret
ABSENT = ("dataset does not exist", "no such pool or dataset")  # the second of bookmarks
NONE = ("", "-")
SIGPIPE = -13  # the exit code of a tool that it ended
STALL_S, STALL_US = 300, 0  # the longest silence of a peer: struct timeval
LAST_S = 20 * 24 * 3600.0  # the longest time of one stream; poll(2) has 31 bits of ms
# Words for EAGAIN, also of a socket whose time is over: zfs_standard_error() of libzfs.
SILENT = ("temporarily unavailable", "pool I/O is currently suspended")
ENDED = ("Broken pipe", "signal received", "Connection reset")
CHANGED = ("has been modified", "does not match incremental source", "must specify -F")
CUT = (
    "incomplete stream",
    "failed to read from stream",
    "checksum mismatch or incomplete stream",
    "Partially received snapshot is saved",
    *SILENT,
)


class RealReplicas:
    """The replicas in the pools of this host, and the streams of its zvols; see ReplicaAdapter."""

    def __init__(
        self, run: Runner, zfs: RealZfs, open_stream: Callable[[str], int] | None = None
    ) -> None:
        self._run = run
        self._zfs = zfs
        self._open_stream = open_stream or no_stream

    # On the server that sends

    def list_kept(self, dataset: str, *, uid: str) -> tuple[KeptSnapshot, ...]:
        if not self._own(dataset, uid):
            return ()
        rows = self._below(dataset, "snapshot,bookmark", "guid", "createtxg", "userrefs")
        held = [name for name, row in rows.items() if row["userrefs"][0] not in (*NONE, "0")]
        return parse_kept(rows, self._holds(*held) if held else {})

    def is_kept(self, ref: SnapshotRef, uid: str, peer: str) -> bool:
        if not self._has_bookmark(ref, uid):
            return False
        # Without its snapshot a bookmark can still be the base of a stream.
        return not self._exists(_snapshot(ref.dataset, uid)) or self._is_held(ref, uid, peer)

    def keep(self, ref: SnapshotRef, uid: str, peer: str) -> None:
        snapshot = _snapshot(ref.dataset, uid)
        if not self._is_held(ref, uid, peer):
            done = self._change("hold", f"{HOLD}{peer}", snapshot)
            if done.rc != 0:
                raise refused(done, first_line(done), snapshot)
        if not self._has_bookmark(ref, uid):
            done = self._change("bookmark", snapshot, _bookmark(ref.dataset, uid))
            if done.rc != 0:
                raise refused(done, first_line(done), snapshot)

    def release(self, ref: SnapshotRef, uid: str, peer: str) -> None:
        if self._has_bookmark(ref, uid):
            done = self._change("destroy", _bookmark(ref.dataset, uid))
            if done.rc != 0:
                raise refused(done, first_line(done), ref.dataset)
        if self._exists(_snapshot(ref.dataset, uid)) and self._is_held(ref, uid, peer):
            done = self._change("release", f"{HOLD}{peer}", _snapshot(ref.dataset, uid))
            if done.rc != 0:
                raise refused(done, first_line(done), ref.dataset)

    def _is_held(self, ref: SnapshotRef, uid: str, peer: str) -> bool:
        snapshot = _snapshot(ref.dataset, uid)
        self._need(snapshot, ref.guid)
        return f"{HOLD}{peer}" in self._holds(snapshot).get(snapshot, ())

    def _holds(self, *snapshots: str) -> dict[str, list[str]]:
        """Return the tags of the holds of some snapshots: zfs-holds(8)."""
        done = self._run(["zfs", "holds", "-H", *snapshots], timeout_s=READ_TIMEOUT_S)
        tags: dict[str, list[str]] = {}
        for line in done.stdout.splitlines():
            name, _tab, rest = line.partition("\t")
            tags.setdefault(name, []).append(rest.partition("\t")[0])
        return tags

    def _has_bookmark(self, ref: SnapshotRef, uid: str) -> bool:
        properties = self._get(_bookmark(ref.dataset, uid), "guid")
        if properties and ref.guid and properties["guid"][0] != ref.guid:
            raise foreign(_bookmark(ref.dataset, uid), "its guid is not that of the snapshot")
        return bool(properties)

    def matches(self, job: SendJob) -> bool:
        if not job.token:
            return False
        told = self._told_by(job.token)
        return (
            _number(told.get("toguid")) == job.guid
            and _number(told.get("fromguid")) == job.base_guid
            and ("rawok" in told) == bool(job.raw)
        )

    def _told_by(self, token: str) -> dict[str, str]:
        """Return what a token says: names and values of its list, of which zfs checks the sum."""
        if not is_token(token):
            return {}
        argv = ["zfs", "send", "-nvP", "-t", token]
        done = self._run(argv, timeout_s=READ_TIMEOUT_S, ok=ANY)
        output = (done.stdout + done.stderr).splitlines()
        pairs = (line.strip().split(" = ", 1) for line in output if " = " in line)
        return {pair[0]: pair[1] for pair in pairs}

    def find_size(self, job: SendJob) -> int:
        done = self._run(["zfs", "send", "-nP", *_options(job)], timeout_s=READ_TIMEOUT_S, ok=ANY)
        name, _tab, size = (done.stdout + done.stderr).strip().rpartition("\n")[2].partition("\t")
        if done.rc != 0 or name != "size":
            raise self._not_sent(done, job)
        return int(size)

    def send(self, job: SendJob, output: int) -> None:
        self._need(_snapshot(job.dataset, job.uid), job.guid)
        _set_timeout(output, socket.SO_SNDTIMEO)
        argv = ["zfs", "send", *_options(job)]
        done = self._run.stream(argv, stdout=output, timeout_s=LAST_S)
        if done.rc != 0:
            raise self._not_sent(done, job)

    def _not_sent(self, done: Completed, job: SendJob) -> ZfsiloError:
        reason = first_line(done)
        if "does not exist" in reason:
            return lost(_bookmark(job.dataset, job.base_uid) if job.base_uid else job.dataset)
        if done.rc == SIGPIPE or any(words in reason for words in ENDED):
            return stream_cut(job.dataset, "the connection to the peer has ended")
        if any(words in reason for words in SILENT):
            return stream_cut(job.dataset, f"the peer was silent, or the pool is: {reason}")
        return refused(done, reason, job.dataset)

    # On the peer

    def has_received(self, dataset: str, *, uid: str, snapshot_uid: str, guid: str) -> bool:
        if not self._own(dataset, uid):
            return False
        snapshot = _snapshot(dataset, snapshot_uid)
        properties = self._get(snapshot, "guid", RELEASED)
        if properties and guid and properties["guid"][0] != guid:
            raise foreign(snapshot, f"its guid is {properties['guid'][0]}, not {guid}")
        return bool(properties) and properties[RELEASED][0] != "on"

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
        facts = self.find(dataset, uid=uid)
        stream = self._open_stream(operation)
        try:
            _set_timeout(stream, socket.SO_RCVTIMEO)
            header = read_header(dataset, stream)
            header.check(dataset, guid=guid, base_guid=base_guid, raw=raw)
            if facts.token and not header.resuming:  # its snapshot may be gone
                self._abort(dataset)
            elif facts.is_empty and not base_guid:  # zfs receives the first one into a new zvol
                self._zfs.destroy_zvol(dataset, uid=uid, guid="")
            done = self._received(dataset, uid, snapshot_uid, marks, stream)
        finally:
            os.close(stream)
        if done.rc != 0:
            raise self._not_received(done, dataset)
        if not self.has_received(dataset, uid=uid, snapshot_uid=snapshot_uid, guid=guid):
            raise stream_cut(dataset, "zfs receive succeeded without its snapshot")

    def _received(
        self, dataset: str, uid: str, snapshot_uid: str, marks: Pairs, stream: int
    ) -> Completed:
        first = () if self._own(dataset, uid) else (*PROPERTIES, *marks)
        options = property_options(first)
        argv = ["zfs", "receive", "-s", "-u", *options, _snapshot(dataset, snapshot_uid)]
        return self._run.stream(argv, stdin=stream, timeout_s=LAST_S)

    def _abort(self, dataset: str) -> None:
        done = self._change("receive", "-A", dataset)
        if done.rc != 0:
            raise refused(done, first_line(done), dataset)

    def _not_received(self, done: Completed, dataset: str) -> ZfsiloError:
        text = " ".join(done.stderr.split()).replace(dataset, "")  # it may have any of these words
        if "out of space" in text or "quota" in text:
            return ResourceExhausted(
                f"the pool {pool_of(dataset)} has no space for replica {dataset}: free space "
                "there; what was received is kept, replicate again to go on",
                reason="NO_SPACE",
                dataset=dataset,
            )
        if any(words in text for words in CHANGED):
            return FailedPrecondition(
                f"replica {dataset} was changed since its last snapshot: delete it and replicate "
                "the whole volume again",
                reason="REPLICA_CHANGED",
                dataset=dataset,
            )
        if "feature" in text or "unsupported" in text or "newer" in text:
            return FailedPrecondition(
                f"the pool of replica {dataset} lacks a feature of the stream: "
                f"{first_line(done)}; upgrade ZFS and the pool of the peer (zpool upgrade)",
                reason="FEATURE_MISSING",
                dataset=dataset,
            )
        if any(words in text for words in CUT):
            return stream_cut(dataset, first_line(done))
        return done.failed()

    def destroy_received(self, dataset: str, *, uid: str, snapshot_uid: str, guid: str) -> None:
        if self.find(dataset, uid=uid).token:
            self._abort(dataset)  # of the first snapshot it is the whole zvol
        if self.has_received(dataset, uid=uid, snapshot_uid=snapshot_uid, guid=guid):
            # With a clone it stays, and goes with that: as host/snapshots.py has it.
            done = self._change("destroy", "-d", _snapshot(dataset, snapshot_uid))
            if done.rc != 0:
                raise refused(done, first_line(done), dataset)
        if self.find(dataset, uid=uid).is_empty:
            self._zfs.destroy_zvol(dataset, uid=uid, guid="")

    def has_ended(self, dataset: str, *, uid: str) -> bool:
        return not self.find(dataset, uid=uid).token and not self._unmarked(dataset)

    def end_receive(self, dataset: str, *, uid: str) -> None:
        if self.find(dataset, uid=uid).token:
            self._abort(dataset)
        for snapshot, cut in self._unmarked(dataset).items():
            done = self._change("set", f"{CUT_MARK}={cut}", snapshot)
            if done.rc != 0:
                raise refused(done, first_line(done), snapshot)

    def _unmarked(self, dataset: str) -> dict[str, str]:
        """Return the snapshots that were received, which have no mark of zfsilo; their uids."""
        rows = self._below(dataset, "snapshot", "guid", CUT_MARK)
        cuts = ((name, name.partition("@zfsilo-")[2]) for name in rows)
        return {name: cut for name, cut in cuts if cut and rows[name][CUT_MARK] != (cut, "local")}

    def is_unchanged(self, dataset: str, *, uid: str, snapshot_uid: str, guid: str) -> bool:
        pool = pool_of(dataset)
        # What was written a moment ago may be in the intent log only: zpool-sync(8).
        self._run(["zpool", "sync", pool], timeout_s=CHANGE_TIMEOUT_S)
        if not self._own(dataset, uid):
            raise lost(dataset)
        rows = self._below(dataset, "snapshot", "guid", "createtxg")
        newest = max(rows, key=lambda name: int(rows[name]["createtxg"][0]), default="")
        if newest != _snapshot(dataset, snapshot_uid) or guid not in ("", rows[newest]["guid"][0]):
            return False
        return self._get(dataset, "written")["written"][0] == "0"

    def find(self, dataset: str, *, uid: str) -> ReplicaFacts:
        properties = self._own(dataset, uid)
        if not properties:
            return ReplicaFacts()
        listed = self._below(dataset, "snapshot", "guid", "createtxg", RELEASED).values()
        present = [row for row in listed if row[RELEASED][0] != "on"]
        newest = max(present, key=lambda row: int(row["createtxg"][0]), default=None)
        token = properties[TOKEN][0]
        return ReplicaFacts(
            exists=True,
            guid=newest["guid"][0] if newest else "",
            token="" if token in NONE else token,
        )

    def _own(self, dataset: str, uid: str) -> Properties:
        """Return properties of a replica; {}: it does not exist. Raises Conflict (NOT_OURS)."""
        properties = self._get(dataset, "type", UID, TOKEN)
        if properties and dict(own_marks(properties)).get("uid") != uid:
            raise foreign(dataset, f"it has no local property {UID} with the value {uid}")
        return properties

    # Both

    def _exists(self, name: str) -> bool:
        return bool(self._get(name, "guid"))

    def _need(self, snapshot: str, guid: str) -> None:
        """Raise FailedPrecondition (LOST) without a snapshot, Conflict when it is another one."""
        properties = self._get(snapshot, "guid")
        if not properties:
            raise lost(snapshot)
        if guid and properties["guid"][0] != guid:
            raise foreign(snapshot, f"its guid is {properties['guid'][0]}, not {guid}")

    def _get(self, name: str, *properties: str) -> Properties:
        """Return properties of a dataset, snapshot or bookmark; {}: it does not exist.

        The pool is in the same call, as in RealZfs.
        """
        pool = pool_of(name)
        argv = ["zfs", "get", "-Hp", "-o", "name,property,value,source", asked(properties)]
        done = self._run([*argv, name, pool], timeout_s=READ_TIMEOUT_S, ok=ANY)
        rows = table(done.stdout)
        if name in rows:
            return rows[name]
        if pool not in rows:
            raise no_pool(pool)
        if not any(words in done.stderr for words in ABSENT):
            raise refused(done, first_line(done), name)
        return {}

    def _below(self, dataset: str, kinds: str, *properties: str) -> dict[str, Properties]:
        """Return properties of the snapshots, or also the bookmarks, of a dataset."""
        argv = ["zfs", "get", "-Hp", "-r", "-d", "1", "-t", kinds]
        argv += ["-o", "name,property,value,source", asked(properties), dataset]
        return table(self._run(argv, timeout_s=READ_TIMEOUT_S).stdout)

    def _change(self, *args: str) -> Completed:
        return self._run(["zfs", *args], timeout_s=CHANGE_TIMEOUT_S, ok=ANY)


def _options(job: SendJob) -> list[str]:
    """Return the options of zfs-send(8) for a job."""
    if job.token:
        return ["-t", job.token]
    kept = ["-w"] if job.raw else [*KEPT_BLOCKS]
    base = ["-i", _bookmark(job.dataset, job.base_uid)] if job.base_uid else []
    return [*kept, *base, _snapshot(job.dataset, job.uid)]


def _set_timeout(stream: int, option: int) -> None:
    """Let reads or writes of zfs fail when the peer is silent for STALL_S."""
    opened = socket.socket(fileno=stream)
    try:
        opened.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", STALL_S, STALL_US))
    finally:
        opened.detach()


def _snapshot(dataset: str, uid: str) -> str:
    return f"{check_dataset(dataset)}@zfsilo-{checked_uid(uid)}"


def _bookmark(dataset: str, uid: str) -> str:
    return f"{check_dataset(dataset)}#zfsilo-{checked_uid(uid)}"


def _number(text: str | None) -> str:
    """Return a number of a token in decimal digits; "" for none, or 0."""
    value = int(text, 16) if text and text.startswith("0x") else 0
    return str(value) if value else ""
