"""The proto files: complete enumerations, documented fields, secrets in one message only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest
from zfsilo.v1 import operation_pb2, service_pb2, volume_pb2

from tests.examples import steps
from zfsilod.ctl.command_table import COMMANDS
from zfsilod.model import host_facts, records, words
from zfsilod.model.errors import InvalidArgument
from zfsilod.wire import convert, enums
from zfsilod.wire.stub import SERVICES

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, EnumDescriptor

PROTOS = sorted((Path(__file__).parents[2] / "proto/zfsilo/v1").glob("*.proto"))
ENUMS: list[tuple[Any, tuple[str, ...], EnumDescriptor]] = [
    (enums.MODES, get_args(words.Mode), volume_pb2.Mode.DESCRIPTOR),
    (enums.ACCESS_MODES, get_args(words.AccessMode), volume_pb2.AccessMode.DESCRIPTOR),
    (enums.TRANSPORTS, get_args(words.Transport), volume_pb2.Transport.DESCRIPTOR),
    (enums.RESTORES, get_args(words.Restore), volume_pb2.Restore.DESCRIPTOR),
    (
        enums.FILESYSTEM_STATES,
        get_args(words.FilesystemState),
        volume_pb2.FilesystemState.DESCRIPTOR,
    ),
    (enums.VOLUME_STATES, words.STATES, volume_pb2.State.DESCRIPTOR),
    (
        enums.OPERATION_STATES,
        get_args(words.OperationState),
        operation_pb2.OperationState.DESCRIPTOR,
    ),
    (
        enums.ACTION_STATUSES,
        get_args(words.ActionStatus),
        operation_pb2.ActionStatus.DESCRIPTOR,
    ),
]


@pytest.mark.parametrize(("enum", "names", "wire"), ENUMS)
def test_every_enum_is_complete(enum: Any, names: tuple[str, ...], wire: EnumDescriptor) -> None:
    numbers = {enum.number(name) for name in names}
    prefix = re.sub(r"(?<!^)([A-Z])", r"_\1", wire.name).upper()
    planned = {operation_pb2.OPERATION_STATE_PLANNED} if wire.name == "OperationState" else set()
    assert numbers | {0} | planned == set(wire.values_by_number)
    for name in names:
        assert wire.values_by_number[enum.number(name)].name == f"{prefix}_{name.upper()}"
        assert enum.name(enum.number(name)) == name
    assert enum.name(0, names[0]) == names[0]
    for wrong in (0, 99, -1):
        with pytest.raises(InvalidArgument):
            enum.name(wrong)
    with pytest.raises(InvalidArgument):
        enum.name(99, names[0])


def test_zfsiloctl_offers_the_enumerations_of_the_model() -> None:
    expected = {
        "--access-mode": get_args(words.AccessMode),
        "--fs-type": host_facts.FILESYSTEMS,
        "--restore": get_args(words.Restore),
        "volume list --state": words.STATES[1:],
        "operation list --state": get_args(words.OperationState),
    }
    checked = set()
    for command in COMMANDS:
        for argument in command.arguments:
            for key in (argument.names[0], f"{command.words} {argument.names[0]}"):
                if key in expected:
                    choices = argument.options["choices"]
                    assert isinstance(choices, tuple)
                    assert sorted(choices) == sorted(name.lower() for name in expected[key]), key
                    checked.add(key)
    assert checked == set(expected)


def all_messages() -> dict[str, Descriptor]:
    descriptors: dict[str, Descriptor] = {}

    def add(descriptor: Descriptor) -> None:
        if descriptor.full_name not in descriptors:
            descriptors[descriptor.full_name] = descriptor
            for field in descriptor.fields:
                if field.message_type:
                    add(field.message_type)

    for service in SERVICES:
        for method in service.methods:
            add(method.input_type)
            add(method.output_type)
    return descriptors


def test_only_two_responses_contain_secrets() -> None:
    secret = re.compile(r"password|secret|token|chap|key|digest")
    fields = {
        f"{name}.{field.name}"
        for name, descriptor in all_messages().items()
        for field in descriptor.fields
        if secret.search(field.name) and field.name not in ("page_token", "next_page_token", "key")
    }
    assert fields == {
        "zfsilo.v1.FetchConnectionResponse.chap",
        "zfsilo.v1.Chap.password",
        "zfsilo.v1.Chap.mutual_password",
        "zfsilo.v1.Chap.tls_key",
        "zfsilo.v1.ExportVolumeKeyResponse.recovery_key",
    }


@pytest.mark.parametrize("path", PROTOS, ids=lambda path: path.stem)
def test_everything_is_commented(path: Path) -> None:
    lines = path.read_text().splitlines()
    declared = re.compile(
        r"\s*(?:(?:message|enum|service|rpc) |(?:repeated |optional )?[\w.<>, ]+ = \d+;)"
    )
    for number, line in enumerate(lines):
        if declared.match(line) and not line.startswith("syntax"):
            assert lines[number - 1].strip().startswith("//"), f"{path.name}:{number + 1}: {line}"


@pytest.mark.parametrize("path", PROTOS, ids=lambda path: path.stem)
def test_a_go_client_can_be_generated(path: Path) -> None:
    """protoc-gen-go refuses a file without the path of its package."""
    assert '\noption go_package = "zfsilo.org/zfsilo/v1;zfsilov1";\n' in path.read_text()


def test_lists_of_requests_have_what_pages_need() -> None:
    for service in SERVICES:
        for method in service.methods:
            if method.name.startswith("List"):
                assert {"page_size", "page_token"} <= set(method.input_type.fields_by_name)
                assert "next_page_token" in method.output_type.fields_by_name


def test_every_enum_starts_with_unspecified() -> None:
    for file in (service_pb2, volume_pb2, operation_pb2):
        for enum in file.DESCRIPTOR.enum_types_by_name.values():
            assert enum.values_by_number[0].name.endswith("_UNSPECIFIED")


@pytest.mark.parametrize("name", ["", "operations", "operations/", "operations/01J" + "Z" * 23])
def test_invalid_operation_names(name: str) -> None:
    with pytest.raises(InvalidArgument):
        convert.operation_id(name)


def test_progress() -> None:
    actions = tuple(
        records.Action(step=step, up=True, status=status)  # type: ignore[arg-type]
        for step, status in zip(steps(), ("UNCHANGED", "DONE", "STARTED", "PENDING"), strict=False)
    )
    operation = records.Operation(
        id="o", kind="k", subject="s", title="t", actions=actions, claims=(), commit=()
    )
    assert operation.progress == 50
    assert operation.but(actions=()).progress == 0
    assert operation.but(actions=actions[:2]).progress == 99
    assert operation.but(actions=(), state="DONE").progress == 100
