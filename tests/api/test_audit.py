"""The audit: one record for every change, done or refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from zfsilo.v1 import service_pb2
from zfsilo.v1 import volume_pb2 as pb

from tests.api.running import DATA, TAKE, create, publish, refused
from zfsilod.ctl import main
from zfsilod.security import certificates
from zfsilod.security.audit import is_change
from zfsilod.wire.stub import SERVICES, path_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.running import Front

Records = list[dict[str, str]]


@pytest.fixture
def records(front: Front) -> Records:
    records: Records = []
    front.service.audit.write = lambda _sentence, fields: records.append(fields)
    return records


def test_every_mutation_is_a_change() -> None:
    for service in SERVICES:
        for method in service.methods:
            if "validate_only" in method.input_type.fields_by_name:
                assert is_change(path_of(method)), method.name


async def test_an_operation_is_recorded_with_its_end(front: Front, records: Records) -> None:
    api = front.role("admin", "ops")
    answer = await api.volumes.CreateVolume(create())
    (record,) = records
    assert record.pop("ZFSILO_CALLER").startswith("admin ops (certificate ")
    assert record == {
        "OBJECT_SYSTEMD_UNIT": "zfsilo-volume@data.service",
        "ZFSILO_AUDIT": "1",
        "ZFSILO_ACTION": "create",
        "ZFSILO_SUBJECT": DATA,
        "ZFSILO_VOLUME": "data",
        "ZFSILO_OPERATION": answer.operation.name.partition("/")[2],
        "ZFSILO_OUTCOME": "DONE",
    }
    front.service.executor.refresh(
        answer.operation.name.partition("/")[2]
    )  # a second signal of systemd
    assert len(records) == 1


async def test_refusals_are_found_by_their_volume(front: Front, records: Records) -> None:
    api = front.root()
    with refused("INVALID_ARGUMENT"):
        await api.volumes.CreateVolume(create(capacity_bytes=1))
    connect = pb.ConnectVolumeRequest(server="nowhere", volume="far", local_name="data")
    with refused("NOT_FOUND"):
        await api.volumes.ConnectVolume(connect)
    assert [record.get("ZFSILO_VOLUME") for record in records] == ["data", "data"]


async def test_refusals_are_recorded(front: Front, records: Records) -> None:
    with refused("PERMISSION_DENIED"):
        await front.role("reader", "mon").volumes.CreateVolume(create())
    with refused("UNAUTHENTICATED"):
        await front.as_(front.access()).volumes.DeleteVolume(pb.DeleteVolumeRequest(name=DATA))
    with refused("NOT_FOUND"):
        await front.root().volumes.PublishVolume(publish())
    outcomes = [
        (record["ZFSILO_ACTION"], record.get("ZFSILO_SUBJECT", ""), record["ZFSILO_OUTCOME"])
        for record in records
    ]
    assert outcomes == [
        ("CreateVolume", DATA, "PERMISSION_DENIED"),
        ("DeleteVolume", "", "UNAUTHENTICATED"),  # the request of a stranger is never read
        ("PublishVolume", DATA, "NOT_FOUND"),
    ]
    assert records[1]["ZFSILO_CALLER"] == "nobody (127.0.0.1)"


async def test_an_answer_is_not_a_refusal(front: Front, records: Records) -> None:
    root, take = front.root(), front.role("host", "take")
    await root.volumes.CreateVolume(create(hosts=["take"]))
    records.clear()
    fetch = pb.FetchConnectionRequest(name=DATA)
    with refused("FAILED_PRECONDITION", "NOT_PUBLISHED"):
        await take.volumes.FetchConnection(fetch)
    assert records == [], "the normal way of a connect"
    with refused("NOT_FOUND"):
        await front.role("host", "other").volumes.FetchConnection(fetch)
    assert [record["ZFSILO_ACTION"] for record in records] == ["FetchConnection"]


async def test_a_record_without_a_subject_is_a_sentence(front: Front) -> None:
    sentences: list[str] = []
    front.service.audit.write = lambda sentence, _fields: sentences.append(sentence)
    front.service.audit.record("root", "SyncVolumes", "", outcome="DONE")
    assert sentences == ["root: SyncVolumes: done"]


async def test_a_failed_operation_is_one_record(front: Front, records: Records) -> None:
    front.fixture.host.facts.light_fuse(1, when="after", how="error")
    with refused("INTERNAL"):
        await front.root().volumes.CreateVolume(create())
    assert [record["ZFSILO_OUTCOME"] for record in records] == ["ROLLED_BACK"]


async def test_reads_are_not_recorded_but_fetched_secrets_are(
    front: Front, records: Records
) -> None:
    root = front.root()
    await root.volumes.CreateVolume(create())
    await root.volumes.PublishVolume(publish())
    records.clear()
    await root.volumes.GetVolume(pb.GetVolumeRequest(name=DATA))
    planned = create("more")
    planned.validate_only = True
    await root.volumes.CreateVolume(planned)
    names = pb.FetchConnectionRequest(name=DATA, host=TAKE, view=pb.CONNECTION_VIEW_NAMES)
    await root.volumes.FetchConnection(names)
    take = front.role("host", "take")
    answer = await take.volumes.FetchConnection(pb.FetchConnectionRequest(name=DATA))
    request = certificates.make_request().certificate_pem.decode()
    await take.service.RenewCertificate(service_pb2.RenewCertificateRequest(request=request))
    assert [record["ZFSILO_ACTION"] for record in records] == [
        "FetchConnection",
        "RenewCertificate",
    ]
    assert answer.chap.password not in str(records)


async def test_a_hostile_name_stays_on_one_line(front: Front, records: Records) -> None:
    with refused("INVALID_ARGUMENT"):
        await front.root().volumes.DeleteVolume(
            pb.DeleteVolumeRequest(name="a\nZFSILO_CALLER=root\n" + "x" * 1000)
        )
    (record,) = records
    assert "\n" not in record["ZFSILO_SUBJECT"]
    assert len(record["ZFSILO_SUBJECT"]) <= 300


def test_zfsiloctl_shows_records_of_root_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {
        "__REALTIME_TIMESTAMP": "1700000000000000",
        "_UID": "0",
        "ZFSILO_AUDIT": "1",
        "ZFSILO_CALLER": "uid 0 (unix)",
        "ZFSILO_ACTION": "create",
        "ZFSILO_OUTCOME": "DONE",
        "ZFSILO_SUBJECT": "volumes/data",
        "ZFSILO_VOLUME": "data",
    }
    forged = entry | {"_UID": "1000", "ZFSILO_CALLER": "forged"}
    failed = entry | {"ZFSILO_OUTCOME": "PERMISSION_DENIED", "ZFSILO_REASON": "ROLE"}
    lines = "\n".join(json.dumps(record) for record in (entry, forged, failed))
    tool = tmp_path / "journalctl"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}\nEND\n")
    tool.chmod(0o755)
    monkeypatch.setenv("ZFSILO_TOOLS_PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("ZFSILO_SIMULATE", str(tmp_path))
    assert main(["audit"]) == 0
    shown = capsys.readouterr().out
    assert "2023-11-14T22:13:20Z" in shown
    assert "forged" not in shown
    assert main(["audit", "--refused", "--json"]) == 0
    assert [record["reason"] for record in json.loads(capsys.readouterr().out)["records"]] == [
        "ROLE"
    ]
