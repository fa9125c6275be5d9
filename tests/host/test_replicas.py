"""Streams of replication, against a made-up zfs(8) with the words of OpenZFS 2.3."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from zfsilod.host.replicas import RealReplicas
from zfsilod.host.run import Completed, Runner
from zfsilod.host.send_stream import BEGIN, MAGIC, RECORD_BYTES, SUBSTREAM
from zfsilod.host.stream_header import RAW, RESUMING, ZVOL_TYPE, parse_header, peek
from zfsilod.host.zfs import RealZfs
from zfsilod.model.errors import (
    CommandFailed,
    Conflict,
    FailedPrecondition,
    ResourceExhausted,
    Unavailable,
)
from zfsilod.model.host_facts import SnapshotRef
from zfsilod.model.replica import SendJob

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.model.errors import ZfsiloError

NAME = "tank/zfsilo/data"
UID, SET, FORMER = "a" * 32, "c" * 32, "b" * 32
GUID, BASE = "6623598165756741629", "17"
TOKEN = "1-e3267b170-f0-789c63"
TOLD = """resume token contents:
nvlist version: 0
\tobject = 0x1
\toffset = 0x954000
\tbytes = 0x985b40
\ttoguid = 0x5bebbf703cdc07fd
\ttoname = tank/r@1
\tembedok = 1
\tcompressok = 1
full\ttank/r@1\t24067128
size\t24067128
"""
REF = SnapshotRef(dataset=NAME, uid=UID, guid=GUID)
JOB = SendJob(dataset=NAME, volume_uid=UID, uid=SET, guid=GUID)
MARKS = (("zfsilo:replica", "give"), ("zfsilo:uid", UID))


def header(guid: str, base: str = "", *, features: int = 0, objects: int = ZVOL_TYPE) -> bytes:
    """Return the first record of a stream."""
    fields = (BEGIN, 0, MAGIC, SUBSTREAM | features << 2, 0, objects, 0, int(guid), int(base or 0))
    return struct.pack("<IIQQQIIQQ", *fields).ljust(RECORD_BYTES, b"\0")


class Pool(Runner):
    """A zfs with datasets, snapshots and bookmarks by name, each with some properties."""

    def __init__(self) -> None:
        super().__init__()
        self.datasets: dict[str, dict[str, tuple[str, str]]] = {"tank": {}}
        self.holds: dict[str, set[str]] = {}
        self.changes: list[str] = []
        self.cloned: set[str] = set()
        self.answer = Completed((), 0, "", "")
        self.received = b""
        self.arrives = ""  # a snapshot that the next receive makes

    def add(self, name: str, guid: str, **properties: tuple[str, str]) -> None:
        """Add a dataset, snapshot or bookmark."""
        self.datasets[name] = {"guid": (guid, "-"), "createtxg": (str(len(self.datasets)), "-")}
        self.datasets[name] |= properties

    def replica(self, token: str = "-") -> None:
        """Add the replica."""
        mark = {"zfsilo:uid": (UID, "local")}
        self.add(NAME, "1", type=("volume", "-"), receive_resume_token=(token, "-"), **mark)

    def tags(self, name: str) -> list[str]:
        """Return the holds of a snapshot."""
        return sorted(self.holds.get(name, ()))

    def __call__(self, argv: list[str], **_how: object) -> Completed:
        tool, command, *words = argv
        assert tool == "zfs"
        if command == "get":
            return self._get(argv, words)
        if command == "holds":
            names = [word for word in words if word != "-H"]
            lines = [f"{name}\t{tag}\tMon\n" for name in names for tag in self.tags(name)]
            return Completed(tuple(argv), 0, "".join(lines), "")
        if command == "send":
            return Completed(tuple(argv), 0, TOLD, "")
        self.changes.append(" ".join([command, *words]))
        match command:
            case "hold":
                self.holds.setdefault(words[1], set()).add(words[0])
            case "release":
                self.holds[words[1]].discard(words[0])
            case "bookmark":
                self.add(words[1], self.datasets[words[0]]["guid"][0])
            case "destroy" if words[-1] in self.cloned:
                self.datasets[words[-1]]["defer_destroy"] = ("on", "-")
            case "destroy":
                del self.datasets[words[-1]]
            case "receive":
                self.datasets[NAME]["receive_resume_token"] = ("-", "-")
        return Completed(tuple(argv), 0, "", "")

    def _get(self, argv: list[str], words: list[str]) -> Completed:
        asked = words[words.index("name,property,value,source") + 1].split(",")
        names = words[words.index("name,property,value,source") + 2 :]
        if "-r" in words:
            signs = "@#" if "snapshot,bookmark" in words else "@"
            stems = tuple(f"{names[0]}{sign}" for sign in signs)
            names = [name for name in self.datasets if name.startswith(stems)]
        rows, errors = "", ""
        for name in names:
            if name not in self.datasets:
                absent = "no such pool or dataset" if "#" in name else "dataset does not exist"
                errors += f"cannot open '{name}': {absent}\n"
                continue
            for one in asked:
                value, source = self.datasets[name].get(one, ("-", "-"))
                if one == "userrefs" and "@" in name:
                    value = str(len(self.tags(name)))
                rows += f"{name}\t{one}\t{value}\t{source}\n"
        return Completed(tuple(argv), bool(errors), rows, errors)

    def stream(
        self, argv: list[str], *, stdin: int = -1, stdout: int = -1, timeout_s: float
    ) -> Completed:
        """Receive, or send, a whole stream."""
        assert timeout_s > 0
        self.changes.append(" ".join(argv[1:]))
        if stdin >= 0:
            while piece := os.read(stdin, 65536):
                self.received += piece
            if self.arrives:
                self.add(self.arrives, GUID)
        return self.answer


def replicas(pool: Pool, stream: bytes = b"") -> RealReplicas:
    """Return the adapter; a receive gets these bytes."""

    def open_stream(operation: str) -> int:
        assert operation == "01jd"
        ours, theirs = socket.socketpair()
        with ours:
            ours.sendall(stream)
        return theirs.detach()

    return RealReplicas(pool, RealZfs(pool), open_stream)


def receive(
    adapter: RealReplicas, *, base: str = "", raw: bool = False, dataset: str = NAME
) -> None:
    """Receive the snapshot."""
    adapter.receive(
        dataset,
        uid=UID,
        snapshot_uid=SET,
        guid=GUID,
        base_guid=base,
        raw=raw,
        marks=MARKS,
        operation="01jd",
    )


def test_the_header_is_read_and_left_in_the_socket() -> None:
    ours, theirs = socket.socketpair()
    whole = header(GUID, BASE, features=RAW | RESUMING) + b"data"
    with ours, theirs:
        for part in (whole[:8], whole[8:300], whole[300:]):  # it comes in pieces
            ours.sendall(part)
        parsed = parse_header(NAME, peek(theirs.fileno()))
        assert (parsed.guid, parsed.base_guid, parsed.raw, parsed.resuming) == (
            GUID,
            BASE,
            True,
            True,
        )
        assert theirs.recv(1000, socket.MSG_WAITALL | socket.MSG_DONTWAIT) == whole


@pytest.mark.parametrize(
    "record",
    [b"x" * 312, header(GUID, objects=2), header(GUID, features=1 << 21)],
)
def test_what_is_not_the_stream_of_one_zvol_is_refused(record: bytes) -> None:
    with pytest.raises(FailedPrecondition, match="whole stream of one zvol") as raised:
        parse_header(NAME, record)
    assert raised.value.reason == "OTHER_STREAM"


@pytest.mark.parametrize("count", [0, 100, 311])
def test_a_stream_that_ends_within_its_first_record_was_cut(count: int) -> None:
    pool = Pool()
    with pytest.raises(Unavailable) as raised:
        receive(replicas(pool, header(GUID)[:count]))
    assert (raised.value.reason, pool.changes) == ("STREAM_CUT", [])


def test_the_first_receive_sets_marks_and_properties() -> None:
    pool = Pool()
    pool.arrives = f"{NAME}@zfsilo-{SET}"
    adapter = replicas(pool, header(GUID) + b"data")
    pool_has = pool.stream

    def stream(argv: list[str], **how: int) -> Completed:
        done = pool_has(argv, timeout_s=1, **how)
        pool.replica()
        return done

    pool.stream = lambda argv, **how: stream(argv, stdin=how["stdin"])  # type: ignore[method-assign]
    receive(adapter)
    (command,) = pool.changes
    assert command == (
        "receive -s -u -o readonly=on -o volmode=dev -o snapdev=hidden -o zfsilo:replica=give "
        f"-o zfsilo:uid={UID} {NAME}@zfsilo-{SET}"
    )
    assert pool.received == header(GUID) + b"data"
    receive(adapter)
    assert len(pool.changes) == 1, "it has the snapshot already"


@pytest.mark.parametrize(
    ("stream", "base", "raw"),
    [
        (header("18"), "", False),
        (header(GUID, "18"), BASE, False),
        (header(GUID), BASE, False),
        (header(GUID, BASE), "", False),
        (header(GUID), "", True),
        (header(GUID, features=RAW), "", False),
    ],
)
def test_a_stream_that_was_not_agreed_on_is_never_received(
    stream: bytes, base: str, raw: bool
) -> None:
    pool = Pool()
    with pytest.raises(FailedPrecondition) as raised:
        receive(replicas(pool, stream), base=base, raw=raw)
    assert raised.value.reason == "OTHER_STREAM"
    assert pool.changes == []


def test_a_zvol_that_is_not_the_replica_is_never_written() -> None:
    pool = Pool()
    pool.add(NAME, "1", type=("volume", "-"))
    with pytest.raises(Conflict) as raised:
        receive(replicas(pool, header(GUID)))
    assert (raised.value.reason, pool.changes) == ("NOT_OURS", [])


@pytest.mark.parametrize("features", [0, RESUMING])
def test_an_unfinished_receive_is_continued_or_ended(features: int) -> None:
    pool = Pool()
    pool.replica(TOKEN)
    pool.arrives = f"{NAME}@zfsilo-{SET}"
    receive(replicas(pool, header(GUID, features=features)))
    dropped = [] if features else [f"receive -A {NAME}"]
    assert pool.changes == [*dropped, f"receive -s -u {NAME}@zfsilo-{SET}"]


def test_a_replica_without_a_snapshot_is_made_again_by_the_first_receive() -> None:
    """A deletion ended between the last snapshot and the zvol; zfs never receives into that."""
    pool = Pool()
    pool.replica()
    pool.arrives = f"{NAME}@zfsilo-{SET}"
    with pytest.raises(Unavailable):  # this zfs(8) makes no zvol
        receive(replicas(pool, header(GUID)))
    destroyed, received = pool.changes
    assert destroyed == f"destroy {NAME}"
    assert received.startswith("receive -s -u -o readonly=on ")


def test_a_replica_with_another_snapshot_is_not_destroyed_by_a_first_receive() -> None:
    pool = Pool()
    pool.replica()
    pool.add(f"{NAME}@zfsilo-{FORMER}", BASE)
    pool.answer = Completed((), 1, "", "destination exists\nmust specify -F to overwrite it\n")
    with pytest.raises(FailedPrecondition) as raised:
        receive(replicas(pool, header(GUID)))
    assert raised.value.reason == "REPLICA_CHANGED"
    assert pool.changes == [f"receive -s -u {NAME}@zfsilo-{SET}"]


@pytest.mark.parametrize(
    ("said", "kind", "reason"),
    [
        ("cannot receive new filesystem stream: out of space", ResourceExhausted, "NO_SPACE"),
        (
            (
                "cannot receive incremental stream: destination tank/t/r has been modified\n"
                "since most recent snapshot"
            ),
            FailedPrecondition,
            "REPLICA_CHANGED",
        ),
        (
            (
                "cannot receive incremental stream: most recent snapshot of tank/t/r does not\n"
                "match incremental source"
            ),
            FailedPrecondition,
            "REPLICA_CHANGED",
        ),
        (
            "cannot receive: stream has unsupported feature, feature flags = 8000",
            FailedPrecondition,
            "FEATURE_MISSING",
        ),
        (
            (
                "cannot receive new filesystem stream: checksum mismatch or incomplete stream.\n"
                "Partially received snapshot is saved."
            ),
            Unavailable,
            "STREAM_CUT",
        ),
        ("cannot receive: failed to read from stream", Unavailable, "STREAM_CUT"),
        (
            "cannot receive new filesystem stream: pool I/O is currently suspended",
            Unavailable,
            "STREAM_CUT",
        ),
        (
            "cannot receive: dataset 'tank/quota-newer-feature' does not know",
            CommandFailed,
            "COMMAND_FAILED",
        ),
    ],
)
def test_a_failed_receive_says_what_to_do(said: str, kind: type[ZfsiloError], reason: str) -> None:
    pool = Pool()
    pool.answer = Completed(("zfs",), 1, "", f"{said}\n")
    with pytest.raises(kind) as raised:
        receive(replicas(pool, header(GUID)), dataset="tank/quota-newer-feature")
    assert raised.value.reason == reason


@pytest.mark.parametrize(
    "said",
    [
        f"warning: cannot send '{NAME}@zfsilo-{SET}': Broken pipe",
        f"warning: cannot send '{NAME}@zfsilo-{SET}': Connection reset by peer",
        f"warning: cannot send '{NAME}@zfsilo-{SET}': pool I/O is currently suspended",
        "warning: cannot send: Resource temporarily unavailable",
    ],
)
def test_a_peer_that_takes_nothing_more_is_a_cut_stream(said: str) -> None:
    pool = Pool()
    pool.add(f"{NAME}@zfsilo-{SET}", GUID)
    pool.answer = Completed(("zfs",), 1, "", f"{said}\n")
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(Unavailable) as raised:
        replicas(pool).send(JOB, ours.fileno())
    assert raised.value.reason == "STREAM_CUT"


@pytest.mark.parametrize("how", ["silent", "reset"])
def test_a_peer_that_sends_no_header_is_a_cut_stream(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("zfsilod.host.replicas.STALL_S", 0)
    monkeypatch.setattr("zfsilod.host.replicas.STALL_US", 1000)
    ours, theirs = socket.socketpair()
    ours.sendall(header(GUID)[:100])
    if how == "reset":
        theirs.sendall(b"not read")
        ours.close()
    pool = Pool()
    with ours, pytest.raises(Unavailable) as raised:
        receive(RealReplicas(pool, RealZfs(pool), lambda _operation: theirs.detach()))
    assert (raised.value.reason, pool.changes) == ("STREAM_CUT", [])


def test_a_token_is_used_for_exactly_its_job_only() -> None:
    adapter = replicas(Pool())
    job = JOB.but(token=TOKEN)
    assert adapter.matches(job)
    assert not adapter.matches(JOB)
    for other in (
        job.but(guid="18"),
        job.but(base_guid=BASE),
        job.but(raw="raw"),
        job.but(token="-t;reboot"),
        job.but(token="1" * 5000),
    ):
        assert not adapter.matches(other)


@pytest.mark.parametrize(
    ("job", "options"),
    [
        (JOB, f"-c -L -e {NAME}@zfsilo-{SET}"),
        (JOB.but(raw="raw"), f"-w {NAME}@zfsilo-{SET}"),
        (
            JOB.but(base_uid=FORMER, base_guid=BASE),
            f"-c -L -e -i {NAME}#zfsilo-{FORMER} {NAME}@zfsilo-{SET}",
        ),
        (JOB.but(token=TOKEN), f"-t {TOKEN}"),
    ],
)
def test_what_is_sent(job: SendJob, options: str) -> None:
    pool = Pool()
    pool.add(f"{NAME}@zfsilo-{SET}", GUID)
    adapter = replicas(pool)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        adapter.send(job, ours.fileno())
    assert pool.changes == [f"send {options}"]
    assert adapter.find_size(job) == 24067128


def test_another_snapshot_of_the_name_is_not_sent() -> None:
    pool = Pool()
    pool.add(f"{NAME}@zfsilo-{SET}", "18")
    with pytest.raises(Conflict):
        replicas(pool).send(JOB, 1)
    assert pool.changes == []


def test_a_snapshot_is_kept_once_and_released_from_any_half() -> None:
    pool = Pool()
    snapshot, bookmark = f"{NAME}@zfsilo-{SET}", f"{NAME}#zfsilo-{SET}"
    pool.add(snapshot, GUID)
    adapter = replicas(pool)
    assert not adapter.is_kept(REF, SET, "other")
    adapter.keep(REF, SET, "other")
    adapter.keep(REF, SET, "other")
    assert pool.changes == [f"hold zfsilo:peer:other {snapshot}", f"bookmark {snapshot} {bookmark}"]
    assert adapter.is_kept(REF, SET, "other")
    assert not adapter.is_kept(REF, SET, "another")
    halves: tuple[Callable[[], object], ...] = (
        lambda: None,
        lambda: pool.datasets.pop(bookmark),
        lambda: pool.holds.clear(),
        lambda: pool.datasets.pop(snapshot),
    )
    for lose in halves:
        pool.add(snapshot, GUID)
        adapter.keep(REF, SET, "other")
        lose()
        adapter.release(REF, SET, "other")
        adapter.release(REF, SET, "other")
        assert bookmark not in pool.datasets
        assert not pool.holds.get(snapshot) or snapshot not in pool.datasets


def test_with_its_last_snapshot_a_replica_is_gone() -> None:
    pool = Pool()
    pool.replica()
    pool.add(f"{NAME}@zfsilo-{FORMER}", BASE)
    pool.add(f"{NAME}@zfsilo-{SET}", GUID)
    adapter = replicas(pool)
    assert adapter.find(NAME, uid=UID).guid == GUID
    for uid in (FORMER, FORMER):
        adapter.destroy_received(NAME, uid=UID, snapshot_uid=uid, guid="")
    assert adapter.find(NAME, uid=UID).guid == GUID
    adapter.destroy_received(NAME, uid=UID, snapshot_uid=SET, guid="")
    assert not adapter.find(NAME, uid=UID).exists
    assert pool.changes == [
        f"destroy -d {NAME}@zfsilo-{FORMER}",
        f"destroy -d {NAME}@zfsilo-{SET}",
        f"destroy {NAME}",
    ]


def test_a_snapshot_with_a_clone_is_released() -> None:
    pool = Pool()
    pool.replica()
    pool.add(f"{NAME}@zfsilo-{FORMER}", BASE)
    pool.add(f"{NAME}@zfsilo-{SET}", GUID)
    pool.cloned.add(f"{NAME}@zfsilo-{FORMER}")
    adapter = replicas(pool)
    adapter.destroy_received(NAME, uid=UID, snapshot_uid=FORMER, guid="")
    assert not adapter.has_received(NAME, uid=UID, snapshot_uid=FORMER, guid=BASE)
    assert adapter.find(NAME, uid=UID).guid == GUID


def test_what_is_kept_for_peers() -> None:
    pool = Pool()
    replicas = RealReplicas(pool, RealZfs(pool))
    assert replicas.list_kept(NAME, uid=UID) == ()
    pool.replica()
    for name in (f"{NAME}@zfsilo-{SET}", f"{NAME}@by-hand", f"{NAME}@zfsilo-{UID}"):
        pool.add(name, GUID)
    pool.add(f"{NAME}#zfsilo-{SET}", GUID)
    pool.add(f"{NAME}#zfsilo-{FORMER}", BASE)
    pool.holds[f"{NAME}@zfsilo-{SET}"] = {"zfsilo:peer:a", "zfsilo:peer:b", "by-hand"}
    held, free, former = replicas.list_kept(NAME, uid=UID)
    assert (held.uid, held.guid, held.exists, held.bookmarked) == (SET, GUID, True, True)
    assert held.peers == ("a", "b")
    assert (free.uid, free.exists, free.bookmarked, free.peers) == (UID, True, False, ())
    assert (former.uid, former.guid, former.exists, former.peers) == (FORMER, BASE, False, ())
    assert held.created_txg < former.created_txg
    with pytest.raises(Conflict):
        replicas.list_kept(NAME, uid=FORMER)
