"""The options of D-Bus methods: the keys of an a{sv}, their types and valid values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from zfsilod.model.errors import InvalidArgument
from zfsilod.model.record import pairs
from zfsilod.model.words import AccessMode, Mode, Restore, Transport
from zfsilod.requests.deletion import Dependents

if TYPE_CHECKING:
    from dbus_next import Variant


class Option(NamedTuple):
    """A key of an a{sv}: its type, and its valid values (none: any)."""

    signature: str
    choices: tuple[str, ...] = ()
    field: str = ""  # its name in the request, if another


OPTIONS = {
    "accept_copy": Option("b"),
    "access_mode": Option("s", get_args(AccessMode)),
    "access_modes": Option("as", get_args(AccessMode)),
    "addresses": Option("as"),
    "bytes_per_second": Option("t"),
    "calendar": Option("s"),
    "capacity_bytes": Option("t"),
    "dependents": Option("s", get_args(Dependents)),
    "encrypt": Option("b"),
    "epoch": Option("t"),
    "etag": Option("s"),
    "fence": Option("b"),
    "force": Option("b"),
    "fs_type": Option("s"),
    "grace_s": Option("u"),
    "grid": Option("s"),
    "grouped": Option("b"),
    "hosts": Option("as"),
    "id": Option("s"),
    "iqn": Option("s"),
    "labels": Option("a{ss}"),
    "limit_bytes": Option("t"),
    "limit_read_bytes": Option("t"),
    "limit_read_iops": Option("t"),
    "limit_write_bytes": Option("t"),
    "limit_write_iops": Option("t"),
    "local_name": Option("s", field="id"),
    "max_attachments": Option("u"),
    "max_delay_seconds": Option("u"),
    "mode": Option("s", get_args(Mode)),
    "mount_options": Option("as"),
    "nqn": Option("s"),
    "page_size": Option("u"),
    "page_token": Option("s"),
    "peer": Option("s"),
    "properties": Option("a{ss}"),
    "publish_if_needed": Option("b"),
    "rate": Option("t"),
    "readonly": Option("b"),
    "record_only": Option("b"),
    "restore": Option("s", get_args(Restore)),
    "select_all": Option("b"),
    "selector": Option("a{ss}"),
    "since": Option("t"),
    "source_snapshot": Option("s"),
    "source_volume": Option("s"),
    "staging_path": Option("s"),
    "state": Option("s"),  # the methods that have it check its value
    "subject": Option("s"),
    "thin": Option("b"),
    "tls": Option("b"),
    "transport": Option("s", get_args(Transport)),
    "uid": Option("s"),
    "unpublish": Option("b"),
    "validate_only": Option("b"),
    "volume": Option("s"),
    "volumes": Option("as"),
}


def read_options(options: dict[str, Variant], known: tuple[str, ...]) -> dict[str, Any]:
    """Return options as fields of a request. Raises InvalidArgument with the key."""
    for key in options:
        if key not in known:
            raise _bad(key, f"unknown option {key[:80]!r}: expected one of {', '.join(known)}")
    fields: dict[str, Any] = {}
    for key, variant in options.items():
        option, value = OPTIONS[key], variant.value
        if variant.signature != option.signature:
            text = f"option {key} has type {variant.signature}: expected {option.signature}"
            raise _bad(key, text)
        if option.choices:
            choices = value if option.signature == "as" else [value]
            if not choices:
                expected = ", ".join(option.choices)
                raise _bad(key, f"option {key} is empty: expected any of {expected}")
            for choice in choices:
                check_choice(key, choice, option.choices)
        if option.signature == "as":
            value = tuple(value)
        elif option.signature == "a{ss}":
            value = pairs(value)
        fields[option.field or key] = value
    return fields


def check_choice(key: str, value: str | None, choices: tuple[str, ...]) -> None:
    """Raise InvalidArgument for a value of an option that is not among its valid values."""
    if value is not None and value not in choices:
        expected = ", ".join(choices)
        raise _bad(key, f"invalid value {value!r} of option {key}: expected one of {expected}")


def _bad(key: str, message: str) -> InvalidArgument:
    return InvalidArgument(message, reason="BAD_OPTION", option=key[:80])
