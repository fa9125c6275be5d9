"""Requests and responses of HTTP/JSON, with the fields of the proto and no library.

    from zfsilod.ctl import messages as pb
    pb.GetVolumeRequest(name="volumes/data")

zfsilo/v1/schema.py, which is made from the proto, names the fields. A field that is absent has its
default; a value of an enumeration is its name, and also an attribute: pb.STATE_MOUNTED.
"""

from __future__ import annotations

from zfsilo.v1.schema import ENUMS, MESSAGES

from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

DAYS_TO_1970 = 719468  # from the first of March of the year 0
ERA_DAYS, ERA_YEARS = 146097, 400


class Stamp:
    """A time, in whole seconds since 1970; 0: it is not set."""

    def __init__(self, seconds: int = 0) -> None:
        self.seconds = seconds

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stamp) and other.seconds == self.seconds

    def __hash__(self) -> int:
        return self.seconds


class Message:
    """A message: made from fields, or of what a server sent."""

    _kind: str
    _content: dict[str, Any]
    _set: set[str]

    def __init__(self, kind: str, content: dict[str, Any] | None = None) -> None:
        self.__dict__["_kind"] = kind
        self.__dict__["_content"] = {} if content is None else content
        self.__dict__["_set"] = set()

    def __getattr__(self, name: str) -> Any:
        """Return a field, converted on first use: a list has hundreds that nobody reads."""
        value = _decoded(self._code(name), self._content.get(name))
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        self._code(name)
        self.__dict__[name] = value
        self._set.add(name)

    def HasField(self, name: str) -> bool:
        """Tell whether a message or a value with presence is set."""
        self._code(name)
        return name in self._content or name in self._set

    def CopyFrom(self, other: Message) -> None:
        """Take the fields of another message of this kind."""
        self.__dict__.clear()
        self.__init__(other._kind, other.encoded())  # type: ignore[misc]

    def plain(self) -> dict[str, Any]:
        """Return what the server sent."""
        return self._content

    def encoded(self) -> dict[str, Any]:
        """Return the message as JSON, without fields that have their default."""
        fields = {}
        for name, code in MESSAGES[self._kind].items():
            if self.__dict__.get(name) is not None:
                value = _encoded(code, self.__dict__[name])
                if value not in ("", 0, [], {}) or code[0] == "?":
                    fields[name] = value
            elif name in self._content:
                fields[name] = self._content[name]
        return fields

    def _code(self, name: str) -> str:
        code = MESSAGES[self._kind].get(name)
        if code is None:
            raise AttributeError(f"{self._kind} has no field {name}")
        return code


def parsed(kind: str, content: dict[str, Any]) -> Message:
    """Return the message that a server sent."""
    return Message(kind, content)


def _decoded(code: str, value: Any) -> Any:
    mark, kind = code[0], code[1:]
    match mark:
        case "*":
            return [_decoded(kind, entry) for entry in value or ()]
        case "%":
            return {name: _decoded(kind, entry) for name, entry in (value or {}).items()}
        case "?":
            return _decoded(kind, value)
        case "m":
            return Message(kind, value)
        case "e":
            return value or ENUMS[kind][0]
        case "t":
            return Stamp(seconds_of(value)) if value else Stamp()
        case "k":
            return value.split(",") if value else []
        case "i" | "l":
            return int(value or 0)  # 64 bits are a text
        case "b":
            return bool(value)
    return value or ""


def _encoded(code: str, value: Any) -> Any:
    mark, kind = code[0], code[1:]
    match mark:
        case "*":
            return [_encoded(kind, entry) for entry in value]
        case "?":
            return _encoded(kind, value)
        case "m":
            return value.encoded()
        case "e":
            return "" if value == ENUMS[kind][0] else value
        case "k":
            return ",".join(value)
    return value


def seconds_of(text: str) -> int:
    """Return the seconds since 1970 of a time in RFC 3339, UTC.

    Years begin in March here, so that the day of a leap year is the last.
    """
    year, month, day = int(text[:4]), int(text[5:7]), int(text[8:10])
    year -= month < 3
    of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    era, of_era = divmod(year, ERA_YEARS)
    days = era * ERA_DAYS + of_era * 365 + of_era // 4 - of_era // 100 + of_year - DAYS_TO_1970
    hours, minutes, seconds = int(text[11:13]), int(text[14:16]), int(text[17:19])
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def __getattr__(name: str) -> Any:
    """Return the maker of a message, or the value of an enumeration."""
    if name in MESSAGES:
        return _maker(name)
    if any(name in names for names in ENUMS.values()):
        return name
    raise AttributeError(f"zfsilo.v1 has no {name}")


def _maker(kind: str) -> Callable[..., Message]:
    def make(**fields: Any) -> Message:
        message = Message(kind)
        for name, value in fields.items():
            setattr(message, name, value)
        return message

    return make
